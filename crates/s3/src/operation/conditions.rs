//! What a bucket does with conditional writes: some services ignore them, know one of the two, or never let one hold.
//!
//! Found out by writing a small object a few times, in as few steps as the questions allow: create it, twice at once
//! replace it with a condition that does not hold, replace it with one that does, delete it.

use bytes::Bytes;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::operation::object::{PutOptions, PutOutput};
use crate::protocol::conditions::{Condition, Conditions, Support, is_weak};
use crate::transfer::payload::Payload;

/// The response to [`Client::conditions`].
#[derive(Debug)]
pub struct Found {
    /// What was found out now or before.
    pub conditions: Conditions,
    /// Why the probe object could not be deleted, where it was written now.
    pub left: Option<Error>,
}

impl Client {
    /// What the bucket does with conditional writes. Unless that is known it is tried with an object at `probe_key`, where
    /// none may be; whoever else asks meanwhile waits for the response.
    pub async fn conditions(&self, bucket: &str, probe_key: &str) -> Found {
        let mut left = None;
        let known = self.inner.store.bucket(bucket);
        let asked = known.conditions.get_or_try_init(|| async {
            let conditions = self.probe(bucket, probe_key, &mut left).await;
            if conditions.is_known() { Ok(conditions) } else { Err(conditions) }
        });
        let conditions = match asked.await {
            Ok(known) => known.clone(),
            Err(unknown) => unknown,
        };
        Found { conditions, left }
    }

    async fn probe(&self, bucket: &str, key: &str, left: &mut Option<Error>) -> Conditions {
        let mut conditions = Conditions::unknown(&Error::new(ErrorKind::Service, "not tried"));
        if let Err(error) = self.try_conditions(bucket, key, &mut conditions).await {
            if error.maybe_applied() {
                self.delete_object(bucket, key).await.ok();
            }
            return Conditions::unknown(&error);
        }
        *left = self.delete_object(bucket, key).await.err();
        conditions
    }

    /// The object is there afterwards, unless there is an error.
    async fn try_conditions(&self, bucket: &str, key: &str, found: &mut Conditions) -> Result<(), Error> {
        let put = |condition| self.put_probe(bucket, key, condition);
        let created = match put(Condition::IfNoneMatch).await {
            Ok(created) => Ok(created),
            // An earlier attempt of this very request may have been carried out, and the condition held this one off.
            Err(error) if error.kind() == ErrorKind::PreconditionFailed => {
                match self.head_object(bucket, key).await {
                    Ok(info) => Ok(info.etag),
                    Err(error) if error.kind() == ErrorKind::NotFound => Err(Support::NeverHolds),
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.not_understood() => Err(Support::Refused(error)),
            Err(error) => return Err(error),
        };
        let (etag, creates) = match created {
            Ok(etag) => (etag, None),
            // That it was the condition which was refused shows without one.
            Err(support) => (put(Condition::None).await?, Some(support)),
        };
        let refused = async |condition| match put(condition).await {
            Ok(etag) => (Support::Ignored, etag),
            Err(error) => (refusal(error), None),
        };
        let creates_again = async {
            match &creates {
                Some(_) => None,
                None => Some(refused(Condition::IfNoneMatch).await),
            }
        };
        let (again, (replaces, other)) = tokio::join!(creates_again, refused(Condition::IfMatch(no_etag())));
        let (again, another) = again.unzip();
        found.if_none_match = creates.or(again).unwrap_or(Support::Honoured);
        found.if_match = match (replaces, other.or(another.flatten()).or(etag)) {
            (Support::Honoured, Some(etag)) => {
                let put = self.put_object(bucket, key, body(), &with(Condition::IfMatch(etag.clone()))).await;
                let holds = match put {
                    Ok(_) => Support::Honoured,
                    Err(error) if error.kind() == ErrorKind::PreconditionFailed => Support::NeverHolds,
                    Err(error) if error.not_understood() => Support::Refused(error),
                    Err(error) => Support::Unknown(error),
                };
                found.if_match_weak = if is_weak(&etag) { holds.clone() } else { Support::NeverHolds };
                holds
            }
            (Support::Honoured, None) => {
                Support::Unknown(Error::new(ErrorKind::Service, "the service gives no ETags"))
            }
            (other, _) => {
                found.if_match_weak = other.clone();
                other
            }
        };
        Ok(())
    }

    /// Writes the probe object; its ETag.
    async fn put_probe(
        &self,
        bucket: &str,
        key: &str,
        condition: Condition,
    ) -> Result<Option<String>, Error> {
        let PutOutput { etag, .. } = self.put_as_given(bucket, key, body(), &with(condition)).await?;
        Ok(etag)
    }
}

fn body() -> Payload {
    Payload::from(Bytes::from_static(b"s3dcp asks whether conditional writes are honoured\n"))
}

fn with(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

/// An ETag that no object has.
fn no_etag() -> String {
    format!("\"{}\"", "0".repeat(32))
}

/// What the refusal of a condition that does not hold means.
fn refusal(error: Error) -> Support {
    match error.kind() {
        // Some say that there is no object with this ETag.
        ErrorKind::PreconditionFailed | ErrorKind::Conflict => Support::Honoured,
        ErrorKind::NotFound if error.code() != Some("NoSuchBucket") => Support::Honoured,
        _ if error.not_understood() => Support::Refused(error),
        _ => Support::Unknown(error),
    }
}
