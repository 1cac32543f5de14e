//! A tensor that is to be written under another name, maybe in another dtype: as ranges of items, or as it is read.

use std::ops::Range;
use std::sync::Arc;

use s3dcp_s3::Error;

use crate::dtype::DType;
use crate::load::chunks::Chunk;
use crate::load::located::{Located, unsigned};
use crate::transfer::body::{Body, Content};

/// Bytes that are read at once.
const BLOCK: u64 = 16 << 20;

/// A tensor that is to be written.
#[derive(Debug)]
pub(crate) struct Planned {
    /// What it is called in the model.
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) located: Arc<Located>,
    pub(crate) nbytes: u64,
}

impl Planned {
    /// Appends the values: as they are stored, where they lie in runs, else as they are read.
    pub(crate) fn add_to(&self, body: &mut Body) -> Result<(), Error> {
        match self.runs()? {
            Some(runs) => {
                for (content, length) in runs {
                    body.push(content, length);
                }
            }
            None => {
                let content = Content::Tensor { tensor: self.located.clone(), dtype: self.dtype };
                body.push(content, self.nbytes);
            }
        }
        Ok(())
    }

    /// The values as ranges of items, in their order; `None` where some do not lie so, or in another dtype.
    fn runs(&self) -> Result<Option<Vec<(Content, u64)>>, Error> {
        if self.dtype != self.located.dtype {
            return Ok(None);
        }
        let mut runs = Vec::with_capacity(self.located.chunks.len());
        for (chunk, source) in &self.located.chunks {
            let (Some(place), Some(values)) = (run_of(&self.located.size, chunk)?, source.values()) else {
                return Ok(None);
            };
            let content = Content::Item {
                name: self.located.name.clone(),
                entry: source.entry.clone(),
                head: source.head,
                start: values.item_range.start,
            };
            runs.push((place, content, values.item_range.end - values.item_range.start));
        }
        runs.sort_by_key(|(place, ..)| *place);
        Ok(Some(runs.into_iter().map(|(_, content, length)| (content, length)).collect()))
    }
}

/// The number of a chunk's first element in its tensor, where its elements follow each other in that too.
fn run_of(size: &[u64], chunk: &Chunk) -> Result<Option<u64>, Error> {
    let (offsets, sizes) = (unsigned(&chunk.offsets)?, unsigned(&chunk.sizes)?);
    let wide = sizes.iter().position(|&side| side != 1).unwrap_or(sizes.len());
    if (wide + 1..sizes.len()).any(|dimension| sizes[dimension] != size[dimension]) {
        return Ok(None);
    }
    let mut first = 0;
    for (offset, side) in offsets.iter().zip(size) {
        first = first * side + offset;
    }
    Ok(Some(first))
}

/// Some bytes of a tensor.
pub(crate) struct Block {
    /// The tensor's number.
    pub(crate) number: usize,
    /// Bytes of the body.
    pub(crate) range: Range<u64>,
    pub(crate) is_last: bool,
}

/// The values of tensors one after another, and the blocks in which to read them; a tensor without values has one too.
pub(crate) fn in_blocks<'a>(
    tensors: impl IntoIterator<Item = &'a Planned>,
) -> Result<(Body, Vec<Block>), Error> {
    let mut body = Body::default();
    let mut blocks = Vec::new();
    for (number, tensor) in tensors.into_iter().enumerate() {
        let mut at = body.length();
        tensor.add_to(&mut body)?;
        loop {
            let end = body.length().min(at + BLOCK);
            let is_last = end == body.length();
            blocks.push(Block { number, range: at..end, is_last });
            at = end;
            if is_last {
                break;
            }
        }
    }
    Ok((body, blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_runs_of_their_tensor_and_columns_are_none() {
        let run = |size: &[u64], offsets: &[i64], sizes: &[i64]| {
            run_of(size, &Chunk { offsets: offsets.to_vec(), sizes: sizes.to_vec() }).unwrap()
        };
        assert_eq!(run(&[8, 5], &[2, 0], &[3, 5]), Some(10));
        assert_eq!(run(&[8, 5], &[0, 1], &[8, 2]), None);
        assert_eq!(run(&[8, 5], &[3, 1], &[1, 2]), Some(16));
        assert_eq!(run(&[4, 8, 5], &[1, 2, 0], &[1, 3, 5]), Some(50));
        assert_eq!(run(&[4, 8, 5], &[1, 2, 0], &[2, 3, 5]), None);
        assert_eq!(run(&[], &[], &[]), Some(0));
    }
}
