//! Reads of many items at once, handed over by Python in columns, and their download while Python goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use s3dcp_checkpoint::{
    BlockDim, BlockLayout, Destination, ItemChecksums, ItemRead, Piece, ReadOptions, plan_reads,
};
use s3dcp_entry::entry;
use s3dcp_s3::{Client, Error, ErrorKind};
use tokio::task::JoinHandle;

use crate::errors::{about, to_python};
use crate::memory::TensorDestination;
use crate::runtime::{OfProcess, forked, handle, wait};

/// A block that is several runs: bytes per run, bytes of memory, where in the block the read begins (bytes of the
/// file, bytes of memory), and its dimensions (count, step in the file, step in memory), the outermost first.
type BlockRequest = (u64, u64, (u64, u64), Vec<(u64, u64, u64)>);

/// Columns of equal length, one row per read; `s3dcp._transfer.Batch`.
#[derive(FromPyObject)]
pub(crate) struct Batch<'py> {
    names: Bound<'py, PyList>,
    keys: Bound<'py, PyList>,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    /// Packed checksums or None.
    checksums: Bound<'py, PyList>,
    starts: Vec<u64>,
    ends: Vec<u64>,
    addresses: Vec<usize>,
    /// The rows that are blocks, by their number.
    blocks: HashMap<usize, BlockRequest>,
}

impl Batch<'_> {
    /// The reads, one for each row.
    ///
    /// # Errors
    /// `ValueError` for columns that do not fit together or a block that cannot be, `Corrupt` for malformed checksums.
    pub(crate) fn reads(mut self) -> PyResult<Vec<ItemRead>> {
        let count = self.names.len();
        let others = [
            self.keys.len(),
            self.offsets.len(),
            self.lengths.len(),
            self.checksums.len(),
            self.starts.len(),
            self.ends.len(),
            self.addresses.len(),
        ];
        if others.iter().any(|&length| length != count) {
            return Err(PyValueError::new_err("batch: its columns must be of equal length"));
        }
        let py = self.names.py();
        let mut reads = Vec::with_capacity(count);
        for row in 0..count {
            let name: String = self.names.get_item(row)?.cast::<PyString>()?.to_cow()?.into_owned();
            let key: String = self.keys.get_item(row)?.cast::<PyString>()?.to_cow()?.into_owned();
            let packed = self.checksums.get_item(row)?;
            let checksums = if packed.is_none() {
                None
            } else {
                let checksums = ItemChecksums::from_bytes(packed.cast::<PyBytes>()?.as_bytes());
                Some(checksums.map_err(|error| to_python(py, &about(&name, error)))?)
            };
            let (start, end, address) = (self.starts[row], self.ends[row], self.addresses[row]);
            let destination: Box<dyn Destination> = match self.blocks.remove(&row) {
                None => Box::new(TensorDestination::new(address, end.saturating_sub(start))?),
                Some(block) => Box::new(BlockDestination::new(address, &name, py, block)?),
            };
            reads.push(ItemRead {
                name,
                key,
                offset: self.offsets[row],
                length: self.lengths[row],
                checksums,
                pieces: vec![Piece { item_range: start..end, destination }],
            });
        }
        Ok(reads)
    }
}

/// A read of `length` bytes from `start` on of an object of any kind.
pub(crate) fn whole_range(key: String, start: u64, length: u64, address: usize) -> PyResult<ItemRead> {
    let destination = Box::new(TensorDestination::new(address, length)?);
    let pieces = vec![Piece { item_range: 0..length, destination }];
    Ok(ItemRead { name: key.clone(), key, offset: start, length, checksums: None, pieces })
}

/// The memory of a block, or of the part of it from `skipped` bytes of the file on.
struct BlockDestination {
    layout: Arc<BlockLayout>,
    skipped: u64,
    /// Bytes of the block's memory that lie before `memory`.
    left_out: u64,
    memory: TensorDestination,
    room: u64,
}

impl BlockDestination {
    fn new(address: usize, name: &str, py: Python<'_>, block: BlockRequest) -> PyResult<Self> {
        let (run, room, (skipped, left_out), dims) = block;
        let dims = dims
            .into_iter()
            .map(|(count, stored_step, target_step)| BlockDim { count, stored_step, target_step })
            .collect();
        let layout = BlockLayout::new(run, dims).map_err(|error| to_python(py, &about(name, error)))?;
        let memory = TensorDestination::new(address, room)?;
        Ok(Self { layout: Arc::new(layout), skipped, left_out, memory, room })
    }
}

impl Destination for BlockDestination {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        // Parts of a block are written at the same time, so each run is seen alone, never the memory as a whole. A
        // place before `memory` becomes one far past its end, which it refuses.
        self.layout.scatter(self.skipped + offset, bytes, |place, run| {
            self.memory.part(place.wrapping_sub(self.left_out), run.len() as u64).write(0, run);
        });
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        Some(Box::new(Self {
            layout: Arc::clone(&self.layout),
            skipped: self.skipped.checked_add(at)?,
            left_out: self.left_out,
            memory: self.memory.part(0, self.room),
            room: self.room,
        }))
    }
}

/// What a download runs as, until it is waited for or stopped.
type Task = Mutex<Option<JoinHandle<Result<(), Error>>>>;

/// A download that is under way.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Download {
    task: OfProcess<Task>,
}

impl Download {
    /// Starts the reads on the I/O threads.
    pub(crate) fn start(
        engine: Client,
        bucket: &str,
        reads: Vec<ItemRead>,
        verify: bool,
        requests_per_second: Option<f64>,
    ) -> PyResult<Download> {
        let bucket = bucket.to_owned();
        let defaults = ReadOptions::default();
        let wanted = reads.iter().flat_map(|item| &item.pieces).map(|piece| &piece.item_range);
        let total = wanted.map(|range| range.end.saturating_sub(range.start)).sum();
        let range_size = engine.range_size(total, defaults.range_size, requests_per_second);
        let options = ReadOptions { verify, range_size, ..defaults };
        let task = handle()?.spawn(async move {
            let reads = plan_reads(reads, &options).map_err(|error| error.with_bucket(&bucket))?;
            engine.download(&bucket, reads).await
        });
        Ok(Download { task: OfProcess::new(Mutex::new(Some(task))) })
    }

    fn take(&self) -> Option<JoinHandle<Result<(), Error>>> {
        self.task.get()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[entry]
#[pymethods]
impl Download {
    /// Wait until every byte is in place and verified, then say nothing; a second wait returns at once.
    ///
    /// Also when this raises, nothing is written any more.
    pub(crate) fn wait(&self, py: Python<'_>) -> PyResult<()> {
        if self.task.get().is_none() {
            return Err(to_python(py, &forked("the download")));
        }
        let Some(mut task) = self.take() else { return Ok(()) };
        let result = wait(py, async {
            (&mut task).await.unwrap_or_else(|failure| {
                Err(Error::new(ErrorKind::Interrupted, format!("the download ended early: {failure}")))
            })
        });
        if !task.is_finished() {
            stop(py, task)?;
        }
        result
    }

    /// Stop it, if it still runs; nothing is written after this. Does nothing in a forked child.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        match self.take() {
            Some(task) => stop(py, task),
            None => Ok(()),
        }
    }
}

/// Aborts a task and waits until it is gone.
fn stop(py: Python<'_>, task: JoinHandle<Result<(), Error>>) -> PyResult<()> {
    let runtime = handle()?;
    task.abort();
    // How it ended no longer matters.
    py.detach(|| runtime.block_on(task).ok());
    Ok(())
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(task) = self.take() {
            task.abort();
        }
    }
}
