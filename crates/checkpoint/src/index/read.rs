//! Finds indexes in the bucket and reads them: whole, what a save must know of one that it replaces, or the keys that one names.

use std::collections::BTreeSet;

use bytes::Bytes;
use s3dcp_s3::{Error, ErrorKind};

use crate::error::{corrupt, is_absent};
use crate::index::facts::IndexFacts;
use crate::index::judge::read_facts;
use crate::layout::Layout;
use crate::storage::Storage;

/// The longest index that is read, in bytes: some forty million items.
pub const MAX_INDEX_BYTES: u64 = 4 << 30;

/// An index that lies where a save will put its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenIndex {
    /// Its ETag, where the service gives one.
    pub etag: Option<String>,
    /// The id of the save that wrote it.
    pub save_id: Option<String>,
    /// The epoch it says it is of.
    pub epoch: Option<i64>,
    /// Writes per minute that its save found the service to take.
    pub writes_per_minute: Option<u64>,
    /// The keys of the shard files it names; `None` when it cannot be read, and then nothing is ever cleaned up.
    pub keys: Option<BTreeSet<String>>,
}

/// The folders of a path's epochs.
pub(crate) async fn epoch_folders(storage: &Storage, layout: &Layout) -> Result<Vec<Layout>, Error> {
    let listing = storage.list(&layout.epochs(), Some("/")).await?;
    Ok(listing.common_prefixes.iter().map(|folder| Layout::new(folder)).collect())
}

/// The folders of a path, as far as their names or marks tell, whose indexes may name files of the path: those of its
/// epochs and steps.
pub(crate) async fn index_folders(storage: &Storage, layout: &Layout) -> Result<Vec<Layout>, Error> {
    let marks = layout.folder_marks();
    let listed = storage.list(&marks, Some("/"));
    let (epochs, marked) = tokio::join!(epoch_folders(storage, layout), listed);
    let mut folders = epochs?;
    folders.extend(marked?.objects.iter().map(|mark| layout.below(&mark.key[marks.len()..])));
    Ok(folders)
}

/// Reads an index; `None` when there is none (a bucket that does not exist is an error).
pub(crate) async fn get(storage: &Storage, key: &str) -> Result<Option<(Bytes, Option<String>)>, Error> {
    match storage.get(key, MAX_INDEX_BYTES).await {
        Ok(object) => Ok(Some((object.body, object.info.etag))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The keys of the shard files that the index at `key` names.
fn named_keys(facts: &IndexFacts, key: &str) -> Result<BTreeSet<String>, Error> {
    Layout::beside(key).resolve_all(&facts.relative_paths)
}

/// Reads the index at `key`; `None` when there is none.
pub(crate) async fn see(storage: &Storage, key: &str) -> Result<Option<SeenIndex>, Error> {
    let (body, etag) = match get(storage, key).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        // damaged in the store: what lies there can be replaced like an index that cannot be read
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let Ok(info) = storage.head(key).await else { return Err(error) };
            (Bytes::new(), info.etag)
        }
        Err(error) => return Err(error),
    };
    let seen = match read_facts(&body) {
        Ok(facts) => SeenIndex {
            etag,
            keys: named_keys(&facts, key).ok(),
            save_id: facts.save_id,
            epoch: facts.epoch,
            writes_per_minute: facts.writes_per_minute,
        },
        // damaged: it can be replaced, and says nothing about what to clean up
        Err(_) => SeenIndex { etag, ..SeenIndex::default() },
    };
    Ok(Some(seen))
}

/// Reads the keys that the index at `key` names; `None` when there is no index.
pub(crate) async fn read_named(storage: &Storage, key: &str) -> Result<Option<BTreeSet<String>>, Error> {
    let Some((body, _)) = get(storage, key).await? else { return Ok(None) };
    let named = read_facts(&body).and_then(|facts| named_keys(&facts, key));
    named.map(Some).map_err(|error| storage.at(key, corrupt(error.message().to_owned())))
}
