//! One object on its way up, driven from Python.

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use s3dcp_checkpoint::{DType, ItemRecord, TensorSpec};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind, UploadOutput};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::errors::to_python;
use crate::memory::TensorMemory;
use crate::runtime::{self, OfProcess, forked};
use crate::staging::StagingBuffer;

enum State {
    Open(Box<s3dcp_checkpoint::ShardWriter>),
    /// Dropping the sender stops the task.
    Finishing(JoinHandle<Result<UploadOutput, Error>>, oneshot::Sender<()>),
    Ended,
}

/// Offset, length, start of the raw bytes (None for an object), packed checksums.
type Record<'py> = (u64, u64, Option<u64>, Bound<'py, PyBytes>);

/// Dtype, shape, address, owner.
type TensorItem<'py> = (Bound<'py, PyString>, Vec<u64>, usize, Bound<'py, PyAny>);

/// Writes the items of one shard file in order; bytes go up while later items are still being written.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct ShardWriter {
    key: String,
    state: OfProcess<State>,
    in_tensor: bool,
    /// Bytes of a full part.
    #[pyo3(get)]
    part_size: u64,
}

impl ShardWriter {
    pub(crate) fn new(key: &str, writer: s3dcp_checkpoint::ShardWriter, part_size: u64) -> Self {
        let state = OfProcess::new(State::Open(Box::new(writer)));
        Self { key: key.to_owned(), state, in_tensor: false, part_size }
    }

    /// Gives the upload up: its end, to be waited for, and its key where the object may be complete. In a forked child
    /// there is nothing to give up.
    pub(crate) fn stop(&mut self) -> (impl Future<Output = ()> + Send + use<>, Option<String>) {
        let state = self.state.get_mut().map(|state| std::mem::replace(state, State::Ended));
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
        self.state.get_mut().ok_or_else(|| to_python(py, &forked("the upload of this file")))
    }

    fn open(&mut self, py: Python<'_>) -> PyResult<&mut s3dcp_checkpoint::ShardWriter> {
        match self.state(py)? {
            State::Open(writer) => Ok(writer),
            _ => Err(to_python(
                py,
                &Error::new(ErrorKind::Interrupted, "this file was finished or aborted before"),
            )),
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
        for (dtype, shape, address, owner) in items {
            let spec = tensor_spec(py, dtype.to_str()?, shape)?;
            let memory = TensorMemory::new(address, byte_count(&spec)?, &owner)?;
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
        self.whole_raw(py, TensorMemory::new(address, nbytes, &owner)?.into())
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
