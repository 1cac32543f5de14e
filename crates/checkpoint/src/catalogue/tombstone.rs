//! Tombstones: what a deletion of a checkpoint is about to take, noted where no name would tell.
//!
//! Shard files of this project carry the id of their save, so a prune finds them when their index has gone. Those of torch and
//! of others are called `__0_0.distcp` in every save, and what else lies in a checkpoint's folder is called anything. So
//! whoever deletes or replaces the index of a checkpoint that has such files puts a tombstone beside it first, and takes it away
//! last. Where that is cut off, the prune finds what the tombstone names and nothing else of others.

use std::collections::BTreeMap;
use std::time::SystemTime;

use s3dcp_s3::{Error, ErrorKind, ObjectInfo, PutOptions};
use serde::{Deserialize, Serialize};

use crate::error::corrupt;
use crate::index::read::MAX_INDEX_BYTES;
use crate::layout::{Layout, Name};
use crate::storage::Storage;

/// What a tombstone says. Keys are relative to its folder.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The indexes that were about to go, with their ETags.
    indexes: BTreeMap<String, Option<String>>,
    /// The files that were to go after them.
    files: Vec<String>,
}

/// An old tombstone, and what is left of what it names.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tombstone: ObjectInfo,
    /// Shard files: to be deleted unless an index names them.
    pub(crate) shard_files: Vec<ObjectInfo>,
    /// Other files of a folder that has no index any more.
    pub(crate) others: Vec<ObjectInfo>,
    indexes: Vec<String>,
}

/// Puts a tombstone into `folder` before these indexes of its go or are replaced, each with its ETag, where they leave `files`
/// that a prune would not find by their names. Its key; `None` where none is needed.
///
/// # Errors
/// Those of the request.
pub(crate) async fn put<'a>(
    storage: &Storage,
    folder: &Layout,
    indexes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    files: impl IntoIterator<Item = &'a str>,
) -> Result<Option<String>, Error> {
    let relative = |key: &str| key.strip_prefix(folder.folder()).map(str::to_owned);
    let files: Vec<String> =
        files.into_iter().filter(|key| !Name::of(key).is_own_shard_file()).filter_map(relative).collect();
    let indexes: BTreeMap<String, Option<String>> = indexes
        .into_iter()
        .filter_map(|(key, etag)| Some((relative(key)?, etag.map(str::to_owned))))
        .collect();
    if files.is_empty() || indexes.is_empty() {
        return Ok(None);
    }
    let key = folder.tombstone_key(fastrand::u64(..));
    let body = serde_json::to_vec(&Record { indexes, files }).expect("text has a JSON form");
    storage.put(&key, body.into(), &PutOptions::default()).await?;
    Ok(Some(key))
}

/// Reads a tombstone that was `listed` with all that lies around it.
///
/// While an index is there as it was, nothing of its checkpoint is to go. Where another one is there by now, only shard files are.
/// What was written after the tombstone is not what it names.
///
/// # Errors
/// `Corrupt` for what is no tombstone, naming its key; else those of the request. `None` for one that has gone.
pub(crate) async fn read(
    storage: &Storage,
    tombstone: ObjectInfo,
    listed: &BTreeMap<&str, &ObjectInfo>,
) -> Result<Option<Found>, Error> {
    let record = match storage.get(&tombstone.key, MAX_INDEX_BYTES).await {
        Ok(object) => serde_json::from_slice::<Record>(&object.body)
            .map_err(|error| storage.at(&tombstone.key, corrupt(format!("tombstone: {error}"))))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let folder = Layout::beside(&tombstone.key);
    let at = |name: &str| listed.get(&format!("{}{name}", folder.folder())[..]).copied();
    let mut found = Found { shard_files: Vec::new(), others: Vec::new(), indexes: Vec::new(), tombstone };
    let still = |(name, etag): (&String, &Option<String>)| at(name).is_some_and(|index| index.etag == *etag);
    if record.indexes.iter().any(still) {
        return Ok(Some(found));
    }
    let is_replaced = record.indexes.keys().any(|name| at(name).is_some());
    let written = found.tombstone.last_modified;
    let files = record.files.iter().filter_map(|name| at(name));
    for file in files.filter(|file| precedes(file.last_modified, written)) {
        if folder.deletable(&file.key) {
            found.shard_files.push(file.clone());
        } else if !is_replaced && Name::of(&file.key) == Name::Other {
            found.others.push(file.clone());
        }
    }
    found.indexes = record.indexes.into_keys().map(|name| folder.folder().to_owned() + &name).collect();
    Ok(Some(found))
}

fn precedes(one: Option<SystemTime>, other: Option<SystemTime>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one <= other)
}

impl Found {
    /// Whether the folder has got none of its indexes back.
    ///
    /// # Errors
    /// Those of the requests.
    pub(crate) async fn has_no_index(&self, storage: &Storage) -> Result<bool, Error> {
        for index in &self.indexes {
            match storage.head(index).await {
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
