//! Reads of many items at once, handed over by Python in columns, and their download while Python goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use s3dcp_checkpoint::{
    BlockDim, BlockLayout, Destination, ItemChecksums, ItemHead, ItemRead, Piece, ReadOptions, plan_reads,
};
use s3dcp_entry::entry;
use s3dcp_s3::{Client, Error, ErrorKind, share_of_budget};
use tokio::task::{AbortHandle, JoinHandle};

use crate::errors::{about, shown, to_python};
use crate::memory::TensorDestination;
use crate::runtime::{OfProcess, forked, handle, wait, without_gil};
use crate::uses::Uses;

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
    /// Length and CRC-32 of what an item must begin with, or None.
    heads: Vec<Option<(u64, u32)>>,
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
            self.heads.len(),
        ];
        if others.iter().any(|&length| length != count) {
            return Err(PyValueError::new_err("batch: its columns must be of equal length"));
        }
        let py = self.names.py();
        let mut reads = Vec::with_capacity(count);
        for row in 0..count {
            let name = shown(self.names.get_item(row)?.cast::<PyString>()?)?;
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
                head: self.heads[row].map(|(length, crc32)| ItemHead { length, crc32 }),
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
    Ok(ItemRead { name: key.clone(), key, offset: start, length, checksums: None, head: None, pieces })
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

type Outcome = Result<(), Error>;

/// The task of a download.
struct Task {
    /// Taken by whoever waits first.
    outcome: Mutex<Option<JoinHandle<Outcome>>>,
    abort: AbortHandle,
    /// Held by the task until it is gone.
    uses: Uses,
}

/// A download that is under way, until it ends or this is dropped: after either, nothing is written any more.
pub(crate) struct Running {
    task: OfProcess<Task>,
    /// What owns the memory that is written into.
    _memory: Py<PyAny>,
}

/// What a download is to do besides its reads.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    pub(crate) bucket: &'a str,
    /// Compare with the checksums of the reads.
    pub(crate) verify: bool,
    /// This rank's share of S3's budget.
    pub(crate) requests_per_second: Option<f64>,
}

impl Running {
    /// Starts the reads on the I/O threads; `memory` owns the places that they write.
    pub(crate) fn start(
        engine: Client,
        order: Order<'_>,
        reads: Vec<ItemRead>,
        memory: Py<PyAny>,
    ) -> PyResult<Running> {
        let bucket = order.bucket.to_owned();
        let mut options = ReadOptions::default();
        let wanted = reads.iter().flat_map(|item| &item.pieces).map(|piece| &piece.item_range);
        let total = wanted.map(|range| range.end.saturating_sub(range.start)).sum();
        options.range_size = engine.range_size(total, options.range_size, order.requests_per_second);
        options.verify = order.verify;
        let runtime = handle()?;
        let uses = Uses::new();
        let in_use = uses.begin();
        let task = runtime.spawn(async move {
            let outcome = match plan_reads(reads, &options) {
                Ok(reads) => engine.download(&bucket, reads).await,
                Err(error) => Err(error.with_bucket(&bucket)),
            };
            // Captured last and let go of here, so that the reads are gone before it, also when the task is aborted.
            drop(in_use);
            outcome
        });
        let abort = task.abort_handle();
        let task = Task { outcome: Mutex::new(Some(task)), abort, uses };
        Ok(Running { task: OfProcess::new(task), _memory: memory })
    }

    /// Waits until every byte is in place and verified; a second wait returns at once. Also when this fails, nothing
    /// is written any more.
    pub(crate) fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let Some(task) = self.task.get() else {
            return Err(to_python(py, &forked("the download")));
        };
        let outcome = task.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(outcome) = outcome else { return Ok(()) };
        let result = wait(py, async {
            outcome.await.unwrap_or_else(|failure| {
                Err(Error::new(ErrorKind::Interrupted, format!("the download ended early: {failure}")))
            })
        });
        // After a signal the task is still there.
        py.detach(|| self.stop());
        result
    }

    /// Has it stop soon.
    fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort.abort();
        }
    }

    /// Stops it, if it still runs; nothing is written after this. Does nothing in a forked child.
    fn stop(&self) {
        self.abort();
        if let Some(task) = self.task.get() {
            task.uses.end();
        }
    }

    fn is_finished(&self) -> bool {
        self.task.get().is_none_or(|task| task.abort.is_finished())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        without_gil(|| self.stop());
    }
}

/// A download of a group.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Download {
    running: Arc<Running>,
}

#[entry]
#[pymethods]
impl Download {
    /// Wait until every byte is in place and verified, then say nothing; a second wait returns at once.
    ///
    /// Also when this raises, nothing is written any more.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        self.running.wait(py)
    }
}

/// The downloads of one load: a context manager that leaves none behind, whatever unwinds.
///
/// A signal handler may raise at any instant in Python's code, also between a call of this module and the use of its
/// result, and a traceback keeps alive what a frame holds. So downloads are noted here before Python hears of them, and
/// `__exit__` is one native call, within which nothing raises.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Downloads {
    engine: OfProcess<Client>,
    bucket: String,
    verify: bool,
    /// Ranks that load at once, as far as is known.
    ranks: u64,
    /// None once closed.
    running: Mutex<Option<Vec<Arc<Running>>>>,
}

impl Downloads {
    pub(crate) fn new(engine: Client, bucket: &str, verify: bool, ranks: u64) -> Self {
        let engine = OfProcess::new(engine);
        Self { engine, bucket: bucket.to_owned(), verify, ranks, running: Mutex::new(Some(Vec::new())) }
    }

    fn running(&self) -> MutexGuard<'_, Option<Vec<Arc<Running>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[entry]
#[pymethods]
impl Downloads {
    /// Start fetching a batch of reads into `memory`, whatever owns it, which is kept alive as long as the download.
    fn start(&self, py: Python<'_>, batch: Batch<'_>, memory: Py<PyAny>) -> PyResult<Download> {
        let engine = self.engine.get().ok_or_else(|| to_python(py, &forked("the load")))?;
        let reads = batch.reads()?;
        let order = Order {
            bucket: &self.bucket,
            verify: self.verify,
            requests_per_second: Some(share_of_budget(false, self.ranks, 1)),
        };
        let mut running = self.running();
        let Some(group) = running.as_mut() else {
            return Err(to_python(py, &Error::new(ErrorKind::Interrupted, "the load has ended")));
        };
        let (finished, mut unfinished): (Vec<_>, Vec<_>) =
            std::mem::take(group).into_iter().partition(|download| download.is_finished());
        let started = Running::start(engine.clone(), order, reads, memory).map(Arc::new);
        unfinished.extend(started.iter().map(Arc::clone));
        *group = unfinished;
        drop(running);
        // Not under the lock: what goes with them may run Python code.
        drop(finished);
        Ok(Download { running: started? })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    /// Stop every download that still runs; nothing is written after this, and none can be started. Does nothing in a
    /// forked child.
    fn close(&self, py: Python<'_>) {
        let running = self.running().take().unwrap_or_default();
        for download in &running {
            download.abort();
        }
        py.detach(|| {
            for download in &running {
                download.stop();
            }
        });
    }
}
