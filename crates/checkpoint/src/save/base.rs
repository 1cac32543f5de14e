//! The checkpoint that a save follows on its path: which of its items are stored already.
//!
//! Only files of the same path count, so that everyone who deletes below a path sees everyone who relies on it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use s3dcp_s3::Error;

use crate::catalogue::list::last_number;
use crate::index::allow::AllowList;
use crate::index::checksums::ItemChecksums;
use crate::index::item_hash::ItemHash;
use crate::index::read::{get, index_folders};
use crate::layout::{Layout, Location};
use crate::load::contents::{Contents, Stored, read_contents};
use crate::save::observe::Observed;
use crate::storage::Storage;

/// Folders that are looked into for the latest index, the one of the largest number first.
const FOLDERS: usize = 16;

/// The items of an earlier checkpoint that a save may name instead of sending its own.
#[derive(Clone, Debug, Default)]
pub struct Base {
    items: HashMap<String, Vec<Placed>>,
}

/// An item of a name.
#[derive(Clone, Debug)]
struct Placed {
    /// Where it lies in its tensor; `None` for an object.
    offsets: Option<Vec<i64>>,
    item: BaseItem,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseItem {
    /// The shard file, as seen from the path.
    pub relative_path: Arc<str>,
    /// The item's first byte in it.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Where in it a tensor's raw bytes begin; `None` where the index does not say.
    pub data_offset: Option<u64>,
    /// Its checksums.
    pub checksums: ItemChecksums,
    /// What it is.
    pub hash: ItemHash,
}

impl Base {
    /// Whether there is nothing to reuse.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The item of this name and, of a chunk of a tensor, offsets.
    #[must_use]
    pub fn find(&self, name: &str, offsets: Option<&[i64]>) -> Option<&BaseItem> {
        let named = self.items.get(name)?;
        named.iter().find(|placed| placed.offsets.as_deref() == offsets).map(|placed| &placed.item)
    }

    fn of(contents: Contents, layout: &Layout) -> Base {
        let mut base = Base::default();
        let mut paths: HashMap<Arc<str>, Arc<str>> = HashMap::new();
        let mut item = |stored: Option<Stored>| {
            let Stored { entry, hash, is_transformed: false } = stored? else { return None };
            let relative_path = match paths.get(&entry.key) {
                Some(path) => path.clone(),
                None => {
                    let path: Arc<str> = entry.key.strip_prefix(layout.folder())?.into();
                    paths.insert(entry.key.clone(), path.clone());
                    path
                }
            };
            let (offset, length, data_offset) = (entry.offset, entry.length, entry.data_offset);
            Some(BaseItem {
                relative_path,
                offset,
                length,
                data_offset,
                checksums: entry.checksums?,
                hash: hash?,
            })
        };
        for (name, tensor) in contents.tensors {
            let chunks = tensor.chunks.into_iter();
            let placed = chunks.filter_map(|chunk| {
                Some(Placed { offsets: Some(chunk.chunk.offsets), item: item(chunk.stored)? })
            });
            let items: Vec<Placed> = placed.collect();
            if !items.is_empty() {
                base.items.insert(name, items);
            }
        }
        for (name, stored) in contents.objects {
            if let Some(item) = item(stored) {
                base.items.insert(name, vec![Placed { offsets: None, item }]);
            }
        }
        base
    }
}

/// A base that was read.
pub(crate) struct FoundBase {
    pub(crate) base: Base,
    /// The key of its index.
    pub(crate) key: String,
    /// The ETag of its index.
    pub(crate) etag: String,
    /// The keys of the files with its items.
    pub(crate) files: BTreeSet<String>,
}

/// Reads the base of a save: with an epoch or step the path's newest checkpoint, else the one that it will replace. `None` where
/// there is none, or none with hashes in it, or none that can be read.
///
/// # Errors
/// Those of the requests.
pub(crate) async fn find_base(
    storage: &Storage,
    location: &Location,
    observed: &Observed,
) -> Result<Option<FoundBase>, Error> {
    for key in index_keys(storage, location, observed).await? {
        let Some((body, etag)) = get(storage, &key).await? else { continue };
        let contents = read_contents(&body, &Layout::beside(&key), &AllowList::default_globals());
        let (Ok(contents), Some(etag)) = (contents, etag) else { return Ok(None) };
        let layout = location.layout();
        let base = Base::of(contents, &layout);
        let items = base.items.values().flatten();
        let files: BTreeSet<&str> = items.map(|placed| &*placed.item.relative_path).collect();
        let files = files.into_iter().map(|path| format!("{}{path}", layout.folder())).collect();
        return Ok((!base.is_empty()).then_some(FoundBase { base, key, etag, files }));
    }
    Ok(None)
}

/// The keys of the indexes that may be the base, the likeliest first.
async fn index_keys(
    storage: &Storage,
    location: &Location,
    observed: &Observed,
) -> Result<Vec<String>, Error> {
    if location.epoch.is_none() {
        return Ok(observed.index.iter().map(|_| location.index_key()).collect());
    }
    if location.has_root() && observed.root.is_some() {
        return Ok(vec![location.root_key()]);
    }
    // No index says which of the folders is the newest.
    let mut folders = index_folders(storage, &location.layout()).await?;
    folders.sort_by_cached_key(|folder| Reverse(folder.name().and_then(last_number)));
    Ok(folders.iter().take(FOLDERS).map(|folder| folder.index_key(location.rank)).collect())
}
