//! Writes a file as its body says: by the service's own copies, or through this process in bounded memory.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{CopySource, Error, ErrorKind, ObjectInfo, Payload, PutOptions, crc32, crc32_combine};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::storage::disk::DiskFile;
use crate::storage::{CopiedBy, Storage};
use crate::transfer::body::{Body, Content};
use crate::transfer::parts::{FilePart, cut};

/// Parts of a file that are read ahead of the one that is written.
const READ_AHEAD: usize = 4;
/// Bytes of parts in memory at once, in MiB.
const MEMORY_MIB: usize = 256;
/// What one CopyObject can copy.
const LARGEST_COPY: u64 = 5 << 30;

/// Told of the bytes that have reached their place.
pub type OnBytes<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// Moves files from one place to another.
pub(crate) struct Mover<'a> {
    pub(crate) source: &'a Storage,
    pub(crate) target: &'a Storage,
    copied_by: CopiedBy,
    /// The service has refused to copy for the destination's client.
    refused: AtomicBool,
    /// The files that bodies are made of, as they were looked at.
    files: HashMap<Arc<str>, ObjectInfo>,
    on_bytes: OnBytes<'a>,
    memory: Semaphore,
    /// Bytes that the service copied.
    pub(crate) by_service: AtomicU64,
    /// Bytes that were read and written.
    pub(crate) through_client: AtomicU64,
}

impl<'a> Mover<'a> {
    pub(crate) async fn new(
        source: &'a Storage,
        target: &'a Storage,
        files: impl IntoIterator<Item = ObjectInfo>,
        on_bytes: OnBytes<'a>,
    ) -> Result<Mover<'a>, Error> {
        Ok(Mover {
            source,
            target,
            copied_by: source.copies_to(target).await?,
            refused: AtomicBool::new(false),
            files: files.into_iter().map(|file| (file.key[..].into(), file)).collect(),
            on_bytes,
            memory: Semaphore::new(MEMORY_MIB),
            by_service: AtomicU64::new(0),
            through_client: AtomicU64::new(0),
        })
    }

    /// Writes a file; its CRC-32, where it is known.
    pub(crate) async fn write(&self, key: &str, body: &Body) -> Result<Option<u32>, Error> {
        match self.target {
            Storage::Disk(_) => self.write_file(key, body).await.map(Some),
            Storage::Bucket { .. } => self.write_object(key, body).await,
        }
    }

    async fn write_file(&self, key: &str, body: &Body) -> Result<u32, Error> {
        let file = DiskFile::create(key)?;
        let parts = cut(body, |_| None);
        let mut sum = 0;
        let mut at = 0;
        let mut read = pin!(stream::iter(parts).map(|part| self.prepare(body, part)).buffered(READ_AHEAD));
        while let Some(part) = read.next().await {
            if let Prepared::Bytes { payload, crc, .. } = part? {
                let mut place = at;
                for segment in payload.segments() {
                    file.write_at(place, segment)?;
                    place += segment.len() as u64;
                }
                sum = crc32_combine(sum, crc, payload.len());
                at = place;
                self.pushed(payload.len());
            }
        }
        file.finish()?;
        Ok(sum)
    }

    async fn write_object(&self, key: &str, body: &Body) -> Result<Option<u32>, Error> {
        let copies = self.copied_by != CopiedBy::Client && !self.refused.load(Ordering::Relaxed);
        match self.make_object(key, body, copies).await {
            Err(error) if copies && self.may_not(&error) => {
                self.refused.store(true, Ordering::Relaxed);
                self.make_object(key, body, false).await
            }
            made => made,
        }
    }

    /// Whether the service may refuse to copy what the one client reads and the other writes. What goes on by reading and writing
    /// fails again where it was something else.
    fn may_not(&self, error: &Error) -> bool {
        self.copied_by == CopiedBy::ServiceIfItMay
            && (matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound) || error.not_understood())
    }

    /// The file, where the service may copy of it. Elsewhere than where it was looked at its ETag says that it is the same.
    fn copyable(&self, name: &str) -> Option<&ObjectInfo> {
        self.files.get(name).filter(|file| self.copied_by == CopiedBy::Service || file.etag.is_some())
    }

    /// Makes an object; `copies` where the service may copy.
    async fn make_object(&self, key: &str, body: &Body, copies: bool) -> Result<Option<u32>, Error> {
        let Storage::Bucket { client, bucket } = self.target else {
            return Err(Error::new(ErrorKind::Config, "an object is written to a bucket"));
        };
        let size_of = |name: &str| self.copyable(name).map(|file| file.size).filter(|_| copies);
        if let Some((source, size)) = self.whole_copy(body).filter(|_| copies) {
            client.copy_object(&source, bucket, key).await?;
            self.copied(size);
            return Ok(None);
        }
        let parts = cut(body, size_of);
        if parts.is_empty() || matches!(&parts[..], [FilePart::Push(_)]) {
            let bytes = body.read(self.source, 0..body.length()).await?;
            let mut options = PutOptions::default();
            options.crc32 = Some(crc32(&bytes));
            let put = client.put_object(bucket, key, Payload::from(bytes), &options).await?;
            self.pushed(body.length());
            return Ok(Some(put.crc32));
        }
        let mut assembly = client.assemble(bucket, key);
        let mut made = async || {
            let mut copied = 0;
            let parts = stream::iter(parts.iter().cloned());
            let mut read = pin!(parts.map(|part| self.prepare(body, part)).buffered(READ_AHEAD));
            while let Some(part) = read.next().await {
                match part? {
                    Prepared::Copy { source, range } => {
                        copied += range.end - range.start;
                        assembly.copy(&source, range)?;
                    }
                    Prepared::Bytes { payload, crc, .. } => {
                        let length = payload.len();
                        assembly.push(payload, crc).await?;
                        self.pushed(length);
                    }
                }
            }
            Ok(copied)
        };
        match made().await {
            Ok(copied) => {
                let made = assembly.finish().await?;
                self.copied(copied);
                Ok(made.crc32)
            }
            Err(error) => {
                assembly.abort().await;
                Err(error)
            }
        }
    }

    /// The one file that this body is, where the service can copy it whole.
    fn whole_copy(&self, body: &Body) -> Option<(CopySource, u64)> {
        let [piece] = body.pieces() else { return None };
        let Content::Item { entry, start: 0, .. } = &piece.content else { return None };
        let file = self.copyable(&entry.key)?;
        let whole = entry.offset == 0 && body.length() == file.size && file.size <= LARGEST_COPY;
        whole.then(|| (self.source_of(file), file.size))
    }

    fn source_of(&self, file: &ObjectInfo) -> CopySource {
        let bucket = match self.source {
            Storage::Bucket { bucket, .. } => bucket.to_string(),
            Storage::Disk(_) => String::new(),
        };
        CopySource { bucket, key: file.key.clone(), etag: file.etag.clone() }
    }

    async fn prepare<'m>(&'m self, body: &Body, part: FilePart) -> Result<Prepared<'m>, Error> {
        match part {
            FilePart::Copy { key, range } => {
                let file = self
                    .files
                    .get(&key)
                    .ok_or_else(|| Error::new(ErrorKind::Config, format!("{key} has not been looked at")))?;
                Ok(Prepared::Copy { source: self.source_of(file), range })
            }
            FilePart::Push(range) => {
                let mib = ((range.end - range.start) >> 20).min(MEMORY_MIB as u64 - 1) as u32 + 1;
                let held = self.memory.acquire_many(mib).await.ok();
                let bytes = body.read(self.source, range).await?;
                Ok(Prepared::Bytes { crc: crc32(&bytes), payload: Payload::from(bytes), _held: held })
            }
        }
    }

    pub(crate) fn pushed(&self, bytes: u64) {
        self.through_client.fetch_add(bytes, Ordering::Relaxed);
        (self.on_bytes)(bytes);
    }

    fn copied(&self, bytes: u64) {
        self.by_service.fetch_add(bytes, Ordering::Relaxed);
        (self.on_bytes)(bytes);
    }
}

/// A part that is ready to go.
enum Prepared<'m> {
    Copy { source: CopySource, range: std::ops::Range<u64> },
    Bytes { payload: Payload, crc: u32, _held: Option<SemaphorePermit<'m>> },
}
