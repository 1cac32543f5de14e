//! The index of a checkpoint: its trailer, and the few facts that this crate reads from it.
//!
//! An index is torch's pickled `Metadata`. Ours ends with a trailer, which torch and other readers never see
//! because they stop at the pickle's end; with it a damaged index is known as such before anything is unpickled.

use std::collections::BTreeSet;
use std::ops::Range;

use s3dcp_s3::{Error, crc32};

use crate::error::corrupt;
use crate::pickle::machine;
use crate::pickle::value::{Tree, Value};

const MAGIC: &[u8; 8] = b"S3DCPIDX";
/// Magic, pickle length (`u64`), CRC-32 of the pickle (`u32`), little-endian.
pub(crate) const TRAILER: usize = 20;

/// The trailer of a pickle of this length and CRC-32.
pub(crate) fn trailer(length: u64, crc32: u32) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..8].copy_from_slice(MAGIC);
    trailer[8..16].copy_from_slice(&length.to_le_bytes());
    trailer[16..].copy_from_slice(&crc32.to_le_bytes());
    trailer
}

/// Appends the trailer to a pickled index.
#[must_use]
pub fn seal_index(mut pickle: Vec<u8>) -> Vec<u8> {
    let trailer = trailer(pickle.len() as u64, crc32(&pickle));
    pickle.extend_from_slice(&trailer);
    pickle
}

/// Where an index's pickle lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedIndex {
    /// The pickle's bytes.
    pub pickle: Range<usize>,
    /// A trailer vouches for them.
    pub sealed: bool,
}

/// Finds the pickle in the bytes of an index and checks its trailer, if it has one.
///
/// # Errors
/// `Corrupt` when a trailer does not fit the pickle, or, without one, when no pickle ends within the bytes.
pub fn open_index(bytes: &[u8]) -> Result<OpenedIndex, Error> {
    if let Some(start) = bytes.len().checked_sub(TRAILER)
        && let Some(fields) = bytes[start..].strip_prefix(MAGIC)
    {
        let mut length = [0; 8];
        length.copy_from_slice(&fields[..8]);
        if u64::from_le_bytes(length) != start as u64 {
            return Err(corrupt(format!(
                "index: its trailer speaks of {} bytes, there are {start}",
                u64::from_le_bytes(length)
            )));
        }
        let mut crc = [0; 4];
        crc.copy_from_slice(&fields[8..]);
        if u32::from_le_bytes(crc) != crc32(&bytes[..start]) {
            return Err(corrupt("index: its checksum does not fit"));
        }
        return Ok(OpenedIndex { pickle: 0..start, sealed: true });
    }
    let length = machine::length(bytes).map_err(|error| {
        let message = format!("index: {}", error.message());
        error.with_message(message)
    })?;
    Ok(OpenedIndex { pickle: 0..length, sealed: false })
}

/// What commit, clean-up and listing need to know of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexFacts {
    /// The shard files, as the items name them: relative to the index's folder.
    pub relative_paths: BTreeSet<String>,
    /// The id of the save that wrote the index.
    pub save_id: Option<String>,
    /// How many ranks saved; in indexes of this project.
    pub ranks: Option<u64>,
    /// The epoch; in indexes of this project that have one.
    pub epoch: Option<i64>,
    /// Items, over all shard files.
    pub item_count: u64,
    /// At least one item carries checksums.
    pub has_checksums: bool,
}

/// Reads the facts from the bytes of an index, without unpickling it.
///
/// # Errors
/// `Corrupt` as for [`open_index`]; also for a pickle that is no checkpoint metadata, for items that name no shard
/// file, and for an index whose items carry checksums while its trailer is missing (it was cut off).
pub fn read_facts(index: &[u8]) -> Result<IndexFacts, Error> {
    let opened = open_index(index)?;
    let tree = Tree::read(&index[opened.pickle])?;
    let metadata = tree.root();
    if tree.maker(metadata) != Some(("torch.distributed.checkpoint.metadata", "Metadata")) {
        return Err(corrupt("index: not a pickled checkpoint Metadata"));
    }
    let mut facts = IndexFacts::default();
    let items = match tree.attribute(metadata, "storage_data") {
        Some(Value::None) => &[],
        Some(value) => tree.dict(value).ok_or_else(|| corrupt("index: storage_data is no dict"))?,
        None => return Err(corrupt("index: storage_data is missing")),
    };
    facts.item_count = items.len() as u64;
    let mut last = "";
    for &(_, info) in items {
        let Some(Value::Text(path)) = tree.attribute(info, "relative_path") else {
            return Err(corrupt("index: an item names no shard file"));
        };
        if path != last || facts.relative_paths.is_empty() {
            facts.relative_paths.insert(path.to_owned());
            last = path;
        }
        facts.has_checksums |= matches!(tree.attribute(info, "crc32"), Some(Value::Bytes));
    }
    if let Some(meta) = tree.attribute(metadata, "storage_meta") {
        if let Some(Value::Text(id)) = tree.attribute(meta, "save_id") {
            facts.save_id = Some(id.to_owned());
        }
        if let Some(ours) = tree.attribute(meta, "s3dcp") {
            if let Some(Value::Int(ranks)) = tree.entry(ours, "ranks") {
                facts.ranks = u64::try_from(ranks).ok();
            }
            if let Some(Value::Int(epoch)) = tree.entry(ours, "epoch") {
                facts.epoch = Some(epoch);
            }
        }
    }
    if facts.has_checksums && !opened.sealed {
        return Err(corrupt("index: its trailer is missing, the end was cut off"));
    }
    Ok(facts)
}
