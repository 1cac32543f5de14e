//! What a checkpoint holds and where: every tensor with its chunks, every object, and what they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use s3dcp_s3::Error;
use serde::Serialize;

use super::bands::byte_count;
use super::open::OpenCheckpoint;
use crate::layout::rank_in;
use crate::load::contents::{Stored, StoredTensor};
use crate::name_filter::NameFilter;
use crate::storage::Storage;
use crate::values::Statistics;

/// A checkpoint, item by item. What its index says is borrowed from the open checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection<'a> {
    /// The folder of its index, as a URI or a local path.
    pub uri: &'a str,
    /// Its index; or those of its ranks.
    pub indexes: Vec<InspectedIndex>,
    /// Its epoch, where its index tells one.
    pub epoch: Option<i64>,
    /// Ranks that saved it, where its index tells.
    pub ranks: Option<u64>,
    /// Its tensors, by name.
    pub tensors: Vec<InspectedTensor<'a>>,
    /// Its pickled objects, by name.
    pub objects: Vec<InspectedObject<'a>>,
    /// What it comes to.
    pub total: Total,
    /// The same for each dtype, and for `object`.
    pub by_dtype: Vec<Total>,
    /// The same for each first part of a dotted name.
    pub by_prefix: Vec<Total>,
    /// The same for each rank, as the names of shard files tell it, or else for each file.
    pub by_rank: Vec<Total>,
}

/// An index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedIndex {
    /// Where it is.
    pub uri: String,
    /// The rank whose index it is; `None` for that of all ranks.
    pub rank: Option<u64>,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct InspectedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The rank in whose own index it is.
    pub rank: Option<u64>,
    /// As torch calls it: `float32`.
    pub dtype: &'a str,
    /// Elements along each dimension.
    pub shape: &'a [i64],
    /// Bytes of its values; of a dtype that is not known here, bytes of its items.
    pub bytes: u64,
    /// Where it is stored.
    pub chunks: Vec<InspectedChunk<'a>>,
    /// What its values come to, where they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Box<Statistics>>,
    /// Why they could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A chunk of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedChunk<'a> {
    /// Its first element.
    pub offsets: &'a [i64],
    /// Elements along each dimension.
    pub sizes: &'a [i64],
    /// Where it is stored; `None` where the index does not say.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// A pickled object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedObject<'a> {
    /// Its name.
    pub name: &'a str,
    /// The rank in whose own index it is.
    pub rank: Option<u64>,
    /// Where it is stored; `None` where the index does not say.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// Where an item is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The shard file, as a URI or a local path.
    pub file: Arc<str>,
    /// The item's first byte in the file.
    pub offset: u64,
    /// Bytes of the item.
    pub length: u64,
    /// The rank that wrote it, as the name of the file tells it.
    pub saved_by: Option<u64>,
    /// Whether the index has checksums of it.
    pub has_checksums: bool,
}

/// What some items come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Total {
    /// What they have in common.
    pub of: String,
    /// Tensors. One that is stored in several places counts in each total that has some of it.
    pub tensors: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of their items, as they are stored.
    pub bytes: u64,
}

/// Lists what an open checkpoint holds, of these names.
///
/// # Errors
/// `Config` for one that means no item.
pub fn inspect<'a>(checkpoint: &'a OpenCheckpoint, names: &NameFilter) -> Result<Inspection<'a>, Error> {
    names.check(checkpoint.indexes.iter().flat_map(|index| index.load.contents().names()))?;
    let mut inspection = Inspection {
        uri: &checkpoint.uri,
        epoch: checkpoint.indexes.iter().find_map(|index| index.load.facts().epoch),
        ranks: checkpoint.indexes.iter().find_map(|index| index.load.facts().ranks),
        ..Inspection::default()
    };
    let mut places = Places { storage: &checkpoint.storage, last: None };
    for index in &checkpoint.indexes {
        let rank = index.rank;
        let uri = checkpoint.storage.uri(&index.key);
        inspection.indexes.push(InspectedIndex { uri, rank, bytes: index.bytes });
        let contents = index.load.contents();
        for (name, tensor) in contents.tensors.iter().filter(|(name, _)| names.has(name)) {
            inspection.tensors.push(places.tensor(name, rank, tensor));
        }
        for (name, stored) in contents.objects.iter().filter(|(name, _)| names.has(name)) {
            let place = stored.as_ref().map(|stored| places.place(stored));
            inspection.objects.push(InspectedObject { name, rank, place });
        }
    }
    inspection.tensors.sort_by_key(|tensor| (tensor.name, tensor.rank));
    inspection.objects.sort_by_key(|object| (object.name, object.rank));
    inspection.add_up();
    Ok(inspection)
}

struct Places<'a> {
    storage: &'a Storage,
    /// The file before, which is most often the next one's too.
    last: Option<(&'a Arc<str>, Arc<str>, Option<u64>)>,
}

impl<'a> Places<'a> {
    fn tensor(&mut self, name: &'a str, rank: Option<u64>, tensor: &'a StoredTensor) -> InspectedTensor<'a> {
        let chunks = tensor.chunks.iter().map(|chunk| InspectedChunk {
            offsets: &chunk.chunk.offsets,
            sizes: &chunk.chunk.sizes,
            place: chunk.stored.as_ref().map(|stored| self.place(stored)),
        });
        let chunks: Vec<InspectedChunk<'_>> = chunks.collect();
        let stored = chunks.iter().filter_map(|chunk| chunk.place.as_ref()).map(|place| place.length);
        let bytes = match tensor.dtype() {
            Some(dtype) => byte_count(&tensor.size, dtype.item_size()),
            None => stored.fold(0, u64::saturating_add),
        };
        InspectedTensor {
            name,
            rank,
            dtype: &tensor.dtype_name,
            shape: &tensor.size,
            bytes,
            chunks,
            statistics: None,
            fault: None,
        }
    }

    fn place(&mut self, stored: &'a Stored) -> Place {
        let entry = &stored.entry;
        let (file, saved_by) = match &self.last {
            Some((key, file, rank)) if Arc::ptr_eq(key, &entry.key) => (file.clone(), *rank),
            _ => {
                let (file, rank): (Arc<str>, _) = (self.storage.uri(&entry.key).into(), rank_in(&entry.key));
                self.last = Some((&entry.key, file.clone(), rank));
                (file, rank)
            }
        };
        let (offset, length) = (entry.offset, entry.length);
        Place { file, offset, length, saved_by, has_checksums: entry.checksums.is_some() }
    }
}

/// Totals by what items have in common.
struct Totals<K>(BTreeMap<K, Total>);

impl<K: Ord> Totals<K> {
    fn add(&mut self, of: K, tensors: u64, objects: u64, bytes: u64) {
        let total = self.0.entry(of).or_default();
        total.tensors += tensors;
        total.objects += objects;
        total.bytes = total.bytes.saturating_add(bytes);
    }

    fn named(self, name: impl Fn(K) -> String) -> Vec<Total> {
        self.0.into_iter().map(|(of, total)| Total { of: name(of), ..total }).collect()
    }
}

/// Where an item was saved: by a rank, else in a file.
type Saved<'a> = (Option<u64>, &'a str);

impl Inspection<'_> {
    /// Where files are named that hold what was listed, as URIs or local paths.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&str> {
        let of_tensors = self.tensors.iter().flat_map(|tensor| &tensor.chunks).map(|chunk| &chunk.place);
        let places = of_tensors.chain(self.objects.iter().map(|object| &object.place));
        places.filter_map(|place| place.as_ref().map(|place| &*place.file)).collect()
    }

    fn add_up(&mut self) {
        let mut total = Totals(BTreeMap::new());
        let mut by_dtype: Totals<&str> = Totals(BTreeMap::new());
        let mut by_prefix: Totals<&str> = Totals(BTreeMap::new());
        let mut by_rank: Totals<Saved<'_>> = Totals(BTreeMap::new());
        fn saved(place: &Place) -> Saved<'_> {
            (place.saved_by, if place.saved_by.is_some() { "" } else { &place.file })
        }
        let prefix = |name: &'_ str| name.find('.').unwrap_or(name.len());
        for tensor in &self.tensors {
            let mut places: Vec<Saved<'_>> = Vec::new();
            let mut bytes = 0u64;
            for place in tensor.chunks.iter().filter_map(|chunk| chunk.place.as_ref()) {
                let of = saved(place);
                let is_new = !places.contains(&of);
                by_rank.add(of, is_new.into(), 0, place.length);
                bytes = bytes.saturating_add(place.length);
                if is_new && places.len() < 64 {
                    places.push(of);
                }
            }
            total.add((), 1, 0, bytes);
            by_dtype.add(tensor.dtype, 1, 0, bytes);
            by_prefix.add(&tensor.name[..prefix(tensor.name)], 1, 0, bytes);
        }
        for object in &self.objects {
            let bytes = object.place.as_ref().map_or(0, |place| place.length);
            total.add((), 0, 1, bytes);
            by_dtype.add("object", 0, 1, bytes);
            by_prefix.add(&object.name[..prefix(object.name)], 0, 1, bytes);
            if let Some(place) = &object.place {
                by_rank.add(saved(place), 0, 1, bytes);
            }
        }
        let rank =
            |(rank, file): Saved<'_>| rank.map_or_else(|| file.to_owned(), |rank| format!("rank {rank}"));
        let by_rank = by_rank.named(rank);
        let (by_dtype, by_prefix) = (by_dtype.named(str::to_owned), by_prefix.named(str::to_owned));
        let total = total.named(|()| "all".to_owned()).pop();
        (self.by_rank, self.by_dtype, self.by_prefix) = (by_rank, by_dtype, by_prefix);
        self.total = total.unwrap_or_else(|| Total { of: "all".to_owned(), ..Total::default() });
    }
}
