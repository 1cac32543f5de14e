//! Uploading an object piece by piece, parts going up in the background as soon as they are full.
//!
//! The caller pushes segments with their CRC-32; no byte is copied or read again here. Parts are cut where the
//! caller's segments end at a part's size, so that no checksum has to be split. An object smaller than one part is
//! one PutObject.
//!
//! Segments that are copies fill memory until they are sent, which the client limits; parts of memory that its owner keeps
//! anyway are bounded by the number of connections alone, and are larger where requests are what is scarce.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::admission::in_flight::InFlight;
use crate::admission::pacing::Keys;
use crate::client::Client;
use crate::clock;
use crate::config::check_part_size;
use crate::error::{Error, ErrorKind};
use crate::operation::call::WhenLate;
use crate::operation::object::PutOptions;
use crate::protocol::checksum::crc32_combine;
use crate::transfer::begun::Begun;
use crate::transfer::part_size::{MAX_PARTS, PartPlan};
use crate::transfer::payload::Payload;
use crate::transfer::segment::Segment;

/// How long a request that makes the whole object may go on after the upload was given up.
const TO_END: Duration = Duration::from_secs(1);

/// Options of [`Client::upload`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct UploadOptions {
    /// Part size in bytes, 5 MiB to 5 GiB. `None`: the client's, else it follows the object's size. It grows where
    /// the object would not fit into 10,000 parts of it.
    pub part_size: Option<u64>,
    /// About how many bytes the object will have.
    pub size_hint: Option<u64>,
    /// Writes per second that the upload may send without passing its share of its keys' budget; parts of no given
    /// size grow to stay within it, and within what the service turns out to take.
    pub requests_per_second: Option<f64>,
    /// Most bytes of its copies that are handed to the network and not acknowledged, but for one part. `None`: what the client
    /// allows.
    pub max_in_flight_bytes: Option<u64>,
    /// What is done where the answer to a PutObject of the whole object is late. Requests of a multipart upload are always sent again.
    pub when_late: WhenLate,
}

/// The result of [`Upload::finish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOutput {
    /// Length of the object in bytes.
    pub size: u64,
    /// CRC-32 of the whole object.
    pub crc32: u32,
    /// ETag, quotes included, where the service says one.
    pub etag: Option<String>,
    /// Parts of the multipart upload; 0 when it was one PutObject.
    pub parts: u32,
}

/// An object on its way up. Nothing exists under its key before [`Upload::finish`] returns.
///
/// A push that was cancelled leaves it open whether its segment was taken: abort the upload then. Dropping an upload
/// aborts it in the background.
pub struct Upload {
    client: Client,
    bucket: String,
    key: String,
    plan: PartPlan,
    size_hint: Option<u64>,
    requests_per_second: Option<f64>,
    when_late: WhenLate,
    in_flight: Option<InFlight>,
    current: CurrentPart,
    /// Bytes of all parts before the current one, and their CRC-32.
    offset: u64,
    crc32: u32,
    begun: Option<Begun>,
    failure: Option<Error>,
}

struct CurrentPart {
    number: u32,
    size: u64,
    segments: Vec<Bytes>,
    len: u64,
    /// How many of its bytes are copies.
    copied: u64,
    crc32: u32,
}

impl CurrentPart {
    fn new(number: u32, size: u64) -> CurrentPart {
        CurrentPart { number, size, segments: Vec::new(), len: 0, copied: 0, crc32: 0 }
    }
}

impl Client {
    /// Begins an upload; does no I/O yet. Bad options are reported by the first push.
    pub fn upload(&self, bucket: &str, key: &str, options: UploadOptions) -> Upload {
        let explicit = options.part_size.or(self.config().part_size);
        let failure = explicit.and_then(|size| check_part_size(size).err());
        let requests = self.held_back(bucket, key).into_iter().chain(options.requests_per_second);
        let capacity = self.capacity(requests.reduce(f64::min));
        let plan = PartPlan::new(explicit.filter(|_| failure.is_none()), options.size_hint, &capacity);
        Upload {
            client: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            plan,
            size_hint: options.size_hint,
            requests_per_second: options.requests_per_second,
            when_late: options.when_late,
            in_flight: options.max_in_flight_bytes.map(InFlight::new),
            current: CurrentPart::new(1, plan.part_size(1, 0)),
            offset: 0,
            crc32: 0,
            begun: None,
            failure,
        }
    }

    /// Requests per second at which writes of this key go, where the service asked for fewer.
    fn held_back(&self, bucket: &str, key: &str) -> Option<f64> {
        self.inner.admission.rate(&Keys::new(bucket, Some(key), true))
    }
}

impl Upload {
    /// Bytes until the current part is full; always more than 0.
    pub fn part_remaining(&self) -> u64 {
        match self.current.size - self.current.len {
            0 => self.plan.part_size(u64::from(self.current.number) + 1, self.offset + self.current.len),
            remaining => remaining,
        }
    }

    /// Bytes pushed so far.
    pub fn len(&self) -> u64 {
        self.offset + self.current.len
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a segment of at most [`Upload::part_remaining`] bytes with its CRC-32. Waits while the client has as many parts in
    /// flight as it may have, or as many bytes of copies.
    ///
    /// # Errors
    /// The first failure of any part, from then on; `Config` for a segment that is too long.
    pub async fn push(&mut self, segment: impl Into<Segment>, crc32: u32) -> Result<(), Error> {
        self.check()?;
        let Segment { bytes, is_borrowed } = segment.into();
        let len = bytes.len() as u64;
        if len > self.part_remaining() {
            let text = format!("a segment must have at most {} bytes here, not {len}", self.part_remaining());
            return Err(self.locate(Error::new(ErrorKind::Config, text)));
        }
        if len == 0 {
            return Ok(());
        }
        if self.current.len == self.current.size {
            self.send_part().await?;
        }
        self.current.crc32 = crc32_combine(self.current.crc32, crc32, len);
        self.current.len += len;
        self.current.copied += if is_borrowed { 0 } else { len };
        self.current.segments.push(bytes);
        if self.current.len == self.current.size && !self.may_be_all() {
            self.send_part().await?;
        }
        self.check()
    }

    /// Sends what is left and makes the object. After a failure the multipart upload is aborted.
    ///
    /// # Errors
    /// The first failure of any part or of the last step; after [`Error::maybe_applied`] the object may exist.
    pub async fn finish(self) -> Result<UploadOutput, Error> {
        self.finish_unless(std::future::pending()).await
    }

    /// The same, unless `stop` comes first: then the upload is aborted, or, where the whole object is one request, that is given
    /// a second to end. The object may exist all the same.
    ///
    /// # Errors
    /// As for [`Upload::finish`], and `Interrupted` after `stop`.
    pub async fn finish_unless(mut self, stop: impl Future<Output = ()>) -> Result<UploadOutput, Error> {
        let given_up = || Err(Error::new(ErrorKind::Interrupted, "the upload was given up"));
        // One that is cut off may be carried out later, when the object has been deleted already.
        let grace = if self.begun.is_none() { TO_END } else { Duration::ZERO };
        let mut stop = pin!(stop);
        let finished = if stop.as_mut().now_or_never().is_some() {
            given_up()
        } else {
            let stopped = async {
                stop.await;
                clock::sleep(grace).await;
            };
            tokio::select! {
                result = self.try_finish() => result,
                () = stopped => given_up(),
            }
        };
        match finished {
            Ok(output) => {
                self.begun = None;
                Ok(output)
            }
            Err(error) => {
                self.abort_begun().await;
                Err(error)
            }
        }
    }

    /// Gives the upload up: stops the parts under way and frees those that the service holds.
    pub async fn abort(mut self) {
        self.abort_begun().await;
    }

    async fn try_finish(&mut self) -> Result<UploadOutput, Error> {
        self.check()?;
        let size = self.len();
        let crc32 = crc32_combine(self.crc32, self.current.crc32, self.current.len);
        if self.begun.is_none() {
            let _in_flight = self.client.inner.admission.in_flight(self.current.copied).await?;
            let body = Payload::from(std::mem::take(&mut self.current.segments));
            let options =
                PutOptions { crc32: Some(crc32), when_late: self.when_late, ..PutOptions::default() };
            let output = self.client.put_object(&self.bucket, &self.key, body, &options).await?;
            return Ok(UploadOutput { size, crc32, etag: output.etag, parts: 0 });
        }
        if self.current.len > 0 {
            self.send_part().await?;
        }
        let begun = self.begun.as_mut().expect("checked above");
        begun.all_sent().await?;
        let id = begun.id.clone().await?;
        let parts = &begun.sent;
        let etag =
            self.client.complete_multipart_upload(&self.bucket, &self.key, &id, parts, Some(crc32)).await?;
        let parts = u32::try_from(parts.len()).expect("at most 10,000 parts");
        Ok(UploadOutput { size, crc32, etag, parts })
    }

    /// Whether the first part, now full, is likely the whole object.
    fn may_be_all(&self) -> bool {
        self.begun.is_none() && self.size_hint.is_some_and(|hint| hint <= self.len())
    }

    /// The first failure of any part so far.
    fn check(&mut self) -> Result<(), Error> {
        if let Some(Err(error)) = self.begun.as_mut().map(Begun::note_sent) {
            self.failure.get_or_insert(error);
        }
        match &self.failure {
            Some(error) => Err(self.locate(error.clone())),
            None => Ok(()),
        }
    }

    fn locate(&self, error: Error) -> Error {
        error.with_bucket(&self.bucket).with_key(&self.key)
    }

    async fn send_part(&mut self) -> Result<(), Error> {
        if u64::from(self.current.number) > MAX_PARTS {
            let text = format!("part_size is too small: the object needs more than {MAX_PARTS} parts");
            return Err(self.locate(Error::new(ErrorKind::Config, text)));
        }
        let own = match &self.in_flight {
            Some(in_flight) => Some(in_flight.take(self.current.copied).await?),
            None => None,
        };
        let in_flight = self.client.inner.admission.in_flight(self.current.copied).await?;
        self.check()?;
        let offset = self.offset + self.current.len;
        let number = self.current.number + 1;
        self.grow(offset);
        let next = CurrentPart::new(number, self.plan.part_size(u64::from(number), offset));
        let part = std::mem::replace(&mut self.current, next);
        self.crc32 = crc32_combine(self.crc32, part.crc32, part.len);
        self.offset = offset;
        let begun = self.begun.get_or_insert_with(|| Begun::new(&self.client, &self.bucket, &self.key));
        let (client, id) = (self.client.clone(), begun.id.clone());
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let send = async move {
            let _in_flight = (in_flight, own);
            let id = id.await?;
            let body = Payload::from(part.segments);
            client.upload_part(&bucket, &key, &id, part.number, body, part.crc32).await
        };
        begun.send(send);
        Ok(())
    }

    /// Lets parts from `offset` on be larger: where the service takes fewer requests than planned, and where the first part shows
    /// that they need no memory.
    fn grow(&mut self, offset: u64) {
        let in_place = 2 * self.current.copied < self.current.len;
        let rate = self.client.held_back(&self.bucket, &self.key);
        if rate.is_none() && !(in_place && self.current.number == 1) {
            return;
        }
        let mut capacity =
            self.client.capacity(rate.into_iter().chain(self.requests_per_second).reduce(f64::min));
        if in_place {
            capacity.in_flight = u64::MAX;
        }
        self.plan.grow(&capacity, self.size_hint.map(|size| size.saturating_sub(offset)));
    }

    async fn abort_begun(&mut self) {
        // What is not yet sent need not stay alive.
        self.current.segments.clear();
        if let Some(aborting) = self.start_aborting() {
            aborting.await.ok();
        }
    }

    /// Aborts in a task of its own: were it cancelled half-way, the service would keep the parts.
    fn start_aborting(&mut self) -> Option<JoinHandle<()>> {
        Some(self.begun.take()?.start_aborting(&self.client, &self.bucket, &self.key))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.start_aborting();
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("bucket", &self.bucket)
            .field("key", &self.key)
            .field("len", &self.len())
            .field("part", &self.current.number)
            .finish_non_exhaustive()
    }
}
