//! Multipart uploads that are under way, and those that completed lately.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::checksum::{Algorithm, Digest};
use crate::object::{Metadata, Object, Segment};

/// Which checksum an upload was created for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UploadChecksum {
    pub(crate) algorithm: Algorithm,
    pub(crate) composite: bool,
}

impl UploadChecksum {
    pub(crate) const fn kind(self) -> &'static str {
        if self.composite { s3s::dto::ChecksumType::COMPOSITE } else { s3s::dto::ChecksumType::FULL_OBJECT }
    }
}

pub(crate) struct Upload {
    pub(crate) initiated: SystemTime,
    pub(crate) metadata: Metadata,
    pub(crate) checksum: Option<UploadChecksum>,
    pub(crate) parts: BTreeMap<i32, Part>,
}

#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) etag: String,
    pub(crate) size: u64,
    pub(crate) modified: SystemTime,
    pub(crate) digest: Option<Digest>,
    pub(crate) md5: Option<[u8; 16]>,
    pub(crate) segments: Vec<Segment>,
}

/// An upload that completed, and the object it became.
pub(crate) struct Completed {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) upload_id: String,
    pub(crate) object: Arc<Object>,
}

impl Completed {
    pub(crate) fn is(&self, bucket: &str, key: &str, upload_id: &str) -> bool {
        self.upload_id == upload_id && self.bucket == bucket && self.key == key
    }
}
