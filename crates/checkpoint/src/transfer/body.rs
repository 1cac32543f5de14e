//! What a file will hold: pieces of stored items, blocks of tensors, and bytes of its own. Any range of it can be read.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::Error;

use crate::dtype::DType;
use crate::load::chunks::Chunk;
use crate::load::cut::Part;
use crate::load::fetch::fetch_items;
use crate::load::located::Located;
use crate::load::memory::Loan;
use crate::load::plan::ItemHead;
use crate::load::source::Entry;
use crate::storage::Storage;
use crate::transfer::cast::cast;

/// Tensors of a range that are read at once.
const CONCURRENT_TENSORS: usize = 8;

/// A piece of a file.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Bytes of its own.
    Bytes(Bytes),
    /// Bytes of an item as they are stored, from `start` on.
    Item { name: Arc<str>, entry: Entry, head: Option<ItemHead>, start: u64 },
    /// A whole tensor, row by row, in this dtype.
    Tensor { tensor: Arc<Located>, dtype: DType },
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Where it lies in the file.
    pub(crate) range: Range<u64>,
    pub(crate) content: Content,
}

/// A file in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pieces: Vec<Piece>,
}

impl Body {
    pub(crate) fn push(&mut self, content: Content, length: u64) {
        if length > 0 {
            let start = self.length();
            self.pieces.push(Piece { range: start..start + length, content });
        }
    }

    pub(crate) fn bytes(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        self.push(Content::Bytes(bytes), length);
    }

    pub(crate) fn length(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.range.end)
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Reads a range of the file that is to be. What has checksums is compared with them.
    pub(crate) async fn read(&self, source: &Storage, wanted: Range<u64>) -> Result<Bytes, Error> {
        let first = self.pieces.partition_point(|piece| piece.range.end <= wanted.start);
        let pieces = self.pieces[first..].iter().take_while(|piece| piece.range.start < wanted.end);
        let pieces: Vec<(&Piece, Range<u64>)> = pieces
            .map(|piece| (piece, piece.range.start.max(wanted.start)..piece.range.end.min(wanted.end)))
            .collect();
        if let [(Piece { range, content: Content::Bytes(bytes) }, shared)] = &pieces[..] {
            let start = (shared.start - range.start) as usize;
            return Ok(bytes.slice(start..start + (shared.end - shared.start) as usize));
        }
        let memory = BytesMut::zeroed((wanted.end - wanted.start) as usize);
        let mut memory = read_items(source, &pieces, wanted.start, memory).await?;
        let tensors = stream::iter(&pieces)
            .filter_map(|(piece, shared)| async move {
                let Content::Tensor { tensor, dtype } = &piece.content else { return None };
                let within = shared.start - piece.range.start..shared.end - piece.range.start;
                Some((shared.start, tensor, *dtype, within))
            })
            .map(async |(start, tensor, dtype, within)| {
                Ok::<_, Error>((start, read_tensor(source, tensor, dtype, within).await?))
            })
            .buffered(CONCURRENT_TENSORS);
        let mut tensors = pin!(tensors);
        while let Some(read) = tensors.next().await {
            let (start, bytes) = read?;
            memory[(start - wanted.start) as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        for (piece, shared) in &pieces {
            if let Content::Bytes(bytes) = &piece.content {
                let within = shared.start - piece.range.start..shared.end - piece.range.start;
                memory[(shared.start - wanted.start) as usize..(shared.end - wanted.start) as usize]
                    .copy_from_slice(&bytes[within.start as usize..within.end as usize]);
            }
        }
        Ok(memory.freeze())
    }
}

/// Fills in what lies in items, all with one download.
async fn read_items(
    source: &Storage,
    pieces: &[(&Piece, Range<u64>)],
    base: u64,
    memory: BytesMut,
) -> Result<BytesMut, Error> {
    let mut parts = Vec::new();
    let mut items = Vec::new();
    for (piece, shared) in pieces {
        let Content::Item { name, entry, head, start } = &piece.content else { continue };
        let from = start + (shared.start - piece.range.start);
        parts.push(Part {
            item_range: from..from + (shared.end - shared.start),
            memory: shared.start - base..shared.end - base,
            runs: None,
            elements: 0..0,
        });
        items.push((name, entry, head));
    }
    if items.is_empty() {
        return Ok(memory);
    }
    let (loan, lent) = Loan::of(memory, parts);
    let reads = items.into_iter().zip(lent).map(|((name, entry, head), piece)| {
        // The head is compared where it comes along.
        entry.read(name, *head, vec![piece])
    });
    fetch_items(source, reads.collect(), true, None).await?;
    Ok(loan.back())
}

/// Some bytes of a tensor that is written in `dtype`.
async fn read_tensor(
    source: &Storage,
    tensor: &Located,
    dtype: DType,
    wanted: Range<u64>,
) -> Result<Bytes, Error> {
    let item_size = dtype.item_size();
    let mut memory = BytesMut::with_capacity((wanted.end - wanted.start) as usize);
    let mut element = wanted.start / item_size;
    let end = wanted.end.div_ceil(item_size);
    for block in blocks(&tensor.size, element..end) {
        let count: u64 = block.sizes.iter().map(|&size| size as u64).product();
        let stored = BytesMut::zeroed((count * tensor.dtype.item_size()) as usize);
        let stored = tensor.read(source, &block, stored).await?.freeze();
        let written = cast(stored, tensor.dtype, dtype);
        // The first and the last element may be cut.
        let range = element * item_size..(element + count) * item_size;
        let shared = range.start.max(wanted.start)..range.end.min(wanted.end);
        memory.extend_from_slice(
            &written[(shared.start - range.start) as usize..(shared.end - range.start) as usize],
        );
        element += count;
    }
    Ok(memory.freeze())
}

/// Elements that follow each other row by row, as boxes: whole rows wherever there are some.
fn blocks(size: &[u64], elements: Range<u64>) -> Vec<Chunk> {
    let mut blocks = Vec::new();
    let mut at = elements.start;
    while at < elements.end {
        // The place of the first element, and how many elements a step along each dimension passes.
        let mut offsets = vec![0; size.len()];
        let mut rest = at;
        let mut steps = vec![1; size.len()];
        for dimension in (0..size.len()).rev() {
            offsets[dimension] = rest % size[dimension];
            rest /= size[dimension];
            if dimension > 0 {
                steps[dimension - 1] = steps[dimension] * size[dimension];
            }
        }
        // The widest dimension along which the block can go: it begins a row there, and has one in it.
        let left = elements.end - at;
        let fits = |dimension: &usize| {
            offsets[dimension + 1..].iter().all(|&offset| offset == 0) && steps[*dimension] <= left
        };
        let mut sizes = vec![1; size.len()];
        let mut count = 1;
        if let Some(dimension) = (0..size.len()).find(fits) {
            let along = (left / steps[dimension]).min(size[dimension] - offsets[dimension]);
            sizes[dimension] = along;
            sizes[dimension + 1..].copy_from_slice(&size[dimension + 1..]);
            count = along * steps[dimension];
        }
        let signed = |numbers: &[u64]| numbers.iter().map(|&number| number as i64).collect();
        blocks.push(Chunk { offsets: signed(&offsets), sizes: signed(&sizes) });
        at += count;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn blocks_hold_the_elements_in_their_order(
            size in prop::collection::vec(1u64..6, 0..4),
            (one, other) in (0u64..130, 0u64..130),
        ) {
            let total: u64 = size.iter().product();
            let (start, end) = (one.min(other) % (total + 1), one.max(other).min(total));
            let elements = start.min(end)..end;
            let mut at = elements.start;
            let all = blocks(&size, elements.clone());
            prop_assert!(all.len() <= 2 * size.len().max(1));
            for block in &all {
                let count: i64 = block.sizes.iter().product();
                let mut steps = 1;
                let mut first = 0;
                for dimension in (0..size.len()).rev() {
                    prop_assert!((block.offsets[dimension] + block.sizes[dimension]) as u64 <= size[dimension]);
                    first += block.offsets[dimension] as u64 * steps;
                    steps *= size[dimension];
                }
                // A box of whole rows is a run of elements.
                let wide = block.sizes.iter().position(|&side| side != 1).unwrap_or(size.len());
                prop_assert!((wide + 1..size.len()).all(|side| block.sizes[side] as u64 == size[side]));
                prop_assert_eq!(first, at);
                at += count as u64;
            }
            prop_assert_eq!(at, elements.end);
        }
    }
}
