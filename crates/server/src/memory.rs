//! Objects in memory.
//!
//! A body is copied once, out of the connection's buffer into chunks of its own: the connection then reuses its buffer,
//! and an object holds no more memory than its bytes. Reading hands the chunks out without a copy.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::backend::{Backend, BodyWriter, StoredBucket};
use crate::object::{Object, Segment};

/// Small enough for the allocator to reuse what an overwritten object gave back.
const CHUNK_BYTES: u64 = 1 << 20;

pub(crate) struct Memory;

#[async_trait::async_trait]
impl Backend for Memory {
    async fn writer(&self, size: Option<u64>) -> io::Result<Box<dyn BodyWriter>> {
        Ok(Box::new(MemoryWriter {
            remaining: size.unwrap_or(0),
            chunk: BytesMut::new(),
            segments: Vec::new(),
        }))
    }

    fn load(&self) -> io::Result<Vec<StoredBucket>> {
        Ok(Vec::new())
    }

    fn create_bucket(&self, _name: &str, _created: SystemTime) -> io::Result<()> {
        Ok(())
    }

    fn delete_bucket(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn put(&self, _bucket: &str, _key: &str, _object: &Object, _old: Option<&Object>) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _bucket: &str, _key: &str, _old: &Object) -> io::Result<()> {
        Ok(())
    }

    fn directory(&self) -> Option<&Path> {
        None
    }
}

struct MemoryWriter {
    /// Bytes still announced; a body that is longer, or of unknown size, is taken as well.
    remaining: u64,
    chunk: BytesMut,
    segments: Vec<Segment>,
}

impl MemoryWriter {
    fn seal(&mut self) {
        if !self.chunk.is_empty() {
            let chunk = std::mem::take(&mut self.chunk);
            self.segments.push(Segment::Memory(chunk.freeze()));
        }
    }
}

#[async_trait::async_trait]
impl BodyWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            if self.chunk.len() == self.chunk.capacity() {
                self.seal();
                let announced =
                    if self.remaining == 0 { CHUNK_BYTES } else { self.remaining.min(CHUNK_BYTES) };
                self.chunk = BytesMut::with_capacity(announced as usize);
            }
            let taken = rest.len().min(self.chunk.capacity() - self.chunk.len());
            self.chunk.extend_from_slice(&rest[..taken]);
            self.remaining = self.remaining.saturating_sub(taken as u64);
            rest = &rest[taken..];
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> io::Result<Vec<Segment>> {
        self.seal();
        Ok(self.segments)
    }
}
