//! What a save need not send again, for Python: the items of an earlier checkpoint, and the hashes by which they are known.
#![expect(unsafe_code, reason = "Python hands over the memory of tensors by address")]

use std::collections::HashMap;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use s3dcp_checkpoint::{ItemFormat, TensorSpec};
use s3dcp_entry::entry;

use crate::shard_writer::{TensorItem, byte_count, tensor_spec};
use crate::staging::StagingBuffer;

/// Bytes that are fetched from memory while those before them are hashed: nobody has touched them lately, and the processor
/// itself fetches no further than the end of a page.
const AHEAD: usize = 4096;
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// The items of an earlier checkpoint: see `s3dcp_checkpoint::Base`.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Base {
    pub(crate) inner: s3dcp_checkpoint::Base,
}

#[entry]
#[pymethods]
impl Base {
    fn __bool__(&self) -> bool {
        !self.inner.is_empty()
    }

    /// Of these items of a save plan those that the earlier checkpoint has: by their `MetadataIndex` the file, offset, length,
    /// data offset, checksums and hash.
    fn entries<'py>(&self, py: Python<'py>, items: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyDict>> {
        let entries = PyDict::new(py);
        let mut paths: HashMap<&str, Bound<'py, PyString>> = HashMap::new();
        for item in items {
            let index = item.getattr(intern!(py, "index"))?;
            let name = index.getattr(intern!(py, "fqn"))?.cast_into::<PyString>()?;
            let offsets: Option<Vec<i64>> = index.getattr(intern!(py, "offset"))?.extract()?;
            let Ok(name) = name.to_str() else { continue };
            let Some(found) = self.inner.find(name, offsets.as_deref()) else { continue };
            let path = &*found.relative_path;
            let path = paths.entry(path).or_insert_with(|| PyString::new(py, path));
            let checksums = PyBytes::new(py, &found.checksums.to_bytes());
            let hash = PyBytes::new(py, &found.hash.to_bytes());
            let entry = (&*path, found.offset, found.length, found.data_offset, checksums, hash);
            entries.set_item(index, entry)?;
        }
        Ok(entries)
    }
}

fn format(values: bool) -> ItemFormat {
    if values { ItemFormat::Values } else { ItemFormat::Archive }
}

/// The hashes of whole tensors, each given as `ShardWriter.tensors` takes it; as values alone, or in archives.
#[entry]
#[pyfunction]
fn hash_tensors<'py>(
    py: Python<'py>,
    items: Vec<TensorItem<'py>>,
    values: bool,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let mut tensors = Vec::with_capacity(items.len());
    let mut owners = Vec::with_capacity(items.len());
    for (dtype, shape, address, owner) in items {
        let spec = tensor_spec(py, dtype.to_str()?, shape)?;
        let bytes = byte_count(&spec)?;
        if address == 0 && bytes > 0 {
            return Err(PyValueError::new_err("address=0: the tensor has no memory"));
        }
        tensors.push((spec, address, bytes));
        owners.push(owner);
    }
    let hash = |(spec, address, bytes): &(TensorSpec, usize, usize)| {
        let mut hasher = s3dcp_checkpoint::ItemHasher::tensor(format(values), spec);
        if *bytes > 0 {
            // SAFETY: Python's promise (torch: a state dict must not change during a save); `owners` keeps the memory alive
            // until all are hashed.
            let memory = unsafe { std::slice::from_raw_parts(*address as *const u8, *bytes) };
            let mut blocks = memory.chunks(AHEAD).peekable();
            while let Some(block) = blocks.next() {
                if let Some(next) = blocks.peek() {
                    fetch(next);
                }
                hasher.update(block);
            }
        }
        hasher.finish()
    };
    let hashes: Vec<_> = py.detach(|| tensors.iter().map(hash).collect());
    drop(owners);
    Ok(hashes.into_iter().map(|hash| PyBytes::new(py, &hash.to_bytes())).collect())
}

/// Has the processor fetch these bytes, without waiting for them.
#[cfg(target_arch = "x86_64")]
fn fetch(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in bytes.chunks(CACHE_LINE) {
        // SAFETY: a hint that reads nothing, on a processor that has it: all of this architecture do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_bytes: &[u8]) {}

/// The hash of a pickled object.
#[entry]
#[pyfunction]
fn hash_object<'py>(py: Python<'py>, data: &Bound<'py, PyBytes>) -> Bound<'py, PyBytes> {
    let mut hasher = s3dcp_checkpoint::ItemHasher::object();
    hasher.update(data.as_bytes());
    PyBytes::new(py, &hasher.finish().to_bytes())
}

/// Hashes a tensor that comes in pieces; as values alone, or in an archive.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct TensorHasher {
    hasher: s3dcp_checkpoint::ItemHasher,
}

#[entry]
#[pymethods]
impl TensorHasher {
    #[new]
    fn new(py: Python<'_>, dtype: &str, shape: Vec<u64>, values: bool) -> PyResult<Self> {
        let spec = tensor_spec(py, dtype, shape)?;
        Ok(Self { hasher: s3dcp_checkpoint::ItemHasher::tensor(format(values), &spec) })
    }

    /// The next bytes: `nbytes` of `buffer` from `start` on.
    fn update(
        &mut self,
        py: Python<'_>,
        buffer: &StagingBuffer,
        start: usize,
        nbytes: usize,
    ) -> PyResult<()> {
        let data = buffer.filled(start, nbytes)?;
        let hasher = &mut self.hasher;
        py.detach(|| hasher.update(&data));
        Ok(())
    }

    /// The hash of all of them.
    fn finish<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.hasher.finish().to_bytes())
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Base>()?;
    module.add_class::<TensorHasher>()?;
    module.add_function(wrap_pyfunction!(hash_tensors, module)?)?;
    module.add_function(wrap_pyfunction!(hash_object, module)?)
}
