//! What an index says there is: every tensor with its chunks, every object, and where each is stored.
//!
//! The pickle has been judged before (`index/judge.rs`), and nothing in it is run. What a hostile one lets many entries
//! share is paid for, like what its own walk copies: in proportion to the bytes that are there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use s3dcp_s3::Error;

use super::chunks::Chunk;
use super::source::Entry;
use crate::archive::spec::MAX_DIMENSIONS;
use crate::dtype::DType;
use crate::error::corrupt;
use crate::index::allow::{AllowList, METADATA};
use crate::index::checksums::ItemChecksums;
use crate::index::item_hash::{ITEM_HASH, ItemHash};
use crate::index::judge::judged_tree;
use crate::index::scan::{COPIES_PER_BYTE, FREE_COPIES};
use crate::layout::Layout;
use crate::pickle::value::{Tree, Value};
use crate::two_threads::both;

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The tensors, by name.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The pickled objects, by name; `None` for one that the index does not place.
    pub objects: BTreeMap<String, Option<Stored>>,
}

impl Contents {
    /// The names of its tensors, then of its objects.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> + Clone {
        self.tensors.keys().chain(self.objects.keys())
    }
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its dtype, as torch calls it: `float32`.
    pub dtype_name: Arc<str>,
    /// Elements along each dimension.
    pub size: Vec<i64>,
    /// The chunks that it was saved in, as the index has them.
    pub chunks: Vec<StoredChunk>,
}

impl StoredTensor {
    /// Its dtype; `None` where only torch can read it.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        DType::from_torch_name(&self.dtype_name)
    }
}

/// A chunk of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// Where it lies in its tensor.
    pub chunk: Chunk,
    /// Where it is stored; `None` where the index does not say.
    pub stored: Option<Stored>,
}

/// Where an item is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its bytes.
    pub entry: Entry,
    /// A stream extension of torch's has transformed them: only torch can read them.
    pub is_transformed: bool,
    /// What it is; of what incremental saves wrote.
    pub hash: Option<ItemHash>,
}

/// Reads an index that lies in a folder: `layout` resolves the names of its shard files.
///
/// # Errors
/// `Corrupt` for what [`check_index`](crate::check_index) refuses, and for an index that describes a tensor in no way
/// known.
pub fn read_contents(index: &[u8], layout: &Layout, allow: &AllowList) -> Result<Contents, Error> {
    contents_of(&judged_tree(index, allow)?.0, layout)
}

/// The same of a pickle that has been judged and read.
pub(crate) fn contents_of(tree: &Tree<'_>, layout: &Layout) -> Result<Contents, Error> {
    let metadata = tree.state(tree.root());
    let part = |name| {
        let dict = metadata.and_then(|state| tree.dict(tree.item(state, name)?));
        dict.ok_or_else(|| malformed(&format!("{name} is not a dict")))
    };
    let (items, places) = both(
        tree.length(),
        || Items::read(Reader::new(tree), part("state_dict_metadata")?),
        || Places::read(Reader::new(tree), layout, part("storage_data")?),
    );
    let (mut places, items) = (places?, items?);
    let count = items.tensors.len() + items.objects.len();
    let tensors = items.tensors.into_iter().map(|(name, mut tensor)| {
        places.place(name, &mut tensor.chunks);
        (name.to_owned(), tensor)
    });
    let tensors = tensors.collect();
    let objects = items.objects.into_iter().map(|name| (name.to_owned(), places.take(&(name, None))));
    let contents = Contents { tensors, objects: objects.collect() };
    let is_twice = |name| contents.tensors.contains_key(name);
    if contents.tensors.len() + contents.objects.len() < count || contents.objects.keys().any(is_twice) {
        return Err(malformed("a name is there twice"));
    }
    Ok(contents)
}

/// What the index places: a name and, of a chunk, its offsets.
type Placed<'a> = (&'a str, Option<Vec<i64>>);

/// Where the index places what.
struct Places<'a> {
    numbers: HashMap<Placed<'a>, usize>,
    stored: Vec<Option<Stored>>,
}

impl<'a> Places<'a> {
    fn read(
        mut reader: Reader<'a, '_>,
        layout: &Layout,
        entries: impl Iterator<Item = (Value, Value)>,
    ) -> Result<Places<'a>, Error> {
        let tree = reader.tree;
        let count = entries.size_hint().0;
        let mut places = Places { numbers: HashMap::with_capacity(count), stored: Vec::with_capacity(count) };
        let mut keys = Keys { layout, known: HashMap::new() };
        for (index, info) in entries {
            let (Some(index), Some(info)) = (tree.state(index), tree.state(info)) else {
                return Err(malformed("an entry of storage_data"));
            };
            let name = tree.item(index, "fqn").and_then(|name| tree.text(name));
            let name = name.ok_or_else(|| malformed("an index without a name"))?;
            reader.pay(name.len())?;
            let offsets = match tree.item(index, "offset") {
                None | Some(Value::None) => None,
                Some(offsets) => Some(reader.numbers(offsets)?.ok_or_else(|| malformed("an item's offset"))?),
            };
            let stored = reader.stored(info, &mut keys).map_err(|error| {
                let message = format!("{name}: {}", error.message());
                error.with_message(message)
            })?;
            places.numbers.insert((name, offsets), places.stored.len());
            places.stored.push(Some(stored));
        }
        Ok(places)
    }

    fn take(&mut self, placed: &Placed<'a>) -> Option<Stored> {
        self.numbers.remove(placed).and_then(|number| self.stored[number].take())
    }

    /// Says of the chunks of a tensor where they are stored.
    fn place(&mut self, name: &'a str, chunks: &mut [StoredChunk]) {
        for (number, StoredChunk { chunk, stored }) in chunks.iter_mut().enumerate() {
            let mut placed = (name, Some(std::mem::take(&mut chunk.offsets)));
            *stored = self.take(&placed);
            chunk.offsets = placed.1.take().unwrap_or_default();
            if number == 0 && stored.is_none() {
                *stored = self.take(&placed);
            }
        }
    }
}

/// The keys that names of shard files stand for.
struct Keys<'a, 't> {
    layout: &'t Layout,
    known: HashMap<&'a str, Arc<str>>,
}

impl<'a> Keys<'a, '_> {
    fn of(&mut self, path: &'a str) -> Result<Arc<str>, Error> {
        if let Some(key) = self.known.get(path) {
            return Ok(key.clone());
        }
        let key: Arc<str> = self.layout.resolve(path)?.into();
        self.known.insert(path, key.clone());
        Ok(key)
    }
}

/// What the index says there is, not yet where.
struct Items<'a> {
    tensors: Vec<(&'a str, StoredTensor)>,
    objects: Vec<&'a str>,
}

impl<'a> Items<'a> {
    fn read(
        mut reader: Reader<'a, '_>,
        entries: impl Iterator<Item = (Value, Value)>,
    ) -> Result<Items<'a>, Error> {
        let tree = reader.tree;
        let mut items = Items { tensors: Vec::new(), objects: Vec::new() };
        let mut dtype_names = BTreeSet::new();
        for (name, entry) in entries {
            let name = tree.text(name).ok_or_else(|| malformed("a name is not text"))?;
            reader.pay(name.len())?;
            let tensor = match tree.maker(entry) {
                Some((METADATA, "TensorStorageMetadata")) => reader.tensor(name, entry, &mut dtype_names)?,
                Some((METADATA, "BytesStorageMetadata")) => {
                    items.objects.push(name);
                    continue;
                }
                _ => None,
            };
            let unknown = || corrupt(format!("{name}: the index describes it in no way known"));
            items.tensors.push((name, tensor.ok_or_else(unknown)?));
        }
        Ok(items)
    }
}

/// Reads values of the tree.
struct Reader<'a, 't> {
    tree: &'t Tree<'a>,
    budget: u64,
}

fn malformed(what: &str) -> Error {
    corrupt(format!("the index is malformed: {what}"))
}

impl<'a, 't> Reader<'a, 't> {
    fn new(tree: &'t Tree<'a>) -> Reader<'a, 't> {
        Reader { tree, budget: FREE_COPIES + tree.length() as u64 * COPIES_PER_BYTE }
    }

    /// A tensor whose chunks are not placed yet; `None` for one that is described in no way known.
    fn tensor(
        &mut self,
        name: &'a str,
        entry: Value,
        dtype_names: &mut BTreeSet<Arc<str>>,
    ) -> Result<Option<StoredTensor>, Error> {
        let tree = self.tree;
        let field = |object, name| tree.item(tree.state(object)?, name);
        let dtype = field(entry, "properties").and_then(|properties| {
            let state = tree.state(properties)?;
            let dtype = tree.tuple(state).and_then(|state| state.first().copied());
            tree.global(dtype.or_else(|| tree.item(state, "dtype"))?)
        });
        let Some(("torch", dtype_name)) = dtype else { return Ok(None) };
        self.pay(dtype_name.len())?;
        let size = field(entry, "size").map(|size| self.numbers(size)).transpose()?.flatten();
        let listed = field(entry, "chunks").and_then(|chunks| tree.list(chunks));
        let (Some(size), Some(listed)) = (size, listed) else { return Ok(None) };
        self.pay(listed.len().saturating_mul(name.len() + 8))?;
        let mut chunks = Vec::with_capacity(listed.len());
        for &chunk in listed {
            let mut numbers = |name| {
                field(chunk, name).map(|numbers| self.numbers(numbers)).transpose().map(Option::flatten)
            };
            let (Some(offsets), Some(sizes)) = (numbers("offsets")?, numbers("sizes")?) else {
                return Ok(None);
            };
            chunks.push(StoredChunk { chunk: Chunk { offsets, sizes }, stored: None });
        }
        let dtype_name = match dtype_names.get(dtype_name) {
            Some(name) => name.clone(),
            None => {
                let name: Arc<str> = dtype_name.into();
                dtype_names.insert(name.clone());
                name
            }
        };
        Ok(Some(StoredTensor { dtype_name, size, chunks }))
    }

    fn stored(&mut self, info: Value, keys: &mut Keys<'a, '_>) -> Result<Stored, Error> {
        let tree = self.tree;
        let number = |name| u64::try_from(tree.int(tree.item(info, name)?)?).ok();
        let path = tree.item(info, "relative_path").and_then(|path| tree.text(path));
        let (Some(path), Some(offset), Some(length)) = (path, number("offset"), number("length")) else {
            return Err(malformed("an entry of storage_data has no file name, offset or length"));
        };
        self.pay(path.len())?;
        let key = keys.of(path)?;
        let data_offset = match tree.item(info, "data_offset") {
            None | Some(Value::None) => None,
            Some(_) => Some(number("data_offset").ok_or_else(|| malformed("a data offset in the index"))?),
        };
        let checksums = match tree.item(info, "crc32") {
            None | Some(Value::None) => None,
            Some(checksums) => {
                let bytes = tree.bytes(checksums).ok_or_else(|| malformed("checksums in the index"))?;
                self.pay(bytes.len())?;
                Some(ItemChecksums::from_bytes(bytes)?)
            }
        };
        let is_transformed = match tree.item(info, "transform_descriptors") {
            None | Some(Value::None) => false,
            Some(list) => tree.list(list).is_none_or(|list| !list.is_empty()),
        };
        let hash = match tree.item(info, ITEM_HASH) {
            None | Some(Value::None) => None,
            Some(hash) => {
                let bytes = tree.bytes(hash).ok_or_else(|| malformed("a hash in the index"))?;
                Some(ItemHash::from_bytes(bytes)?)
            }
        };
        let entry = Entry { key, offset, length, data_offset, checksums };
        Ok(Stored { entry, is_transformed, hash })
    }

    /// A tuple or list of integers, or a `torch.Size` of them.
    fn numbers(&mut self, value: Value) -> Result<Option<Vec<i64>>, Error> {
        let tree = self.tree;
        let items = match tree.maker(value) {
            Some(("torch", "Size")) => match tree.arguments(value) {
                Some([items]) => tree.tuple(*items).or_else(|| tree.list(*items)),
                _ => None,
            },
            _ => tree.tuple(value).or_else(|| tree.list(value)),
        };
        let Some(items) = items.filter(|items| items.len() <= MAX_DIMENSIONS) else { return Ok(None) };
        self.pay(items.len())?;
        Ok(items.iter().map(|&item| tree.int(item)).collect())
    }

    fn pay(&mut self, cost: usize) -> Result<(), Error> {
        let left = self.budget.checked_sub(1 + cost as u64 / 8);
        self.budget =
            left.ok_or_else(|| corrupt("index: its entries share far more than its size accounts for"))?;
        Ok(())
    }
}
