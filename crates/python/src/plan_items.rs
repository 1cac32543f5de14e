//! From the items of a load plan, and the index that Python unpickled, to where they are stored; judged on the way.
//!
//! In an index of ours what is equal is one object: the shapes of whole tensors are taken out of Python once for all
//! that share them.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySet, PyString, PyTuple};
use s3dcp_checkpoint::{
    Chunk, Cover, DType, Entry, ItemChecksums, Layout, OwnFormat, OwnFormats, check_chunks, has_all,
    is_inside,
};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind};

use crate::errors::{about, shown, to_python};
use crate::stored_item::{NewItem, StoredItem};

/// A tensor with its chunks, as the index describes it.
struct Tensor<'py> {
    dtype: Bound<'py, PyAny>,
    chunks: Vec<Chunk>,
    /// The number of the chunk at some offsets; of those at one place only one is not empty.
    places: HashMap<Vec<i64>, usize>,
}

/// A tensor whose only chunk is all of it.
struct Whole<'py> {
    dtype: Bound<'py, PyAny>,
    /// Of the chunk: zeros.
    offsets: Bound<'py, PyAny>,
    size: Bound<'py, PyAny>,
    /// With the size, what others are found to be the same by; held so that no other object takes their place.
    _chunk: Bound<'py, PyAny>,
    _properties: Bound<'py, PyAny>,
    shape: Arc<[u64]>,
    zeros: Arc<[u64]>,
    format: Option<Arc<OwnFormat>>,
}

/// An item before it is known what it is.
struct Row<'py> {
    item: Bound<'py, PyAny>,
    index: Bound<'py, PyAny>,
    info: Bound<'py, PyAny>,
    /// A place in the list of files.
    file: usize,
    offset: u64,
}

/// The part of a stored chunk that an item wants.
#[derive(Default)]
struct Block {
    offsets: Arc<[u64]>,
    lengths: Arc<[u64]>,
}

/// Looks items up in an index.
pub(crate) struct Finder<'py, 'l> {
    py: Python<'py>,
    layout: &'l Layout,
    /// `Metadata.state_dict_metadata` and `Metadata.storage_data`.
    contents: Bound<'py, PyAny>,
    entries: Bound<'py, PyAny>,
    tensor_class: Bound<'py, PyAny>,
    /// `LoadItemType.TENSOR`.
    tensor_kind: Bound<'py, PyAny>,
    formats: OwnFormats,
    wholes: HashMap<(usize, usize, usize), Rc<Whole<'py>>>,
    tensors: HashMap<String, Rc<Tensor<'py>>>,
    /// The names seen.
    names: Bound<'py, PySet>,
    with_holes: Vec<Py<PyString>>,
}

impl<'py, 'l> Finder<'py, 'l> {
    pub(crate) fn new(metadata: &Bound<'py, PyAny>, layout: &'l Layout) -> PyResult<Self> {
        let py = metadata.py();
        let class = py.import(intern!(py, "torch.distributed.checkpoint.metadata"))?;
        let kind = py.import(intern!(py, "torch.distributed.checkpoint.planner"))?;
        Ok(Self {
            py,
            layout,
            contents: metadata.getattr(intern!(py, "state_dict_metadata"))?,
            entries: metadata.getattr(intern!(py, "storage_data"))?,
            tensor_class: class.getattr(intern!(py, "TensorStorageMetadata"))?,
            tensor_kind: kind.getattr(intern!(py, "LoadItemType"))?.getattr(intern!(py, "TENSOR"))?,
            formats: OwnFormats::default(),
            wholes: HashMap::new(),
            tensors: HashMap::new(),
            names: PySet::empty(py)?,
            with_holes: Vec::new(),
        })
    }

    fn raise(&self, error: &Error) -> PyErr {
        to_python(self.py, error)
    }

    fn corrupt(&self, name: &Bound<'py, PyString>, what: &str) -> PyErr {
        match shown(name) {
            Ok(name) => self.raise(&Error::new(ErrorKind::Corrupt, format!("{name}: {what}"))),
            Err(failure) => failure,
        }
    }

    /// Where the items of a plan are stored, file by file and from front to back.
    pub(crate) fn items(&mut self, items: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyList>> {
        let mut files: Vec<(String, Arc<str>)> = Vec::new();
        let mut rows = self.rows(items, &mut files)?;
        let mut order: Vec<usize> = (0..files.len()).collect();
        order.sort_by_key(|&file| &files[file].0);
        let mut ranks = vec![0; files.len()];
        for (rank, &file) in order.iter().enumerate() {
            ranks[file] = rank;
        }
        rows.sort_by_key(|row| (ranks[row.file], row.offset));
        let found = PyList::empty(self.py);
        let mut before: Option<(Entry, Bound<'py, PyAny>)> = None;
        for row in rows {
            let key = files[row.file].1.clone();
            found.append(self.item(row, key, &mut before)?)?;
        }
        Ok(found)
    }

    /// Each item with its entry.
    fn rows(
        &self,
        items: &Bound<'py, PyList>,
        files: &mut Vec<(String, Arc<str>)>,
    ) -> PyResult<Vec<Row<'py>>> {
        let py = self.py;
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut rows = Vec::with_capacity(items.len());
        for item in items {
            let index = item.getattr(intern!(py, "storage_index"))?;
            let info = self.entries.get_item(&index).map_err(|error| {
                match index.getattr(intern!(py, "fqn")).and_then(|name| Ok(name.cast_into::<PyString>()?)) {
                    Ok(name) if error.is_instance_of::<PyKeyError>(py) => {
                        self.corrupt(&name, "the index does not say where this item is stored")
                    }
                    _ => error,
                }
            })?;
            let path = info.getattr(intern!(py, "relative_path"))?.cast_into::<PyString>()?;
            let path = path.to_cow()?;
            let file = match known.get(&*path) {
                Some(&file) => file,
                None => {
                    let key = self.layout.resolve(&path).map_err(|error| self.raise(&error))?;
                    files.push((path.to_string(), key.into()));
                    known.insert(path.into_owned(), files.len() - 1);
                    files.len() - 1
                }
            };
            let offset = info.getattr(intern!(py, "offset"))?.extract()?;
            rows.push(Row { item, index, info, file, offset });
        }
        Ok(rows)
    }

    /// What is stored of an item. `before`: the item of ours before it in its file.
    fn item(
        &mut self,
        row: Row<'py>,
        key: Arc<str>,
        before: &mut Option<(Entry, Bound<'py, PyAny>)>,
    ) -> PyResult<StoredItem> {
        let py = self.py;
        let Row { item, index, info, offset, .. } = row;
        let name = index.getattr(intern!(py, "fqn"))?.cast_into::<PyString>()?;
        let shown_name = shown(&name)?;
        let length = info.getattr(intern!(py, "length"))?.extract()?;
        let data_offset = optional(&info, intern!(py, "data_offset"))?.map(|at| at.extract()).transpose()?;
        let checksums = match optional(&info, intern!(py, "crc32"))? {
            None => None,
            Some(packed) => {
                let Ok(packed) = packed.cast::<PyBytes>() else {
                    return Err(self.corrupt(&name, "malformed checksums in the index"));
                };
                let checksums = ItemChecksums::from_bytes(packed.as_bytes());
                Some(checksums.map_err(|error| self.raise(&about(&shown_name, error)))?)
            }
        };
        let is_transformed = match optional(&info, intern!(py, "transform_descriptors"))? {
            None => false,
            Some(descriptors) => descriptors.is_truthy()?,
        };
        let entry = Entry { key, offset, length, data_offset, checksums };
        self.names.add(&name)?;
        let new = |wants_all, shape, block: Block| NewItem {
            item: item.clone().unbind(),
            info: info.clone().unbind(),
            name: shown_name.clone(),
            wants_all,
            entry: entry.clone(),
            shape,
            offsets: block.offsets,
            lengths: block.lengths,
        };
        if !item.getattr(intern!(py, "type"))?.is(&self.tensor_kind) {
            if data_offset.is_some() {
                return Err(self.corrupt(&name, "the index calls this an object, and places a tensor there"));
            }
            return Ok(StoredItem::known(new(false, Arc::from([]), Block::default()), None));
        }
        let content = self.content(&name)?;
        let Some(content) =
            content.filter(|content| content.is_instance(&self.tensor_class).unwrap_or(false))
        else {
            return Err(self.corrupt(&name, "the index does not describe this tensor"));
        };
        let is_own = entry.is_own_tensor();
        let at = index.getattr(intern!(py, "offset"))?;
        let (new, format, dtype) = match self.whole(&content)? {
            Some(whole) if at.is_none() || at.eq(&whole.offsets)? => {
                let lengths = item.getattr(intern!(py, "lengths"))?;
                let offsets = item.getattr(intern!(py, "storage_offsets"))?;
                let dest = item.getattr(intern!(py, "dest_index"))?.getattr(intern!(py, "offset"))?;
                let all = lengths.eq(&whole.size)? && offsets.eq(&whole.offsets)?;
                let wants_all = all && !is_transformed && (dest.is_none() || dest.eq(&whole.offsets)?);
                let block = match all {
                    true => Block { offsets: whole.zeros.clone(), lengths: whole.shape.clone() },
                    false => self.block(&name, &item, &whole.shape)?,
                };
                let format = match &whole.format {
                    _ if !is_own => None,
                    Some(format) => Some(format.clone()),
                    None => Some(self.format(&shown_name, &whole.dtype, &whole.shape)?),
                };
                (new(wants_all, whole.shape.clone(), block), format, whole.dtype.clone())
            }
            _ => {
                let tensor = self.tensor(&name, &content)?;
                let chunk = self.chunk(&tensor, &name, &index, &at)?;
                let shape: Arc<[u64]> = chunk.sizes.iter().map(|&size| size as u64).collect();
                let block = self.block(&name, &item, &shape)?;
                let format = match is_own {
                    true => Some(self.format(&shown_name, &tensor.dtype, &shape)?),
                    false => None,
                };
                (new(false, shape, block), format, tensor.dtype.clone())
            }
        };
        let Some(format) = format else {
            return Ok(if is_transformed { StoredItem::known(new, None) } else { StoredItem::unknown(new) });
        };
        let source = format.source(&shown_name, entry.clone()).map_err(|error| self.raise(&error))?;
        if let Some((last, last_index)) = before
            && last.overlaps(&entry)
            && last_index.ne(&index)?
        {
            let other = last_index.getattr(intern!(py, "fqn"))?.cast_into::<PyString>()?;
            let what = format!("the index gives this item bytes of another, of {}", shown(&other)?);
            return Err(self.corrupt(&name, &what));
        }
        *before = Some((entry.clone(), index));
        Ok(StoredItem::known(new, Some((source, dtype.unbind()))))
    }

    /// How this project stores a tensor of a dtype of torch's.
    fn format(&mut self, name: &str, dtype: &Bound<'py, PyAny>, shape: &[u64]) -> PyResult<Arc<OwnFormat>> {
        self.formats.of(name, native_dtype(dtype)?, shape).map_err(|error| to_python(self.py, &error))
    }

    /// The block of a stored chunk that an item wants.
    fn block(&self, name: &Bound<'py, PyString>, item: &Bound<'py, PyAny>, shape: &[u64]) -> PyResult<Block> {
        let py = self.py;
        let offsets = item.getattr(intern!(py, "storage_offsets"))?;
        let lengths = item.getattr(intern!(py, "lengths"))?;
        let numbers = |sizes: &Bound<'py, PyAny>| sizes.extract::<Vec<u64>>().ok();
        match numbers(&offsets).zip(numbers(&lengths)) {
            Some((offsets, lengths)) if is_inside(shape, &offsets, &lengths) => {
                Ok(Block { offsets: offsets.into(), lengths: lengths.into() })
            }
            _ => {
                let tuple = PyTuple::new(py, shape)?;
                let name = shown(name)?;
                let message =
                    format!("{name}: block {offsets}+{lengths} is outside the stored chunk {tuple}");
                Err(PyValueError::new_err(message))
            }
        }
    }

    /// What the index says of a name.
    fn content(&self, name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if let Ok(contents) = self.contents.cast_exact::<PyDict>() {
            return contents.get_item(name);
        }
        match self.contents.get_item(name) {
            Err(error) if error.is_instance_of::<PyKeyError>(self.py) => Ok(None),
            found => found.map(Some),
        }
    }

    /// A tensor whose only chunk obviously is all of it.
    fn whole(&mut self, content: &Bound<'py, PyAny>) -> PyResult<Option<Rc<Whole<'py>>>> {
        let py = self.py;
        let Ok(chunks) = content.getattr(intern!(py, "chunks"))?.cast_into::<PyList>() else {
            return Ok(None);
        };
        if chunks.len() != 1 {
            return Ok(None);
        }
        let chunk = chunks.get_item(0)?;
        let size = content.getattr(intern!(py, "size"))?;
        let properties = content.getattr(intern!(py, "properties"))?;
        let key = (chunk.as_ptr() as usize, size.as_ptr() as usize, properties.as_ptr() as usize);
        if let Some(known) = self.wholes.get(&key) {
            return Ok(Some(known.clone()));
        }
        let (Ok(offsets), Ok(sizes)) =
            (chunk.getattr(intern!(py, "offsets")), chunk.getattr(intern!(py, "sizes")))
        else {
            return Ok(None);
        };
        let numbers =
            |numbers: &Bound<'py, PyAny>| numbers.cast::<PyTuple>().ok()?.extract::<Vec<u64>>().ok();
        let (Some(shape), Some(zeros)) = (numbers(&size), numbers(&offsets)) else { return Ok(None) };
        let is_whole =
            zeros.len() == shape.len() && zeros.iter().all(|&offset| offset == 0) && sizes.eq(&size)?;
        let elements = shape.iter().try_fold(1u64, |count, &length| count.checked_mul(length));
        if !is_whole || elements.is_none_or(|count| count > i64::MAX as u64) {
            return Ok(None);
        }
        let dtype = properties.getattr(intern!(py, "dtype"))?;
        let format = match native_dtype(&dtype)? {
            Some(native) => self.formats.of("", Some(native), &shape).ok(),
            None => None,
        };
        let (shape, zeros) = (shape.into(), zeros.into());
        let whole =
            Whole { dtype, offsets, size, _chunk: chunk, _properties: properties, shape, zeros, format };
        let whole = Rc::new(whole);
        self.wholes.insert(key, whole.clone());
        Ok(Some(whole))
    }

    /// A tensor with its chunks, which lie inside it and none over another.
    fn tensor(
        &mut self,
        name: &Bound<'py, PyString>,
        content: &Bound<'py, PyAny>,
    ) -> PyResult<Rc<Tensor<'py>>> {
        let py = self.py;
        let shown_name = shown(name)?;
        if let Some(known) = self.tensors.get(&shown_name) {
            return Ok(known.clone());
        }
        let described = || -> PyResult<(Vec<i64>, Vec<Chunk>)> {
            let chunks = content.getattr(intern!(py, "chunks"))?.cast_into::<PyList>()?;
            let chunks = chunks.iter().map(|entry| chunk(&entry)).collect::<PyResult<_>>()?;
            Ok((content.getattr(intern!(py, "size"))?.extract()?, chunks))
        };
        let (size, chunks) = described().map_err(|failure| {
            self.corrupt(name, &format!("the index describes it in no way known: {failure}"))
        })?;
        let cover = check_chunks(&size, &chunks).map_err(|error| self.raise(&about(&shown_name, error)))?;
        if cover == Cover::Holes {
            self.with_holes.push(name.clone().unbind());
        }
        let mut places = HashMap::with_capacity(chunks.len());
        for (number, chunk) in chunks.iter().enumerate() {
            if !chunk.sizes.contains(&0) || !places.contains_key(&chunk.offsets) {
                places.insert(chunk.offsets.clone(), number);
            }
        }
        let dtype = content.getattr(intern!(py, "properties"))?.getattr(intern!(py, "dtype"))?;
        let tensor = Rc::new(Tensor { dtype, chunks, places });
        self.tensors.insert(shown_name, tensor.clone());
        Ok(tensor)
    }

    /// The chunk that an index means, which may say its number.
    fn chunk<'t>(
        &self,
        tensor: &'t Tensor<'py>,
        name: &Bound<'py, PyString>,
        index: &Bound<'py, PyAny>,
        at: &Bound<'py, PyAny>,
    ) -> PyResult<&'t Chunk> {
        let offsets: Option<Vec<i64>> = at.extract()?;
        let hint: Option<i64> = index.getattr(intern!(self.py, "index"))?.extract()?;
        let hinted = hint.and_then(|hint| tensor.chunks.get(usize::try_from(hint).ok()?));
        let found = match &offsets {
            None => hinted.or(tensor.chunks.first()),
            Some(offsets) => hinted
                .filter(|chunk| chunk.offsets == *offsets)
                .or_else(|| tensor.places.get(offsets).map(|&number| &tensor.chunks[number])),
        };
        found.ok_or_else(|| self.corrupt(name, &format!("the index does not describe the chunk at {at}")))
    }

    /// The tensors with holes, of those seen and of others that `state` names.
    pub(crate) fn with_holes(mut self, state: &Bound<'py, PyDict>) -> PyResult<Vec<Py<PyString>>> {
        for name in state.keys() {
            let Ok(name) = name.cast_into::<PyString>() else { continue };
            if self.names.contains(&name)? {
                continue;
            }
            if let Some(content) = self.content(&name)?
                && content.is_instance(&self.tensor_class)?
                && self.whole(&content)?.is_none()
            {
                self.tensor(&name, &content)?;
            }
        }
        Ok(self.with_holes)
    }
}

/// An attribute that only some entries have.
fn optional<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(object.getattr_opt(name)?.filter(|value| !value.is_none()))
}

/// A chunk as the index describes it, or as torch asks for one.
fn chunk(entry: &Bound<'_, PyAny>) -> PyResult<Chunk> {
    let py = entry.py();
    let offsets = entry.getattr(intern!(py, "offsets"))?.extract()?;
    Ok(Chunk { offsets, sizes: entry.getattr(intern!(py, "sizes"))?.extract()? })
}

/// The dtype behind torch's; None for one whose archives are read by torch alone.
fn native_dtype(dtype: &Bound<'_, PyAny>) -> PyResult<Option<DType>> {
    Ok(DType::from_torch_name(&dtype.str()?.to_cow()?))
}

/// Whether the chunks of a tensor in an index hold all that `wanted` chunks of it ask for. `Load.find` has judged it.
#[entry]
#[pyfunction]
pub(crate) fn chunks_hold(entry: &Bound<'_, PyAny>, wanted: Vec<Bound<'_, PyAny>>) -> PyResult<bool> {
    let py = entry.py();
    let size: Vec<i64> = entry.getattr(intern!(py, "size"))?.extract()?;
    let chunks = entry.getattr(intern!(py, "chunks"))?.cast_into::<PyList>()?;
    let chunks = chunks.iter().map(|entry| chunk(&entry)).collect::<PyResult<Vec<_>>>()?;
    for one in &wanted {
        if !has_all(&size, &chunks, &chunk(one)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
