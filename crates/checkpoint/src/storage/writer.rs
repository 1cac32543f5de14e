//! An object or a file that is written from its first byte to its last, wherever it lies.

use s3dcp_s3::{Error, ErrorKind, Segment, Upload, UploadOptions, UploadOutput, crc32_combine};

use super::Storage;
use super::disk::DiskFile;

/// Bytes of a part of a file; of an object the upload says it.
const FILE_PART: u64 = 64 << 20;
/// Most bytes of a stream's copies that are on their way to a bucket.
pub const MOST_IN_FLIGHT: u64 = 128 << 20;

/// What [`Storage::writer`] makes. Nothing is under its key before it is finished; dropped before, nothing stays.
#[derive(Debug)]
pub(crate) enum Writer {
    Upload(Box<Upload>),
    File { file: DiskFile, position: u64, crc32: u32 },
}

impl Storage {
    /// Begins an object or a file.
    pub(crate) fn writer(&self, key: &str, mut options: UploadOptions) -> Result<Writer, Error> {
        options.max_in_flight_bytes.get_or_insert(MOST_IN_FLIGHT);
        Ok(match self {
            Storage::Bucket { client, bucket } => {
                Writer::Upload(Box::new(client.upload(bucket, key, options)))
            }
            Storage::Disk(_) => Writer::File { file: DiskFile::create(key)?, position: 0, crc32: 0 },
        })
    }
}

impl Writer {
    /// Bytes that a next piece may have.
    pub(crate) fn part_remaining(&self) -> u64 {
        match self {
            Writer::Upload(upload) => upload.part_remaining(),
            Writer::File { position, .. } => FILE_PART - position % FILE_PART,
        }
    }

    /// Writes the next bytes, whose CRC-32 is given.
    pub(crate) async fn push(&mut self, segment: impl Into<Segment>, crc: u32) -> Result<(), Error> {
        let segment = segment.into();
        match self {
            Writer::Upload(upload) => upload.push(segment, crc).await,
            Writer::File { file, position, crc32 } => {
                file.write_at(*position, &segment.bytes)?;
                *crc32 = crc32_combine(*crc32, crc, segment.bytes.len() as u64);
                *position += segment.bytes.len() as u64;
                Ok(())
            }
        }
    }

    /// Completes it, unless `stop` comes first: see [`Upload::finish_unless`].
    pub(crate) async fn finish_unless(self, stop: impl Future<Output = ()>) -> Result<UploadOutput, Error> {
        match self {
            Writer::Upload(upload) => upload.finish_unless(stop).await,
            Writer::File { file, position, crc32 } => {
                file.finish()?;
                Ok(UploadOutput { size: position, crc32, etag: None, parts: 0 })
            }
        }
    }

    /// Gives it up.
    pub(crate) async fn abort(self) {
        if let Writer::Upload(upload) = self {
            upload.abort().await;
        }
    }
}

/// A writer that was ended before.
pub(crate) fn ended() -> Error {
    Error::new(ErrorKind::Interrupted, "this file was finished or aborted before")
}
