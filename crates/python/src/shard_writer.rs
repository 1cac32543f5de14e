//! One object on its way up, driven from Python.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use s3dcp_checkpoint::{DType, ItemRecord, TensorSpec};
use s3dcp_entry::entry;
use s3dcp_s3::{Client, Error, ErrorKind, UploadOptions, UploadOutput, share_of_budget};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::errors::to_python;
use crate::memory::TensorMemory;
use crate::runtime::{self, OfProcess, forked, without_gil};
use crate::staging::StagingBuffer;
use crate::uses::{Use, Uses};

/// Longest wait for requests that were given up to let go of what they read. They do at once, but for a small object's
/// request, which is given a second to end; only a connection that is stuck while it closes holds on for longer.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

enum State {
    Open(Box<s3dcp_checkpoint::ShardWriter>),
    /// Dropping the sender stops the task.
    Finishing(JoinHandle<Result<UploadOutput, Error>>, oneshot::Sender<()>),
    Ended,
}

struct Live {
    state: State,
    /// Held by whatever reads the caller's memory.
    uses: Uses,
}

/// Offset, length, start of the raw bytes (None for an object), packed checksums.
type Record<'py> = (u64, u64, Option<u64>, Bound<'py, PyBytes>);

/// Dtype, shape, address, owner.
type TensorItem<'py> = (Bound<'py, PyString>, Vec<u64>, usize, Bound<'py, PyAny>);

/// Writes the items of one shard file in order; bytes go up while later items are still being written.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct ShardWriter {
    key: String,
    live: OfProcess<Live>,
    in_tensor: bool,
    /// Bytes of a full part.
    #[pyo3(get)]
    part_size: u64,
}

impl ShardWriter {
    fn new(key: &str, writer: s3dcp_checkpoint::ShardWriter, part_size: u64) -> Self {
        let live = Live { state: State::Open(Box::new(writer)), uses: Uses::new() };
        Self { key: key.to_owned(), live: OfProcess::new(live), in_tensor: false, part_size }
    }

    /// Gives the upload up in the background.
    fn give_up(&mut self) {
        if let Some(live) = self.live.get_mut() {
            live.state = State::Ended;
        }
    }

    /// The same; nothing reads the caller's memory after this. Does nothing in a forked child.
    fn let_go(&mut self) {
        self.give_up();
        if let Some(live) = self.live.get() {
            live.uses.end_within(LET_GO_LIMIT);
        }
    }

    /// Gives the upload up: its end, to be waited for, and its key where the object may be complete. In a forked child
    /// there is nothing to give up.
    pub(crate) fn stop(&mut self) -> (impl Future<Output = ()> + Send + use<>, Option<String>) {
        let state = self.live.get_mut().map(|live| std::mem::replace(&mut live.state, State::Ended));
        let may_be_complete = matches!(state, Some(State::Finishing(..) | State::Ended));
        let ended = async {
            match state {
                Some(State::Open(writer)) => writer.abort().await,
                Some(State::Finishing(task, stop)) => {
                    drop(stop);
                    // However it ended, nobody wants the object.
                    let _ended = task.await;
                }
                Some(State::Ended) | None => {}
            }
        };
        (ended, may_be_complete.then(|| self.key.clone()))
    }

    fn state(&mut self, py: Python<'_>) -> PyResult<&mut State> {
        Ok(&mut self.live(py)?.state)
    }

    fn live(&mut self, py: Python<'_>) -> PyResult<&mut Live> {
        self.live.get_mut().ok_or_else(|| to_python(py, &forked("the upload of this file")))
    }

    /// The word that memory is in use, for what is to be written.
    fn begin_use(&mut self, py: Python<'_>) -> PyResult<Use> {
        self.live(py)?.uses.begin().ok_or_else(|| to_python(py, &ended()))
    }

    fn open(&mut self, py: Python<'_>) -> PyResult<&mut s3dcp_checkpoint::ShardWriter> {
        match self.state(py)? {
            State::Open(writer) => Ok(writer),
            _ => Err(to_python(py, &ended())),
        }
    }

    fn whole_raw<'py>(&mut self, py: Python<'py>, data: Bytes) -> PyResult<Record<'py>> {
        let writer = self.open(py)?;
        let record = runtime::wait(py, async {
            writer.begin_raw()?;
            writer.write(data).await?;
            writer.end().await
        })?;
        Ok(to_record(py, &record, false))
    }
}

#[entry]
#[pymethods]
impl ShardWriter {
    /// Write whole tensors one after another, each given as its dtype, its shape, the address of its contiguous
    /// row-major bytes and the object whose memory they are, which is kept alive until they are up.
    fn tensors<'py>(&mut self, py: Python<'py>, items: Vec<TensorItem<'py>>) -> PyResult<Vec<Record<'py>>> {
        let mut tensors = Vec::with_capacity(items.len());
        let mut owners = Vec::with_capacity(items.len());
        let in_use = self.begin_use(py)?;
        for (dtype, shape, address, owner) in items {
            let spec = tensor_spec(py, dtype.to_str()?, shape)?;
            let memory = TensorMemory::new(address, byte_count(&spec)?, &owner, in_use.clone())?;
            tensors.push((spec, memory));
            owners.push(owner);
        }
        let writer = self.open(py)?;
        // `owners` outlives the future
        let records = runtime::wait(py, async {
            let mut records = Vec::with_capacity(tensors.len());
            for (spec, memory) in tensors {
                records.push(writer.tensor(&spec, memory).await?);
            }
            Ok(records)
        })?;
        Ok(records.iter().map(|record| to_record(py, record, true)).collect())
    }

    /// Begin a tensor whose bytes follow in `write_staged` or `write`; `end` gives its record.
    fn begin_tensor(&mut self, py: Python<'_>, dtype: &str, shape: Vec<u64>) -> PyResult<()> {
        let spec = tensor_spec(py, dtype, shape)?;
        self.in_tensor = true;
        self.open(py)?.begin_tensor(&spec).map_err(|error| to_python(py, &error))
    }

    /// Begin raw bytes that follow in `write`; `end` gives their record.
    fn begin_raw(&mut self, py: Python<'_>) -> PyResult<()> {
        self.in_tensor = false;
        self.open(py)?.begin_raw().map_err(|error| to_python(py, &error))
    }

    /// Append to the item begun.
    fn write(&mut self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let writer = self.open(py)?;
        runtime::wait(py, writer.write(data))
    }

    /// Append `nbytes` of `buffer` from `start` on.
    fn write_staged(
        &mut self,
        py: Python<'_>,
        buffer: &StagingBuffer,
        start: usize,
        nbytes: usize,
    ) -> PyResult<()> {
        let data = buffer.filled(start, nbytes)?;
        let writer = self.open(py)?;
        runtime::wait(py, writer.write(data))
    }

    /// End the item begun; its record.
    fn end<'py>(&mut self, py: Python<'py>) -> PyResult<Record<'py>> {
        let writer = self.open(py)?;
        let record = runtime::wait(py, writer.end())?;
        Ok(to_record(py, &record, self.in_tensor))
    }

    /// Write one object's bytes as an item.
    fn raw<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyBytes>) -> PyResult<Record<'py>> {
        self.whole_raw(py, Bytes::copy_from_slice(data.as_bytes()))
    }

    /// Write `nbytes` at `address`, memory of `owner`, as an item of raw bytes.
    fn raw_memory<'py>(
        &mut self,
        py: Python<'py>,
        address: usize,
        nbytes: usize,
        owner: Bound<'py, PyAny>,
    ) -> PyResult<Record<'py>> {
        let in_use = self.begin_use(py)?;
        self.whole_raw(py, TensorMemory::new(address, nbytes, &owner, in_use)?.into())
    }

    /// Let the rest go up in the background; `wait` tells how it ended.
    fn start_finishing(&mut self, py: Python<'_>) -> PyResult<()> {
        self.open(py)?;
        let state = self.state(py)?;
        if let State::Open(writer) = std::mem::replace(state, State::Ended) {
            let (stop, stopped) = oneshot::channel();
            let finished = writer.finish_unless(async { stopped.await.unwrap_or(()) });
            *state = State::Finishing(runtime::handle()?.spawn(finished), stop);
        }
        Ok(())
    }

    /// Wait until the object is complete; its size in bytes.
    fn wait(&mut self, py: Python<'_>) -> PyResult<u64> {
        let state = self.state(py)?;
        let State::Finishing(task, _) = state else {
            return Err(to_python(
                py,
                &Error::new(ErrorKind::Interrupted, "this file is not being finished"),
            ));
        };
        let ended = runtime::wait(py, async { Ok(task.await) })?;
        *state = State::Ended;
        let output = ended.unwrap_or_else(|failure| {
            Err(Error::new(ErrorKind::Interrupted, format!("the upload's task ended early: {failure}")))
        });
        output.map(|output| output.size).map_err(|error| to_python(py, &error))
    }

    /// Give the upload up. Does nothing when the object is complete, or in a forked child.
    fn abort(&mut self, py: Python<'_>) -> PyResult<()> {
        let (ended, _) = self.stop();
        runtime::wait(py, async {
            ended.await;
            Ok(())
        })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        let this = Mutex::new(self);
        without_gil(|| this.lock().unwrap_or_else(PoisonError::into_inner).let_go());
    }
}

/// The uploads of one save: a context manager that leaves none behind that reads the caller's memory, whatever unwinds;
/// see `Downloads`.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Uploads {
    engine: OfProcess<Client>,
    bucket: String,
    /// Writes per second that each writer should keep to; `None`: as many as it likes.
    requests_per_second: Option<f64>,
    writers: Mutex<Vec<Py<ShardWriter>>>,
}

impl Uploads {
    /// `alike`: the ranks that save at once, and the files of each, where they are known.
    pub(crate) fn new(engine: Client, bucket: &str, alike: Option<(u64, u64)>) -> Self {
        let engine = OfProcess::new(engine);
        let requests_per_second = alike.map(|(ranks, files)| share_of_budget(true, ranks, files));
        Self { engine, bucket: bucket.to_owned(), requests_per_second, writers: Mutex::new(Vec::new()) }
    }

    fn writers(&self) -> MutexGuard<'_, Vec<Py<ShardWriter>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[entry]
#[pymethods]
impl Uploads {
    /// A writer of one object, of about `size_hint` bytes (0: not known).
    fn shard_writer(&self, py: Python<'_>, key: &str, size_hint: u64) -> PyResult<Py<ShardWriter>> {
        let mut options = UploadOptions::default();
        options.size_hint = (size_hint > 0).then_some(size_hint);
        options.requests_per_second = self.requests_per_second;
        let engine = self.engine.get().ok_or_else(|| to_python(py, &forked("the save")))?;
        let upload = engine.upload(&self.bucket, key, options);
        let part_size = upload.part_remaining();
        let writer = ShardWriter::new(key, s3dcp_checkpoint::ShardWriter::new(upload), part_size);
        let writer = Py::new(py, writer)?;
        self.writers().push(writer.clone_ref(py));
        Ok(writer)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Give up in the background what is not complete. Does nothing in a forked child.
    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) {
        let writers = std::mem::take(&mut *self.writers());
        // One in use belongs to a thread that is still saving.
        let mut writers: Vec<_> =
            writers.iter().filter_map(|writer| writer.try_borrow_mut(py).ok()).collect();
        for writer in &mut writers {
            writer.give_up();
        }
        for writer in &mut writers {
            let writer: &mut ShardWriter = writer;
            py.detach(|| writer.let_go());
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Interrupted, "this file was finished or aborted before")
}

fn tensor_spec(py: Python<'_>, dtype: &str, shape: Vec<u64>) -> PyResult<TensorSpec> {
    let dtype = DType::from_torch_name(dtype).ok_or_else(|| {
        to_python(
            py,
            &Error::new(ErrorKind::Config, format!("dtype={dtype:?}: not a dtype that can be stored")),
        )
    })?;
    Ok(TensorSpec::contiguous(dtype, shape))
}

fn byte_count(spec: &TensorSpec) -> PyResult<usize> {
    let bytes = spec.numel().and_then(|count| count.checked_mul(spec.dtype.item_size()));
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| {
            PyValueError::new_err(format!("shape={:?}: more elements than memory can hold", spec.shape))
        })
}

fn to_record<'py>(py: Python<'py>, record: &ItemRecord, is_tensor: bool) -> Record<'py> {
    let data_offset = is_tensor.then_some(record.data_offset);
    (record.offset, record.length, data_offset, PyBytes::new(py, &record.checksums.to_bytes()))
}
