//! An item of a load plan, and where it is stored.

use std::sync::{Arc, OnceLock};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use s3dcp_checkpoint::{Block, Entry, ForeignTensor, ItemRead, Part, Piece, Source, shares_memory};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind};

use crate::errors::{about, to_python};

/// What is known of a tensor's bytes.
struct Known {
    /// None where only torch can read it.
    source: Option<Source>,
    /// torch's.
    dtype: Option<Py<PyAny>>,
}

/// An item of a load plan, and where it is stored.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StoredItem {
    /// torch's `ReadItem`.
    #[pyo3(get)]
    item: Py<PyAny>,
    /// What the index says of its place: torch's `_StorageInfo`.
    #[pyo3(get)]
    info: Py<PyAny>,
    /// The name, as messages show it.
    #[pyo3(get)]
    pub(crate) name: String,
    /// Whether it is a tensor that was saved as one chunk, all of which is wanted.
    wants_all: bool,
    pub(crate) entry: Entry,
    /// Of the stored chunk, as the index says; empty for objects.
    shape: Arc<[u64]>,
    /// The block of it that is wanted.
    offsets: Arc<[u64]>,
    lengths: Arc<[u64]>,
    /// Not known of what others stored until its head has been read.
    known: OnceLock<Known>,
}

/// What `StoredItem` is made of.
pub(crate) struct NewItem {
    pub(crate) item: Py<PyAny>,
    pub(crate) info: Py<PyAny>,
    pub(crate) name: String,
    pub(crate) wants_all: bool,
    pub(crate) entry: Entry,
    pub(crate) shape: Arc<[u64]>,
    pub(crate) offsets: Arc<[u64]>,
    pub(crate) lengths: Arc<[u64]>,
}

impl StoredItem {
    /// One of which the index says it all: a tensor of ours with its dtype, or None for what only torch can read.
    pub(crate) fn known(new: NewItem, tensor: Option<(Source, Py<PyAny>)>) -> StoredItem {
        let item = StoredItem::unknown(new);
        let (source, dtype) = tensor.unzip();
        item.known.set(Known { source, dtype }).ok();
        item
    }

    /// A tensor that others stored.
    pub(crate) fn unknown(new: NewItem) -> StoredItem {
        let NewItem { item, info, name, wants_all, entry, shape, offsets, lengths } = new;
        StoredItem { item, info, name, wants_all, entry, shape, offsets, lengths, known: OnceLock::new() }
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.known.get().is_none()
    }

    pub(crate) fn foreign_tensor(&self) -> ForeignTensor {
        ForeignTensor { name: self.name.clone(), entry: self.entry.clone(), shape: self.shape.to_vec() }
    }

    /// Notes where it was found.
    pub(crate) fn found(&self, py: Python<'_>, source: Option<Source>) -> PyResult<()> {
        let dtype = source.as_ref().map(|source| source.spec.dtype.torch_name());
        let dtype = dtype.map(|name| py.import(intern!(py, "torch"))?.getattr(name)).transpose()?;
        self.known.set(Known { source, dtype: dtype.map(Bound::unbind) }).ok();
        Ok(())
    }

    fn source(&self) -> Option<&Source> {
        self.known.get()?.source.as_ref()
    }

    /// The wanted block, which is not empty; None where elements share stored bytes.
    fn block(&self) -> Result<Option<Block>, Error> {
        let Some(source) = self.source() else { return Ok(None) };
        source.block(&self.offsets, &self.lengths).map_err(|error| about(&self.name, error))
    }

    /// The stored values, one element after another, where they are all that is wanted.
    fn all_values(&self) -> Option<Part> {
        self.source().filter(|_| self.wants_all)?.values()
    }

    /// The wanted block straight into memory of these strides.
    pub(crate) fn direct(&self, strides: Option<&[u64]>) -> Result<Vec<Part>, Error> {
        if self.lengths.contains(&0) {
            return Ok(Vec::new());
        }
        if let (None, Some(part)) = (strides, self.all_values()) {
            return Ok(vec![part]);
        }
        let parts = match self.block()? {
            Some(block) => block.direct(strides),
            None => Err(Error::new(ErrorKind::Config, "its elements share stored bytes")),
        };
        parts.map_err(|error| about(&self.name, error))
    }

    pub(crate) fn read(&self, pieces: Vec<Piece>) -> ItemRead {
        match self.source() {
            Some(source) => source.entry.read(&self.name, source.head, pieces),
            None => self.entry.read(&self.name, None, pieces),
        }
    }
}

#[entry]
#[pymethods]
impl StoredItem {
    /// The stored dtype; None for objects, and where only torch can read a tensor.
    #[getter]
    fn dtype(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        Some(self.known.get()?.dtype.as_ref()?.clone_ref(py))
    }

    /// The shape of the stored chunk.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &*self.shape)
    }

    /// Whether it is a tensor whose stored values, one element after another, are all that is wanted.
    #[getter]
    fn is_whole(&self) -> bool {
        self.all_values().is_some()
    }

    /// Whether the wanted block had best go straight into memory of these strides, in elements: in long runs, and no two of
    /// its elements share stored bytes, nor memory, where it would matter which is written last.
    fn fits(&self, strides: Vec<u64>) -> bool {
        !shares_memory(&self.lengths, &strides)
            && matches!(self.block(), Ok(Some(block)) if block.has_long_runs(&strides))
    }

    /// The wanted block in parts of at most `most_bytes`. None where elements share stored bytes: then `storage` is to be
    /// read.
    fn parts(slf: &Bound<'_, Self>, most_bytes: u64) -> PyResult<Option<BlockParts>> {
        let (py, item) = (slf.py(), slf.get());
        let Some(block) = item.block().map_err(|error| to_python(py, &error))? else { return Ok(None) };
        let parts =
            block.packed_parts(most_bytes).map_err(|error| to_python(py, &about(&item.name, error)))?;
        let parts = parts.into_iter().map(|part| Py::new(py, ItemPart { item: slf.clone().unbind(), part }));
        Ok(Some(BlockParts { order: block.order().to_vec(), parts: parts.collect::<PyResult<_>>()? }))
    }

    /// The storage of a tensor, up to its last element; None of what only torch can read.
    fn storage(slf: &Bound<'_, Self>) -> PyResult<Option<StoredStorage>> {
        let Some(source) = slf.get().source() else { return Ok(None) };
        let part = Py::new(slf.py(), ItemPart { item: slf.clone().unbind(), part: source.storage() })?;
        let (strides, offset) = (source.spec.strides.clone(), source.spec.storage_offset);
        Ok(Some(StoredStorage { part, strides, offset }))
    }
}

/// A part of an item, which goes to memory of its own.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct ItemPart {
    pub(crate) item: Py<StoredItem>,
    pub(crate) part: Part,
}

#[entry]
#[pymethods]
impl ItemPart {
    /// Bytes of memory.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.part.memory.end - self.part.memory.start
    }

    /// The first element, and that after the last, by their numbers in the wanted block.
    #[getter]
    fn elements(&self) -> (u64, u64) {
        (self.part.elements.start, self.part.elements.end)
    }
}

/// A wanted block in bounded parts.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct BlockParts {
    /// Its dimensions, by their numbers, in the order of the file: the elements of parts are counted so.
    order: Vec<usize>,
    parts: Vec<Py<ItemPart>>,
}

/// A stored tensor's storage.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct StoredStorage {
    part: Py<ItemPart>,
    /// How the tensor lies in it, in elements.
    strides: Vec<u64>,
    offset: u64,
}
