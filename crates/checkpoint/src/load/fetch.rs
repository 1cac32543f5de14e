//! Reads as one download.

use std::ops::Range;

use bytes::BytesMut;
use s3dcp_s3::Error;

use super::cut::Part;
use super::memory::Loan;
use super::plan::{ItemRead, Piece, ReadOptions, plan_reads};
use super::source::Entry;
use crate::error::corrupt;
use crate::index::checksums::SLICE_SIZE;
use crate::storage::Storage;

/// Fetches what these reads want, in ranges of a size that suits the storage and how much there is to fetch. Before it
/// returns all is in place and, with `verify`, compared with the checksums.
///
/// # Errors
/// Those of [`plan_reads`] and of [`Client::download`](s3dcp_s3::Client::download).
pub async fn fetch_items(
    storage: &Storage,
    reads: Vec<ItemRead>,
    verify: bool,
    requests_per_second: Option<f64>,
) -> Result<(), Error> {
    let defaults = ReadOptions::default();
    let wanted = reads.iter().flat_map(|item| &item.pieces).map(|piece| &piece.item_range);
    let total = wanted.map(|range| range.end.saturating_sub(range.start)).sum();
    let range_size = storage.range_size(total, defaults.range_size, requests_per_second);
    let options = ReadOptions { verify, range_size, ..defaults };
    let reads = plan_reads(reads, &options)?;
    storage.download(reads).await
}

/// Refuses an entry that ends past its file, before memory is set aside for much. One of a slice at most is not asked for.
///
/// # Errors
/// `Corrupt` for such an entry; those of [`Client::head_object`](s3dcp_s3::Client::head_object).
pub async fn check_in_file(storage: &Storage, name: &str, entry: &Entry) -> Result<(), Error> {
    if entry.length <= SLICE_SIZE {
        return Ok(());
    }
    let size = storage.head(&entry.key).await?.size;
    if entry.offset.saturating_add(entry.length) > size {
        let Entry { key, offset, length, .. } = entry;
        let message =
            format!("{name}: the index gives this item {length} bytes at {offset} of a file of {size}");
        return Err(storage.at(key, corrupt(message)));
    }
    Ok(())
}

/// New memory for these bytes of an item, and the piece that fills it.
pub(crate) fn buffer(item_range: Range<u64>) -> (Loan, Vec<Piece>) {
    let length = item_range.end - item_range.start;
    let part = Part { item_range, memory: 0..length, runs: None, elements: 0..0 };
    Loan::of(BytesMut::zeroed(length as usize), vec![part])
}

/// Bytes of items as they are stored, unverified, in the order of the ranges.
pub(crate) async fn read_ranges(
    storage: &Storage,
    ranges: Vec<(&Entry, Range<u64>)>,
) -> Result<Vec<BytesMut>, Error> {
    let mut loans = Vec::with_capacity(ranges.len());
    let mut reads = Vec::with_capacity(ranges.len());
    for (entry, range) in ranges {
        let (loan, pieces) = buffer(range);
        loans.push(loan);
        reads.push(Entry { checksums: None, ..entry.clone() }.read(&entry.key, None, pieces));
    }
    fetch_items(storage, reads, false, None).await?;
    Ok(loans.into_iter().map(Loan::back).collect())
}
