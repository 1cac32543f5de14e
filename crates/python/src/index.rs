//! The index functions of `s3dcp-checkpoint`, for Python.

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyFrozenSet};
use s3dcp_checkpoint::{AllowList, DType};
use s3dcp_entry::entry;

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

/// See that an index may be unpickled and is one; every opcode has been checked then.
#[entry]
#[pyfunction]
fn check_index(
    py: Python<'_>,
    body: &[u8],
    location: &str,
    extra_globals: Vec<(String, String)>,
) -> PyResult<()> {
    py.detach(|| {
        let allow = AllowList::default_globals().with(extra_globals);
        s3dcp_checkpoint::check_index(body, &allow)
    })
    .map_err(|error: s3dcp_s3::Error| to_python(py, &about(location, error)))
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
    module.add_class::<Index>()?;
    module.add_function(wrap_pyfunction!(check_index, module)?)?;
    module.add_function(wrap_pyfunction!(write_index, module)?)?;
    module.add_function(wrap_pyfunction!(default_globals, module)?)?;
    module.add_function(wrap_pyfunction!(dtype_names, module)?)
}
