//! Deleting many objects.

use std::collections::HashSet;

use aws_smithy_types::base64;
use futures_util::stream::{self, StreamExt as _};
use http::Method;
use md5::{Digest, Md5};

use crate::admission::Outcome;
use crate::admission::pacing::Keys;
use crate::admission::retry::{Class, Failure};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::operation::attempt::Operation;
use crate::operation::call::{Call, WhenLate};
use crate::protocol::bucket::is_directory_bucket;
use crate::protocol::checksum::{CRC32_HEADER, crc32, crc32_text};
use crate::protocol::error_response::{failure_of_key, name, shortened};
use crate::protocol::xml;

/// S3's limit on one request.
const BATCH: usize = 1000;
/// Requests under way at once for a service without DeleteObjects.
const CONCURRENT_DELETES: usize = 16;

/// A key that could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteFailure {
    /// The key.
    pub key: String,
    /// S3's code for it (`"AccessDenied"`).
    pub code: String,
    /// S3's message.
    pub message: String,
}

impl DeleteFailure {
    /// The failure as an error of its key.
    #[must_use]
    pub fn into_error(self, bucket: &str) -> Error {
        let Self { key, code, message } = self;
        Error::new(ErrorKind::Service, format!("s3://{bucket}/{key} could not be deleted: {code} {message}"))
            .with_bucket(bucket)
            .with_key(&key)
    }
}

impl Client {
    /// Deletes objects, 1,000 with a request, or one where the service has none for many. Keys without an object count as deleted.
    /// Returns the keys that the service refused, each with its reason. A request whose answer is late is sent again where `when_late`
    /// says so: of keys that no other objects will have, as one that is carried out late deletes whatever has the key by then.
    ///
    /// # Errors
    /// All kinds that a request can end with; some keys may be deleted then. Keys that the service wants to be asked for more
    /// slowly are asked for again, at the rate of their lanes, and are an error (`Throttled`) when the deadline comes first.
    pub async fn delete_objects(
        &self,
        bucket: &str,
        keys: &[String],
        when_late: WhenLate,
    ) -> Result<Vec<DeleteFailure>, Error> {
        let mut failures = Vec::new();
        for batch in keys.chunks(BATCH) {
            failures.append(&mut self.delete_batch(bucket, batch, when_late).await?);
        }
        Ok(failures)
    }

    async fn delete_batch(
        &self,
        bucket: &str,
        keys: &[String],
        when_late: WhenLate,
    ) -> Result<Vec<DeleteFailure>, Error> {
        let known = self.inner.store.bucket(bucket);
        let mut left = keys.to_vec();
        let mut failures = Vec::new();
        let mut operation = Operation::default();
        while !left.is_empty() {
            if known.deletes_one_by_one.is_set() {
                failures.append(&mut self.delete_one_by_one(bucket, &left).await?);
                break;
            }
            let call = deletion_of(bucket, &left)?.when_late(when_late);
            let response = match self.attempt_whole(&call, &mut operation).await {
                Ok(response) => response,
                Err(failure) => match self.recover(&call, &mut operation, failure).await {
                    Ok(()) => continue,
                    Err(error) if not_offered(&error) => {
                        let refused = self.delete_one_by_one(bucket, &left).await?;
                        // What refuses these requests too has another reason.
                        if refused.len() < left.len() {
                            known.deletes_one_by_one.set();
                        }
                        failures.extend(refused);
                        break;
                    }
                    Err(error) => return Err(error),
                },
            };
            let refused = refused_keys(&call, &response.body)?;
            let slow: Vec<Keys> = refused
                .iter()
                .filter(|(failure, _)| failure.class == Class::Throttled)
                .map(|(_, refused)| Keys::new(bucket, Some(&refused.key), true))
                .collect();
            if slow.is_empty() {
                response.permit.answered(Outcome::Admitted);
            } else {
                response.permit.refused(&slow);
            }
            drop(response);
            let (lasting, passing): (Vec<_>, Vec<_>) =
                refused.into_iter().partition(|(failure, _)| failure.class == Class::Final);
            failures.extend(lasting.into_iter().map(|(_, refused)| refused));
            // Whatever keys the service names, only those that were asked for are asked for again.
            let again: HashSet<&str> = passing.iter().map(|(_, refused)| &refused.key[..]).collect();
            left.retain(|key| again.contains(&key[..]));
            let (reasons, refused): (Vec<_>, Vec<_>) = passing.into_iter().unzip();
            // The service asks for fewer requests with whatever else is wrong.
            let worst = reasons.into_iter().max_by_key(|failure| failure.class == Class::Throttled);
            if let Some(worst) = worst.filter(|_| !left.is_empty())
                && let Err(error) = self.recover(&call, &mut operation, worst).await
            {
                if error.kind() == ErrorKind::Throttled {
                    return Err(error);
                }
                failures.extend(refused);
                break;
            }
        }
        Ok(failures)
    }

    /// For services without DeleteObjects.
    async fn delete_one_by_one(&self, bucket: &str, keys: &[String]) -> Result<Vec<DeleteFailure>, Error> {
        let mut failures = Vec::new();
        let mut deletions = stream::iter(keys.to_vec())
            .map(|key| async move {
                let deleted = self.delete_object(bucket, &key).await;
                (key, deleted)
            })
            .buffered(CONCURRENT_DELETES);
        while let Some((key, deleted)) = deletions.next().await {
            match deleted {
                Ok(()) => {}
                Err(error) if refuses_the_key(&error) => {
                    failures.push(DeleteFailure {
                        key,
                        code: error.code().map_or_else(|| error.kind().to_string(), str::to_owned),
                        message: error.message().to_owned(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(failures)
    }
}

/// The request that deletes these keys.
fn deletion_of(bucket: &str, keys: &[String]) -> Result<Call, Error> {
    let mut document =
        String::from(r#"<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>"#);
    for key in keys {
        document.push_str("<Object>");
        xml::push_text(&mut document, "Key", key);
        document.push_str("</Object>");
    }
    document.push_str("</Delete>");
    let call = Call::new("DeleteObjects", Method::POST, bucket, None)?.about(&keys[0]).flag("delete");
    let crc32 = crc32_text(crc32(document.as_bytes()));
    // S3 wants one of the two; older services know the MD5 only, and directory buckets the other.
    let call = if is_directory_bucket(bucket) {
        call.header(CRC32_HEADER, &crc32)?
    } else {
        call.header("content-md5", &base64::encode(Md5::digest(document.as_bytes())))?
            .checksum(CRC32_HEADER, &crc32)?
    };
    Ok(call.document(document)?.with_alternative())
}

/// The keys that a response says were not deleted.
fn refused_keys(call: &Call, response: &[u8]) -> Result<Vec<(Failure, DeleteFailure)>, Error> {
    let result =
        xml::parse(response).map_err(|error| call.malformed(&xml::line(&error)).with_source(error))?;
    result
        .all("Error")
        .map(|error| {
            let key =
                error.text_of("Key").ok_or_else(|| call.malformed("a failure without a key"))?.to_owned();
            let code = error.text_of("Code").and_then(name).unwrap_or("Unknown").to_owned();
            let message = shortened(error.text_of("Message").unwrap_or_default());
            let failure = failure_of_key(call.operation, &key, &code, &message);
            Ok((failure, DeleteFailure { key, code, message }))
        })
        .collect()
}

/// Whether this is the service's word on one key, and not on the bucket or on all requests.
fn refuses_the_key(error: &Error) -> bool {
    use ErrorKind::*;
    matches!(error.status(), Some(400..=499 | 501))
        && matches!(error.kind(), Denied | Conflict | PreconditionFailed | Service)
}

/// Whether the response to DeleteObjects may mean that the service has no such operation.
fn not_offered(error: &Error) -> bool {
    error.not_understood() || error.status() == Some(404) && error.code() != Some("NoSuchBucket")
}
