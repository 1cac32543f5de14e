//! The trailer of an index.
//!
//! An index is torch's pickled `Metadata`. Ours ends with a trailer, which torch and other readers never see
//! because they stop at the pickle's end; with it a damaged index is known as such before anything is unpickled.

use s3dcp_s3::{Error, crc32};

use crate::error::corrupt;

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
pub(crate) fn sealed_pickle(bytes: &[u8]) -> Result<Option<&[u8]>, Error> {
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
