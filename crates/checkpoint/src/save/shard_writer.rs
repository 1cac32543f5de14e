//! Writes one shard file: items one after another into one [`Upload`](s3dcp_s3::Upload), which then ends in the background.
//!
//! Tensor bytes go to the engine as they came, cut only where a part or a checksum slice ends; each run's CRC-32 is
//! computed once and combined into the slice's, the item's, the zip record's and the part's. What is small (archive
//! heads and tails, tensors of a few KiB) is gathered into shared buffers, so that a file of many small tensors goes
//! out in few segments; passing over such bytes twice costs less than combining. What surrounds the data of tensors
//! of one shape is made once.
//!
//! The writer does not choose the file's name, its parts or its place in any index.

use std::collections::HashMap;
use std::mem::{replace, take};
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use s3dcp_s3::{Client, Error, ErrorKind, Segment, UploadOptions, UploadOutput, crc32, crc32_combine};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::archive::spec::TensorSpec;
use crate::archive::write::Archive;
use crate::error::config;
use crate::index::checksums::{Accumulator, ItemChecksums, crc32_extend};
use crate::index::item_hash::{ItemFormat, ItemHash, ItemHasher};
use crate::layout::ShardName;
use crate::storage::Storage;
use crate::storage::writer::{Writer, ended};

/// Runs below this many bytes are copied into the gathering buffer, where they need no owner: an archive has 1.6 KB
/// around its data anyway.
pub const GATHER_BELOW: usize = 4 << 10;
/// The gathering buffer goes out when it holds this many bytes.
const GATHER_SIZE: usize = 64 << 10;
/// What is summed up is hashed while it is in the processor's cache, so many bytes at a time.
const WARM_BYTES: usize = 128 << 10;
/// Archives remembered at a time, of 2 KiB each.
const ARCHIVES: usize = 256;

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
    /// What the item is, where the writer [hashes](ShardWriter::hash_items).
    pub hash: Option<ItemHash>,
}

/// An item being written.
struct Open {
    offset: u64,
    /// The archive around the data, for a tensor.
    archive: Option<Arc<Archive>>,
    head_written: bool,
    sums: Accumulator,
    data_crc: u32,
    data_length: u64,
    hasher: Option<ItemHasher>,
}

enum State {
    Open(Writer),
    /// Dropping the sender stops the task.
    Finishing(JoinHandle<Result<UploadOutput, Error>>, oneshot::Sender<()>),
    Ended,
}

/// A shard file on its way up. Dropped before it is complete, it is given up in the background.
pub struct ShardWriter {
    name: ShardName,
    /// Bytes of a full part.
    part_size: u64,
    state: State,
    position: u64,
    gathered: BytesMut,
    archives: HashMap<TensorSpec, Arc<Archive>>,
    open: Option<Open>,
    broken: bool,
    hashes: bool,
}

impl ShardWriter {
    /// A new file of this name; nothing is sent yet. Those of a save come from [`Save::shard`](crate::Save::shard).
    #[must_use]
    pub fn new(client: &Client, bucket: &str, name: ShardName, options: UploadOptions) -> ShardWriter {
        let upload = client.upload(bucket, &name.key, options);
        ShardWriter::to(Writer::Upload(Box::new(upload)), name)
    }

    /// The same in a bucket or on a disk.
    pub(crate) fn begin_in(
        storage: &Storage,
        name: ShardName,
        options: UploadOptions,
    ) -> Result<ShardWriter, Error> {
        Ok(ShardWriter::to(storage.writer(&name.key, options)?, name))
    }

    fn to(writer: Writer, name: ShardName) -> ShardWriter {
        ShardWriter {
            name,
            part_size: writer.part_remaining(),
            state: State::Open(writer),
            position: 0,
            gathered: BytesMut::new(),
            archives: HashMap::new(),
            open: None,
            broken: false,
            hashes: false,
        }
    }

    /// Key, and name in the index.
    #[must_use]
    pub fn name(&self) -> &ShardName {
        &self.name
    }

    /// Bytes of a full part, the first one's.
    #[must_use]
    pub fn part_size(&self) -> u64 {
        self.part_size
    }

    /// Hashes every item from the next one on, so that a later save can tell whether it has changed.
    pub fn hash_items(&mut self) {
        self.hashes = true;
    }

    fn hasher(&self, new: impl FnOnce() -> ItemHasher) -> Option<ItemHasher> {
        self.hashes.then(new)
    }

    fn upload(&mut self) -> Result<&mut Writer, Error> {
        match &mut self.state {
            State::Open(upload) => Ok(upload),
            State::Finishing(..) | State::Ended => Err(ended()),
        }
    }

    /// Bytes written so far: where the next item begins.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes a whole tensor: its storage's bytes, little-endian. Fewer than [`GATHER_BELOW`] are copied; only more
    /// are taken over.
    ///
    /// # Errors
    /// Those of [`ShardWriter::begin_tensor`], [`ShardWriter::write`] and [`ShardWriter::end`].
    pub async fn tensor(
        &mut self,
        spec: &TensorSpec,
        data: impl AsRef<[u8]> + Into<Segment>,
    ) -> Result<ItemRecord, Error> {
        let archive = self.archive(spec)?;
        let mut hasher = self.hasher(|| ItemHasher::tensor(ItemFormat::Archive, spec));
        if data.as_ref().len() < GATHER_BELOW
            && let Some(record) = self.gather(&archive, data.as_ref(), &mut hasher).await?
        {
            return Ok(record);
        }
        self.begin(Some(archive), hasher)?;
        self.write(data).await?;
        self.end().await
    }

    /// Writes a small tensor at once; `None` when a part or the writer's order of calls does not allow it.
    async fn gather(
        &mut self,
        archive: &Archive,
        data: &[u8],
        hasher: &mut Option<ItemHasher>,
    ) -> Result<Option<ItemRecord>, Error> {
        let Some(length) = archive.length().filter(|&length| length <= GATHER_SIZE as u64) else {
            return Ok(None);
        };
        if self.open.is_some() || self.broken || data.len() as u64 != archive.data_length() {
            return Ok(None);
        }
        self.make_room(length as usize).await?;
        if self.gathered.len() as u64 + length > self.upload()?.part_remaining() {
            return Ok(None);
        }
        let data_offset = archive.head().len();
        let start = self.gathered.len();
        self.gathered.extend_from_slice(archive.head());
        self.gathered.extend_from_slice(data);
        archive.tail(crc32(data), &mut self.gathered);
        let item = crc32_extend(archive.head_crc(), &self.gathered[start + data_offset..]);
        let record = ItemRecord {
            offset: self.position,
            length,
            data_offset: data_offset as u64,
            checksums: ItemChecksums { item, slices: Vec::new() },
            hash: hasher.as_mut().map(|hasher| {
                hasher.update(data);
                hasher.finish()
            }),
        };
        self.position += length;
        Ok(Some(record))
    }

    /// What surrounds the data of tensors of this spec.
    fn archive(&mut self, spec: &TensorSpec) -> Result<Arc<Archive>, Error> {
        if let Some(archive) = self.archives.get(spec) {
            return Ok(Arc::clone(archive));
        }
        let archive = Arc::new(Archive::new(spec)?);
        if self.archives.len() >= ARCHIVES {
            self.archives.clear();
        }
        self.archives.insert(spec.clone(), Arc::clone(&archive));
        Ok(archive)
    }

    /// Begins a tensor, whose storage follows by [`ShardWriter::write`].
    ///
    /// # Errors
    /// `Config` when an item is open already or the spec does not fill a storage of its own; `Interrupted` once the file is
    /// being finished or was given up.
    pub fn begin_tensor(&mut self, spec: &TensorSpec) -> Result<(), Error> {
        let archive = self.archive(spec)?;
        let hasher = self.hasher(|| ItemHasher::tensor(ItemFormat::Archive, spec));
        self.begin(Some(archive), hasher)
    }

    /// Begins an item of bytes as they come: a pickled object, or a file of another format.
    ///
    /// # Errors
    /// `Config` when an item is open already; `Interrupted` as for [`ShardWriter::begin_tensor`].
    pub fn begin_raw(&mut self) -> Result<(), Error> {
        let hasher = self.hasher(ItemHasher::object);
        self.begin(None, hasher)
    }

    /// Begins the values of a tensor alone, as a file of the safetensors format has them.
    ///
    /// # Errors
    /// Those of [`ShardWriter::begin_raw`].
    pub fn begin_values(&mut self, spec: &TensorSpec) -> Result<(), Error> {
        let hasher = self.hasher(|| ItemHasher::tensor(ItemFormat::Values, spec));
        self.begin(None, hasher)
    }

    fn begin(&mut self, archive: Option<Arc<Archive>>, hasher: Option<ItemHasher>) -> Result<(), Error> {
        self.upload()?;
        if self.open.is_some() || self.broken {
            return Err(self.out_of_order("an item begins before the last one ended"));
        }
        self.open = Some(Open {
            offset: self.position,
            archive,
            head_written: false,
            sums: Accumulator::default(),
            data_crc: 0,
            data_length: 0,
            hasher,
        });
        Ok(())
    }

    fn out_of_order(&mut self, what: &str) -> Error {
        self.broken = true;
        config(format!("shard writer: {what}"))
    }

    /// Writes the item's next bytes, which are taken for a copy unless they are [borrowed](Segment::borrowed). Waits while the
    /// client has as much in flight as it may have.
    ///
    /// # Errors
    /// `Config` when no item is open or a tensor gets more bytes than its spec says; else the first failure of any
    /// part so far. After an error only [`ShardWriter::stop`] is left.
    pub async fn write(&mut self, data: impl Into<Segment>) -> Result<(), Error> {
        let data = data.into();
        self.upload()?;
        self.head().await?;
        let Some(open) = &self.open else {
            return Err(self.out_of_order("bytes before an item begins"));
        };
        let total = open.data_length + data.bytes.len() as u64;
        if let Some(wanted) = open.archive.as_ref().map(|archive| archive.data_length())
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
    /// part so far. After an error only [`ShardWriter::stop`] is left.
    pub async fn end(&mut self) -> Result<ItemRecord, Error> {
        self.upload()?;
        self.head().await?;
        let Some(open) = &mut self.open else {
            return Err(self.out_of_order("an item ends before it begins"));
        };
        let mut data_offset = 0;
        if let Some(archive) = open.archive.take() {
            let (wanted, got) = (archive.data_length(), open.data_length);
            if got != wanted {
                return Err(self.out_of_order(&format!("{got} bytes for a tensor of {wanted}")));
            }
            let mut tail = BytesMut::new();
            archive.tail(open.data_crc, &mut tail);
            data_offset = archive.head().len() as u64;
            self.emit(tail.freeze(), false).await?;
        }
        let Some(open) = self.open.take() else {
            return Err(self.out_of_order("an item ends before it begins"));
        };
        let length = open.sums.length();
        let hash = open.hasher.map(|hasher| hasher.finish());
        Ok(ItemRecord { offset: open.offset, length, data_offset, checksums: open.sums.finish(), hash })
    }

    /// Writes the head of the open tensor if that has not been done.
    async fn head(&mut self) -> Result<(), Error> {
        if let Some(open) = &mut self.open
            && let Some(archive) = &open.archive
            && !open.head_written
        {
            let head = archive.head().clone();
            open.head_written = true;
            self.emit(head, false).await?;
        }
        Ok(())
    }

    async fn emit(&mut self, segment: impl Into<Segment>, is_data: bool) -> Result<(), Error> {
        if self.broken {
            return Err(self.out_of_order("used again after an error"));
        }
        // stays set when this future is dropped half-way or fails
        self.broken = true;
        self.emit_runs(segment.into(), is_data).await?;
        self.broken = false;
        Ok(())
    }

    async fn emit_runs(&mut self, mut segment: Segment, is_data: bool) -> Result<(), Error> {
        while !segment.bytes.is_empty() {
            let room = self.upload()?.part_remaining().saturating_sub(self.gathered.len() as u64);
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
            let take = (segment.bytes.len() as u64).min(room).min(open.sums.slice_remaining());
            let piece = segment.split_to(take as usize);
            let run = &piece.bytes;
            self.position += take;
            if run.len() < GATHER_BELOW {
                open.sums.add_short(run);
                if is_data {
                    open.data_crc = crc32_extend(open.data_crc, run);
                    if let Some(hasher) = &mut open.hasher {
                        hasher.update(run);
                    }
                    open.data_length += take;
                }
                self.make_room(run.len()).await?;
                self.gathered.extend_from_slice(run);
            } else {
                let crc = match &mut open.hasher {
                    Some(hasher) if is_data => sum_and_hash(run, hasher),
                    _ => crc32(run),
                };
                open.sums.add(crc, take);
                if is_data {
                    let first = open.data_length == 0;
                    open.data_crc = if first { crc } else { crc32_combine(open.data_crc, crc, take) };
                    open.data_length += take;
                }
                self.flush().await?;
                self.upload()?.push(piece, crc).await?;
            }
        }
        Ok(())
    }

    /// Lets the gathering buffer take `more` bytes, which may not pass its size.
    async fn make_room(&mut self, more: usize) -> Result<(), Error> {
        if self.gathered.capacity() - self.gathered.len() < more {
            self.flush().await?;
            self.gathered.reserve(GATHER_SIZE);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let segment = self.gathered.split().freeze();
        let crc = crc32(&segment);
        // as in `emit`
        let broken = replace(&mut self.broken, true);
        self.upload()?.push(segment, crc).await?;
        self.broken = broken;
        Ok(())
    }

    /// Lets the rest go up in the background, on the runtime that this is called in; [`ShardWriter::wait`] tells how it
    /// ended.
    ///
    /// # Errors
    /// `Interrupted` once the file is being finished or was given up.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_finishing(&mut self) -> Result<(), Error> {
        self.upload()?;
        let in_order = match self.open.is_some() || self.broken {
            true => Err(self.out_of_order("finished inside an item or after an error")),
            false => Ok(take(&mut self.gathered).freeze()),
        };
        self.archives.clear();
        if let State::Open(upload) = replace(&mut self.state, State::Ended) {
            let (stop, stopped) = oneshot::channel();
            self.state = State::Finishing(tokio::spawn(finish(upload, in_order, stopped)), stop);
        }
        Ok(())
    }

    /// Waits until the file is complete. A wait that was cancelled can be begun again.
    ///
    /// # Errors
    /// `Config` when an item was still open or an earlier error was passed over; `Interrupted` for a file that is not
    /// being finished; else the engine's. The upload is aborted then.
    pub async fn wait(&mut self) -> Result<UploadOutput, Error> {
        let State::Finishing(task, _) = &mut self.state else {
            return Err(interrupted("this file is not being finished"));
        };
        let ended = task.await;
        self.state = State::Ended;
        ended.unwrap_or_else(|failure| Err(interrupted(&format!("the upload's task ended early: {failure}"))))
    }

    /// Completes the file.
    ///
    /// # Errors
    /// Those of [`ShardWriter::start_finishing`] and [`ShardWriter::wait`].
    pub async fn finish(&mut self) -> Result<UploadOutput, Error> {
        self.start_finishing()?;
        self.wait().await
    }

    /// Gives the file up in the background. Nothing of a file that was still open stays; another may be complete.
    pub fn give_up(&mut self) {
        self.state = State::Ended;
    }

    /// Gives the file up: its end, to be waited for.
    pub fn stop(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let state = replace(&mut self.state, State::Ended);
        async {
            match state {
                State::Open(upload) => upload.abort().await,
                State::Finishing(task, stop) => {
                    drop(stop);
                    // However it ended, nobody wants the object.
                    let _ended = task.await;
                }
                State::Ended => {}
            }
        }
    }

    /// Whether no object of this name can be there, for all that was done with this.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }
}

/// The CRC-32 of a run, which is hashed on the way.
fn sum_and_hash(run: &[u8], hasher: &mut ItemHasher) -> u32 {
    run.chunks(WARM_BYTES).fold(0, |crc, warm| {
        hasher.update(warm);
        crc32_extend(crc, warm)
    })
}

/// Sends what was gathered last and completes the upload, or aborts it, as it does when `stopped` comes first.
async fn finish(
    mut upload: Writer,
    last: Result<Bytes, Error>,
    stopped: oneshot::Receiver<()>,
) -> Result<UploadOutput, Error> {
    let mut stopped = pin!(async { stopped.await.unwrap_or(()) });
    let pushed = match last {
        Ok(segment) if segment.is_empty() => Ok(()),
        Ok(segment) => {
            let crc = crc32(&segment);
            tokio::select! {
                result = upload.push(segment, crc) => result,
                () = &mut stopped => Err(interrupted("the upload was given up")),
            }
        }
        Err(error) => Err(error),
    };
    if let Err(error) = pushed {
        upload.abort().await;
        return Err(error);
    }
    upload.finish_unless(stopped).await
}

fn interrupted(message: &str) -> Error {
    Error::new(ErrorKind::Interrupted, message)
}
