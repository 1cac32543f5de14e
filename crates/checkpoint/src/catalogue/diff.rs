//! How two checkpoints differ: in names, shapes, dtypes, and values, whoever wrote them and however they are cut.
//!
//! What has the same checksums in both is equal without being read. The rest is read in bands of a bounded size along the
//! chunks of the first, and compared as numbers.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::Error;
use serde::Serialize;

use super::open::OpenCheckpoint;
use super::walk::{Band, ReadBands, Walked, is_fault, walk};
use crate::dtype::DType;
use crate::load::begin::Load;
use crate::load::chunks::{Chunk, Cover, check_chunks};
use crate::load::contents::{Stored, StoredTensor};
use crate::load::fetch::read_ranges;
use crate::load::source::Entry;
use crate::storage::Storage;
use crate::values::Difference;

/// Bytes of two items that are compared at once.
const WINDOW_BYTES: u64 = 4 << 20;
/// Pairs of items whose bytes are compared at the same time.
const CONCURRENT_ITEMS: usize = 16;

/// How two checkpoints differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The folder of the first, as a URI or a local path.
    pub first: String,
    /// That of the second.
    pub second: String,
    /// Whether both hold the same: names, dtypes, shapes, and values.
    pub equal: bool,
    /// What the first alone holds.
    pub only_first: Vec<ItemName>,
    /// What the second alone holds.
    pub only_second: Vec<ItemName>,
    /// The tensors in both.
    pub tensors: Vec<ComparedTensor>,
    /// The objects in both.
    pub objects: Vec<ComparedObject>,
    /// Bytes of values and objects that were read, of both.
    pub read_bytes: u64,
}

/// The name of a tensor or object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct ItemName {
    /// The name.
    pub name: String,
    /// The rank in whose own index it is, where both checkpoints have such.
    pub rank: Option<u64>,
}

/// By what two were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComparedBy {
    /// Their checksums: nothing was read.
    Checksums,
    /// Their values.
    Values,
    /// Their bytes, as they are stored.
    Bytes,
    /// Their shapes, or lengths, which differ.
    Shapes,
}

/// A tensor in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ComparedTensor {
    /// Its name.
    #[serde(flatten)]
    pub item: ItemName,
    /// Whether it is equal in both: dtype, shape and values.
    pub equal: bool,
    /// By what that is known.
    pub by: ComparedBy,
    /// Its dtype in the first and in the second, as torch calls it.
    pub dtypes: [String; 2],
    /// Its shape in the first and in the second.
    pub shapes: [Vec<i64>; 2],
    /// How the values differ, where they were read.
    pub difference: Option<Difference>,
    /// Why they cannot be compared.
    pub fault: Option<String>,
}

/// An object in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ComparedObject {
    /// Its name.
    #[serde(flatten)]
    pub item: ItemName,
    /// Whether its pickles are equal byte by byte.
    pub equal: bool,
    /// By what that is known.
    pub by: ComparedBy,
    /// Why they cannot be compared.
    pub fault: Option<String>,
}

/// The loads of both whose names are compared with each other.
struct Pair {
    rank: Option<u64>,
    first: Load,
    second: Load,
}

/// Compares two open checkpoints. Where both have an index for each of the same ranks, it is rank by rank; else what all ranks
/// of one hold counts together. `read` hears of bytes as they are compared, and how many there may be in all.
///
/// # Errors
/// Those of requests. What cannot be compared is noted.
pub async fn diff(
    first: OpenCheckpoint,
    second: OpenCheckpoint,
    read: impl Fn(u64, u64),
) -> Result<Comparison, Error> {
    let mut found =
        Comparison { first: first.uri.clone(), second: second.uri.clone(), ..Comparison::default() };
    let storages = [first.storage.clone(), second.storage.clone()];
    let pairs = Arc::new(pairs(first, second));
    let mut walked = Vec::new();
    let mut by_bytes: Vec<(bool, usize, Vec<[Entry; 2]>)> = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let (one, other) = (pair.first.contents(), pair.second.contents());
        let item = |name: &str| ItemName { name: name.to_owned(), rank: pair.rank };
        let one_names: BTreeSet<&String> = one.tensors.keys().chain(one.objects.keys()).collect();
        let other_names: BTreeSet<&String> = other.tensors.keys().chain(other.objects.keys()).collect();
        found.only_first.extend(one_names.difference(&other_names).map(|name| item(name)));
        found.only_second.extend(other_names.difference(&one_names).map(|name| item(name)));
        for (name, tensor) in &one.tensors {
            let Some(against) = other.tensors.get(name) else {
                if other.objects.contains_key(name) {
                    found.objects.push(ComparedObject {
                        item: item(name),
                        equal: false,
                        by: ComparedBy::Shapes,
                        fault: None,
                    });
                }
                continue;
            };
            let number = found.tensors.len();
            let (compared, values) = compare_tensors(item(name), tensor, against);
            match values {
                Left::Nothing => {}
                Left::Values(item_size) => walked.push(Walked {
                    tensor: number,
                    index,
                    name: name.as_str().into(),
                    chunks: boxes(tensor),
                    item_size,
                }),
                Left::Bytes(entries) => by_bytes.push((true, number, entries)),
            }
            found.tensors.push(compared);
        }
        for (name, stored) in &one.objects {
            let Some(against) = other.objects.get(name) else {
                if other.tensors.contains_key(name) {
                    let (item, by) = (item(name), ComparedBy::Shapes);
                    found.objects.push(ComparedObject { item, equal: false, by, fault: None });
                }
                continue;
            };
            let (compared, entries) = compare_objects(item(name), stored.as_ref(), against.as_ref());
            if let Some(entries) = entries {
                by_bytes.push((false, found.objects.len(), vec![entries]));
            }
            found.objects.push(compared);
        }
    }
    let value_bytes = walked.iter().map(|walked| {
        let elements =
            walked.chunks.iter().map(|chunk| super::bands::byte_count(&chunk.sizes, walked.item_size));
        elements.fold(0, u64::saturating_add)
    });
    let stored = by_bytes.iter().flat_map(|(_, _, entries)| entries).map(|[entry, _]| entry.length);
    let total = value_bytes.chain(stored).fold(0, u64::saturating_add);
    read(0, total);
    let mut read_bytes = 0u64;
    let of = pairs.clone();
    let read_bands: ReadBands<Difference> = Arc::new(move |bands| {
        let of = of.clone();
        Box::pin(async move { differences(&of, &bands).await })
    });
    walk(walked, read_bands, |number, bytes, compared| {
        let tensor: &mut ComparedTensor = &mut found.tensors[number];
        match compared {
            Ok(difference) => tensor.difference.get_or_insert_default().join(&difference),
            Err(error) if tensor.fault.is_none() => tensor.fault = Some(error.message().to_owned()),
            Err(_) => {}
        }
        read_bytes = read_bytes.saturating_add(bytes);
        read(bytes, total);
    })
    .await?;
    let mut compared = stream::iter(by_bytes)
        .map(|(is_tensor, number, entries)| same_items(&storages, is_tensor, number, entries))
        .buffered(CONCURRENT_ITEMS);
    while let Some(compared) = compared.next().await {
        let (is_tensor, number, bytes, same) = compared?;
        let (equal, fault) = match same {
            Ok(equal) => (equal, None),
            Err(error) => (false, Some(error.message().to_owned())),
        };
        if is_tensor {
            (found.tensors[number].equal, found.tensors[number].fault) = (equal, fault);
        } else {
            (found.objects[number].equal, found.objects[number].fault) = (equal, fault);
        }
        read_bytes = read_bytes.saturating_add(bytes);
        read(bytes, total);
    }
    drop(compared);
    for tensor in &mut found.tensors {
        let differs = tensor.difference.is_some_and(|difference| difference.differing > 0);
        tensor.equal &= !differs && tensor.fault.is_none();
    }
    found.objects.iter_mut().for_each(|object| object.equal &= object.fault.is_none());
    found.read_bytes = read_bytes.saturating_mul(2);
    found.equal = found.only_first.is_empty()
        && found.only_second.is_empty()
        && found.tensors.iter().all(|tensor| tensor.equal)
        && found.objects.iter().all(|object| object.equal);
    Ok(found)
}

fn pairs(first: OpenCheckpoint, second: OpenCheckpoint) -> Vec<Pair> {
    let ranks = |of: &OpenCheckpoint| of.indexes.iter().map(|index| index.rank).collect::<Vec<_>>();
    if ranks(&first) == ranks(&second) {
        let both = first.indexes.into_iter().zip(second.indexes);
        return both
            .map(|(first, second)| Pair { rank: first.rank, first: first.load, second: second.load })
            .collect();
    }
    let joined = |of: OpenCheckpoint| Load::joined(of.indexes.into_iter().map(|index| index.load).collect());
    joined(first)
        .zip(joined(second))
        .map(|(first, second)| Pair { rank: None, first, second })
        .into_iter()
        .collect()
}

/// What must be read to compare two.
enum Left {
    Nothing,
    /// The values, of which an element has so many bytes in the larger of two dtypes.
    Values(u64),
    /// The bytes of their items.
    Bytes(Vec<[Entry; 2]>),
}

fn boxes(tensor: &StoredTensor) -> Vec<Chunk> {
    tensor.chunks.iter().map(|stored| stored.chunk.clone()).collect()
}

fn compare_tensors(item: ItemName, one: &StoredTensor, other: &StoredTensor) -> (ComparedTensor, Left) {
    let same_dtype = one.dtype_name == other.dtype_name;
    let mut compared = ComparedTensor {
        item,
        equal: same_dtype,
        by: ComparedBy::Values,
        dtypes: [one.dtype_name.to_string(), other.dtype_name.to_string()],
        shapes: [one.size.clone(), other.size.clone()],
        difference: None,
        fault: None,
    };
    if one.size != other.size {
        (compared.equal, compared.by) = (false, ComparedBy::Shapes);
        return (compared, Left::Nothing);
    }
    if let Err(what) = hold_the_same(one, other) {
        compared.fault = Some(what);
        return (compared, Left::Nothing);
    }
    let items = items_of(one).zip(items_of(other)).filter(|_| same_dtype);
    let is_plain = |entries: &[(&Chunk, &Stored)]| entries.iter().all(|(_, stored)| !stored.is_transformed);
    let items = items.filter(|(one, other)| {
        one.len() == other.len()
            && one.iter().zip(other).all(|(one, other)| one.0 == other.0)
            && is_plain(one) == is_plain(other)
    });
    if let Some((one, other)) = &items
        && one.iter().zip(other).all(|(one, other)| one.1.entry.same_checksums(&other.1.entry) == Some(true))
    {
        compared.by = ComparedBy::Checksums;
        return (compared, Left::Nothing);
    }
    let dtypes = (one.dtype(), other.dtype());
    let is_transformed = |tensor: &StoredTensor| {
        tensor.chunks.iter().any(|chunk| chunk.stored.as_ref().is_some_and(|stored| stored.is_transformed))
    };
    match (dtypes, items) {
        ((Some(one_dtype), Some(other_dtype)), _) if !is_transformed(one) && !is_transformed(other) => {
            (compared, Left::Values(one_dtype.item_size().max(other_dtype.item_size())))
        }
        (_, Some((one, other))) => {
            compared.by = ComparedBy::Bytes;
            let both = one.iter().zip(other).map(|(one, other)| [one.1.entry.clone(), other.1.entry.clone()]);
            (compared, Left::Bytes(both.collect()))
        }
        _ => {
            compared.fault = Some("torch alone reads its values".to_owned());
            (compared, Left::Nothing)
        }
    }
}

/// Sees that two tensors of one shape hold the same elements: all, or those of one rank.
fn hold_the_same(one: &StoredTensor, other: &StoredTensor) -> Result<(), String> {
    let mut chunks = [boxes(one), boxes(other)];
    let mut covers = [Cover::Whole; 2];
    for (cover, chunks) in covers.iter_mut().zip(&chunks) {
        *cover = check_chunks(&one.size, chunks).map_err(|error| error.message().to_owned())?;
    }
    chunks.iter_mut().for_each(|chunks| chunks.sort_by(|one, other| one.offsets.cmp(&other.offsets)));
    match covers {
        [Cover::Whole, Cover::Whole] => Ok(()),
        _ if chunks[0] == chunks[1] => Ok(()),
        _ => Err("not the same elements of it are in both".to_owned()),
    }
}

/// The chunks of a tensor that have elements, by their place; `None` where the index does not place one.
fn items_of(tensor: &StoredTensor) -> Option<Vec<(&Chunk, &Stored)>> {
    let chunks = tensor.chunks.iter().filter(|stored| !stored.chunk.sizes.contains(&0));
    let items = chunks.map(|stored| stored.stored.as_ref().map(|place| (&stored.chunk, place)));
    let mut items = items.collect::<Option<Vec<_>>>()?;
    items.sort_by(|one, other| one.0.offsets.cmp(&other.0.offsets));
    Some(items)
}

fn compare_objects(
    item: ItemName,
    one: Option<&Stored>,
    other: Option<&Stored>,
) -> (ComparedObject, Option<[Entry; 2]>) {
    let mut compared = ComparedObject { item, equal: true, by: ComparedBy::Bytes, fault: None };
    let (Some(one), Some(other)) = (one, other) else {
        compared.fault = Some("the index does not say where this item is stored".to_owned());
        return (compared, None);
    };
    if one.entry.length != other.entry.length {
        (compared.equal, compared.by) = (false, ComparedBy::Shapes);
        return (compared, None);
    }
    match one.entry.same_checksums(&other.entry) {
        Some(same) => {
            (compared.equal, compared.by) = (same, ComparedBy::Checksums);
            (compared, None)
        }
        None => (compared, Some([one.entry.clone(), other.entry.clone()])),
    }
}

/// Compares bands of one pair.
async fn differences(pairs: &[Pair], bands: &[Band]) -> Result<Vec<Difference>, Error> {
    let Some(first) = bands.first() else { return Ok(Vec::new()) };
    let Pair { first, second, .. } = &pairs[first.index];
    let (one, other) = tokio::try_join!(read_bands(first, bands), read_bands(second, bands))?;
    let compared = one.into_iter().zip(other).map(|((one_dtype, one), (other_dtype, other))| {
        let mut difference = Difference::default();
        difference.add((one_dtype, &one), (other_dtype, &other));
        difference
    });
    Ok(compared.collect())
}

async fn read_bands(load: &Load, bands: &[Band]) -> Result<Vec<(DType, BytesMut)>, Error> {
    let mut wanted = Vec::with_capacity(bands.len());
    let mut dtypes = Vec::with_capacity(bands.len());
    for band in bands {
        let dtype = load.contents().tensors.get(&*band.name).and_then(StoredTensor::dtype);
        let dtype = dtype.ok_or_else(|| crate::error::corrupt(format!("{}: no such tensor", band.name)))?;
        let bytes = super::bands::byte_count(&band.chunk.sizes, dtype.item_size());
        wanted.push((&*band.name, &band.chunk, BytesMut::zeroed(bytes as usize)));
        dtypes.push(dtype);
    }
    Ok(dtypes.into_iter().zip(load.read_blocks(wanted).await?).collect())
}

/// Whether pairs of items have the same bytes, after what they belong to and how many bytes that is.
async fn same_items(
    storages: &[Storage; 2],
    is_tensor: bool,
    number: usize,
    entries: Vec<[Entry; 2]>,
) -> Result<(bool, usize, u64, Result<bool, Error>), Error> {
    let (mut bytes, mut same) = (0u64, Ok(true));
    for entries in &entries {
        bytes = bytes.saturating_add(entries[0].length);
        match same_bytes(storages, entries).await {
            Ok(true) => {}
            Err(error) if !is_fault(&error) => return Err(error),
            other => same = same.and(other),
        }
    }
    Ok((is_tensor, number, bytes, same))
}

/// Whether two items of one length have the same bytes.
async fn same_bytes(storages: &[Storage; 2], entries: &[Entry; 2]) -> Result<bool, Error> {
    let [one, other] = entries;
    if one.length != other.length {
        return Ok(false);
    }
    let mut start = 0;
    while start < one.length {
        let range = start..(start + WINDOW_BYTES).min(one.length);
        let (first, second) = tokio::try_join!(
            read_ranges(&storages[0], vec![(one, range.clone())]),
            read_ranges(&storages[1], vec![(other, range.clone())])
        )?;
        if first != second {
            return Ok(false);
        }
        start = range.end;
    }
    Ok(true)
}
