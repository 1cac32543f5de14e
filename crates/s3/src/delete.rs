//! Deleting many objects.

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt as _};
use http::Method;
use md5::{Digest, Md5};

use crate::answer::{name, shortened};
use crate::checksum::{base64, crc32, crc32_text};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::request::Call;
use crate::xml;

/// S3's limit on one request.
const BATCH: usize = 1000;
/// Rounds for keys that the service could not delete just now.
const ROUNDS: usize = 4;
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

impl Client {
    /// Deletes objects, 1,000 with a request, or one where the service has none for many. Keys without an object count as deleted. Returns the keys that the
    /// service refused, each with its reason.
    ///
    /// # Errors
    /// All kinds that a request can end with; some keys may be deleted then.
    pub async fn delete_objects(&self, bucket: &str, keys: &[String]) -> Result<Vec<DeleteFailure>, Error> {
        let mut failures = Vec::new();
        for batch in keys.chunks(BATCH) {
            let mut left: Vec<String> = batch.to_vec();
            for round in 1.. {
                let (passing, lasting): (Vec<_>, Vec<_>) = self
                    .delete_batch(bucket, &left)
                    .await?
                    .into_iter()
                    .partition(|failure| passes(&failure.code) && round < ROUNDS);
                failures.extend(lasting);
                // Whatever keys the service names, only those that were asked for are asked for again.
                let passing: HashSet<String> = passing.into_iter().map(|failure| failure.key).collect();
                left.retain(|key| passing.contains(key));
                if left.is_empty() {
                    break;
                }
            }
        }
        Ok(failures)
    }

    async fn delete_batch(&self, bucket: &str, keys: &[String]) -> Result<Vec<DeleteFailure>, Error> {
        let known = self.inner.store.bucket(bucket);
        if known.deletes_one_by_one.is_set() {
            return self.delete_one_by_one(bucket, keys).await;
        }
        let mut document =
            String::from(r#"<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>"#);
        for key in keys {
            document.push_str("<Object>");
            xml::push_text(&mut document, "Key", key);
            document.push_str("</Object>");
        }
        document.push_str("</Delete>");
        // S3 wants one of the two; older services know the MD5 only.
        let call = Call::new("DeleteObjects", Method::POST, bucket, None)?
            .flag("delete")
            .header("content-md5", &base64(&Md5::digest(document.as_bytes())))?
            .checksum("x-amz-checksum-crc32", &crc32_text(crc32(document.as_bytes())))?
            .document(document)?
            .with_alternative();
        let reply = match self.execute(&call).await {
            Err(error) if not_offered(&error) => {
                let failures = self.delete_one_by_one(bucket, keys).await?;
                // What refuses these requests too has another reason.
                if failures.len() < keys.len() {
                    known.deletes_one_by_one.set();
                }
                return Ok(failures);
            }
            other => other?,
        };
        let malformed = |what: &str| {
            let text = format!("DeleteObjects: the service's answer is malformed: {what}");
            call.locate(Error::new(ErrorKind::Service, text))
        };
        let result = xml::parse(&reply.body).map_err(|error| malformed(&error))?;
        result
            .all("Error")
            .map(|error| {
                Ok(DeleteFailure {
                    key: error.text_of("Key").ok_or_else(|| malformed("a failure without a key"))?.to_owned(),
                    code: error.text_of("Code").and_then(name).unwrap_or("Unknown").to_owned(),
                    message: shortened(error.text_of("Message").unwrap_or_default()),
                })
            })
            .collect()
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
                        code: error.code().unwrap_or(error.kind().name()).to_owned(),
                        message: error.message().to_owned(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(failures)
    }
}

/// Whether this is the service's word on one key, and not on the bucket or on all requests.
fn refuses_the_key(error: &Error) -> bool {
    use ErrorKind::*;
    matches!(error.status(), Some(400..=499 | 501))
        && matches!(error.kind(), Denied | Conflict | PreconditionFailed | Service)
}

/// Whether the answer to DeleteObjects may mean that the service has no such operation.
fn not_offered(error: &Error) -> bool {
    error.not_understood() || error.status() == Some(404) && error.code() != Some("NoSuchBucket")
}

fn passes(code: &str) -> bool {
    matches!(code, "InternalError" | "SlowDown" | "ServiceUnavailable" | "OperationAborted")
}
