//! Objects in a directory.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::backend::{Backend, BodyWriter, StoredBucket};
use crate::object::Object;

/// A file of object data.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
}

impl DataFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
pub(crate) struct Disk;
impl Disk {
    pub(crate) fn open(_p: &Path) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "no disk storage yet"))
    }
}
#[async_trait::async_trait]
impl Backend for Disk {
    async fn writer(&self, _s: Option<u64>) -> io::Result<Box<dyn BodyWriter>> {
        Err(io::Error::other("x"))
    }
    fn load(&self) -> io::Result<Vec<StoredBucket>> {
        Ok(vec![])
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
}
