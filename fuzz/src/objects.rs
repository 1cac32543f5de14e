//! Indexes whose chunk lists, lengths, offsets and names are not those of what is stored.
//!
//! The input edits the description of a sound checkpoint, whose one shard file holds archives of torch and of this
//! project. Then it is loaded as the reader loads it: judged first, planned, and fed from the file. Each chunk that
//! comes must be, to the last byte, a stored tensor of that dtype and shape: nothing tells the entries of two of those
//! apart once they are exchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use s3dcp_checkpoint::{
    Chunk, Cover, DType, Destination, HeadState, ItemChecksums, MAX_END, OwnFormats, Part, Piece,
    ReadOptions, Source, TensorSpec, archive_layout, check_chunks, ends_archive, has_all, parse_archive_head,
    plan_reads,
};
use s3dcp_s3::{RangeRead, Space, crc32};

/// What the reader asks for of a foreign item first.
const HEAD_BYTES: u64 = 2048;
/// Edits of one input.
const EDITS: usize = 24;
/// Elements of the largest tensor that is loaded here.
const MAX_ELEMENTS: i64 = 4096;

const ARCHIVES: [&[u8]; 8] = [
    include_bytes!("../../crates/checkpoint/tests/data/archives/float32_2x3.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/bfloat16_scalar.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/float8_e4m3fn_3.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/int64_5d.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/bool_300.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/float64_0x3.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/view.pt"),
    include_bytes!("../../crates/checkpoint/tests/data/archives/aligned_512.pt"),
];
/// Which archives the checkpoint is made of, in the order of the file; those of one row are chunks of one tensor, one
/// below the other.
const TENSORS: [(&str, &[usize]); 9] = [
    ("matrix", &[0, 0, 0, 0]),
    ("other matrix", &[0, 0]),
    ("scalar", &[1]),
    ("vector", &[2, 2, 2]),
    ("five dimensions", &[3, 3]),
    ("flags", &[4]),
    ("empty", &[5]),
    ("view", &[6]),
    ("aligned otherwise", &[7]),
];

/// A tensor as the index describes it.
#[derive(Clone)]
struct Tensor {
    dtype: DType,
    size: Vec<i64>,
    chunks: Vec<Chunk>,
}

/// Where the index says that a chunk is.
#[derive(Clone)]
struct Entry {
    offset: u64,
    length: u64,
    /// With what only entries of this project have: where the values begin, and the CRC-32.
    own: Option<(u64, u32)>,
}

/// An index: entries are found by name and offsets.
#[derive(Clone)]
struct Index {
    tensors: BTreeMap<&'static str, Tensor>,
    entries: BTreeMap<(&'static str, Vec<i64>), Entry>,
}

/// A stored tensor: its values, element by element in row-major order.
struct Stored {
    dtype: DType,
    shape: Vec<i64>,
    values: Vec<u8>,
}

struct World {
    file: Vec<u8>,
    index: Index,
    stored: Vec<Stored>,
}

/// Numbers out of the input; zeros after its end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    /// Near `old`, or anything.
    fn number(&mut self, old: i64) -> i64 {
        let step = i64::from(self.byte() as i8);
        match self.byte() % 5 {
            0 => step,
            1 => old.wrapping_add(step),
            2 => old.wrapping_add(step * 64),
            3 => i64::MAX.wrapping_add(step),
            _ => old.wrapping_mul(step),
        }
    }
}

fn head_of(archive: &[u8]) -> s3dcp_checkpoint::ArchiveHead {
    match parse_archive_head(archive) {
        Ok(HeadState::Complete(head)) => head,
        other => panic!("{other:?}"),
    }
}

fn signed(shape: &[u64]) -> Vec<i64> {
    shape.iter().map(|&size| size as i64).collect()
}

/// The places of the elements of a box, in row-major order, as numbers of a storage.
fn places(offsets: &[i64], sizes: &[i64], strides: &[u64], first: u64) -> Vec<u64> {
    let mut places = vec![first];
    for ((&offset, &size), &stride) in offsets.iter().zip(sizes).zip(strides) {
        let steps = |&place: &u64| (offset..offset + size).map(move |step| place + step as u64 * stride);
        places = places.iter().flat_map(steps).collect();
    }
    places
}

/// A sound checkpoint.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let mut world = World {
            file: b"something in front".to_vec(),
            index: Index { tensors: BTreeMap::new(), entries: BTreeMap::new() },
            stored: Vec::new(),
        };
        let mut mark = 0u8;
        for (name, archives) in TENSORS {
            let mut tensor = None;
            for &which in archives {
                let mut archive = ARCHIVES[which].to_vec();
                let head = head_of(&archive);
                for byte in &mut archive[head.data_offset as usize..][..head.data_length as usize] {
                    *byte = mark.wrapping_mul(37) ^ (mark >> 1);
                    mark = mark.wrapping_add(1);
                }
                mark = mark.wrapping_add(11);
                let (dtype, shape) = (head.spec.dtype, signed(&head.spec.shape));
                let tensor = tensor.get_or_insert(Tensor { dtype, size: shape.clone(), chunks: Vec::new() });
                let mut offsets = vec![0; shape.len()];
                if !tensor.chunks.is_empty() {
                    offsets[0] = tensor.size[0];
                    tensor.size[0] += shape[0];
                }
                let ours = archive_layout(&TensorSpec::contiguous(dtype, head.spec.shape.clone())).ok();
                let is_ours = ours.is_some_and(|layout| layout.length == archive.len() as u64);
                let entry = Entry {
                    offset: world.file.len() as u64,
                    length: archive.len() as u64,
                    own: is_ours.then(|| (head.data_offset, crc32(&archive))),
                };
                let item = dtype.item_size() as usize;
                let elements =
                    places(&vec![0; shape.len()], &shape, &head.spec.strides, head.spec.storage_offset);
                let elements = if shape.contains(&0) { Vec::new() } else { elements };
                let at = |&place: &u64| &archive[head.data_offset as usize + place as usize * item..][..item];
                let values = elements.iter().flat_map(at).copied().collect();
                world.stored.push(Stored { dtype, shape: shape.clone(), values });
                world.index.entries.insert((name, offsets.clone()), entry);
                tensor.chunks.push(Chunk { offsets, sizes: shape });
                world.file.extend_from_slice(&archive);
            }
            world.index.tensors.extend(tensor.map(|tensor| (name, tensor)));
        }
        world
    })
}

/// What is not as it was saved.
fn edit(index: &mut Index, numbers: &mut Numbers<'_>) {
    let name = TENSORS[numbers.below(TENSORS.len())].0;
    let other = TENSORS[numbers.below(TENSORS.len())].0;
    let keys: Vec<_> = index.entries.keys().cloned().collect();
    let (key, another) = (&keys[numbers.below(keys.len())], &keys[numbers.below(keys.len())]);
    let Some(tensor) = index.tensors.get_mut(name) else { return };
    let chunk = numbers.below(tensor.chunks.len());
    let dimension = numbers.below(tensor.size.len());
    match numbers.byte() % 14 {
        0 if !tensor.chunks.is_empty() => drop(tensor.chunks.remove(chunk)),
        1 => {
            if let Some(again) = tensor.chunks.get(chunk).cloned() {
                tensor.chunks.push(again);
            }
        }
        2 | 3 => {
            if let Some(offset) =
                tensor.chunks.get_mut(chunk).and_then(|chunk| chunk.offsets.get_mut(dimension))
            {
                *offset = numbers.number(*offset);
            }
        }
        4 => {
            if let Some(size) = tensor.chunks.get_mut(chunk).and_then(|chunk| chunk.sizes.get_mut(dimension))
            {
                *size = numbers.number(*size);
            }
        }
        5 => {
            if let Some(chunk) = tensor.chunks.get_mut(chunk) {
                chunk.offsets.pop();
            }
        }
        6 => {
            if let Some(size) = tensor.size.get_mut(dimension) {
                *size = numbers.number(*size);
            }
        }
        7 => tensor.dtype = DType::all().nth(numbers.below(21)).unwrap_or(tensor.dtype),
        8 => {
            if let Some(tensor) = index.tensors.get(other).cloned() {
                index.tensors.insert(name, tensor);
            }
        }
        9 => {
            if let Some(entry) = index.entries.get(another).cloned() {
                index.entries.insert(key.clone(), entry);
            }
        }
        10 => {
            if let Some(entry) = index.entries.remove(key) {
                index.entries.insert((name, key.1.clone()), entry);
            }
        }
        kind => {
            let Some(entry) = index.entries.get_mut(key) else { return };
            match kind {
                11 => entry.offset = numbers.number(entry.offset as i64) as u64,
                12 => entry.length = numbers.number(entry.length as i64) as u64,
                _ => {
                    let own = entry.own.unwrap_or((640, 0));
                    let (start, crc) = (numbers.number(own.0 as i64) as u64, own.1);
                    entry.own = numbers.byte().is_multiple_of(2).then_some((start, crc));
                }
            }
        }
    }
    if index.entries.is_empty() {
        *index = world().index.clone();
    }
}

/// The bytes of a target; none is written yet.
type Memory = Arc<Mutex<Vec<Option<u8>>>>;

struct Place(Memory, Part);

impl Destination for Place {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = &mut memory[self.1.memory.start as usize..self.1.memory.end as usize];
        let mut put = |place: u64, run: &[u8]| {
            for (cell, &byte) in memory[place as usize..][..run.len()].iter_mut().zip(run) {
                *cell = Some(byte);
            }
        };
        match &self.1.runs {
            Some(runs) => runs.scatter(offset, bytes, put),
            None => put(offset, bytes),
        }
    }
}

/// What the load will take from one chunk.
struct Taken {
    dtype: DType,
    shape: Vec<i64>,
    /// The box in the chunk.
    wanted: Chunk,
    memory: Memory,
}

/// Where an item's tensor lies, or that it is refused.
fn source(entry: &Entry, dtype: DType, shape: &[i64], file: &[u8]) -> Option<Source> {
    let declared: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
    let stored = s3dcp_checkpoint::Entry {
        key: "file".into(),
        offset: entry.offset,
        length: entry.length,
        data_offset: entry.own.map(|own| own.0),
        checksums: entry.own.map(|own| ItemChecksums { item: own.1, slices: Vec::new() }),
    };
    if stored.is_own_tensor() {
        let source = OwnFormats::default().of("", Some(dtype), &declared).ok()?.source("", stored).ok()?;
        // This file holds archives alone, and no tensor of a safetensors file has a head that would tell.
        return source.head.is_some().then_some(source);
    }
    let end = entry.offset.checked_add(entry.length).filter(|&end| end <= file.len() as u64)?;
    let item = &file[entry.offset as usize..end as usize];
    if !ends_archive(&item[item.len().saturating_sub(MAX_END as usize)..], entry.length) {
        return None;
    }
    let mut seen = item.len().min(HEAD_BYTES as usize);
    loop {
        match parse_archive_head(&item[..seen]).ok()? {
            HeadState::NeedMore(_) if seen == item.len() => return None,
            HeadState::NeedMore(least) => seen = item.len().min(least as usize),
            HeadState::NotPlain => return None,
            HeadState::Complete(head) => {
                let end = head.data_offset.checked_add(head.data_length)?;
                let fits = head.spec.shape == declared && end <= entry.length && !head.big_endian;
                let (data_offset, spec) = (head.data_offset, Arc::new(head.spec));
                return fits.then_some(Source { entry: stored, data_offset, spec, head: None });
            }
        }
    }
}

/// Loads `wanted` of a tensor; `None` when that is refused.
fn load(index: &Index, name: &'static str, wanted: &Chunk, verify: bool, file: &[u8]) -> Option<Vec<Taken>> {
    let tensor = &index.tensors[name];
    match check_chunks(&tensor.size, &tensor.chunks).ok()? {
        Cover::Holes if !has_all(&tensor.size, &tensor.chunks, wanted) => return None,
        Cover::Whole | Cover::Holes => {}
    }
    let mut taken = Vec::new();
    let mut items = Vec::new();
    let mut own: BTreeSet<(u64, u64)> = BTreeSet::new();
    for chunk in &tensor.chunks {
        let dimensions = 0..chunk.sizes.len();
        let starts: Vec<_> = dimensions.clone().map(|at| chunk.offsets[at].max(wanted.offsets[at])).collect();
        let ends = dimensions.map(|at| {
            (chunk.offsets[at] + chunk.sizes[at]).min(wanted.offsets[at] + wanted.sizes[at]) - starts[at]
        });
        let sizes: Vec<i64> = ends.collect();
        if sizes.iter().any(|&size| size <= 0) {
            continue;
        }
        let offsets = starts.iter().zip(&chunk.offsets).map(|(start, offset)| start - offset).collect();
        let part = Chunk { offsets, sizes };
        let entry = index.entries.get(&(name, chunk.offsets.clone()))?;
        let source = source(entry, tensor.dtype, &chunk.sizes, file)?;
        if entry.own.is_some() && !own.insert((entry.offset, entry.length)) {
            return None; // the bytes of another chunk
        }
        let unsigned = |numbers: &[i64]| numbers.iter().map(|&number| number as u64).collect::<Vec<_>>();
        let parts =
            source.block(&unsigned(&part.offsets), &unsigned(&part.sizes)).ok()??.direct(None).ok()?;
        let nbytes = part.sizes.iter().product::<i64>() as usize * source.spec.dtype.item_size() as usize;
        let memory: Memory = Arc::new(Mutex::new(vec![None; nbytes]));
        let pieces = parts.into_iter().map(|part| Piece {
            item_range: part.item_range.clone(),
            destination: Box::new(Place(Arc::clone(&memory), part)),
        });
        items.push(source.entry.read(name, source.head, pieces.collect()));
        let spec = &source.spec;
        taken.push(Taken { dtype: spec.dtype, shape: chunk.sizes.clone(), wanted: part, memory });
    }
    let mut options = ReadOptions::default();
    options.verify = verify;
    for RangeRead { range, mut sink, .. } in plan_reads(items, &options).ok()? {
        let mut rest = file.get(range.start as usize..range.end as usize)?;
        while !rest.is_empty() {
            let Space::Write(most) = sink.space() else { panic!("memory that was not offered") };
            let (next, after) = rest.split_at(rest.len().min(most.max(1)));
            sink.write(next).ok()?;
            rest = after;
        }
        sink.finish().ok()?;
    }
    Some(taken)
}

/// Edits the checkpoint and loads from it what a model of the old shapes wants.
pub fn objects(data: &[u8]) {
    let World { file, index: sound, stored } = world();
    let mut numbers = Numbers(data);
    let flags = numbers.byte();
    let mut index = sound.clone();
    while !numbers.0.is_empty() && numbers.0.len() > data.len().saturating_sub(EDITS * 12) {
        edit(&mut index, &mut numbers);
    }
    for (name, _) in TENSORS {
        let size = &sound.tensors[name].size;
        if index.tensors[name].size != *size || size.iter().product::<i64>() > MAX_ELEMENTS {
            continue; // the planner refuses it
        }
        let mut wanted = Chunk { offsets: vec![0; size.len()], sizes: size.clone() };
        if flags & 2 != 0 && !size.is_empty() {
            wanted.offsets[0] = i64::from(flags >> 4).min(size[0]);
            wanted.sizes[0] -= wanted.offsets[0];
        }
        let Some(taken) = load(&index, name, &wanted, flags & 1 == 0, file) else { continue };
        let elements: i64 = taken.iter().map(|part| part.wanted.sizes.iter().product::<i64>()).sum();
        assert_eq!(elements, wanted.sizes.iter().product::<i64>(), "{name}: elements are left as they were");
        for Taken { dtype, shape, wanted, memory } in taken {
            let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            let got: Vec<u8> = memory.iter().map(|cell| cell.expect("a byte that was written")).collect();
            let strides =
                TensorSpec::contiguous(dtype, shape.iter().map(|&size| size as u64).collect()).strides;
            let elements = places(&wanted.offsets, &wanted.sizes, &strides, 0);
            let item = dtype.item_size() as usize;
            let is = |known: &Stored| {
                let at = |&place: &u64| known.values[place as usize * item..][..item].iter().copied();
                known.dtype == dtype
                    && known.shape == shape
                    && elements.iter().flat_map(at).eq(got.iter().copied())
            };
            assert!(stored.iter().any(is), "{name}: values of {shape:?} that nobody stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sound_checkpoint_loads_whole_and_in_part() {
        let World { file, index, stored } = world();
        let mut loaded = 0;
        for (name, archives) in TENSORS {
            let size = index.tensors[name].size.clone();
            let wanted = Chunk { offsets: vec![0; size.len()], sizes: size };
            for verify in [true, false] {
                let taken = load(index, name, &wanted, verify, file).expect(name);
                assert_eq!(taken.len(), if name == "empty" { 0 } else { archives.len() }, "{name}");
            }
            loaded += archives.len();
        }
        assert_eq!(loaded, stored.len());
        let own = index.entries.values().filter(|entry| entry.own.is_some()).count();
        assert_eq!(own, stored.len() - 2, "all but two are this project's own archives");
        objects(&[0]);
        objects(&[0x12]);
    }
}
