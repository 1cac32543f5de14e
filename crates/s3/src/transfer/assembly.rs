//! An object made of parts, some sent and some copied by the service from other objects.

use std::ops::Range;

use crate::client::Client;
use crate::config::{MAX_PART_SIZE, MIN_PART_SIZE};
use crate::error::{Error, ErrorKind};
use crate::operation::copy::CopySource;
use crate::operation::multipart::Part;
use crate::protocol::checksum::crc32_combine;
use crate::transfer::begun::Begun;
use crate::transfer::part_size::MAX_PARTS;
use crate::transfer::payload::Payload;

/// The result of [`Assembly::finish`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssemblyOutput {
    /// Length of the object in bytes.
    pub size: u64,
    /// CRC-32 of the whole object; `None` where the service does not say that of what it copied.
    pub crc32: Option<u32>,
    /// ETag, quotes included, where the service says one.
    pub etag: Option<String>,
}

/// An object in the making: parts in their order, sent or copied in the background. Nothing exists under its key before
/// [`Assembly::finish`] returns.
///
/// Every part but the last must have 5 MiB at least, and none more than 5 GiB; there are 10,000 at most. Dropping an
/// assembly aborts it in the background.
pub struct Assembly {
    client: Client,
    bucket: String,
    key: String,
    begun: Option<Begun>,
    parts: u32,
    /// Length of the last part, which is the last of all where it is short.
    last: u64,
    failure: Option<Error>,
}

impl Client {
    /// Begins an object of parts.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn assemble(&self, bucket: &str, key: &str) -> Assembly {
        Assembly {
            client: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            begun: Some(Begun::new(self, bucket, key)),
            parts: 0,
            last: MIN_PART_SIZE,
            failure: None,
        }
    }
}

impl Assembly {
    /// Sends the next part, a copy. Waits while the client has as many of those in flight as it may have.
    ///
    /// # Errors
    /// `Config` for a part of a size that S3 does not take; the first failure of any part, from then on.
    pub async fn push(&mut self, body: Payload, crc32: u32) -> Result<(), Error> {
        let number = self.next_part(body.len())?;
        let in_flight = self.client.inner.admission.in_flight(body.len()).await?;
        self.send(move |client, bucket, key, id| async move {
            let _in_flight = in_flight;
            client.upload_part(&bucket, &key, &id, number, body, crc32).await
        });
        Ok(())
    }

    /// Lets the service copy the next part: these bytes of `source`.
    ///
    /// # Errors
    /// As for [`Assembly::push`]. A source that has changed is `PreconditionFailed`.
    pub fn copy(&mut self, source: &CopySource, range: Range<u64>) -> Result<(), Error> {
        let number = self.next_part(range.end.saturating_sub(range.start))?;
        let source = source.clone();
        self.send(move |client, bucket, key, id| async move {
            client.upload_part_copy(&bucket, &key, &id, number, &source, range).await
        });
        Ok(())
    }

    /// Waits for all parts and makes the object. After a failure the upload is aborted.
    ///
    /// # Errors
    /// The first failure of any part or of the last step; after [`Error::maybe_applied`] the object may exist.
    pub async fn finish(mut self) -> Result<AssemblyOutput, Error> {
        let finished = self.try_finish().await;
        match &finished {
            Ok(_) => self.begun = None,
            Err(_) => self.abort_begun().await,
        }
        finished
    }

    /// Gives the object up: stops the parts under way and frees those that the service holds.
    pub async fn abort(mut self) {
        self.abort_begun().await;
    }

    async fn try_finish(&mut self) -> Result<AssemblyOutput, Error> {
        self.check()?;
        let Some(begun) = &mut self.begun else { return Err(self.ended()) };
        begun.all_sent().await?;
        let id = begun.id.clone().await?;
        let parts = &begun.sent;
        let size = parts.iter().map(|part| part.size).sum();
        let crc32 = parts.iter().try_fold(0, |crc, part| Some(crc32_combine(crc, part.crc32?, part.size)));
        let etag = self.client.complete_multipart_upload(&self.bucket, &self.key, &id, parts, crc32).await?;
        Ok(AssemblyOutput { size, crc32, etag })
    }

    /// The number of the next part, of this length.
    fn next_part(&mut self, length: u64) -> Result<u32, Error> {
        self.check()?;
        let fault = if self.last < MIN_PART_SIZE {
            Some(format!("a part of {} bytes can only be the last", self.last))
        } else if !(1..=MAX_PART_SIZE).contains(&length) {
            Some(format!("a part of {length} bytes is not possible"))
        } else if u64::from(self.parts) == MAX_PARTS {
            Some(format!("an object has at most {MAX_PARTS} parts"))
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(self.locate(Error::new(ErrorKind::Config, fault)));
        }
        self.parts += 1;
        self.last = length;
        Ok(self.parts)
    }

    fn send<F>(&mut self, part: impl FnOnce(Client, String, String, String) -> F + Send + 'static)
    where
        F: Future<Output = Result<Part, Error>> + Send + 'static,
    {
        let Some(begun) = &mut self.begun else { return };
        let (client, bucket, key) = (self.client.clone(), self.bucket.clone(), self.key.clone());
        let id = begun.id.clone();
        begun.send(async move { part(client, bucket, key, id.await?).await });
    }

    fn check(&mut self) -> Result<(), Error> {
        if let Some(Err(error)) = self.begun.as_mut().map(Begun::note_sent) {
            self.failure.get_or_insert(error);
        }
        match &self.failure {
            Some(error) => Err(self.locate(error.clone())),
            None => Ok(()),
        }
    }

    fn ended(&self) -> Error {
        self.locate(Error::new(ErrorKind::Interrupted, "the upload was given up"))
    }

    fn locate(&self, error: Error) -> Error {
        error.with_bucket(&self.bucket).with_key(&self.key)
    }

    async fn abort_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            begun.start_aborting(&self.client, &self.bucket, &self.key).await.ok();
        }
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            drop(begun.start_aborting(&self.client, &self.bucket, &self.key));
        }
    }
}

impl std::fmt::Debug for Assembly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembly")
            .field("bucket", &self.bucket)
            .field("key", &self.key)
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}
