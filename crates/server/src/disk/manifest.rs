//! The JSON files of a directory.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checksum::ObjectChecksum;
use crate::disk::data_file::DataFile;
use crate::disk::path_error::at;
use crate::object::{Metadata, Object, ObjectPart, Segment};

const FORMAT: u32 = 1;

/// What the directory is.
#[derive(Serialize, Deserialize)]
pub(super) struct StoreFile {
    format: u32,
}

impl StoreFile {
    pub(super) const fn current() -> Self {
        Self { format: FORMAT }
    }

    pub(super) fn check(&self, path: &Path) -> io::Result<()> {
        if self.format == FORMAT {
            return Ok(());
        }
        Err(damaged(
            path,
            &format!("format {} is not format {FORMAT}, which this server writes", self.format),
        ))
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct BucketFile {
    /// Seconds since 1970.
    created: u64,
}

impl BucketFile {
    pub(super) fn new(created: SystemTime) -> Self {
        Self { created: seconds(created) }
    }

    pub(super) fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }
}

/// One object.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    key: String,
    etag: String,
    size: u64,
    /// Seconds since 1970.
    modified: u64,
    metadata: Metadata,
    checksum: Option<ObjectChecksum>,
    parts: Vec<ObjectPart>,
    segments: Vec<StoredSegment>,
}

#[derive(Serialize, Deserialize)]
struct StoredSegment {
    file: String,
    start: u64,
    size: u64,
}

impl Manifest {
    pub(super) fn of(key: &str, object: &Object) -> io::Result<Self> {
        let stored = |segment: &Segment| match segment {
            Segment::File { file, start, size } => {
                let name = file.path().file_name().and_then(|name| name.to_str());
                let name = name.ok_or_else(|| io::Error::other("a data file has no name"))?;
                Ok(StoredSegment { file: name.to_owned(), start: *start, size: *size })
            }
            Segment::Memory(_) => Err(io::Error::other("bytes in memory cannot be named by a manifest")),
        };
        Ok(Self {
            key: key.to_owned(),
            etag: object.etag.clone(),
            size: object.size,
            modified: seconds(object.modified),
            metadata: object.metadata.clone(),
            checksum: object.checksum.clone(),
            parts: object.parts.clone(),
            segments: object.segments.iter().map(stored).collect::<io::Result<_>>()?,
        })
    }

    /// The object, its data files looked up by `file`, which counts as naming them.
    pub(super) fn into_object(
        self,
        path: &Path,
        mut file: impl FnMut(&str) -> Arc<DataFile>,
    ) -> io::Result<(String, Arc<Object>)> {
        let mut segments = Vec::with_capacity(self.segments.len());
        for StoredSegment { file: name, start, size } in self.segments {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(damaged(path, &format!("{name:?} is no name of a data file")));
            }
            let file = file(&name);
            file.named();
            let length = fs::metadata(file.path())
                .map_err(|error| damaged(path, &format!("data file {name}: {error}")))?;
            if start.checked_add(size).is_none_or(|end| end > length.len()) {
                return Err(damaged(path, &format!("data file {name} is too short")));
            }
            segments.push(Segment::File { file, start, size });
        }
        if segments.iter().map(Segment::size).sum::<u64>() != self.size {
            return Err(damaged(path, "the sizes of its data do not add up"));
        }
        let object = Object {
            etag: self.etag,
            size: self.size,
            modified: UNIX_EPOCH + Duration::from_secs(self.modified),
            metadata: self.metadata,
            checksum: self.checksum,
            parts: self.parts,
            segments,
        };
        Ok((self.key, Arc::new(object)))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path).map_err(at(path))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(path, &error.to_string()))
}

/// Writes a file whole or not at all.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let written = serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|json| fs::write(&unfinished, json))
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // What remains takes room, which may be what is missing. What cannot be removed now is removed at the next opening.
        let _later = fs::remove_file(&unfinished);
    }
    written
}
