//! The index of a checkpoint: its trailer, and the few facts that this crate reads from it.
//!
//! An index is torch's pickled `Metadata`. Ours ends with a trailer, which torch and other readers never see
//! because they stop at the pickle's end; with it a damaged index is known as such before anything is unpickled.

use std::collections::BTreeSet;

use s3dcp_s3::{Error, crc32};

use crate::error::corrupt;
use crate::pickle::allow::AllowList;
use crate::pickle::scan::{Others, Survey};

/// The longest index that is read, in bytes: some forty million items.
pub const MAX_INDEX_BYTES: u64 = 4 << 30;

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

/// The pickle of a sealed index, once its trailer fits it; `None` for bytes without a trailer.
fn sealed_pickle(bytes: &[u8]) -> Result<Option<&[u8]>, Error> {
    let Some((pickle, trailer)) = bytes.split_last_chunk::<TRAILER>() else { return Ok(None) };
    let Some(fields) = trailer.strip_prefix(MAGIC) else { return Ok(None) };
    let mut length = [0; 8];
    length.copy_from_slice(&fields[..8]);
    if u64::from_le_bytes(length) != pickle.len() as u64 {
        return Err(corrupt(format!(
            "index: its trailer speaks of {} bytes, there are {}",
            u64::from_le_bytes(length),
            pickle.len()
        )));
    }
    let mut crc = [0; 4];
    crc.copy_from_slice(&fields[8..]);
    if u32::from_le_bytes(crc) != crc32(pickle) {
        return Err(corrupt("index: its checksum does not fit"));
    }
    Ok(Some(pickle))
}

/// Walks an index; with it whether a trailer vouches for the bytes.
fn survey<'a>(bytes: &'a [u8], allow: &AllowList, others: Others) -> Result<(Survey<'a>, bool), Error> {
    let sealed = sealed_pickle(bytes)?;
    let survey = Survey::of(sealed.unwrap_or(bytes), allow, others)?;
    Ok((survey, sealed.is_some()))
}

/// Sees that the bytes of an index may be unpickled: every opcode is known, every global on the list, the trailer
/// fits if there is one, and what comes out is a checkpoint's `Metadata` whose items have a name, offset and length.
///
/// # Errors
/// `Corrupt`, saying what was refused; also for an index whose items carry checksums while its trailer is missing.
pub fn check_index(bytes: &[u8], allow: &AllowList) -> Result<(), Error> {
    let (survey, sealed) = survey(bytes, allow, Others::Refused)?;
    let has_checksums = survey.check()?;
    if has_checksums && !sealed {
        return Err(cut_off());
    }
    Ok(())
}

fn cut_off() -> Error {
    corrupt("index: its trailer is missing, the end was cut off")
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

/// Reads the facts from the bytes of an index, without unpickling it. Which globals it names does not matter here.
///
/// # Errors
/// `Corrupt` for a trailer that does not fit and a pickle that is malformed or no checkpoint metadata, for items that
/// name no shard file, and for an index whose items carry checksums while its trailer is missing (it was cut off).
pub fn read_facts(index: &[u8]) -> Result<IndexFacts, Error> {
    let (survey, sealed) = survey(index, &AllowList::default_globals(), Others::Ignored)?;
    let facts = survey.facts()?;
    if facts.has_checksums && !sealed {
        return Err(cut_off());
    }
    Ok(facts)
}
