//! A file of object bytes, and when it goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file that is removed when the last holder lets go of it, unless a manifest names it then.
///
/// Readers hold it too, so an object that is overwritten while it is read is read to its end.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    /// How often manifests name it.
    names: AtomicUsize,
}

impl DataFile {
    /// A file that is about to be written, or that the manifest being read names.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, names: AtomicUsize::new(0) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A manifest names it once more.
    pub(crate) fn named(&self) {
        self.names.fetch_add(1, Ordering::AcqRel);
    }

    /// A manifest names it once less.
    pub(crate) fn unnamed(&self) {
        self.names.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        if *self.names.get_mut() == 0 {
            // What cannot be removed now is removed when the directory is next opened.
            let _later = fs::remove_file(&self.path);
        }
    }
}
