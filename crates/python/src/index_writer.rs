//! Pickles an index from torch's objects: one walk, no Python code per item.
//!
//! What is written unpickles to what `pickle.dumps` of the same metadata would, but for identity: values that nobody
//! changes (texts, sizes, chunks, tensor properties) are one object where they are equal. The classes of torch's
//! metadata are taken apart here, as long as they pickle in the plain way; whatever else is met goes through
//! `pickle.dumps` and is taken in as it comes out.

use std::collections::HashMap;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};
use s3dcp_checkpoint::{AllowList, IndexWriter, scan_index};

use crate::errors::to_python;

/// Keys and values that one SETITEMS or APPENDS takes, as in Python's pickler.
const BATCH: usize = 1000;
/// From this depth on Python's own pickler is asked, which knows its limit.
const MAX_DEPTH: u32 = 100;
/// Attribute names whose place in the memo is found without looking at the text.
const MAX_NAMES: usize = 32;

/// A class of torch's metadata.
struct Class<'py> {
    class: Bound<'py, PyType>,
    module: String,
    name: String,
    fields: Vec<Bound<'py, PyString>>,
    memo: Option<u32>,
}

/// Places of `Walk::classes`.
const PROPERTIES: usize = 0;
const TENSOR: usize = 1;
const CHUNK: usize = 2;
const INDEX: usize = 3;
const NAMES: [&str; 4] =
    ["TensorProperties", "TensorStorageMetadata", "ChunkStorageMetadata", "MetadataIndex"];

struct Walk<'py> {
    py: Python<'py>,
    writer: IndexWriter,
    dumps: Bound<'py, PyAny>,
    classes: [Class<'py>; 4],
    size: Bound<'py, PyType>,
    size_memo: Option<u32>,
    storage_info: Bound<'py, PyType>,
    /// Classes of items' storage information, seen to pickle plainly: address, class, place in the memo.
    info_classes: Vec<(Bound<'py, PyType>, bool, u32)>,
    /// Attribute names and their places in the memo.
    names: Vec<(Bound<'py, PyString>, u32)>,
    /// `memory_format` of tensor properties, and what it is pickled as.
    memory_formats: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    /// Containers and opaque objects in the memo, by address; alive, so that no address is used again.
    known: HashMap<usize, (Bound<'py, PyAny>, u32)>,
    /// What readers let an index hold.
    allow: AllowList,
    /// Why they will refuse this one.
    refusal: Option<String>,
}

/// The index of `metadata`, whose `storage_data` is a dict, and why readers will refuse it unless told otherwise.
pub(crate) fn write_index(
    metadata: &Bound<'_, PyAny>,
    save_id: &str,
) -> PyResult<(s3dcp_checkpoint::Index, Option<String>)> {
    let py = metadata.py();
    let module = py.import("torch.distributed.checkpoint.metadata")?;
    let class = |name| Class::new(module.getattr(name)?.cast_into()?);
    let classes = [class(NAMES[0])?, class(NAMES[1])?, class(NAMES[2])?, class(NAMES[3])?];
    let mut walk = Walk {
        py,
        writer: IndexWriter::new(),
        dumps: py.import("pickle")?.getattr("dumps")?,
        classes,
        size: py.import("torch")?.getattr("Size")?.cast_into()?,
        size_memo: None,
        storage_info: py
            .import("torch.distributed.checkpoint.filesystem")?
            .getattr("_StorageInfo")?
            .cast_into()?,
        info_classes: Vec::new(),
        names: Vec::new(),
        memory_formats: Vec::new(),
        known: HashMap::new(),
        allow: AllowList::default_globals(),
        refusal: None,
    };
    walk.metadata(metadata)?;
    Ok((walk.writer.finish(save_id), walk.refusal))
}

/// Whether objects of this class pickle as their `__dict__` (or what `__getstate__` makes of it).
fn is_plain(class: &Bound<'_, PyType>, getstate: bool) -> PyResult<bool> {
    let py = class.py();
    let object = py.get_type::<PyAny>();
    for name in ["__reduce_ex__", "__reduce__", "__getstate__"] {
        if getstate && name == "__getstate__" {
            continue;
        }
        let own = class.getattr_opt(name)?;
        let default = object.getattr_opt(name)?;
        let same = match (&own, &default) {
            (Some(own), Some(default)) => own.is(default),
            (own, default) => own.is_none() && default.is_none(),
        };
        if !same {
            return Ok(false);
        }
    }
    for name in ["__getnewargs__", "__getnewargs_ex__", "__slots__"] {
        if class.hasattr(name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl<'py> Class<'py> {
    fn new(class: Bound<'py, PyType>) -> PyResult<Self> {
        let fields = class.getattr("__dataclass_fields__")?.cast_into::<PyDict>()?;
        let fields = fields.keys().into_iter().map(|name| Ok(name.cast_into::<PyString>()?));
        let name: String = class.qualname()?.extract()?;
        let properties = name == NAMES[PROPERTIES];
        let fields =
            if is_plain(&class, properties)? { fields.collect::<PyResult<_>>()? } else { Vec::new() };
        Ok(Self { module: class.module()?.extract()?, name, fields, class, memo: None })
    }

    /// Whether `value` is of exactly this class, and the class is one to take apart.
    fn is_of(&self, value: &Bound<'py, PyAny>) -> bool {
        value.get_type_ptr() == self.class.as_type_ptr() && !self.fields.is_empty()
    }
}

impl<'py> Walk<'py> {
    fn metadata(&mut self, metadata: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = metadata.get_type();
        if !is_plain(&class, false)? {
            return Err(PyTypeError::new_err(format!("metadata: {class} does not pickle as a plain object")));
        }
        self.object_of(&class)?;
        self.writer.pickle.empty_dict();
        self.writer.pickle.mark();
        for (name, value) in metadata.getattr("__dict__")?.cast_into::<PyDict>()? {
            let name = name.cast_into::<PyString>()?;
            self.name(&name)?;
            match (name.to_str().unwrap_or_default(), value.cast_exact::<PyDict>()) {
                ("storage_data", Ok(items)) => self.storage_data(items)?,
                ("storage_meta", _) if is_plain(&value.get_type(), false)? && !value.is_none() => {
                    self.object_of(&value.get_type())?;
                    self.state(&value.getattr("__dict__")?.cast_into()?, false, 1)?;
                }
                _ => self.value(&value, 1)?,
            }
        }
        self.writer.pickle.set_items();
        self.writer.pickle.build();
        Ok(())
    }

    /// A new object of this class, without a state yet; the class's place in the memo.
    fn object_of(&mut self, class: &Bound<'py, PyType>) -> PyResult<u32> {
        let (module, name): (String, String) = (class.module()?.extract()?, class.qualname()?.extract()?);
        if !self.allow.allows(&module, &name) {
            self.refusal.get_or_insert_with(|| format!("it refers to {module}.{name}"));
        }
        let place = self.writer.pickle.global(&module, &name);
        self.writer.pickle.new_object();
        Ok(place)
    }

    /// The state of an object: its attributes, without those that are None where `some_only`.
    fn state(&mut self, attributes: &Bound<'py, PyDict>, some_only: bool, depth: u32) -> PyResult<()> {
        self.writer.pickle.empty_dict();
        self.writer.pickle.mark();
        for (name, value) in attributes {
            if some_only && value.is_none() {
                continue;
            }
            self.name(name.cast::<PyString>()?)?;
            self.value(&value, depth)?;
        }
        self.writer.pickle.set_items();
        self.writer.pickle.build();
        Ok(())
    }

    fn storage_data(&mut self, items: &Bound<'py, PyDict>) -> PyResult<()> {
        self.writer.pickle.empty_dict();
        self.pairs(items, |walk, index, info| {
            walk.value(index, 2)?;
            walk.storage_info(index, info)
        })
    }

    fn storage_info(&mut self, index: &Bound<'py, PyAny>, info: &Bound<'py, PyAny>) -> PyResult<()> {
        let class = info.get_type();
        let some_only = match self.info_classes.iter().find(|known| known.0.is(&class)) {
            Some(&(_, some_only, place)) => {
                self.writer.pickle.get(place);
                self.writer.pickle.new_object();
                some_only
            }
            None => {
                if !class.is_subclass(&self.storage_info)? || !is_plain(&class, true)? {
                    let message = format!("storage_data of {index}: must be a _StorageInfo, not {class}");
                    return Err(PyTypeError::new_err(message));
                }
                // torch's own leaves out what is None
                let plain = is_plain(&class, false)?;
                let own = class.getattr("__getstate__").ok();
                let known = self.storage_info.getattr("__getstate__").ok();
                if !plain && own.zip(known).is_none_or(|(own, known)| !own.is(&known)) {
                    let message = format!("storage_data of {index}: {class} has a __getstate__ of its own");
                    return Err(PyTypeError::new_err(message));
                }
                let place = self.object_of(&class)?;
                self.info_classes.push((class, !plain, place));
                !plain
            }
        };
        self.writer.pickle.empty_dict();
        self.writer.pickle.mark();
        let relative_path = intern!(self.py, "relative_path");
        let mut named = false;
        for (name, value) in info.getattr(intern!(self.py, "__dict__"))?.cast_into::<PyDict>()? {
            if some_only && value.is_none() {
                continue;
            }
            let name = name.cast_into::<PyString>()?;
            self.name(&name)?;
            match value.cast::<PyString>() {
                Ok(path) if name.is(relative_path) || name.eq("relative_path") => {
                    named = true;
                    self.writer.shard_file(path.to_str()?);
                }
                _ => self.value(&value, 3)?,
            }
        }
        if !named {
            return Err(PyValueError::new_err(format!("storage_data of {index}: names no shard file")));
        }
        self.writer.pickle.set_items();
        self.writer.pickle.build();
        Ok(())
    }

    /// The name of an attribute.
    fn name(&mut self, name: &Bound<'py, PyString>) -> PyResult<()> {
        if let Some((_, place)) = self.names.iter().find(|known| known.0.is(name)) {
            self.writer.pickle.get(*place);
            return Ok(());
        }
        let place = self.text(name)?;
        if self.names.len() < MAX_NAMES {
            self.names.push((name.clone(), place));
        }
        Ok(())
    }

    /// Text, of which UTF-8 may not be able to say all.
    fn text(&mut self, text: &Bound<'py, PyString>) -> PyResult<u32> {
        Ok(match text.to_str() {
            Ok(text) => self.writer.pickle.text(text),
            Err(_) => {
                let bytes = text.call_method1("encode", ("utf-8", "surrogatepass"))?;
                self.writer.pickle.surrogatepass(bytes.cast::<PyBytes>()?.as_bytes())
            }
        })
    }

    fn value(&mut self, value: &Bound<'py, PyAny>, depth: u32) -> PyResult<()> {
        if depth > MAX_DEPTH {
            return self.opaque(value);
        }
        if let Ok(text) = value.cast_exact::<PyString>() {
            self.text(text)?;
        } else if value.is_none() {
            self.writer.pickle.none();
        } else if let Ok(number) = value.cast_exact::<PyInt>() {
            self.int(number)?;
        } else if self.classes[INDEX].is_of(value) {
            self.fields(INDEX, value, depth)?;
        } else if value.get_type_ptr() == self.size.as_type_ptr() {
            self.size(value.cast()?, depth)?;
        } else if self.classes[TENSOR].is_of(value) {
            self.fields(TENSOR, value, depth)?;
        } else if self.classes[CHUNK].is_of(value) {
            let start = self.writer.pickle.begin_value();
            self.fields(CHUNK, value, depth)?;
            self.writer.pickle.share(start);
        } else if self.classes[PROPERTIES].is_of(value) {
            self.properties(value, depth)?;
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            self.tuple(tuple, depth)?;
        } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            self.writer.pickle.bytes(bytes.as_bytes());
        } else if let Ok(flag) = value.cast_exact::<PyBool>() {
            self.writer.pickle.bool(flag.is_true());
        } else if let Ok(number) = value.cast_exact::<PyFloat>() {
            self.writer.pickle.float(number.value());
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            if !self.get_known(value) {
                self.writer.pickle.empty_list();
                self.memoize(value);
                self.items(list, depth)?;
            }
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            if !self.get_known(value) {
                self.writer.pickle.empty_dict();
                self.memoize(value);
                self.pairs(dict, |walk, key, value| {
                    walk.value(key, depth + 1)?;
                    walk.value(value, depth + 1)
                })?;
            }
        } else {
            self.opaque(value)?;
        }
        Ok(())
    }

    /// Refers to an object that is in the memo; false when it is not.
    fn get_known(&mut self, value: &Bound<'py, PyAny>) -> bool {
        match self.known.get(&(value.as_ptr() as usize)) {
            Some(&(_, place)) => {
                self.writer.pickle.get(place);
                true
            }
            None => false,
        }
    }

    fn memoize(&mut self, value: &Bound<'py, PyAny>) {
        let place = self.writer.pickle.memoize();
        self.known.insert(value.as_ptr() as usize, (value.clone(), place));
    }

    /// What only Python's pickler knows how to pickle.
    fn opaque(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if self.get_known(value) {
            return Ok(());
        }
        let pickled = self.dumps.call1((value, 4))?.cast_into::<PyBytes>()?;
        if self.refusal.is_none() {
            let refused = scan_index(pickled.as_bytes(), &self.allow).err();
            self.refusal = refused.map(|error| error.message().to_owned());
        }
        let embedded = self.writer.pickle.embed(pickled.as_bytes());
        embedded.map_err(|error| to_python(self.py, &error))?;
        self.memoize(value);
        Ok(())
    }

    fn int(&mut self, number: &Bound<'py, PyInt>) -> PyResult<()> {
        if let Ok(small) = number.extract::<i64>() {
            self.writer.pickle.int(small);
            return Ok(());
        }
        let bits: usize = number.call_method0("bit_length")?.extract()?;
        let signed = PyDict::new(self.py);
        signed.set_item("signed", true)?;
        let bytes = number.call_method("to_bytes", (bits / 8 + 1, "little"), Some(&signed))?;
        self.writer.pickle.long(bytes.cast::<PyBytes>()?.as_bytes());
        Ok(())
    }

    fn tuple(&mut self, tuple: &Bound<'py, PyTuple>, depth: u32) -> PyResult<()> {
        // Only tuples that hold others can be large out of proportion to what is written of them.
        let nests = tuple.iter_borrowed().any(|item| {
            !(item.is_none()
                || item.is_exact_instance_of::<PyString>()
                || item.is_exact_instance_of::<PyInt>()
                || item.is_exact_instance_of::<PyFloat>())
        });
        if nests && self.get_known(tuple) {
            return Ok(());
        }
        self.tuple_items(tuple, depth)?;
        if nests {
            self.memoize(tuple);
        }
        Ok(())
    }

    fn tuple_items(&mut self, tuple: &Bound<'py, PyTuple>, depth: u32) -> PyResult<()> {
        let count = tuple.len();
        if count > 3 {
            self.writer.pickle.mark();
        }
        for item in tuple {
            self.value(&item, depth + 1)?;
        }
        match count {
            0..=3 => self.writer.pickle.tuple_of(count as u8),
            _ => self.writer.pickle.tuple(),
        }
        Ok(())
    }

    fn items(&mut self, list: &Bound<'py, PyList>, depth: u32) -> PyResult<()> {
        for (place, item) in list.iter().enumerate() {
            if place % BATCH == 0 {
                if place > 0 {
                    self.writer.pickle.appends();
                }
                self.writer.pickle.mark();
            }
            self.value(&item, depth + 1)?;
            self.writer.pickle.between_items();
        }
        if !list.is_empty() {
            self.writer.pickle.appends();
        }
        Ok(())
    }

    /// The keys and values of the dict just begun, each pair as `write` writes it.
    fn pairs(
        &mut self,
        dict: &Bound<'py, PyDict>,
        write: impl Fn(&mut Self, &Bound<'py, PyAny>, &Bound<'py, PyAny>) -> PyResult<()>,
    ) -> PyResult<()> {
        for (place, (key, value)) in dict.iter().enumerate() {
            if place % BATCH == 0 {
                if place > 0 {
                    self.writer.pickle.set_items();
                }
                self.py.check_signals()?;
                self.writer.pickle.mark();
            }
            write(self, &key, &value)?;
            self.writer.pickle.between_items();
        }
        if !dict.is_empty() {
            self.writer.pickle.set_items();
        }
        Ok(())
    }

    /// A new object of a known class, without a state yet.
    fn known_object(&mut self, class: usize) {
        let class = &mut self.classes[class];
        match class.memo {
            Some(place) => self.writer.pickle.get(place),
            None => class.memo = Some(self.writer.pickle.global(&class.module, &class.name)),
        }
        self.writer.pickle.new_object();
    }

    /// An object of a known class whose state is its fields.
    fn fields(&mut self, class: usize, object: &Bound<'py, PyAny>, depth: u32) -> PyResult<()> {
        self.known_object(class);
        self.writer.pickle.empty_dict();
        self.writer.pickle.mark();
        for field in 0..self.classes[class].fields.len() {
            let name = self.classes[class].fields[field].clone();
            self.name(&name)?;
            let value = object.getattr(&name)?;
            match value.cast_exact::<PyList>() {
                // a tensor's chunks: nobody else's list, so not worth a place in the memo
                Ok(list) if depth < MAX_DEPTH => {
                    self.writer.pickle.empty_list();
                    self.items(list, depth + 1)?;
                }
                _ => self.value(&value, depth + 1)?,
            }
        }
        self.writer.pickle.set_items();
        self.writer.pickle.build();
        Ok(())
    }

    fn size(&mut self, size: &Bound<'py, PyTuple>, depth: u32) -> PyResult<()> {
        let start = self.writer.pickle.begin_value();
        match self.size_memo {
            Some(place) => self.writer.pickle.get(place),
            None => self.size_memo = Some(self.writer.pickle.global("torch", "Size")),
        }
        self.tuple_items(size, depth)?;
        self.writer.pickle.tuple_of(1);
        self.writer.pickle.reduce();
        self.writer.pickle.share(start);
        Ok(())
    }

    /// Tensor properties, whose state is a tuple of the fields, the memory format exchanged for an enum's member.
    fn properties(&mut self, properties: &Bound<'py, PyAny>, depth: u32) -> PyResult<()> {
        let memory_format = properties.getattr(intern!(self.py, "memory_format"))?;
        let known = self.memory_formats.iter().find(|known| known.0.is(&memory_format));
        let encoded = match known {
            Some((_, encoded)) => encoded.clone(),
            None => match self.encoded_memory_format(properties)? {
                Some(encoded) => {
                    self.memory_formats.push((memory_format, encoded.clone()));
                    encoded
                }
                None => return self.opaque(properties),
            },
        };
        let start = self.writer.pickle.begin_value();
        self.known_object(PROPERTIES);
        self.writer.pickle.mark();
        for field in 0..self.classes[PROPERTIES].fields.len() {
            let name = self.classes[PROPERTIES].fields[field].clone();
            if name.to_str()? == "memory_format" {
                self.value(&encoded, depth + 1)?;
            } else {
                self.value(&properties.getattr(&name)?, depth + 1)?;
            }
        }
        self.writer.pickle.tuple();
        self.writer.pickle.build();
        self.writer.pickle.share(start);
        Ok(())
    }

    /// What `memory_format` is pickled as; None when the state is not what [`Walk::properties`] takes it for.
    fn encoded_memory_format(&self, properties: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let fields = &self.classes[PROPERTIES].fields;
        let state = properties.call_method0("__getstate__")?;
        let Ok(state) = state.cast_exact::<PyTuple>() else { return Ok(None) };
        if state.len() != fields.len() {
            return Ok(None);
        }
        let mut encoded = None;
        for (name, item) in fields.iter().zip(state) {
            if name.to_str()? == "memory_format" {
                encoded = Some(item);
            } else if !properties.getattr(name)?.is(&item) {
                return Ok(None);
            }
        }
        Ok(encoded)
    }
}
