//! Writes an index: its pickle once, and from that the sealed bytes as seen from the path or from an epoch's folder.
//!
//! The two differ in the names of shard files alone. Each name stands once in the pickle, in no frame, so that
//! another view of the index is the same memory with other names in between, and its checksum is that of the pieces.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use s3dcp_s3::{Payload, crc32, crc32_combine};

use crate::index::seal::{TRAILER, trailer};
use crate::pickle::write::{PickleWriter, text_opcode};

/// Writes the pickle of an index.
#[derive(Debug, Default)]
pub struct IndexWriter {
    /// Everything but the names of shard files goes here.
    pub pickle: PickleWriter,
    files: Vec<(Range<usize>, String)>,
    places: HashMap<String, u32>,
}

impl IndexWriter {
    /// An empty index.
    #[must_use]
    pub fn new() -> IndexWriter {
        IndexWriter::default()
    }

    /// The name of a shard file, as seen from the checkpoint's path.
    pub fn shard_file(&mut self, relative_path: &str) {
        if let Some(&place) = self.places.get(relative_path) {
            return self.pickle.get(place);
        }
        let (range, place) = self.pickle.detached_text(relative_path);
        self.files.push((range, relative_path.to_owned()));
        self.places.insert(relative_path.to_owned(), place);
    }

    /// The index of the save with this id.
    #[must_use]
    pub fn finish(self, save_id: impl Into<String>) -> Index {
        Index { pickle: self.pickle.finish().into(), files: self.files, save_id: save_id.into() }
    }
}

/// An index that has been written, in memory.
#[derive(Clone, Debug)]
pub struct Index {
    pickle: Bytes,
    /// Where the names of shard files are pushed.
    files: Vec<(Range<usize>, String)>,
    save_id: String,
}

/// The bytes of an index as they are stored, trailer included.
#[derive(Clone, Debug)]
pub struct SealedIndex {
    /// The bytes.
    pub payload: Payload,
    /// CRC-32 of them all.
    pub crc32: u32,
}

impl Index {
    /// The id of the save.
    #[must_use]
    pub fn save_id(&self) -> &str {
        &self.save_id
    }

    /// The shard files, as seen from the checkpoint's path.
    pub(crate) fn shard_files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(_, name)| &name[..])
    }

    /// The stored bytes, with `prefix` in front of every shard file's name: "" for an index in the checkpoint's path,
    /// "../" for one in a folder of it. They share this index's memory.
    #[must_use]
    pub fn seal(&self, prefix: &str) -> SealedIndex {
        let mut pieces = Vec::with_capacity(2 * self.files.len() + 2);
        let mut position = 0;
        if !prefix.is_empty() {
            for (range, name) in &self.files {
                pieces.push(self.pickle.slice(position..range.start));
                pieces.push(text_opcode(&format!("{prefix}{name}")).into());
                position = range.end;
            }
        }
        pieces.push(self.pickle.slice(position..));
        let (mut length, mut sum) = (0, 0);
        for piece in &pieces {
            length += piece.len() as u64;
            sum = crc32_combine(sum, crc32(piece), piece.len() as u64);
        }
        let trailer = trailer(length, sum);
        let sum = crc32_combine(sum, crc32(&trailer), TRAILER as u64);
        pieces.push(Bytes::copy_from_slice(&trailer));
        SealedIndex { payload: Payload::from(pieces), crc32: sum }
    }
}

impl SealedIndex {
    /// Whether these are the bytes of `body`.
    #[must_use]
    pub fn is(&self, mut body: &[u8]) -> bool {
        self.payload.segments().iter().all(|segment| match body.strip_prefix(&segment[..]) {
            Some(rest) => {
                body = rest;
                true
            }
            None => false,
        }) && body.is_empty()
    }

    /// The bytes in one piece, copied.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.payload.segments().concat()
    }
}
