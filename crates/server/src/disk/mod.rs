//! Objects in a directory.
//!
//! ```text
//! store.json                                   what this directory is
//! lock                                         held by the server that uses it
//! buckets/<bucket>/bucket.json
//! buckets/<bucket>/objects/<xx>/<hash>.json    one manifest per object: its key, headers and data files
//! data/<name>                                  the bytes, written once, named by manifests
//! ```
//!
//! A key names its manifest by a hash, so no key can reach outside the directory, be too long for a file name, or collide
//! with another where the file system ignores case. A write is a data file that nothing names yet, then one rename of a
//! manifest: it happens whole or not at all. Completed uploads and copies name the data files that are there already, so
//! they move no bytes. Data files that nothing names are removed when the directory is opened.
//!
//! Nothing is `fsync`ed: what is kept survives the process, not a power cut.

pub(crate) mod data_file;
mod manifest;
mod path_error;
mod writer;

use data_file::DataFile;
use path_error::at;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use s3s::crypto::{Checksum as _, Sha256};

use crate::backend::{Backend, BodyWriter, StoredBucket};
use crate::ids::Ids;
use crate::object::{Object, Segment};
use manifest::{BucketFile, Manifest, StoreFile, read_json, write_json};
use writer::DiskWriter;

const STORE_FILE: &str = "store.json";
const LOCK_FILE: &str = "lock";
const BUCKETS: &str = "buckets";
const BUCKET_FILE: &str = "bucket.json";
const OBJECTS: &str = "objects";
const DATA: &str = "data";

pub(crate) struct Disk {
    directory: PathBuf,
    ids: Ids,
    /// Released when the file is closed.
    _lock: File,
}

impl Disk {
    /// Opens a directory, which is made when it does not exist.
    ///
    /// # Errors
    /// The directory cannot be used, is in use by another server, or holds something else.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let named = at(directory);
        fs::create_dir_all(directory).map_err(named)?;
        let store_file = directory.join(STORE_FILE);
        if store_file.try_exists().map_err(named)? {
            read_json::<StoreFile>(&store_file)?.check(&store_file)?;
        } else if fs::read_dir(directory).map_err(named)?.next().is_some() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is not empty and holds no objects of this server", directory.display()),
            ));
        } else {
            write_json(&store_file, &StoreFile::current()).map_err(named)?;
        }
        let lock = File::create(directory.join(LOCK_FILE)).map_err(named)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => named(error),
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another server", directory.display()),
            ),
        })?;
        for part in [BUCKETS, DATA] {
            fs::create_dir_all(directory.join(part)).map_err(named)?;
        }
        Ok(Self { directory: directory.to_owned(), ids: Ids::new(), _lock: lock })
    }

    fn bucket(&self, name: &str) -> PathBuf {
        self.directory.join(BUCKETS).join(name)
    }

    fn manifest(&self, bucket: &str, key: &str) -> PathBuf {
        let hash: String =
            Sha256::checksum(key.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        self.bucket(bucket).join(OBJECTS).join(&hash[..2]).join(format!("{hash}.json"))
    }

    fn load_bucket(&self, path: &Path, files: &mut DataFiles) -> io::Result<Option<StoredBucket>> {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
        let bucket_file = path.join(BUCKET_FILE);
        if !bucket_file.try_exists().map_err(at(&bucket_file))? {
            // Its deletion was interrupted.
            fs::remove_dir_all(path).map_err(at(path))?;
            return Ok(None);
        }
        let bucket: BucketFile = read_json(&bucket_file)?;
        let mut objects = Vec::new();
        for directory in files_in(&path.join(OBJECTS))? {
            for path in files_in(&directory)? {
                if path.extension().is_some_and(|extension| extension == "json") {
                    let manifest: Manifest = read_json(&path)?;
                    objects.push(manifest.into_object(&path, |name| files.get(name))?);
                } else {
                    // A manifest that was not yet renamed.
                    fs::remove_file(&path).map_err(at(&path))?;
                }
            }
        }
        Ok(Some(StoredBucket { name: name.to_owned(), created: bucket.created(), objects }))
    }

    fn remove_unnamed(&self, files: &DataFiles) -> io::Result<()> {
        for path in files_in(&self.directory.join(DATA))? {
            if path.file_name().is_some_and(|name| !files.found.contains_key(name)) {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }
}

fn files_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(at(directory))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(at(directory))).collect()
}

/// The data files that manifests name; several may name one.
struct DataFiles {
    directory: PathBuf,
    found: HashMap<OsString, Arc<DataFile>>,
}

impl DataFiles {
    fn get(&mut self, name: &str) -> Arc<DataFile> {
        let file = || Arc::new(DataFile::new(self.directory.join(name)));
        Arc::clone(self.found.entry(name.into()).or_insert_with(file))
    }
}

fn files(object: &Object) -> impl Iterator<Item = &Arc<DataFile>> {
    object.segments.iter().filter_map(|segment| match segment {
        Segment::File { file, .. } => Some(file),
        Segment::Memory(_) => None,
    })
}

#[async_trait::async_trait]
impl Backend for Disk {
    async fn writer(&self, _size: Option<u64>) -> io::Result<Box<dyn BodyWriter>> {
        Ok(Box::new(DiskWriter::new(self.directory.join(DATA).join(self.ids.next()))))
    }

    fn load(&self) -> io::Result<Vec<StoredBucket>> {
        let mut files = DataFiles { directory: self.directory.join(DATA), found: HashMap::new() };
        let mut buckets = Vec::new();
        for path in files_in(&self.directory.join(BUCKETS))? {
            buckets.extend(self.load_bucket(&path, &mut files)?);
        }
        self.remove_unnamed(&files)?;
        Ok(buckets)
    }

    fn create_bucket(&self, name: &str, created: SystemTime) -> io::Result<()> {
        let bucket = self.bucket(name);
        let made = fs::create_dir_all(bucket.join(OBJECTS))
            .and_then(|()| write_json(&bucket.join(BUCKET_FILE), &BucketFile::new(created)));
        if made.is_err() {
            // Without its file it is no bucket; what cannot be removed now is removed when the directory is next opened.
            let _later = fs::remove_dir_all(&bucket);
        }
        made
    }

    fn delete_bucket(&self, name: &str) -> io::Result<()> {
        let bucket = self.bucket(name);
        fs::remove_file(bucket.join(BUCKET_FILE))?;
        fs::remove_dir_all(bucket)
    }

    fn put(&self, bucket: &str, key: &str, object: &Object, old: Option<&Object>) -> io::Result<()> {
        let path = self.manifest(bucket, key);
        let manifest = Manifest::of(key, object)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        write_json(&path, &manifest)?;
        files(object).for_each(|file| file.named());
        old.into_iter().flat_map(files).for_each(|file| file.unnamed());
        Ok(())
    }

    fn remove(&self, bucket: &str, key: &str, old: &Object) -> io::Result<()> {
        fs::remove_file(self.manifest(bucket, key))?;
        files(old).for_each(|file| file.unnamed());
        Ok(())
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_server_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Disk::open(directory.path()).unwrap();
        let error = Disk::open(directory.path()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        Disk::open(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thesis.tex"), "precious").unwrap();
        assert_eq!(Disk::open(directory.path()).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_store_of_another_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(STORE_FILE), r#"{"format": 2}"#).unwrap();
        let error = Disk::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    #[test]
    fn no_key_leaves_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        for key in ["../../etc/passwd", "..", "/", "a//b", &"x".repeat(1024), "COM1", "\u{1}"] {
            let path = disk.manifest("bucket", key);
            let inside = path.strip_prefix(directory.path().join("buckets/bucket/objects")).unwrap();
            assert_eq!(inside.components().count(), 2, "{key}");
            assert_eq!(inside.file_name().unwrap().len(), 64 + ".json".len());
        }
    }
}
