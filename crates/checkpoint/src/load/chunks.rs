//! How the chunks of a tensor lie in it: none outside, none over another, and whether they leave holes.
//!
//! Chunks are taken apart by cuts: wherever, along some dimension, a place lies inside no chunk, those before it and
//! those after it cannot overlap, and each side is looked at alone. Rows, columns and grids fall apart so in a few
//! sortings. What no cut goes through (a pinwheel, or chunks that do overlap) is compared chunk by chunk.
//! Disjoint chunks inside a tensor fill it exactly when they have as many elements as it.

use s3dcp_s3::Error;

use crate::archive::spec::MAX_DIMENSIONS;
use crate::error::corrupt;

/// A box of elements: its first element and its lengths, one number per dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it begins.
    pub offsets: Vec<i64>,
    /// How far it goes.
    pub sizes: Vec<i64>,
}

impl Chunk {
    fn is_empty(&self) -> bool {
        self.sizes.contains(&0)
    }

    fn end(&self, dimension: usize) -> i64 {
        self.offsets[dimension] + self.sizes[dimension]
    }

    fn overlaps(&self, other: &Chunk) -> bool {
        (0..self.sizes.len()).all(|dimension| {
            self.offsets[dimension] < other.end(dimension) && other.offsets[dimension] < self.end(dimension)
        })
    }

    /// Whether both have an element; both lie in one tensor.
    pub(crate) fn shares(&self, other: &Chunk) -> bool {
        self.shared(other) > 0
    }

    /// The box of the elements that both have.
    pub(crate) fn shared_with(&self, other: &Chunk) -> Chunk {
        let offsets: Vec<i64> =
            self.offsets.iter().zip(&other.offsets).map(|(one, other)| *one.max(other)).collect();
        let sizes = (0..offsets.len())
            .map(|dimension| self.end(dimension).min(other.end(dimension)) - offsets[dimension])
            .collect();
        Chunk { offsets, sizes }
    }

    /// Elements that both have.
    fn shared(&self, other: &Chunk) -> u128 {
        let lengths = (0..self.sizes.len()).map(|dimension| {
            let start = self.offsets[dimension].max(other.offsets[dimension]);
            self.end(dimension).min(other.end(dimension)).saturating_sub(start).max(0)
        });
        volume(lengths)
    }
}

/// Elements of a box; more than there can be is as many as there can be.
fn volume(lengths: impl IntoIterator<Item = i64>) -> u128 {
    let mut product = 1u128;
    for length in lengths {
        if length <= 0 {
            return 0;
        }
        product = product.saturating_mul(length as u128);
    }
    product
}

/// What disjoint chunks leave of their tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Nothing: every element is in one chunk.
    Whole,
    /// Some elements are in no chunk.
    Holes,
}

/// Sees that the chunks of a tensor of `size` lie inside it and none over another, and whether they fill it. Empty
/// chunks lie over nothing.
///
/// # Errors
/// `Corrupt` for a tensor that cannot be, and for a chunk of another number of dimensions, of a negative size, outside
/// the tensor or over another chunk.
pub fn check_chunks(size: &[i64], chunks: &[Chunk]) -> Result<Cover, Error> {
    if size.len() > MAX_DIMENSIONS || size.iter().any(|&length| length < 0) {
        return Err(corrupt(format!("a tensor of shape {size:?} cannot be")));
    }
    if !size.contains(&0) && volume(size.iter().copied()) > i64::MAX as u128 {
        return Err(corrupt(format!("a tensor of shape {size:?} has more elements than memory can hold")));
    }
    for chunk in chunks {
        if chunk.offsets.len() != size.len() || chunk.sizes.len() != size.len() {
            return Err(corrupt(format!(
                "its chunk {} has not the dimensions of its shape {size:?}",
                shown(chunk)
            )));
        }
        let inside = (0..size.len()).all(|dimension| {
            let (offset, length) = (chunk.offsets[dimension], chunk.sizes[dimension]);
            offset >= 0 && length >= 0 && offset.checked_add(length).is_some_and(|end| end <= size[dimension])
        });
        if !inside {
            return Err(corrupt(format!("its chunk {} is outside its shape {size:?}", shown(chunk))));
        }
    }
    let mut filled: Vec<&Chunk> = chunks.iter().filter(|chunk| !chunk.is_empty()).collect();
    if let Some((one, other)) = overlapping(size.len(), &mut filled) {
        return Err(corrupt(format!("its chunks {} and {} overlap", shown(one), shown(other))));
    }
    // Disjoint and inside: no sum of them passes the tensor's own volume.
    let held: u128 = filled.iter().map(|chunk| volume(chunk.sizes.iter().copied())).sum();
    Ok(if held == volume(size.iter().copied()) { Cover::Whole } else { Cover::Holes })
}

/// Whether all elements of `wanted` inside a tensor of `size` are in some chunk. The chunks have been checked.
#[must_use]
pub fn has_all(size: &[i64], chunks: &[Chunk], wanted: &Chunk) -> bool {
    if wanted.offsets.len() != size.len()
        || wanted.sizes.len() != size.len()
        || (0..size.len())
            .any(|dimension| wanted.offsets[dimension].checked_add(wanted.sizes[dimension]).is_none())
    {
        return false;
    }
    let whole = Chunk { offsets: vec![0; size.len()], sizes: size.to_vec() };
    chunks.iter().map(|chunk| chunk.shared(wanted)).sum::<u128>() == whole.shared(wanted)
}

/// Two of these chunks that overlap. None is empty; the order changes.
fn overlapping<'a>(dimensions: usize, chunks: &mut [&'a Chunk]) -> Option<(&'a Chunk, &'a Chunk)> {
    // Runs of `chunks` that may overlap among themselves, and the dimension to cut along first.
    let mut runs = vec![(0, chunks.len(), 0)];
    while let Some((start, end, first)) = runs.pop() {
        let run = &mut chunks[start..end];
        if run.len() < 2 {
            continue;
        }
        let mut cut = false;
        for turn in 0..dimensions {
            let dimension = (first + turn) % dimensions;
            run.sort_unstable_by_key(|chunk| chunk.offsets[dimension]);
            let mut begin = 0;
            let mut reach = run[0].end(dimension);
            for (place, chunk) in run.iter().enumerate().skip(1) {
                if chunk.offsets[dimension] >= reach {
                    runs.push((start + begin, start + place, dimension + 1));
                    begin = place;
                }
                reach = reach.max(chunk.end(dimension));
            }
            if begin > 0 {
                runs.push((start + begin, end, dimension + 1));
                cut = true;
                break;
            }
        }
        if !cut {
            // Sorted by the last dimension that was tried, if there is one.
            let sorted = (first + dimensions.saturating_sub(1)).checked_rem(dimensions);
            for (place, one) in run.iter().enumerate() {
                let is_near = |other: &&&Chunk| sorted.is_none_or(|by| other.offsets[by] < one.end(by));
                let mut near = run[place + 1..].iter().take_while(is_near);
                if let Some(other) = near.find(|other| one.overlaps(other)) {
                    return Some((one, other));
                }
            }
        }
    }
    None
}

/// A chunk in messages, which show no more than a few numbers of it.
fn shown(chunk: &Chunk) -> String {
    let some = |numbers: &[i64]| match numbers {
        [] => "()".to_owned(),
        _ => {
            let first: Vec<String> = numbers.iter().take(8).map(i64::to_string).collect();
            let more = if numbers.len() > first.len() { ", …" } else { "" };
            format!("({}{more})", first.join(", "))
        }
    };
    format!("{} at {}", some(&chunk.sizes), some(&chunk.offsets))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(offsets: &[i64], sizes: &[i64]) -> Chunk {
        Chunk { offsets: offsets.to_vec(), sizes: sizes.to_vec() }
    }

    fn refusal(size: &[i64], chunks: &[Chunk]) -> String {
        check_chunks(size, chunks).unwrap_err().message().to_owned()
    }

    #[test]
    fn rows_columns_grids_and_pinwheels_fill_their_tensor() {
        let rows: Vec<_> = (0..9000).rev().map(|row| chunk(&[row * 3, 0], &[3, 8])).collect();
        assert_eq!(check_chunks(&[27_000, 8], &rows).unwrap(), Cover::Whole);
        let grid: Vec<_> =
            (0..900).map(|cell| chunk(&[cell % 30 * 2, cell / 30 * 5, 0], &[2, 5, 7])).collect();
        assert_eq!(check_chunks(&[60, 150, 7], &grid).unwrap(), Cover::Whole);
        let pinwheel = [
            chunk(&[0, 0], &[1, 2]),
            chunk(&[0, 2], &[2, 1]),
            chunk(&[2, 1], &[1, 2]),
            chunk(&[1, 0], &[2, 1]),
            chunk(&[1, 1], &[1, 1]),
        ];
        assert_eq!(check_chunks(&[3, 3], &pinwheel).unwrap(), Cover::Whole);
        assert_eq!(check_chunks(&[3, 3], &pinwheel[..4]).unwrap(), Cover::Holes);
    }

    #[test]
    fn scalars_and_empty_tensors_have_their_own_kind_of_cover() {
        assert_eq!(check_chunks(&[], &[chunk(&[], &[])]).unwrap(), Cover::Whole);
        assert_eq!(check_chunks(&[], &[]).unwrap(), Cover::Holes);
        assert!(refusal(&[], &[chunk(&[], &[]), chunk(&[], &[])]).contains("overlap"));
        assert_eq!(check_chunks(&[0, 3], &[]).unwrap(), Cover::Whole, "nothing to be in a chunk");
        assert_eq!(check_chunks(&[0, 3], &[chunk(&[0, 0], &[0, 3])]).unwrap(), Cover::Whole);
        let uneven = [chunk(&[0], &[2]), chunk(&[2], &[1]), chunk(&[3], &[0]), chunk(&[3], &[0])];
        assert_eq!(check_chunks(&[3], &uneven).unwrap(), Cover::Whole, "ranks without a share");
        assert_eq!(check_chunks(&[3], &[chunk(&[0], &[3]), chunk(&[1], &[0])]).unwrap(), Cover::Whole);
    }

    #[test]
    fn what_is_outside_or_over_another_is_refused_by_its_place() {
        assert!(refusal(&[4], &[chunk(&[0], &[5])]).contains("(5) at (0) is outside"));
        assert!(refusal(&[4], &[chunk(&[-1], &[2])]).contains("outside"));
        assert!(refusal(&[4], &[chunk(&[0], &[-2])]).contains("outside"));
        assert!(refusal(&[4], &[chunk(&[i64::MAX], &[1])]).contains("outside"));
        assert!(refusal(&[4], &[chunk(&[5], &[0])]).contains("outside"));
        assert!(refusal(&[4], &[chunk(&[0, 0], &[4, 1])]).contains("dimensions"));
        assert!(refusal(&[4], &[chunk(&[0], &[])]).contains("dimensions"));
        assert!(refusal(&[4], &[chunk(&[0], &[3]), chunk(&[2], &[2])]).contains("overlap"));
        assert!(refusal(&[4], &[chunk(&[0], &[4]), chunk(&[0], &[4])]).contains("overlap"));
        assert!(refusal(&[-4], &[]).contains("cannot be"));
        assert!(refusal(&[i64::MAX, 2], &[]).contains("more elements"));
        assert!(refusal(&[1; 65], &[]).contains("cannot be"));
    }

    #[test]
    fn a_wanted_box_may_pass_the_tensor_but_not_the_chunks_in_it() {
        let half = [chunk(&[0, 0], &[2, 8])];
        assert!(has_all(&[4, 8], &half, &chunk(&[0, 0], &[2, 8])));
        assert!(has_all(&[4, 8], &half, &chunk(&[1, 2], &[1, 3])));
        assert!(!has_all(&[4, 8], &half, &chunk(&[1, 2], &[2, 3])));
        assert!(has_all(&[2, 8], &half, &chunk(&[0, 0], &[4, 8])));
        assert!(!has_all(&[4, 8], &half, &chunk(&[0], &[2])));
        assert!(!has_all(&[4], &[], &chunk(&[i64::MAX], &[1])));
    }

    fn boxes(dimensions: usize) -> impl Strategy<Value = Vec<Chunk>> {
        let one = (prop::collection::vec((-1i64..5, -1i64..5), dimensions)).prop_map(|sides| Chunk {
            offsets: sides.iter().map(|side| side.0).collect(),
            sizes: sides.iter().map(|side| side.1).collect(),
        });
        prop::collection::vec(one, 0..5)
    }

    /// How often each element of a tensor is in a chunk; `None` when one lies outside.
    fn counted(size: &[i64], chunks: &[Chunk]) -> Option<Vec<usize>> {
        let mut places = vec![vec![]];
        for &length in size {
            places = places
                .iter()
                .flat_map(|place: &Vec<i64>| (0..length).map(|next| [&place[..], &[next]].concat()))
                .collect();
        }
        for chunk in chunks {
            for (dimension, &length) in size.iter().enumerate() {
                let (offset, extent) = (chunk.offsets[dimension], chunk.sizes[dimension]);
                if offset < 0 || extent < 0 || offset + extent > length {
                    return None;
                }
            }
        }
        let is_in = |place: &[i64], chunk: &Chunk| {
            place.iter().enumerate().all(|(at, &place)| (chunk.offsets[at]..chunk.end(at)).contains(&place))
        };
        Some(places.iter().map(|place| chunks.iter().filter(|chunk| is_in(place, chunk)).count()).collect())
    }

    /// A tensor cut in two again and again.
    fn cut(size: &[i64], cuts: &[(usize, usize, i64)]) -> Vec<Chunk> {
        let mut chunks = vec![Chunk { offsets: vec![0; size.len()], sizes: size.to_vec() }];
        for &(which, dimension, at) in cuts {
            let place = which % chunks.len();
            let dimension = dimension % size.len();
            let at = at.min(chunks[place].sizes[dimension]);
            let mut rest = chunks[place].clone();
            rest.offsets[dimension] += at;
            rest.sizes[dimension] -= at;
            chunks[place].sizes[dimension] = at;
            chunks.push(rest);
        }
        chunks
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_boxes_are_judged_as_counting_judges_them(
            (size, chunks) in (0usize..4).prop_flat_map(|dimensions| {
                (prop::collection::vec(0i64..5, dimensions), boxes(dimensions))
            }),
        ) {
            let expected = match counted(&size, &chunks) {
                None => None,
                Some(counts) if counts.iter().any(|&count| count > 1) => None,
                Some(counts) => {
                    Some(if counts.contains(&0) { Cover::Holes } else { Cover::Whole })
                }
            };
            prop_assert_eq!(check_chunks(&size, &chunks).ok(), expected);
        }

        #[test]
        fn a_tensor_that_was_cut_up_is_whole_until_a_chunk_is_lost_or_doubled(
            size in prop::collection::vec(1i64..40, 1..4),
            cuts in prop::collection::vec((0usize..50, 0usize..3, 0i64..20), 0..30),
            which in 0usize..30,
        ) {
            let mut chunks = cut(&size, &cuts);
            prop_assert_eq!(check_chunks(&size, &chunks).unwrap(), Cover::Whole);
            let one = chunks[which % chunks.len()].clone();
            chunks.push(one.clone());
            prop_assert_eq!(check_chunks(&size, &chunks).is_err(), !one.is_empty());
            chunks.retain(|chunk| *chunk != one);
            let rest = check_chunks(&size, &chunks).unwrap();
            prop_assert_eq!(rest, if one.is_empty() { Cover::Whole } else { Cover::Holes });
            prop_assert_eq!(has_all(&size, &chunks, &one), one.is_empty());
        }
    }
}
