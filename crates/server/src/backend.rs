//! The seam between the index and where bytes are kept.
//!
//! A back-end takes bytes in ([`Backend::writer`]) and keeps the index ([`Backend::put`] and its neighbours). It decides
//! nothing: conditions, uploads and listings are the [`Store`](crate::store::Store)'s, so both back-ends behave alike.
//! Calls that change the index are made one at a time, under the store's lock.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::object::{Object, Segment};

/// A bucket as a back-end found it when it was opened.
pub(crate) struct StoredBucket {
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    pub(crate) objects: Vec<(String, Arc<Object>)>,
}

#[async_trait::async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// A writer for one body, of `size` bytes if that is known.
    async fn writer(&self, size: Option<u64>) -> io::Result<Box<dyn BodyWriter>>;

    /// Everything that is kept.
    fn load(&self) -> io::Result<Vec<StoredBucket>>;

    fn create_bucket(&self, name: &str, created: SystemTime) -> io::Result<()>;

    fn delete_bucket(&self, name: &str) -> io::Result<()>;

    /// Keeps `object` under `key` in place of `old`. When this fails, `old` is still kept.
    fn put(&self, bucket: &str, key: &str, object: &Object, old: Option<&Object>) -> io::Result<()>;

    fn remove(&self, bucket: &str, key: &str, old: &Object) -> io::Result<()>;

    /// Where everything is kept, if it is on a disk.
    fn directory(&self) -> Option<&Path>;
}

/// Takes the bytes of one body. Dropped before [`finish`](Self::finish), it leaves nothing behind; so do segments that are
/// dropped before they are part of an object.
#[async_trait::async_trait]
pub(crate) trait BodyWriter: Send {
    async fn write(&mut self, bytes: Bytes) -> io::Result<()>;

    async fn finish(self: Box<Self>) -> io::Result<Vec<Segment>>;
}
