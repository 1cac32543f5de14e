//! What is known of the service: in which ways it is not quite S3, each found out once.
//!
//! A client speaks to one service, so this belongs to the client, and to nothing that outlives it. What one bucket does
//! says nothing of another: buckets of one service may have versions, locks or back-ends of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::protocol::conditions::Conditions;

/// What a client knows of its service.
#[derive(Debug)]
pub(crate) struct Store {
    /// Whether checksums go with what is written, and are asked for with what is read.
    writes: AtomicBool,
    reads: AtomicBool,
    /// Whether a refusal of them is an error.
    insists: bool,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
}

/// What a client knows of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// What it does with conditional writes, once they were tried.
    pub(crate) conditions: OnceCell<Conditions>,
    /// It has no DeleteObjects.
    pub(crate) deletes_one_by_one: Flag,
    /// It compares the ETag of If-Match without its quotes.
    pub(crate) bare_etags: Flag,
    /// It wants a Content-MD5 with every object, as for Object Lock.
    pub(crate) wants_md5: Flag,
}

/// Something that may become known.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Nothing is known. `insists`: a refusal of checksums is an error.
    pub(crate) fn new(insists: bool) -> Store {
        Store {
            writes: AtomicBool::new(true),
            reads: AtomicBool::new(true),
            insists,
            buckets: Mutex::default(),
        }
    }

    /// What the settings say of checksums with writes and with reads, before the first request.
    pub(crate) fn begin(&self, [writes, reads]: [bool; 2]) {
        self.writes.store(writes, Ordering::Relaxed);
        self.reads.store(reads, Ordering::Relaxed);
    }

    /// Whether to send the checksum headers of a write, or else of a read.
    pub(crate) fn takes_checksums(&self, write: bool) -> bool {
        self.checksums(write).load(Ordering::Relaxed)
    }

    /// Whether the service may be asked to do without.
    pub(crate) fn may_do_without_checksums(&self) -> bool {
        !self.insists
    }

    /// The service refused the checksum headers of a write, or of a read, and took the same request without.
    pub(crate) fn refused_checksums(&self, write: bool) {
        if self.checksums(write).swap(false, Ordering::Relaxed) {
            tracing::info!(write, "the service takes no checksum headers: they are left out from now on");
        }
    }

    pub(crate) fn bucket(&self, name: &str) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.get(name) {
            Some(known) => Arc::clone(known),
            None => Arc::clone(buckets.entry(name.to_owned()).or_default()),
        }
    }

    fn checksums(&self, write: bool) -> &AtomicBool {
        if write { &self.writes } else { &self.reads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_one_bucket_is_not_known_of_another() {
        let store = Store::new(false);
        store.bucket("one").deletes_one_by_one.set();
        assert!(store.bucket("one").deletes_one_by_one.is_set());
        assert!(!store.bucket("two").deletes_one_by_one.is_set());
    }

    #[test]
    fn a_refusal_of_checksums_with_writes_says_nothing_of_reads() {
        let store = Store::new(false);
        store.refused_checksums(true);
        assert!(!store.takes_checksums(true) && store.takes_checksums(false));
    }
}
