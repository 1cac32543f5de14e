//! One object on its way up, driven from Python.
#![expect(unsafe_code, reason = "Python hands over the memory of tensors by address")]

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use s3dcp_checkpoint::{DType, TensorSpec};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind, Segment};

use crate::errors::to_python;
use crate::memory::TensorMemory;
use crate::runtime::{self, OfProcess, forked, without_gil};
use crate::staging::StagingBuffer;
use crate::uses::{Use, Uses};

/// Longest wait for requests that were given up to let go of what they read. They do at once, but for a small object's
/// request, which is given a second to end; only a connection that is stuck while it closes holds on for longer.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

struct Live {
    writer: s3dcp_checkpoint::ShardWriter,
    /// Held by whatever reads the caller's memory.
    uses: Uses,
}

/// Where an item lies in its shard file, and its checksums.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct ItemRecord {
    offset: u64,
    /// Bytes of the item.
    length: u64,
    /// Where in it a tensor's raw bytes begin; None where that is not known.
    data_offset: Option<u64>,
    /// CRC-32 of the item and of its slices, little-endian.
    checksums: Py<PyBytes>,
    /// What the item is, by which a later save knows it again; None where that is not asked for.
    hash: Option<Py<PyBytes>>,
}

impl ItemRecord {
    fn new(py: Python<'_>, record: &s3dcp_checkpoint::ItemRecord) -> Self {
        Self {
            offset: record.offset,
            length: record.length,
            data_offset: Some(record.data_offset),
            checksums: PyBytes::new(py, &record.checksums.to_bytes()).unbind(),
            hash: record.hash.map(|hash| PyBytes::new(py, &hash.to_bytes()).unbind()),
        }
    }
}

/// Dtype, shape, address, owner.
pub(crate) type TensorItem<'py> = (Bound<'py, PyString>, Vec<u64>, usize, Bound<'py, PyAny>);

/// Writes the items of one shard file in order; bytes go up while later items are still being written.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct ShardWriter {
    live: OfProcess<Live>,
    /// The file's name in an index of the checkpoint's path.
    #[pyo3(get)]
    relative_path: String,
    /// Bytes of a full part.
    #[pyo3(get)]
    part_size: u64,
}

impl ShardWriter {
    pub(crate) fn new(writer: s3dcp_checkpoint::ShardWriter) -> Self {
        let (relative_path, part_size) = (writer.name().relative_path.clone(), writer.part_size());
        Self { live: OfProcess::new(Live { writer, uses: Uses::new() }), relative_path, part_size }
    }

    /// The writer, in the process that made it.
    pub(crate) fn inner(&mut self) -> Option<&mut s3dcp_checkpoint::ShardWriter> {
        self.live.get_mut().map(|live| &mut live.writer)
    }

    /// Gives the upload up in the background.
    pub(crate) fn give_up(&mut self) {
        if let Some(writer) = self.inner() {
            writer.give_up();
        }
    }

    /// The same; nothing reads the caller's memory after this. Does nothing in a forked child.
    pub(crate) fn let_go(&mut self) {
        self.give_up();
        if let Some(live) = self.live.get() {
            live.uses.end_within(LET_GO_LIMIT);
        }
    }

    fn live(&mut self, py: Python<'_>) -> PyResult<&mut Live> {
        self.live.get_mut().ok_or_else(|| to_python(py, &forked("the upload of this file")))
    }

    fn writer(&mut self, py: Python<'_>) -> PyResult<&mut s3dcp_checkpoint::ShardWriter> {
        Ok(&mut self.live(py)?.writer)
    }

    /// The word that memory is in use, for what is to be written.
    fn begin_use(&mut self, py: Python<'_>) -> PyResult<Use> {
        self.live(py)?.uses.begin().ok_or_else(|| {
            to_python(py, &Error::new(ErrorKind::Interrupted, "this file was given up before"))
        })
    }

    fn whole_raw(
        &mut self,
        py: Python<'_>,
        data: impl Into<Segment> + Send,
        values_of: Option<TensorSpec>,
    ) -> PyResult<ItemRecord> {
        let writer = self.writer(py)?;
        let record = runtime::wait(py, async {
            begin_raw(writer, values_of.as_ref())?;
            writer.write(data).await?;
            writer.end().await
        })?;
        Ok(ItemRecord::new(py, &record))
    }
}

#[entry]
#[pymethods]
impl ShardWriter {
    /// Write whole tensors one after another, each given as its dtype, its shape, the address of its contiguous
    /// row-major bytes and the object whose memory they are, which is kept alive until they are up.
    fn tensors<'py>(&mut self, py: Python<'py>, items: Vec<TensorItem<'py>>) -> PyResult<Vec<ItemRecord>> {
        let mut tensors = Vec::with_capacity(items.len());
        let mut owners = Vec::with_capacity(items.len());
        let in_use = self.begin_use(py)?;
        for (dtype, shape, address, owner) in items {
            let spec = tensor_spec(py, dtype.to_str()?, shape)?;
            // SAFETY: Python's promise (torch: a state dict must not change during a save); `owners` keeps all of them alive
            // until the last is written.
            let memory = unsafe { TensorMemory::new(address, byte_count(&spec)?, &owner, in_use.clone())? };
            tensors.push((spec, memory));
            owners.push(owner);
        }
        let writer = self.writer(py)?;
        // `owners` outlives the future
        let records = runtime::wait(py, async {
            let mut records = Vec::with_capacity(tensors.len());
            for (spec, memory) in tensors {
                records.push(writer.tensor(&spec, memory).await?);
            }
            Ok(records)
        })?;
        Ok(records.iter().map(|record| ItemRecord::new(py, record)).collect())
    }

    /// Begin a tensor whose bytes follow in `write_staged` or `write`; `end` gives its record.
    fn begin_tensor(&mut self, py: Python<'_>, dtype: &str, shape: Vec<u64>) -> PyResult<()> {
        let spec = tensor_spec(py, dtype, shape)?;
        self.writer(py)?.begin_tensor(&spec).map_err(|error| to_python(py, &error))
    }

    /// Begin raw bytes that follow in `write`; `end` gives their record. `values_of`: dtype and shape, where they are the
    /// values of a tensor.
    #[pyo3(signature = (values_of=None))]
    fn begin_raw(&mut self, py: Python<'_>, values_of: Option<(String, Vec<u64>)>) -> PyResult<()> {
        let spec = optional_spec(py, values_of)?;
        begin_raw(self.writer(py)?, spec.as_ref()).map_err(|error| to_python(py, &error))
    }

    /// Append to the item begun.
    fn write(&mut self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let writer = self.writer(py)?;
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
        let writer = self.writer(py)?;
        runtime::wait(py, writer.write(data))
    }

    /// End the item begun; its record.
    fn end(&mut self, py: Python<'_>) -> PyResult<ItemRecord> {
        let writer = self.writer(py)?;
        let record = runtime::wait(py, writer.end())?;
        Ok(ItemRecord::new(py, &record))
    }

    /// Write what only its reader can tell apart, a pickled object, as an item: its record has no `data_offset`.
    fn raw(&mut self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<ItemRecord> {
        let record = self.whole_raw(py, Bytes::copy_from_slice(data.as_bytes()), None)?;
        Ok(ItemRecord { data_offset: None, ..record })
    }

    /// Write `nbytes` at `address`, memory of `owner`, as an item of raw bytes. `values_of` as for `begin_raw`.
    #[pyo3(signature = (address, nbytes, owner, values_of=None))]
    fn raw_memory(
        &mut self,
        py: Python<'_>,
        address: usize,
        nbytes: usize,
        owner: &Bound<'_, PyAny>,
        values_of: Option<(String, Vec<u64>)>,
    ) -> PyResult<ItemRecord> {
        let spec = optional_spec(py, values_of)?;
        let in_use = self.begin_use(py)?;
        // SAFETY: Python's promise; the caller keeps `owner` alive during the call.
        let memory = unsafe { TensorMemory::new(address, nbytes, owner, in_use)? };
        self.whole_raw(py, memory, spec)
    }

    /// Let the rest go up in the background; `wait` tells how it ended.
    fn start_finishing(&mut self, py: Python<'_>) -> PyResult<()> {
        let _entered = runtime::handle()?.enter();
        self.writer(py)?.start_finishing().map_err(|error| to_python(py, &error))
    }

    /// Wait until the object is complete; its size in bytes.
    fn wait(&mut self, py: Python<'_>) -> PyResult<u64> {
        Ok(runtime::wait(py, self.writer(py)?.wait())?.size)
    }

    /// Give the upload up. Does nothing when the object is complete, or in a forked child.
    fn abort(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(writer) = self.inner() else { return Ok(()) };
        let ended = writer.stop();
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

fn begin_raw(
    writer: &mut s3dcp_checkpoint::ShardWriter,
    values_of: Option<&TensorSpec>,
) -> Result<(), Error> {
    match values_of {
        Some(spec) => writer.begin_values(spec),
        None => writer.begin_raw(),
    }
}

fn optional_spec(py: Python<'_>, tensor: Option<(String, Vec<u64>)>) -> PyResult<Option<TensorSpec>> {
    tensor.map(|(dtype, shape)| tensor_spec(py, &dtype, shape)).transpose()
}

pub(crate) fn tensor_spec(py: Python<'_>, dtype: &str, shape: Vec<u64>) -> PyResult<TensorSpec> {
    let dtype = DType::from_torch_name(dtype).ok_or_else(|| {
        to_python(
            py,
            &Error::new(ErrorKind::Config, format!("dtype={dtype:?}: not a dtype that can be stored")),
        )
    })?;
    Ok(TensorSpec::contiguous(dtype, shape))
}

pub(crate) fn byte_count(spec: &TensorSpec) -> PyResult<usize> {
    let bytes = spec.numel().and_then(|count| count.checked_mul(spec.dtype.item_size()));
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| {
            PyValueError::new_err(format!("shape={:?}: more elements than memory can hold", spec.shape))
        })
}
