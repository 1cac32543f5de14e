//! Reads as one download.

use std::ops::Range;

use bytes::BytesMut;
use s3dcp_s3::{Client, Error};

use super::cut::Part;
use super::memory::Loan;
use super::plan::{ItemRead, Piece, ReadOptions, plan_reads};

/// Fetches what these reads want, in ranges of a size that suits the client and how much there is to fetch. Before it
/// returns all is in place and, with `verify`, compared with the checksums.
///
/// # Errors
/// Those of [`plan_reads`] and of [`Client::download`].
pub async fn fetch_items(
    client: &Client,
    bucket: &str,
    reads: Vec<ItemRead>,
    verify: bool,
    requests_per_second: Option<f64>,
) -> Result<(), Error> {
    let defaults = ReadOptions::default();
    let wanted = reads.iter().flat_map(|item| &item.pieces).map(|piece| &piece.item_range);
    let total = wanted.map(|range| range.end.saturating_sub(range.start)).sum();
    let range_size = client.range_size(total, defaults.range_size, requests_per_second);
    let options = ReadOptions { verify, range_size, ..defaults };
    let reads = plan_reads(reads, &options).map_err(|error| error.with_bucket(bucket))?;
    client.download(bucket, reads).await
}

/// New memory for these bytes of an item, and the piece that fills it.
pub(crate) fn buffer(item_range: Range<u64>) -> (Loan, Vec<Piece>) {
    let length = item_range.end - item_range.start;
    let part = Part { item_range, memory: 0..length, runs: None, elements: 0..0 };
    Loan::of(BytesMut::zeroed(length as usize), vec![part])
}
