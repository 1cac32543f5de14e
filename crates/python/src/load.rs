//! `_native.Load`: one load, from the items of a plan to bytes in tensors.
//!
//! Python says which item and which tensor: its address and strides. Which bytes of which file these are, in which runs
//! they go where, and how they are asked for, is `s3dcp_checkpoint`'s.
#![expect(unsafe_code, reason = "Python gives the addresses of the memory to fill")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyList, PyString, PyTuple};
use s3dcp_checkpoint::{
    Destination, Entry, ForeignTensor, ItemRead, Layout, Part, Piece, Storage, check_in_file, fetch_items,
    foreign_sources,
};
use s3dcp_entry::entry;
use s3dcp_s3::{Client, Error, ErrorKind, share_of_budget};

use crate::download::Running;
use crate::errors::to_python;
use crate::memory::TensorDestination;
use crate::plan_items::Finder;
use crate::runtime::{OfProcess, forked, wait};
use crate::stored_item::{ItemPart, StoredItem};

/// What is to be filled: the wanted block of an item, in memory of these strides in elements (None: one element after
/// another), or a part of an item.
#[derive(FromPyObject)]
enum Wanted<'py> {
    Tensor(PyRef<'py, StoredItem>, usize, Option<Vec<u64>>),
    Part(PyRef<'py, ItemPart>, usize),
}

impl Wanted<'_> {
    /// # Safety
    /// What it is to fill must be memory at its address until the read is dropped, written by nothing else.
    unsafe fn read(&self, py: Python<'_>) -> PyResult<ItemRead> {
        let (item, address, parts) = match self {
            Wanted::Tensor(item, address, strides) => {
                let parts = item.direct(strides.as_deref()).map_err(|error| to_python(py, &error))?;
                (&**item, *address, parts)
            }
            Wanted::Part(part, address) => (part.item.get(), *address, vec![part.part.clone()]),
        };
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            let item_range = part.item_range.clone();
            // SAFETY: the caller's.
            let destination = unsafe { destination(address, part) }?;
            pieces.push(Piece { item_range, destination });
        }
        Ok(item.read(pieces))
    }
}

/// The memory of a part of what begins at `address`.
///
/// # Safety
/// That of [`TensorDestination::new`].
unsafe fn destination(address: usize, part: Part) -> PyResult<Box<dyn Destination>> {
    let start = usize::try_from(part.memory.start).ok().and_then(|start| address.checked_add(start));
    let start = start.ok_or_else(|| PyValueError::new_err("a tensor past the end of memory"))?;
    // SAFETY: the caller's.
    let memory = unsafe { TensorDestination::new(start, part.memory.end - part.memory.start) }?;
    Ok(match part.runs {
        None => Box::new(memory),
        Some(runs) => Box::new(memory.scattered(runs)),
    })
}

/// Where the items of a plan are stored.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct Found {
    /// File by file, and from front to back.
    items: Py<PyList>,
    /// The names of tensors whose chunks in the index leave holes.
    with_holes: Vec<Py<PyString>>,
}

/// A download of a load.
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

/// One load, as a context manager that leaves no download behind, whatever unwinds.
///
/// A signal handler may raise at any instant in Python's code, also between a call of this module and the use of its
/// result, and a traceback keeps alive what a frame holds. So downloads are noted here before Python hears of them, and
/// `__exit__` is one native call, within which nothing raises.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Load {
    storage: OfProcess<Storage>,
    /// Of the folder of the index.
    names: Layout,
    /// Compare with the checksums in the index.
    verify: bool,
    /// What may be asked for, as far as is known how many ranks load at once.
    requests_per_second: f64,
    /// None once closed.
    running: Mutex<Option<Vec<Arc<Running>>>>,
}

impl Load {
    pub(crate) fn new(engine: &Client, bucket: &str, path_key: &str, verify: bool, ranks: u64) -> Self {
        let (storage, names) = (OfProcess::new(Storage::bucket(engine, bucket)), Layout::new(path_key));
        let requests_per_second = share_of_budget(bucket, false, ranks, 1);
        Self { storage, names, verify, requests_per_second, running: Mutex::new(Some(Vec::new())) }
    }

    fn storage(&self, py: Python<'_>) -> PyResult<&Storage> {
        self.storage.get().ok_or_else(|| to_python(py, &forked("the load")))
    }

    fn running(&self) -> MutexGuard<'_, Option<Vec<Arc<Running>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[entry]
#[pymethods]
impl Load {
    /// Where the items of a plan are stored: refuses what the index says of them where that cannot be. `state` is what the
    /// load wants, by name, as far as it is known; more than the plan reads where chunks are missing.
    fn find(
        &self,
        metadata: &Bound<'_, PyAny>,
        items: &Bound<'_, PyList>,
        state: &Bound<'_, PyDict>,
    ) -> PyResult<Found> {
        let mut finder = Finder::new(metadata, &self.names)?;
        let items = finder.items(items)?;
        let with_holes = finder.with_holes(state)?;
        Ok(Found { items: items.unbind(), with_holes })
    }

    /// Read heads and ends of the tensors among `items` that others stored, all at once.
    fn read_heads(&self, py: Python<'_>, items: Vec<PyRef<'_, StoredItem>>) -> PyResult<()> {
        let unknown: Vec<_> = items.iter().filter(|item| item.is_unknown()).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let tensors: Vec<ForeignTensor> = unknown.iter().map(|item| item.foreign_tensor()).collect();
        let sources = wait(py, foreign_sources(self.storage(py)?, &tensors))?;
        for (item, source) in unknown.into_iter().zip(sources) {
            item.found(py, source)?;
        }
        Ok(())
    }

    /// All bytes of an item, which do not end past its file.
    fn whole(&self, item: &Bound<'_, StoredItem>) -> PyResult<ItemPart> {
        let (py, stored) = (item.py(), item.get());
        wait(py, check_in_file(self.storage(py)?, &stored.name, &stored.entry))?;
        Ok(ItemPart { item: item.clone().unbind(), part: stored.entry.whole() })
    }

    /// Start fetching what is wanted into `memory`, whatever owns it, which is kept alive as long as the download. Nobody
    /// else may use the memory meanwhile.
    fn start(&self, py: Python<'_>, wanted: Vec<Wanted<'_>>, memory: Py<PyAny>) -> PyResult<Download> {
        let (storage, verify) = (self.storage(py)?.clone(), self.verify);
        // SAFETY: `memory` owns what is written, and is held until the download has ended. That nobody uses it meanwhile
        // is the caller's promise (torch: a state dict must not be used during a load).
        let reads = wanted.iter().map(|wanted| unsafe { wanted.read(py) }).collect::<PyResult<Vec<_>>>()?;
        drop(wanted);
        let budget = Some(self.requests_per_second);
        let mut running = self.running();
        let Some(group) = running.as_mut() else {
            return Err(to_python(py, &Error::new(ErrorKind::Interrupted, "the load has ended")));
        };
        let (finished, mut unfinished): (Vec<_>, Vec<_>) =
            std::mem::take(group).into_iter().partition(|download| download.is_finished());
        let fetch = async move { fetch_items(&storage, reads, verify, budget).await };
        let started = Running::start(fetch, memory).map(Arc::new);
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

/// The bytes of each (key, start, end) in `bucket`, all fetched at once.
pub(crate) fn read_ranges<'py>(
    py: Python<'py>,
    engine: &Client,
    bucket: &str,
    ranges: Vec<(String, u64, u64)>,
) -> PyResult<Vec<Bound<'py, PyByteArray>>> {
    let mut buffers = Vec::with_capacity(ranges.len());
    let mut reads = Vec::with_capacity(ranges.len());
    for (key, start, end) in ranges {
        let length = end.saturating_sub(start);
        let buffer = PyByteArray::new_with(py, usize::try_from(length)?, |_| Ok(()))?;
        let entry = Entry { key: key.into(), offset: start, length, data_offset: None, checksums: None };
        let part = entry.whole();
        let item_range = part.item_range.clone();
        // SAFETY: the buffer is held until the download has ended, and nobody else has it yet.
        let destination = unsafe { destination(buffer.data() as usize, part) }?;
        reads.push(entry.read(&entry.key, None, vec![Piece { item_range, destination }]));
        buffers.push(buffer);
    }
    let memory = PyList::new(py, &buffers)?.into_any().unbind();
    let storage = Storage::bucket(engine, bucket);
    let fetch = async move { fetch_items(&storage, reads, false, None).await };
    Running::start(fetch, memory)?.wait(py)?;
    Ok(buffers)
}
