//! The index of buckets, objects and uploads: the one place where requests meet.
//!
//! One lock guards the whole index. A condition is checked and its object inserted, and kept by the back-end, under that
//! lock, so racing writers are put in order and exactly one can win. Nothing else is slow under it: bodies come in before,
//! and go out after. A reader holds the object it found, whatever happens to the key meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use s3s::{S3Error, S3Result, s3_error};

use crate::backend::Backend;
use crate::conditions::WriteCondition;
use crate::directory::is_directory;
use crate::failure::storage_failure;
use crate::ids::Ids;
use crate::object::{self, Object};
use crate::upload::{Completed, Upload};

/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 1024;

pub(crate) struct Bucket {
    pub(crate) created: SystemTime,
    pub(crate) objects: BTreeMap<String, Arc<Object>>,
    /// By key and upload id, so that they list in order.
    pub(crate) uploads: BTreeMap<(String, String), Upload>,
}

impl Bucket {
    fn new(created: SystemTime) -> Self {
        Self { created, objects: BTreeMap::new(), uploads: BTreeMap::new() }
    }
}

#[derive(Default)]
pub(crate) struct Index {
    pub(crate) buckets: BTreeMap<String, Bucket>,
    /// Uploads that completed lately, so that a repeated completion answers like the first.
    pub(crate) completed: VecDeque<Completed>,
}

impl Index {
    pub(crate) fn bucket(&mut self, name: &str) -> S3Result<&mut Bucket> {
        self.buckets
            .get_mut(name)
            .ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }
}

pub(crate) struct Store {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) ids: Ids,
    index: Mutex<Index>,
}

impl Store {
    /// Opens what the back-end keeps.
    pub(crate) fn open(backend: Box<dyn Backend>) -> io::Result<Self> {
        let mut index = Index::default();
        for stored in backend.load()? {
            let mut bucket = Bucket::new(stored.created);
            bucket.objects = stored.objects.into_iter().collect();
            index.buckets.insert(stored.name, bucket);
        }
        Ok(Self { backend, ids: Ids::new(), index: Mutex::new(index) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response to a request for which the back-end failed.
    pub(crate) fn failure(&self, error: &io::Error) -> S3Error {
        storage_failure(error, self.backend.directory())
    }

    /// An ETag: the MD5 where there is one and the bucket tells it, else a name of its own.
    pub(crate) fn etag(&self, bucket: &str, md5: Option<&[u8; 16]>) -> String {
        md5.filter(|_| !is_directory(bucket))
            .map_or_else(|| self.ids.next(), |md5| md5.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn create_bucket(&self, name: &str) -> S3Result<()> {
        let mut index = self.lock();
        if index.buckets.contains_key(name) {
            return Err(s3_error!(
                BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded and you already own it."
            ));
        }
        let created = object::now();
        self.backend.create_bucket(name, created).map_err(|error| self.failure(&error))?;
        index.buckets.insert(name.to_owned(), Bucket::new(created));
        Ok(())
    }

    pub(crate) fn delete_bucket(&self, name: &str) -> S3Result<()> {
        let mut index = self.lock();
        if !index.bucket(name)?.objects.is_empty() {
            return Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty"));
        }
        self.backend.delete_bucket(name).map_err(|error| self.failure(&error))?;
        let removed = index.buckets.remove(name);
        drop(index);
        drop(removed);
        Ok(())
    }

    /// Deletes a bucket with everything in it.
    pub(crate) fn empty_and_delete_bucket(&self, name: &str) -> S3Result<()> {
        let mut index = self.lock();
        let bucket = index.bucket(name)?;
        let mut removed = Vec::with_capacity(bucket.objects.len());
        while let Some((key, object)) = bucket.objects.pop_first() {
            self.backend.remove(name, &key, &object).map_err(|error| self.failure(&error))?;
            removed.push(object);
        }
        self.backend.delete_bucket(name).map_err(|error| self.failure(&error))?;
        let bucket = index.buckets.remove(name);
        drop(index);
        drop((bucket, removed));
        Ok(())
    }

    pub(crate) fn check_bucket(&self, name: &str) -> S3Result<()> {
        self.lock().bucket(name).map(|_| ())
    }

    pub(crate) fn buckets(&self) -> Vec<(String, SystemTime)> {
        self.lock().buckets.iter().map(|(name, bucket)| (name.clone(), bucket.created)).collect()
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        let mut index = self.lock();
        let found = index.bucket(bucket)?.objects.get(key).cloned();
        found.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    /// Whether a write could go on; asked before its body is read, and again when it is inserted.
    pub(crate) fn check_write(&self, bucket: &str, key: &str) -> S3Result<()> {
        check_key(key)?;
        self.check_bucket(bucket)
    }

    pub(crate) fn put(
        &self,
        bucket: &str,
        key: &str,
        object: Object,
        condition: &WriteCondition,
    ) -> S3Result<Arc<Object>> {
        check_key(key)?;
        let mut index = self.lock();
        let (object, replaced) = self.insert(index.bucket(bucket)?, bucket, key, object, condition)?;
        drop(index);
        drop(replaced);
        Ok(object)
    }

    /// Inserts under a lock that the caller holds. The replaced object comes back so that it is dropped after the lock.
    pub(crate) fn insert(
        &self,
        entry: &mut Bucket,
        bucket: &str,
        key: &str,
        object: Object,
        condition: &WriteCondition,
    ) -> S3Result<(Arc<Object>, Option<Arc<Object>>)> {
        let existing = entry.objects.get(key).map(Arc::as_ref);
        condition.check(existing)?;
        self.backend.put(bucket, key, &object, existing).map_err(|error| self.failure(&error))?;
        let object = Arc::new(object);
        let replaced = entry.objects.insert(key.to_owned(), Arc::clone(&object));
        Ok((object, replaced))
    }

    /// Deletes a key; one that does not exist is as good as deleted.
    pub(crate) fn delete(&self, bucket: &str, key: &str, condition: &WriteCondition) -> S3Result<()> {
        let mut index = self.lock();
        let entry = index.bucket(bucket)?;
        let existing = entry.objects.get(key);
        condition.check(existing.map(Arc::as_ref))?;
        if let Some(existing) = existing {
            self.backend.remove(bucket, key, existing).map_err(|error| self.failure(&error))?;
        }
        let removed = entry.objects.remove(key);
        drop(index);
        drop(removed);
        Ok(())
    }
}

fn check_key(key: &str) -> S3Result<()> {
    if key.len() > MAX_KEY_BYTES {
        return Err(s3_error!(KeyTooLongError, "Your key is too long"));
    }
    Ok(())
}
