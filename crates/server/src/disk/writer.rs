//! Writing one body to a file.
//!
//! Two buffers take turns: one fills from the connection while the other is written, and both are used again and again, so
//! a body of any size costs two buffers.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::backend::BodyWriter;
use crate::disk::data_file::DataFile;
use crate::object::Segment;

const BUFFER_BYTES: usize = 1 << 20;

/// A buffer on its way to the file; both come back.
type Writing = JoinHandle<io::Result<(File, Vec<u8>)>>;

pub(super) struct DiskWriter {
    path: PathBuf,
    /// None until there is something to write: an empty body has no file.
    file: Option<Arc<DataFile>>,
    filling: Vec<u8>,
    writing: Option<Writing>,
    size: u64,
}

impl DiskWriter {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, filling: Vec::new(), writing: None, size: 0 }
    }

    /// Starts to write what has been gathered, once the write before it is done.
    async fn flush(&mut self) -> io::Result<()> {
        let (mut file, empty) = match self.writing.take() {
            Some(writing) => writing.await??,
            None => {
                self.file = Some(Arc::new(DataFile::new(self.path.clone())));
                (File::create_new(&self.path)?, Vec::new())
            }
        };
        let mut full = mem::replace(&mut self.filling, empty);
        self.writing = Some(spawn_blocking(move || {
            file.write_all(&full)?;
            full.clear();
            Ok((file, full))
        }));
        Ok(())
    }
}

#[async_trait::async_trait]
impl BodyWriter for DiskWriter {
    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.size += bytes.len() as u64;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = rest.len().min(BUFFER_BYTES - self.filling.len());
            self.filling.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.filling.len() == BUFFER_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> io::Result<Vec<Segment>> {
        if !self.filling.is_empty() {
            self.flush().await?;
        }
        if let Some(writing) = self.writing.take() {
            let _closed = writing.await??;
        }
        Ok(self.file.into_iter().map(|file| Segment::File { file, start: 0, size: self.size }).collect())
    }
}
