//! The index and archive functions of `s3dcp-checkpoint`, for Python.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyFrozenSet};
use s3dcp_checkpoint::{AllowList, DType, HeadState};
use s3dcp_entry::entry;

use crate::errors::{about, to_python};
use crate::index_writer;

/// An index that has been written, in memory.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Index {
    pub(crate) inner: s3dcp_checkpoint::Index,
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
    Ok(Index { inner: index_writer::write_index(metadata, save_id)? })
}

/// Layout of one stored tensor, from the head of its torch archive.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct ArchiveHead {
    dtype: &'static str,
    shape: Vec<u64>,
    strides: Vec<u64>,
    storage_offset: u64,
    data_offset: u64,
    data_length: u64,
    big_endian: bool,
}

/// What `parse_archive_head` answers in Python: the layout, the number of bytes it needs, or None.
#[derive(IntoPyObject)]
pub(crate) enum Parsed {
    Head(ArchiveHead),
    NeedMore(u64),
    NotPlain(Option<()>),
}

/// The layout in the first bytes of an archive; an int when more bytes are needed (how many at least), None when
/// only torch can read it.
#[entry]
#[pyfunction]
fn parse_archive_head(py: Python<'_>, head: PyBackedBytes, name: &str) -> PyResult<Parsed> {
    let state =
        s3dcp_checkpoint::parse_archive_head(&head).map_err(|error| to_python(py, &about(name, error)))?;
    Ok(match state {
        HeadState::Complete(head) => Parsed::Head(ArchiveHead {
            dtype: head.spec.dtype.torch_name(),
            shape: head.spec.shape,
            strides: head.spec.strides,
            storage_offset: head.spec.storage_offset,
            data_offset: head.data_offset,
            data_length: head.data_length,
            big_endian: head.big_endian,
        }),
        HeadState::NeedMore(bytes) => Parsed::NeedMore(bytes),
        HeadState::NotPlain => Parsed::NotPlain(None),
    })
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

/// The names in module `torch` of the dtypes whose archives are written and read here.
#[entry]
#[pyfunction]
fn dtype_names(py: Python<'_>) -> PyResult<Bound<'_, PyFrozenSet>> {
    PyFrozenSet::new(py, DType::all().map(DType::torch_name))
}

/// The key of `relative_path`, seen from an index below `base_key`.
#[entry]
#[pyfunction]
fn resolve_key(py: Python<'_>, base_key: &str, relative_path: &str) -> PyResult<String> {
    s3dcp_checkpoint::resolve_key(base_key, relative_path).map_err(|error| to_python(py, &error))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SLICE_BYTES", s3dcp_checkpoint::SLICE_SIZE)?;
    module.add_class::<ArchiveHead>()?;
    module.add_class::<Index>()?;
    module.add_function(wrap_pyfunction!(parse_archive_head, module)?)?;
    module.add_function(wrap_pyfunction!(check_index, module)?)?;
    module.add_function(wrap_pyfunction!(write_index, module)?)?;
    module.add_function(wrap_pyfunction!(default_globals, module)?)?;
    module.add_function(wrap_pyfunction!(dtype_names, module)?)?;
    module.add_function(wrap_pyfunction!(resolve_key, module)?)
}
