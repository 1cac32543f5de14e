//! The index and archive functions of `s3dcp-checkpoint`, for Python.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyFrozenSet, PyList, PyString, PyTuple, PyType};
use s3dcp_checkpoint::{AllowList, Chunk, Cover, DType, HeadState, TensorSpec};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind};

use crate::errors::{about, shown, to_python};
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
fn parse_archive_head(head: PyBackedBytes, name: &Bound<'_, PyString>) -> PyResult<Parsed> {
    let state = s3dcp_checkpoint::parse_archive_head(&head).map_err(|error| corrupt(name, error))?;
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

/// Whether the last bytes of an item of `length` bytes end an archive that is the whole item.
#[entry]
#[pyfunction]
fn ends_archive(end: &[u8], length: u64) -> bool {
    s3dcp_checkpoint::ends_archive(end, length)
}

/// Bytes before the raw data of a tensor, their CRC-32, and bytes of the whole, in the archive that we write of it.
#[entry]
#[pyfunction]
fn archive_layout(dtype: &str, shape: Vec<u64>) -> PyResult<(u64, u32, u64)> {
    let dtype = DType::from_torch_name(dtype)
        .ok_or_else(|| PyValueError::new_err(format!("dtype={dtype:?}: not a dtype that can be stored")))?;
    let layout = s3dcp_checkpoint::archive_layout(&TensorSpec::contiguous(dtype, shape))
        .map_err(|error| PyValueError::new_err(error.message().to_owned()))?;
    Ok((layout.head_length, layout.head_crc32, layout.length))
}

/// An error about what is stored under `name`, in Python.
fn corrupt(name: &Bound<'_, PyString>, error: Error) -> PyErr {
    match shown(name) {
        Ok(shown) => to_python(name.py(), &about(&shown, error)),
        Err(failure) => failure,
    }
}

/// A chunk as the index describes it.
fn chunk(entry: &Bound<'_, PyAny>) -> PyResult<Chunk> {
    let py = entry.py();
    let offsets = entry.getattr(intern!(py, "offsets"))?.extract()?;
    Ok(Chunk { offsets, sizes: entry.getattr(intern!(py, "sizes"))?.extract()? })
}

/// The chunks of a tensor as the index describes them, unless the only one obviously is the whole tensor.
fn doubtful_chunks(entry: &Bound<'_, PyAny>) -> PyResult<Option<(Vec<i64>, Vec<Chunk>)>> {
    let py = entry.py();
    let size = entry.getattr(intern!(py, "size"))?;
    let chunks = entry.getattr(intern!(py, "chunks"))?.cast_into::<PyList>()?;
    if chunks.len() == 1 {
        let only = chunks.get_item(0)?;
        let (offsets, sizes) = (only.getattr(intern!(py, "offsets"))?, only.getattr(intern!(py, "sizes"))?);
        if let (Ok(offsets), Ok(lengths)) = (offsets.cast::<PyTuple>(), size.cast::<PyTuple>())
            && sizes.eq(&size)?
            && offsets.len() == lengths.len()
            && offsets.iter_borrowed().all(|offset| offset.extract::<i64>().is_ok_and(|offset| offset == 0))
            && lengths
                .iter_borrowed()
                .try_fold(1i64, |elements, length| {
                    length.extract::<i64>().ok().filter(|&length| length >= 0)?.checked_mul(elements)
                })
                .is_some()
        {
            return Ok(None);
        }
    }
    let chunks = chunks.iter().map(|entry| chunk(&entry)).collect::<PyResult<_>>()?;
    Ok(Some((size.extract()?, chunks)))
}

/// See that in `contents`, an index's `state_dict_metadata`, the chunks of the tensors `names` lie inside their tensor
/// and none over another. Names of other things, and of nothing, are passed over.
///
/// The answer is the names of those that leave holes.
#[entry]
#[pyfunction]
fn check_chunks<'py>(
    contents: &Bound<'py, PyDict>,
    tensor_class: &Bound<'py, PyType>,
    names: &Bound<'py, PyAny>,
) -> PyResult<Vec<Bound<'py, PyString>>> {
    let mut with_holes = Vec::new();
    for name in names.try_iter()? {
        let Ok(name) = name?.cast_into::<PyString>() else { continue };
        let Some(entry) = contents.get_item(&name)? else { continue };
        if !entry.is_instance(tensor_class)? {
            continue;
        }
        let chunks = doubtful_chunks(&entry).map_err(|failure| {
            let message = format!("the index describes it in no way known: {failure}");
            corrupt(&name, Error::new(ErrorKind::Corrupt, message))
        })?;
        let Some((size, chunks)) = chunks else { continue };
        match s3dcp_checkpoint::check_chunks(&size, &chunks).map_err(|error| corrupt(&name, error))? {
            Cover::Whole => {}
            Cover::Holes => with_holes.push(name),
        }
    }
    Ok(with_holes)
}

/// Whether the chunks of a tensor hold all that `wanted` chunks of it ask for. `check_chunks` has seen the tensor.
#[entry]
#[pyfunction]
fn chunks_hold(entry: &Bound<'_, PyAny>, wanted: Vec<Bound<'_, PyAny>>) -> PyResult<bool> {
    let py = entry.py();
    let size: Vec<i64> = entry.getattr(intern!(py, "size"))?.extract()?;
    let chunks = entry.getattr(intern!(py, "chunks"))?.cast_into::<PyList>()?;
    let chunks = chunks.iter().map(|entry| chunk(&entry)).collect::<PyResult<Vec<_>>>()?;
    for one in &wanted {
        if !s3dcp_checkpoint::has_all(&size, &chunks, &chunk(one)?) {
            return Ok(false);
        }
    }
    Ok(true)
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
    module.add("ARCHIVE_END_BYTES", s3dcp_checkpoint::MAX_END)?;
    module.add_class::<ArchiveHead>()?;
    module.add_class::<Index>()?;
    module.add_function(wrap_pyfunction!(parse_archive_head, module)?)?;
    module.add_function(wrap_pyfunction!(ends_archive, module)?)?;
    module.add_function(wrap_pyfunction!(archive_layout, module)?)?;
    module.add_function(wrap_pyfunction!(check_chunks, module)?)?;
    module.add_function(wrap_pyfunction!(chunks_hold, module)?)?;
    module.add_function(wrap_pyfunction!(check_index, module)?)?;
    module.add_function(wrap_pyfunction!(write_index, module)?)?;
    module.add_function(wrap_pyfunction!(default_globals, module)?)?;
    module.add_function(wrap_pyfunction!(dtype_names, module)?)
}
