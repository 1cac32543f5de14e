//! What ranks saved without collectives, each its own part, as one.
//!
//! Ranks have parts of a sharded tensor, and copies of a replicated one; but nothing keeps them from giving one name to
//! tensors that have nothing to do with each other. Copies are therefore compared: by checksums, where there are some, else
//! they are read.

use std::collections::BTreeMap;

use s3dcp_s3::{Error, ErrorKind};

use crate::catalogue::open::{OpenCheckpoint, OpenIndex};
use crate::error::config;
use crate::load::begin::Load;
use crate::load::contents::StoredTensor;
use crate::load::source::Entry;
use crate::name_filter::NameFilter;
use crate::storage::Storage;

/// Bytes of each of two copies that are compared at once.
const COMPARED: u64 = 16 << 20;

/// A chunk of a tensor, by its name, offsets and sizes.
type Place<'a> = (&'a str, &'a [i64], &'a [i64]);

/// All that a checkpoint holds; `None` of none.
///
/// # Errors
/// `NotFound` where a rank has no index; `Config` where ranks have different tensors of one name that is selected; else those
/// of the requests.
pub(crate) async fn joined(
    checkpoint: OpenCheckpoint,
    selection: &NameFilter,
) -> Result<Option<Load>, Error> {
    if checkpoint.indexes.len() > 1 || checkpoint.indexes.iter().any(|index| index.rank.is_some()) {
        check_count(&checkpoint)?;
        check_copies(&checkpoint, selection).await?;
    }
    Ok(Load::joined(checkpoint.indexes.into_iter().map(|index| index.load).collect()))
}

/// Sees that there is an index of each rank that saved.
fn check_count(checkpoint: &OpenCheckpoint) -> Result<(), Error> {
    let count = checkpoint.indexes.len() as u64;
    match checkpoint.indexes.iter().filter_map(|index| index.load.facts().ranks).find(|ranks| *ranks != count)
    {
        None => Ok(()),
        Some(ranks) => {
            let message = format!(
                "{} is incomplete: {ranks} ranks saved it, and {count} have an index",
                checkpoint.uri
            );
            Err(Error::new(ErrorKind::NotFound, message))
        }
    }
}

/// Sees that what ranks have by the same name is of one tensor.
async fn check_copies(checkpoint: &OpenCheckpoint, selection: &NameFilter) -> Result<(), Error> {
    let mut tensors: BTreeMap<&str, (&OpenIndex, &StoredTensor)> = BTreeMap::new();
    let mut places: BTreeMap<Place<'_>, (&OpenIndex, &Entry)> = BTreeMap::new();
    for index in &checkpoint.indexes {
        for (name, tensor) in index.load.contents().tensors.iter().filter(|(name, _)| selection.has(name)) {
            let (first, known) = *tensors.entry(name).or_insert((index, tensor));
            if (&known.dtype_name, &known.size) != (&tensor.dtype_name, &tensor.size) {
                return Err(another(checkpoint, name, first, index));
            }
            for chunk in &tensor.chunks {
                let Some(stored) = &chunk.stored else { continue };
                let place = (&name[..], &chunk.chunk.offsets[..], &chunk.chunk.sizes[..]);
                let (first, known) = *places.entry(place).or_insert((index, &stored.entry));
                if first.rank != index.rank && !is_copy(&checkpoint.storage, known, &stored.entry).await? {
                    return Err(another(checkpoint, name, first, index));
                }
            }
        }
    }
    Ok(())
}

fn another(checkpoint: &OpenCheckpoint, name: &str, first: &OpenIndex, index: &OpenIndex) -> Error {
    let rank = |index: &OpenIndex| index.rank.map(|rank| rank.to_string()).unwrap_or_default();
    config(format!(
        "{name}: rank {} saved another tensor by this name than rank {}; what one of them saved is at its index, such as {}",
        rank(index),
        rank(first),
        checkpoint.storage.uri(&first.key),
    ))
}

/// Whether two items are the same bytes.
async fn is_copy(storage: &Storage, one: &Entry, other: &Entry) -> Result<bool, Error> {
    if let Some(same) = one.same_checksums(other) {
        return Ok(same);
    }
    if one.length != other.length {
        return Ok(false);
    }
    let mut at = 0;
    while at < one.length {
        let end = one.length.min(at + COMPARED);
        let range = |entry: &Entry| entry.offset.saturating_add(at)..entry.offset.saturating_add(end);
        let (first, second) = tokio::try_join!(
            storage.get_range(&one.key, range(one)),
            storage.get_range(&other.key, range(other))
        )?;
        if first != second {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
