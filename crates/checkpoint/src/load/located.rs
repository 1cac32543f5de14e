//! A tensor whose chunks have been found: blocks of it are read from where they lie.

use std::sync::Arc;

use bytes::BytesMut;
use s3dcp_s3::Error;

use super::chunks::Chunk;
use super::cut::Part;
use super::fetch::fetch_items;
use super::memory::Loan;
use super::plan::ItemRead;
use super::source::Source;
use crate::archive::spec::row_major;
use crate::dtype::DType;
use crate::error::{config, corrupt};
use crate::storage::Storage;

/// A tensor, and where the chunks lie that it is read from.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DType,
    /// Elements along each dimension.
    pub(crate) size: Vec<u64>,
    pub(crate) chunks: Vec<(Chunk, Source)>,
}

impl Located {
    /// A block into `memory`, which has its length and is then given back: its elements in row-major order. All of it has
    /// been compared with the checksums of the checkpoint where it has some.
    pub(crate) async fn read(
        &self,
        storage: &Storage,
        block: &Chunk,
        memory: BytesMut,
    ) -> Result<BytesMut, Error> {
        let (loan, reads) = self.lend(block, memory)?;
        fetch_items(storage, reads, true, None).await?;
        Ok(loan.back())
    }

    /// The reads that fill the memory, which they hold as long as they are there.
    pub(crate) fn lend(&self, block: &Chunk, memory: BytesMut) -> Result<(Loan, Vec<ItemRead>), Error> {
        let name = &*self.name;
        let item_size = self.dtype.item_size();
        let strides = row_major(&unsigned(&block.sizes)?);
        let mut all: Vec<Part> = Vec::new();
        let mut reads = Vec::new();
        for (chunk, source) in self.chunks.iter().filter(|(chunk, _)| chunk.shares(block)) {
            let shared = chunk.shared_with(block);
            let from = |offsets: &[i64]| -> Result<Vec<u64>, Error> {
                unsigned(&shared.offsets.iter().zip(offsets).map(|(at, from)| at - from).collect::<Vec<_>>())
            };
            let (offsets, lengths) = (from(&chunk.offsets)?, unsigned(&shared.sizes)?);
            let Some(stored) = source.block(&offsets, &lengths)? else { return Err(only_torch(name)) };
            let place: u64 = from(&block.offsets)?.iter().zip(&strides).map(|(at, step)| at * step).sum();
            let mut count = 0;
            for mut part in stored.direct(Some(&strides))? {
                part.memory.start += place * item_size;
                part.memory.end += place * item_size;
                all.push(part);
                count += 1;
            }
            reads.push((source, count));
        }
        let (loan, pieces) = Loan::of(memory, all);
        let mut pieces = pieces.into_iter();
        let reads = reads.into_iter().map(|(source, count)| {
            source.entry.read(name, source.head, pieces.by_ref().take(count).collect())
        });
        Ok((loan, reads.collect()))
    }
}

pub(crate) fn only_torch(name: &str) -> Error {
    config(format!("{name}: stored in a way that only torch reads"))
}

/// Sizes that have been seen to be none below zero.
pub(crate) fn unsigned(numbers: &[i64]) -> Result<Vec<u64>, Error> {
    numbers
        .iter()
        .map(|&number| u64::try_from(number).map_err(|_| corrupt(format!("a size of {number} elements"))))
        .collect()
}
