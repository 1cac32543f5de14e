//! What the index knows of an object, and the pieces its bytes lie in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::checksum::{Digest, ObjectChecksum};
use crate::disk::data_file::DataFile;

/// A run of bytes of one object. Cheap to clone: copies share the bytes.
#[derive(Debug, Clone)]
pub(crate) enum Segment {
    Memory(Bytes),
    File { file: Arc<DataFile>, start: u64, size: u64 },
}

impl Segment {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// The part of this segment from `start`, `size` bytes long; both lie inside it.
    fn part(&self, start: u64, size: u64) -> Self {
        match self {
            Self::Memory(bytes) => Self::Memory(bytes.slice(start as usize..(start + size) as usize)),
            Self::File { file, start: first, .. } => {
                Self::File { file: Arc::clone(file), start: first + start, size }
            }
        }
    }
}

/// The segments that hold `size` bytes from `start`.
pub(crate) fn slice(segments: &[Segment], mut start: u64, mut size: u64) -> Vec<Segment> {
    let mut found = Vec::new();
    for segment in segments {
        if size == 0 {
            break;
        }
        let length = segment.size();
        if start >= length {
            start -= length;
            continue;
        }
        let taken = (length - start).min(size);
        found.push(segment.part(start, taken));
        start = 0;
        size -= taken;
    }
    found
}

/// Headers that are stored with an object and come back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) cache_control: Option<String>,
    pub(crate) storage_class: Option<String>,
    pub(crate) server_side_encryption: Option<String>,
    pub(crate) user: BTreeMap<String, String>,
}

/// One object. Immutable: an overwrite replaces it.
#[derive(Debug)]
pub(crate) struct Object {
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) size: u64,
    /// Whole seconds, as S3 has them.
    pub(crate) modified: SystemTime,
    pub(crate) metadata: Metadata,
    pub(crate) checksum: Option<ObjectChecksum>,
    /// Of an object made by a multipart upload; empty for any other.
    pub(crate) parts: Vec<ObjectPart>,
    pub(crate) segments: Vec<Segment>,
}

/// What remains of a part after its upload is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectPart {
    pub(crate) size: u64,
    pub(crate) digest: Option<Digest>,
}

/// Now, in whole seconds.
pub(crate) fn now() -> SystemTime {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(segments: &[Segment]) -> Vec<u8> {
        segments
            .iter()
            .flat_map(|segment| match segment {
                Segment::Memory(bytes) => bytes.to_vec(),
                Segment::File { .. } => unreachable!("only memory here"),
            })
            .collect()
    }

    #[test]
    fn every_slice_is_that_of_the_joined_bytes() {
        let segments: Vec<Segment> =
            ["abc", "", "d", "efghij"].map(|s| Segment::Memory(Bytes::from_static(s.as_bytes()))).to_vec();
        let joined = b"abcdefghij";
        for start in 0..=joined.len() {
            for end in start..=joined.len() {
                assert_eq!(bytes(&slice(&segments, start as u64, (end - start) as u64)), &joined[start..end]);
            }
        }
    }
}
