//! The index functions of `s3dcp-checkpoint`, for Python.

use std::sync::OnceLock;

use bytes::Bytes;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyFrozenSet, PyString, PyTuple};
use s3dcp_checkpoint::{AllowList, DType, MAPPINGS, Outline};
use s3dcp_entry::entry;
use s3dcp_s3::Error;

use crate::errors::{about, to_python};
use crate::index_writer;

/// An index that has been written, in memory.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Index {
    pub(crate) inner: s3dcp_checkpoint::Index,
    /// Why readers will refuse it unless told otherwise.
    #[pyo3(get)]
    refusal: Option<String>,
}

#[entry]
#[pymethods]
impl Index {
    /// The stored bytes, with `prefix` in front of every shard file's name.
    fn seal<'py>(&self, py: Python<'py>, prefix: &str) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.seal(prefix).to_vec())
    }
}

/// The index of `metadata`, pickled.
#[entry]
#[pyfunction]
fn write_index(metadata: &Bound<'_, PyAny>, save_id: &str) -> PyResult<Index> {
    let (inner, refusal) = index_writer::write_index(metadata, save_id)?;
    Ok(Index { inner, refusal })
}

/// The bytes of an index that was read, and where its entries stand in them.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StoredIndex {
    body: Bytes,
    /// The ETag of its object, where the service gave one.
    #[pyo3(get)]
    etag: Option<String>,
    outline: OnceLock<Outline>,
}

impl StoredIndex {
    pub(crate) fn new(body: Bytes, etag: Option<String>) -> Self {
        Self { body, etag, outline: OnceLock::new() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn etag(&self) -> Option<&String> {
        self.etag.as_ref()
    }

    fn outline(&self, mapping: usize) -> PyResult<&Outline> {
        if mapping >= MAPPINGS.len() {
            return Err(PyValueError::new_err(format!(
                "mapping must be below {}, not {mapping}",
                MAPPINGS.len()
            )));
        }
        self.outline.get().ok_or_else(|| PyRuntimeError::new_err("the index has no outline"))
    }
}

fn pickle<'py>(py: Python<'py>, pickle: Result<Vec<u8>, Error>) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &pickle.map_err(|error| to_python(py, &error))?))
}

#[entry]
#[pymethods]
impl StoredIndex {
    #[new]
    fn of(body: PyBackedBytes) -> Self {
        Self::new(Bytes::from_owner(body), None)
    }

    /// Its bytes.
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.body)
    }

    fn __len__(&self) -> usize {
        self.body.len()
    }

    /// See that it may be unpickled and is an index; every opcode has been checked then.
    fn check(&self, py: Python<'_>, location: &str, extra_globals: Vec<(String, String)>) -> PyResult<()> {
        py.detach(|| {
            let allow = AllowList::default_globals().with(extra_globals);
            s3dcp_checkpoint::check_index(&self.body, &allow)
        })
        .map_err(|error| to_python(py, &about(location, error)))
    }

    /// The same by what every index may hold; whether its entries can be asked for one by one then, by the methods below.
    fn check_and_outline(&self, py: Python<'_>, location: &str) -> PyResult<bool> {
        let outline = py.detach(|| Outline::of(&self.body, &AllowList::default_globals()));
        let outline = outline.map_err(|error| to_python(py, &about(location, error)))?;
        Ok(outline.is_some_and(|outline| self.outline.set(outline).is_ok()))
    }

    /// How many entries of a mapping, which is a place in `MAPPINGS`, can be asked for: all or none. None where only a dict of
    /// them can tell.
    fn count(&self, mapping: usize) -> PyResult<Option<usize>> {
        Ok(self.outline(mapping)?.count(mapping))
    }

    /// The numbers of the entries that may have this key; None for a key of a kind that only Python can compare.
    fn find(&self, mapping: usize, key: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u32>>> {
        let py = key.py();
        let outline = self.outline(mapping)?;
        let name =
            |name: &Bound<'_, PyAny>| name.cast_exact::<PyString>().ok()?.to_str().ok().map(str::to_owned);
        if let Some(key) = name(key) {
            return Ok(outline.find_text(mapping, &key));
        }
        let class = py.import(intern!(py, "torch.distributed.checkpoint.metadata"))?;
        if !key.get_type().is(&class.getattr(intern!(py, "MetadataIndex"))?) {
            return Ok(None);
        }
        let Some(name) = name(&key.getattr(intern!(py, "fqn"))?) else { return Ok(None) };
        let offset = key.getattr(intern!(py, "offset"))?;
        if offset.is_none() {
            return Ok(outline.find_item(mapping, &name, None));
        }
        let numbers = offset.cast::<PyTuple>().ok().and_then(|offset| offset.extract::<Vec<i64>>().ok());
        Ok(numbers.and_then(|offset| outline.find_item(mapping, &name, Some(&offset))))
    }

    /// A pickle of (key, value) of the entry of this number; persistent ids in it are numbers for `value`.
    fn entry<'py>(&self, py: Python<'py>, mapping: usize, number: u32) -> PyResult<Bound<'py, PyBytes>> {
        let entry = self.outline(mapping)?.entry(&self.body, mapping, number).transpose();
        let missing = || PyValueError::new_err(format!("number={number}: there is no such entry"));
        pickle(py, entry.ok_or_else(missing)?)
    }

    /// A pickle of a value that entries refer to.
    fn value<'py>(&self, py: Python<'py>, number: u32) -> PyResult<Bound<'py, PyBytes>> {
        let value = self.outline(0)?.value(&self.body, number).transpose();
        pickle(
            py,
            value.ok_or_else(|| PyValueError::new_err(format!("number={number}: there is no such value")))?,
        )
    }

    /// A pickle of the tuple of whole mappings: of one, or of two that share what both refer to.
    #[pyo3(signature = (first, second=None))]
    fn mappings<'py>(
        &self,
        py: Python<'py>,
        first: usize,
        second: Option<usize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let outline = self.outline(first.max(second.unwrap_or(0)))?;
        pickle(py, py.detach(|| outline.mappings(&self.body, first, second)))
    }

    /// A pickle of the index, whose mappings are empty.
    fn frame<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        pickle(py, self.outline(0)?.frame(&self.body))
    }
}

/// The (module, name) pairs that an index may hold.
#[entry]
#[pyfunction]
fn default_globals(py: Python<'_>) -> PyResult<Bound<'_, PyFrozenSet>> {
    PyFrozenSet::new(py, AllowList::default_globals().globals())
}

/// The dtypes whose archives are written and read here: their names in module `torch`, and in safetensors files where those
/// have them.
#[entry]
#[pyfunction]
fn dtype_names(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    DType::all().map(|dtype| (dtype.torch_name(), dtype.safetensors_name())).into_py_dict(py)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SLICE_BYTES", s3dcp_checkpoint::SLICE_SIZE)?;
    module.add("MAPPINGS", MAPPINGS)?;
    module.add_class::<Index>()?;
    module.add_class::<StoredIndex>()?;
    module.add_function(wrap_pyfunction!(write_index, module)?)?;
    module.add_function(wrap_pyfunction!(default_globals, module)?)?;
    module.add_function(wrap_pyfunction!(dtype_names, module)?)
}
