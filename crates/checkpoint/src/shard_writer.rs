//! Writes one shard file: items one after another into one [`Upload`].
//!
//! Tensor bytes go to the engine as they came, cut only where a part or a checksum slice ends; each run's CRC-32 is
//! computed once and combined into the slice's, the item's, the zip record's and the part's. What is small (archive
//! heads and tails, tensors below a couple of KiB) is gathered into shared buffers, so that a file of many small
//! tensors goes out in few segments; passing over such bytes twice costs less than combining.
//!
//! The writer does not choose the file's name, its parts or its place in any index.

use bytes::{Bytes, BytesMut};
use s3dcp_s3::{Error, Upload, UploadOutput, crc32, crc32_combine};

use crate::archive::spec::TensorSpec;
use crate::archive::write::ArchiveWriter;
use crate::checksums::{Accumulator, ItemChecksums, crc32_extend};
use crate::error::config;

/// Runs below this many bytes are copied into the gathering buffer: an archive has 1.6 KB around its data anyway.
const GATHER_BELOW: usize = 2 << 10;
/// The gathering buffer goes out when it holds this many bytes.
const GATHER_SIZE: usize = 64 << 10;

/// What an index keeps of a written item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemRecord {
    /// The item's first byte in the shard file.
    pub offset: u64,
    /// Bytes of the item.
    pub length: u64,
    /// The raw bytes' start within the item: a tensor's storage after the archive's head; 0 for raw items.
    pub data_offset: u64,
    /// CRC-32 of the item and its slices.
    pub checksums: ItemChecksums,
}

/// An item being written.
struct Open {
    offset: u64,
    /// The archive around the data, for a tensor; its head has been written when `head_length` is set.
    archive: Option<ArchiveWriter>,
    head_length: Option<u64>,
    sums: Accumulator,
    data_crc: u32,
    data_length: u64,
}

/// A shard file on its way up.
pub struct ShardWriter {
    upload: Upload,
    position: u64,
    gathered: BytesMut,
    open: Option<Open>,
    broken: bool,
}

impl ShardWriter {
    /// Writes into this upload, from its first byte.
    #[must_use]
    pub fn new(upload: Upload) -> ShardWriter {
        ShardWriter { upload, position: 0, gathered: BytesMut::new(), open: None, broken: false }
    }

    /// Bytes written so far: where the next item begins.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes a whole tensor: its storage's bytes, little-endian.
    ///
    /// # Errors
    /// Those of [`ShardWriter::begin_tensor`], [`ShardWriter::write`] and [`ShardWriter::end`].
    pub async fn tensor(&mut self, spec: &TensorSpec, data: Bytes) -> Result<ItemRecord, Error> {
        self.begin_tensor(spec)?;
        self.write(data).await?;
        self.end().await
    }

    /// Begins a tensor, whose storage follows by [`ShardWriter::write`].
    ///
    /// # Errors
    /// `Config` when an item is open already or the spec does not fill a storage of its own.
    pub fn begin_tensor(&mut self, spec: &TensorSpec) -> Result<(), Error> {
        let archive = ArchiveWriter::new(spec)?;
        self.begin(Some(archive))
    }

    /// Begins an item of bytes as they come: a pickled object, or a file of another format.
    ///
    /// # Errors
    /// `Config` when an item is open already.
    pub fn begin_raw(&mut self) -> Result<(), Error> {
        self.begin(None)
    }

    fn begin(&mut self, archive: Option<ArchiveWriter>) -> Result<(), Error> {
        if self.open.is_some() || self.broken {
            return Err(self.out_of_order("an item begins before the last one ended"));
        }
        self.open = Some(Open {
            offset: self.position,
            archive,
            head_length: None,
            sums: Accumulator::default(),
            data_crc: 0,
            data_length: 0,
        });
        Ok(())
    }

    fn out_of_order(&mut self, what: &str) -> Error {
        self.broken = true;
        config(format!("shard writer: {what}"))
    }

    /// Writes the item's next bytes; waits while the engine's budget of bytes in flight is used up.
    ///
    /// # Errors
    /// `Config` when no item is open or a tensor gets more bytes than its spec says; else the first failure of any
    /// part so far. After an error only [`ShardWriter::abort`] is left.
    pub async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        self.head().await?;
        let Some(open) = &self.open else {
            return Err(self.out_of_order("bytes before an item begins"));
        };
        let total = open.data_length + data.len() as u64;
        if let Some(wanted) = open.archive.as_ref().map(ArchiveWriter::data_length)
            && total > wanted
        {
            return Err(self.out_of_order(&format!("{total} bytes for a tensor of {wanted}")));
        }
        self.emit(data, true).await
    }

    /// Ends the item.
    ///
    /// # Errors
    /// `Config` when no item is open or a tensor got fewer bytes than its spec says; else the first failure of any
    /// part so far. After an error only [`ShardWriter::abort`] is left.
    pub async fn end(&mut self) -> Result<ItemRecord, Error> {
        self.head().await?;
        let Some(open) = &mut self.open else {
            return Err(self.out_of_order("an item ends before it begins"));
        };
        let data_offset = open.head_length.unwrap_or(0);
        if let Some(archive) = open.archive.take() {
            let (wanted, got) = (archive.data_length(), open.data_length);
            if got != wanted {
                return Err(self.out_of_order(&format!("{got} bytes for a tensor of {wanted}")));
            }
            let tail = archive.tail(data_offset, open.data_crc);
            self.emit(tail.into(), false).await?;
        }
        let Some(open) = self.open.take() else {
            return Err(self.out_of_order("an item ends before it begins"));
        };
        let length = open.sums.length();
        Ok(ItemRecord { offset: open.offset, length, data_offset, checksums: open.sums.finish() })
    }

    /// Writes the head of the open tensor if that has not been done.
    async fn head(&mut self) -> Result<(), Error> {
        if let Some(open) = &mut self.open
            && let Some(archive) = &mut open.archive
            && open.head_length.is_none()
        {
            let head = archive.take_head();
            open.head_length = Some(head.len() as u64);
            self.emit(head.into(), false).await?;
        }
        Ok(())
    }

    async fn emit(&mut self, bytes: Bytes, is_data: bool) -> Result<(), Error> {
        if self.broken {
            return Err(self.out_of_order("used again after an error"));
        }
        // stays set when this future is dropped half-way or fails
        self.broken = true;
        self.emit_runs(bytes, is_data).await?;
        self.broken = false;
        Ok(())
    }

    async fn emit_runs(&mut self, mut bytes: Bytes, is_data: bool) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.upload.part_remaining().saturating_sub(self.gathered.len() as u64);
            if room == 0 {
                if self.gathered.is_empty() {
                    return Err(config("shard writer: the upload has no room for another part"));
                }
                self.flush().await?;
                continue;
            }
            let Some(open) = &mut self.open else {
                return Err(config("shard writer: bytes before an item begins"));
            };
            let take = (bytes.len() as u64).min(room).min(open.sums.slice_remaining());
            let run = bytes.split_to(take as usize);
            self.position += take;
            if run.len() < GATHER_BELOW {
                open.sums.add_short(&run);
                if is_data {
                    open.data_crc = crc32_extend(open.data_crc, &run);
                    open.data_length += take;
                }
                if self.gathered.capacity() - self.gathered.len() < run.len() {
                    self.gathered.reserve(GATHER_SIZE);
                }
                self.gathered.extend_from_slice(&run);
                if self.gathered.len() + GATHER_BELOW > GATHER_SIZE {
                    self.flush().await?;
                }
            } else {
                let crc = crc32(&run);
                open.sums.add(crc, take);
                if is_data {
                    let first = open.data_length == 0;
                    open.data_crc = if first { crc } else { crc32_combine(open.data_crc, crc, take) };
                    open.data_length += take;
                }
                self.flush().await?;
                self.upload.push(run, crc).await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let segment = self.gathered.split().freeze();
        let crc = crc32(&segment);
        self.upload.push(segment, crc).await
    }

    /// Completes the file.
    ///
    /// # Errors
    /// `Config` when an item is still open or an earlier error was passed over; else the engine's. The upload is
    /// aborted then.
    pub async fn finish(mut self) -> Result<UploadOutput, Error> {
        if self.open.is_some() || self.broken {
            let error = self.out_of_order("finished inside an item or after an error");
            self.upload.abort().await;
            return Err(error);
        }
        if let Err(error) = self.flush().await {
            self.upload.abort().await;
            return Err(error);
        }
        self.upload.finish().await
    }

    /// Gives the file up; nothing of it stays.
    pub async fn abort(self) {
        self.upload.abort().await;
    }
}
