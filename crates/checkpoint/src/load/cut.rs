//! A wanted block of a stored tensor, cut into parts that are read at once: which bytes of its item each is, and where
//! in memory they go.
//!
//! Elements are counted here in two orders: by their place in the tensor's storage, and by their number in the block,
//! row by row with its dimensions in the order of the file ([`Nesting`]).

use std::ops::Range;
use std::sync::Arc;

use s3dcp_s3::Error;

use super::blocks::{BlockDim, BlockLayout};
use crate::archive::spec::{TensorSpec, row_major};
use crate::error::config;
use crate::index::checksums::SLICE_SIZE;

/// What lies between two parts of a block is fetched along when it is less than this, in bytes.
const GAP_BYTES: u64 = 256 << 10;
/// Shorter runs are written one by one at more cost than a second copy of the whole block has.
const MIN_RUN_BYTES: u64 = 64;

/// The dimensions of a stored tensor from the widest step in the file to the narrowest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nesting(Vec<usize>);

impl Nesting {
    /// That of a tensor; `None` where a step is shorter than what lies within it, so that elements share bytes.
    #[must_use]
    pub fn of(spec: &TensorSpec) -> Option<Nesting> {
        let mut order: Vec<usize> = (0..spec.shape.len()).collect();
        if spec.is_contiguous() {
            return Some(Nesting(order));
        }
        order.sort_by_key(|&dim| std::cmp::Reverse(spec.strides[dim]));
        let mut extent = 1;
        for &dim in order.iter().rev() {
            if spec.shape[dim] > 1 {
                if spec.strides[dim] < extent {
                    return None;
                }
                extent += (spec.shape[dim] - 1) * spec.strides[dim];
            }
        }
        Some(Nesting(order))
    }
}

/// Some bytes of an item that belong to a block, and where in the block's memory they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes of the item.
    pub item_range: Range<u64>,
    /// Bytes of the memory, all that is written within; the rest of what lies between belongs to others.
    pub memory: Range<u64>,
    /// How the bytes are spread; `None`: as they are.
    pub runs: Option<Runs>,
    /// The elements of the block, by their number.
    pub elements: Range<u64>,
}

/// Runs of a block, from somewhere in it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    layout: Arc<BlockLayout>,
    /// Bytes of the file, from the block's first one, that lie before the part.
    skipped: u64,
    /// Bytes of memory, from the block's first one, that lie before the part's.
    left_out: u64,
}

impl Runs {
    /// Hands each wanted run in `bytes`, which begin `offset` bytes after the part's first, to `write`, with its place
    /// in the part's memory.
    pub fn scatter(&self, offset: u64, bytes: &[u8], mut write: impl FnMut(u64, &[u8])) {
        // What lay before the memory would be far past its end, which whoever writes refuses.
        let place = |place: u64| place.wrapping_sub(self.left_out);
        self.layout.scatter(self.skipped + offset, bytes, |at, run| write(place(at), run));
    }

    /// The same runs from `offset` bytes of the part on.
    #[must_use]
    pub fn after(&self, offset: u64) -> Runs {
        Runs { skipped: self.skipped + offset, ..self.clone() }
    }
}

/// Places of elements: how many, and the step from one to the next in the file and in memory, in elements.
type Dim = BlockDim;

/// A block of a stored tensor.
#[derive(Clone, Debug)]
pub struct Block {
    item_size: u64,
    /// Where the storage begins in the item, in bytes.
    data_offset: u64,
    /// The place of the first element in the storage.
    first: u64,
    /// In the order of the file. Their steps in memory are those of a packed block.
    dims: Vec<Dim>,
    order: Vec<usize>,
}

impl Block {
    /// The block of `lengths` at `offsets` of a stored tensor, none of which is empty.
    ///
    /// # Errors
    /// `Config` for a block that is not in the tensor.
    pub fn new(
        spec: &TensorSpec,
        nesting: &Nesting,
        data_offset: u64,
        offsets: &[u64],
        lengths: &[u64],
    ) -> Result<Block, Error> {
        if !is_inside(&spec.shape, offsets, lengths) {
            return Err(config(format!(
                "block {offsets:?}+{lengths:?} is outside the stored chunk {:?}",
                spec.shape
            )));
        }
        let steps: u64 = offsets.iter().zip(&spec.strides).map(|(offset, stride)| offset * stride).sum();
        let order = &nesting.0;
        let mut step = 1;
        let mut dims = Vec::with_capacity(order.len());
        for &dim in order.iter().rev() {
            dims.push(Dim { count: lengths[dim], stored_step: spec.strides[dim], target_step: step });
            step *= lengths[dim].max(1);
        }
        dims.reverse();
        let first = spec.storage_offset + steps;
        Ok(Block { item_size: spec.dtype.item_size(), data_offset, first, dims, order: order.clone() })
    }

    /// The numbers of its dimensions, in the order of the file.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Whether its runs in memory of these strides, in elements, are long enough to go straight there.
    #[must_use]
    pub fn has_long_runs(&self, strides: &[u64]) -> bool {
        if strides.len() != self.dims.len() {
            return false;
        }
        let placed = self.dims.iter().zip(&self.order);
        let dims: Vec<Dim> =
            placed.map(|(&dim, &number)| Dim { target_step: strides[number], ..dim }).collect();
        let (run, dims) = joined(&dims);
        dims.is_empty() || run * self.item_size >= MIN_RUN_BYTES
    }

    /// The whole block straight into memory where its elements have these strides (`None`: packed, in the order of
    /// the tensor's dimensions).
    ///
    /// # Errors
    /// `Config` for strides of another number or past what memory can be.
    pub fn direct(&self, strides: Option<&[u64]>) -> Result<Vec<Part>, Error> {
        let mut dims = self.dims.clone();
        let packed: Vec<u64>;
        let strides = match strides {
            Some(strides) => strides,
            None => {
                packed = self.packed();
                &packed
            }
        };
        if strides.len() != dims.len() {
            return Err(config(format!("{} strides of {} dimensions", strides.len(), dims.len())));
        }
        let mut last = 0u64;
        for (dim, &number) in dims.iter_mut().zip(&self.order) {
            dim.target_step = strides[number];
            let steps = (dim.count - 1).checked_mul(dim.target_step);
            last = steps
                .and_then(|steps| steps.checked_add(last))
                .ok_or_else(|| config("a tensor past all memory"))?;
        }
        if last
            .checked_add(1)
            .and_then(|count| count.checked_mul(self.item_size))
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(config("a tensor past all memory"));
        }
        let mut parts = Vec::new();
        let mut failure = Ok(());
        let mut elements = 0;
        apart(&dims, self.first, 0, GAP_BYTES / self.item_size, &mut |dims, first, place| {
            let begin = elements;
            elements += dims.iter().map(|dim| dim.count).product::<u64>();
            match self.part(dims, first, place, begin..elements) {
                Ok(part) => parts.push(part),
                Err(error) => failure = Err(error),
            }
        });
        failure.map(|()| parts)
    }

    /// Strides of packed memory, by the tensor's dimensions.
    fn packed(&self) -> Vec<u64> {
        let mut lengths = vec![0; self.dims.len()];
        for (dim, &number) in self.dims.iter().zip(&self.order) {
            lengths[number] = dim.count;
        }
        row_major(&lengths)
    }

    fn part(&self, dims: &[Dim], first: u64, place: u64, elements: Range<u64>) -> Result<Part, Error> {
        let (run, dims) = joined(dims);
        let item_size = self.item_size;
        let layout = self.layout(run, &dims)?;
        let start = self.data_offset + first * item_size;
        let room: u64 = run * item_size
            + dims.iter().map(|dim| (dim.count - 1) * dim.target_step * item_size).sum::<u64>();
        let at = place * item_size;
        let length = run * item_size
            + dims.iter().map(|dim| (dim.count - 1) * dim.stored_step * item_size).sum::<u64>();
        let runs = (!dims.is_empty()).then(|| Runs { layout: Arc::new(layout), skipped: 0, left_out: 0 });
        Ok(Part { item_range: start..start + length, memory: at..at + room, runs, elements })
    }

    fn layout(&self, run: u64, dims: &[Dim]) -> Result<BlockLayout, Error> {
        let scaled = |step: u64| step.saturating_mul(self.item_size);
        let dims = dims.iter().map(|dim| Dim {
            count: dim.count,
            stored_step: scaled(dim.stored_step),
            target_step: scaled(dim.target_step),
        });
        BlockLayout::new(run * self.item_size, dims.collect())
    }

    /// The block in packed parts of at most `most_bytes` (or one element) each, one after another in memory and of the
    /// file. They end where slices do wherever that is possible, so that no slice is fetched twice.
    ///
    /// # Errors
    /// `Config` for a block past what memory can be.
    pub fn packed_parts(&self, most_bytes: u64) -> Result<Vec<Part>, Error> {
        self.packed_parts_of(most_bytes, SLICE_SIZE, GAP_BYTES)
    }

    fn packed_parts_of(&self, most_bytes: u64, slice: u64, gap: u64) -> Result<Vec<Part>, Error> {
        let item_size = self.item_size;
        let mut parts = Vec::new();
        let mut failure = Ok(());
        apart(&self.dims, self.first, 0, gap / item_size, &mut |dims, first, base| {
            let packed = Packed::new(first, dims);
            let layout = match self.layout(packed.run, &packed.dims) {
                Ok(layout) => Arc::new(layout),
                Err(error) => return failure = Err(error),
            };
            let start = self.data_offset + first * item_size;
            let last = packed.place(packed.count - 1);
            let ends = (start / slice + 1..).map(|number| number * slice - self.data_offset);
            let cuts = ends.map(|end| end.div_ceil(item_size)).take_while(|&cut| cut <= last);
            for (from, to) in packed.pieces((most_bytes / item_size).max(1), cuts) {
                let (begin, end) = (packed.place(from), packed.place(to - 1) + 1);
                let runs = (!packed.dims.is_empty()).then(|| Runs {
                    layout: layout.clone(),
                    skipped: (begin - first) * item_size,
                    left_out: from * item_size,
                });
                parts.push(Part {
                    item_range: self.data_offset + begin * item_size..self.data_offset + end * item_size,
                    memory: 0..(to - from) * item_size,
                    runs,
                    elements: base + from..base + to,
                });
            }
        });
        failure.map(|()| parts)
    }
}

/// Whether a block lies in a tensor of `shape`.
#[must_use]
pub fn is_inside(shape: &[u64], offsets: &[u64], lengths: &[u64]) -> bool {
    let fits = |((offset, length), size): ((&u64, &u64), &u64)| {
        offset.checked_add(*length).is_some_and(|end| end <= *size)
    };
    offsets.len() == shape.len()
        && lengths.len() == shape.len()
        && offsets.iter().zip(lengths).zip(shape).all(fits)
}

/// Whether elements of a tensor with these strides share memory, where it matters which is written last.
#[must_use]
pub fn shares_memory(shape: &[u64], strides: &[u64]) -> bool {
    let mut dims: Vec<(u64, u64)> =
        strides.iter().zip(shape).filter(|(_, size)| **size > 1).map(|(step, size)| (*step, *size)).collect();
    dims.sort_unstable();
    let mut extent = 1u64;
    for (step, size) in dims {
        if step < extent {
            return true;
        }
        extent = extent.saturating_add((size - 1).saturating_mul(step));
    }
    false
}

/// Hands out the block in sub-blocks, each with its first element's places in the file and in memory. It is taken apart
/// where `gap` elements or more of the file lie between them.
fn apart(dims: &[Dim], first: u64, place: u64, gap: u64, found: &mut impl FnMut(&[Dim], u64, u64)) {
    if let [outer, within @ ..] = dims
        && !within.is_empty()
    {
        let extent = 1 + within.iter().map(|dim| (dim.count - 1) * dim.stored_step).sum::<u64>();
        if outer.count == 1 || outer.stored_step.saturating_sub(extent) >= gap {
            for number in 0..outer.count {
                let (first, place) = (first + number * outer.stored_step, place + number * outer.target_step);
                apart(within, first, place, gap, found);
            }
            return;
        }
    }
    found(dims, first, place);
}

/// The block as runs: their length and the dimensions along which they repeat, the outermost first. Dimensions that
/// follow one another without a gap, in the file as in memory, become one.
fn joined(block: &[Dim]) -> (u64, Vec<Dim>) {
    let mut dims: Vec<Dim> = Vec::with_capacity(block.len());
    for &(mut dim) in block.iter().filter(|dim| dim.count != 1) {
        if let Some(outer) = dims.last()
            && dim.count.checked_mul(dim.stored_step) == Some(outer.stored_step)
            && dim.count.checked_mul(dim.target_step) == Some(outer.target_step)
        {
            dim.count *= outer.count;
            dims.pop();
        }
        dims.push(dim);
    }
    match dims.last() {
        Some(&Dim { count, stored_step: 1, target_step: 1 }) => {
            dims.pop();
            (count, dims)
        }
        _ => (1, dims),
    }
}

/// A block whose elements lie in memory one after another.
struct Packed {
    /// The place of its first element in the file.
    start: u64,
    count: u64,
    run: u64,
    dims: Vec<Dim>,
}

impl Packed {
    fn new(start: u64, dims: &[Dim]) -> Packed {
        let count = dims.iter().map(|dim| dim.count).product();
        let (run, dims) = joined(dims);
        Packed { start, count, run, dims }
    }

    /// Where element `number` lies in the file.
    fn place(&self, mut number: u64) -> u64 {
        let mut place = self.start;
        for dim in &self.dims {
            place += number / dim.target_step * dim.stored_step;
            number %= dim.target_step;
        }
        place + number
    }

    /// How many elements lie before `place` of the file.
    fn before(&self, place: u64) -> u64 {
        let mut rest = place.saturating_sub(self.start);
        if rest == 0 {
            return 0;
        }
        let mut number = 0;
        for dim in &self.dims {
            let steps = (rest / dim.stored_step).min(dim.count);
            number += steps * dim.target_step;
            if steps == dim.count {
                return number;
            }
            rest -= steps * dim.stored_step;
        }
        number + rest.min(self.run)
    }

    /// The elements in pieces of at most `most`. They end at places of `cuts`, ascending places of the file, wherever
    /// that is possible.
    fn pieces(&self, most: u64, cuts: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        let (mut first, mut last) = (0, 0);
        for end in cuts.map(|place| self.before(place)).chain([self.count]) {
            while end - first > most {
                let cut = if last > first { last } else { first + most };
                pieces.push((first, cut));
                first = cut;
            }
            last = end;
        }
        pieces.push((first, self.count));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::DType;

    const DTYPES: [DType; 4] = [DType::UInt8, DType::BFloat16, DType::Float32, DType::Complex128];

    /// A stored tensor with gaps between its steps, its dimensions in any order, and a block of it.
    #[derive(Clone, Debug)]
    struct Case {
        spec: TensorSpec,
        data_offset: u64,
        offsets: Vec<u64>,
        lengths: Vec<u64>,
        /// Of the memory that the block goes to, in elements.
        strides: Vec<u64>,
    }

    /// Strides of this shape when its dimensions follow each other in this order, the innermost first, with gaps.
    fn spread(shape: &[u64], order: &[usize], gaps: &[u64]) -> Vec<u64> {
        let mut strides = vec![0; shape.len()];
        let mut extent = 1;
        for (&dim, gap) in order.iter().zip(gaps) {
            strides[dim] = extent + gap;
            extent += (shape[dim] - 1) * strides[dim] + gap;
        }
        strides
    }

    fn cases() -> impl Strategy<Value = Case> {
        let dims = prop::collection::vec((1u64..7, any::<u64>(), any::<u64>(), 0u64..3, 0u64..3), 0..5);
        let orders = (
            Just((0..5).collect::<Vec<usize>>()).prop_shuffle(),
            Just((0..5).collect::<Vec<usize>>()).prop_shuffle(),
        );
        (dims, orders, 0usize..4, 0u64..4, 0u64..5).prop_map(
            |(dims, orders, dtype, storage_offset, data_offset)| {
                let count = dims.len();
                let within =
                    |order: &[usize]| order.iter().copied().filter(|&dim| dim < count).collect::<Vec<_>>();
                let shape: Vec<u64> = dims.iter().map(|dim| dim.0).collect();
                let offsets: Vec<u64> = dims.iter().map(|dim| dim.1 % dim.0).collect();
                let lengths: Vec<u64> =
                    dims.iter().zip(&offsets).map(|(dim, offset)| dim.2 % (dim.0 - offset) + 1).collect();
                let stored: Vec<u64> = dims.iter().map(|dim| dim.3).collect();
                let target: Vec<u64> = dims.iter().map(|dim| dim.4).collect();
                let strides = spread(&lengths, &within(&orders.1), &target);
                let spec = TensorSpec {
                    dtype: DTYPES[dtype],
                    strides: spread(&shape, &within(&orders.0), &stored),
                    shape,
                    storage_offset,
                    requires_grad: false,
                };
                Case { spec, data_offset, offsets, lengths, strides }
            },
        )
    }

    impl Case {
        fn block(&self) -> Block {
            let nesting = Nesting::of(&self.spec).unwrap();
            Block::new(&self.spec, &nesting, self.data_offset, &self.offsets, &self.lengths).unwrap()
        }

        /// An item whose every byte differs from its neighbours.
        fn item(&self) -> Vec<u8> {
            let length = self.data_offset + self.spec.extent_bytes().unwrap();
            (0..length).map(|at| (at * 7 + at / 251) as u8 | 1).collect()
        }

        /// For each element of the block, row by row with its dimensions in this order: where it lies in the storage
        /// and in the strided memory, in elements.
        fn elements(&self, order: &[usize]) -> Vec<(u64, u64)> {
            let first: u64 = self.offsets.iter().zip(&self.spec.strides).map(|(at, step)| at * step).sum();
            let mut elements = vec![(self.spec.storage_offset + first, 0)];
            for &dim in order {
                let step = |&(stored, target): &(u64, u64)| {
                    let (from, to) = (self.spec.strides[dim], self.strides[dim]);
                    (0..self.lengths[dim]).map(move |number| (stored + number * from, target + number * to))
                };
                elements = elements.iter().flat_map(step).collect();
            }
            elements
        }

        /// What memory of `length` bytes holds when these parts have been read into it, in steps of `step` bytes.
        fn read(&self, parts: &[Part], length: u64, step: usize) -> Vec<u8> {
            let item = self.item();
            let mut memory = vec![0u8; length as usize];
            for part in parts {
                let bytes = &item[part.item_range.start as usize..part.item_range.end as usize];
                let memory = &mut memory[part.memory.start as usize..part.memory.end as usize];
                let mut put = |place: u64, run: &[u8]| {
                    memory[place as usize..][..run.len()].copy_from_slice(run);
                };
                for (number, chunk) in bytes.chunks(step).enumerate() {
                    let at = (number * step) as u64;
                    match &part.runs {
                        Some(runs) if number % 2 == 0 => runs.scatter(at, chunk, &mut put),
                        Some(runs) => runs.after(at).scatter(0, chunk, &mut put),
                        None => put(at, chunk),
                    }
                }
            }
            memory
        }

        fn bytes(&self, element: u64) -> Vec<u8> {
            let size = self.spec.dtype.item_size();
            let start = (self.data_offset + element * size) as usize;
            self.item()[start..start + size as usize].to_vec()
        }
    }

    proptest! {
        #[test]
        fn any_block_goes_straight_into_memory_of_any_strides(case in cases(), step in 1usize..200) {
            let size = case.spec.dtype.item_size() as usize;
            let order: Vec<usize> = (0..case.lengths.len()).collect();
            let elements = case.elements(&order);
            let last = elements.iter().map(|element| element.1).max().unwrap() as usize;
            let mut expected = vec![0; (last + 1) * size];
            for &(stored, target) in &elements {
                expected[target as usize * size..][..size].copy_from_slice(&case.bytes(stored));
            }
            prop_assert!(!shares_memory(&case.lengths, &case.strides));
            let parts = case.block().direct(Some(&case.strides)).unwrap();
            prop_assert_eq!(case.read(&parts, expected.len() as u64, step), expected);

            let packed: Vec<u8> = elements.iter().flat_map(|element| case.bytes(element.0)).collect();
            let parts = case.block().direct(None).unwrap();
            prop_assert_eq!(case.read(&parts, packed.len() as u64, step), packed);
        }

        #[test]
        fn packed_parts_are_the_block_in_bounded_pieces(
            case in cases(), step in 1usize..200, most in 1u64..300, slice in 1u64..200, gap in 1u64..200,
        ) {
            let size = case.spec.dtype.item_size();
            let block = case.block();
            let parts = block.packed_parts_of(most, slice, gap).unwrap();
            let mut packed = Vec::new();
            let mut next = 0;
            for part in &parts {
                prop_assert_eq!(part.elements.start, next);
                next = part.elements.end;
                prop_assert_eq!(part.memory.end, (part.elements.end - part.elements.start) * size);
                prop_assert!(part.memory.end <= most.max(size));
                packed.extend(case.read(std::slice::from_ref(part), part.memory.end, step));
            }
            let elements = case.elements(block.order());
            let expected: Vec<u8> = elements.iter().flat_map(|element| case.bytes(element.0)).collect();
            prop_assert_eq!(packed, expected);
        }

        #[test]
        fn elements_at_one_place_are_seen_to_share_memory(
            dims in prop::collection::vec((1u64..5, 0u64..12), 0..4),
        ) {
            let (shape, strides): (Vec<u64>, Vec<u64>) = dims.iter().copied().unzip();
            let mut places = vec![0u64];
            for (size, step) in &dims {
                places = places.iter().flat_map(|place| (0..*size).map(move |n| place + n * step)).collect();
            }
            let count = places.len();
            places.sort_unstable();
            places.dedup();
            if places.len() < count {
                prop_assert!(shares_memory(&shape, &strides));
            }
        }
    }

    #[test]
    fn a_block_outside_its_tensor_and_memory_past_its_end_are_refused() {
        let spec = TensorSpec::contiguous(DType::Float32, vec![3, 4]);
        let nesting = Nesting::of(&spec).unwrap();
        for (offsets, lengths) in
            [(vec![0, 0], vec![4, 4]), (vec![u64::MAX, 0], vec![2, 1]), (vec![0], vec![3])]
        {
            assert!(Block::new(&spec, &nesting, 0, &offsets, &lengths).is_err(), "{offsets:?} {lengths:?}");
        }
        let block = Block::new(&spec, &nesting, 0, &[0, 0], &[3, 4]).unwrap();
        for strides in [vec![1], vec![u64::MAX, 1], vec![1 << 62, 1], vec![4, u64::MAX / 2]] {
            assert!(block.direct(Some(&strides)).is_err(), "{strides:?}");
        }
    }

    #[test]
    fn packed_parts_end_where_slices_do_if_these_are_not_too_long() {
        let spec = TensorSpec::contiguous(DType::UInt8, vec![100]);
        let nesting = Nesting::of(&spec).unwrap();
        let block = Block::new(&spec, &nesting, 10, &[0], &[100]).unwrap();
        let ends = |most, slice| -> Vec<u64> {
            let parts = block.packed_parts_of(most, slice, GAP_BYTES).unwrap();
            parts.iter().map(|part| part.item_range.end).collect()
        };
        assert_eq!(ends(40, 32), [32, 64, 96, 110]);
        assert_eq!(ends(70, 32), [64, 110]);
        assert_eq!(ends(15, 32), [25, 32, 47, 62, 64, 79, 94, 96, 110]);
        assert_eq!(ends(1000, 32), [110]);
    }

    #[test]
    fn what_lies_far_apart_is_a_part_each_and_what_lies_near_one() {
        let rows = |step: u64| {
            let spec =
                TensorSpec { strides: vec![step, 1], ..TensorSpec::contiguous(DType::UInt8, vec![3, 100]) };
            let nesting = Nesting::of(&spec).unwrap();
            Block::new(&spec, &nesting, 0, &[0, 0], &[3, 100]).unwrap().direct(None).unwrap().len()
        };
        assert_eq!((rows(100), rows(GAP_BYTES), rows(GAP_BYTES + 100)), (1, 1, 3));
    }

    #[test]
    fn short_runs_are_told_from_long_ones() {
        let spec = TensorSpec::contiguous(DType::Float32, vec![8, 32]);
        let nesting = Nesting::of(&spec).unwrap();
        let block = |columns| Block::new(&spec, &nesting, 0, &[0, 0], &[8, columns]).unwrap();
        assert!(block(32).has_long_runs(&[32, 1]) && block(16).has_long_runs(&[16, 1]));
        assert!(!block(15).has_long_runs(&[15, 1]), "60 bytes");
        assert!(!block(32).has_long_runs(&[1, 8]) && !block(32).has_long_runs(&[64, 2]));
        assert!(!block(32).has_long_runs(&[1]));
    }

    #[test]
    fn a_tensor_whose_elements_share_bytes_has_no_nesting() {
        let mut spec = TensorSpec::contiguous(DType::Float32, vec![3, 4]);
        spec.strides = vec![0, 1];
        assert_eq!(Nesting::of(&spec), None);
        spec.strides = vec![1, 3];
        assert_eq!(Nesting::of(&spec), Some(Nesting(vec![1, 0])));
    }
}
