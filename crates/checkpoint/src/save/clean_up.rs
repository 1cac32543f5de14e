//! Deletes the shard files that a replaced index named and that no index names any more, and those of a save that
//! failed.
//!
//! After a commit, or one that failed, every index of the path is asked first ([`delete_objects`]). A save that failed
//! before its commit deletes its own files without asking, because no index has ever heard of their save id. Files of
//! killed jobs are not looked for here, but in [`prune`](crate::find_leftovers).

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use s3dcp_s3::{Client, Error};

use crate::catalogue::delete::{NamedBy, Stopped, delete_objects};
use crate::catalogue::tombstone;
use crate::index::read::SeenIndex;
use crate::index::write::Index;
use crate::layout::{Layout, Location};
use crate::save::intent::Intent;
use crate::save::observe::Observed;
use crate::storage::Storage;

/// Longest time for giving up what a failed save wrote: whoever failed on a dead service should not wait for it again.
const DISCARD_LIMIT: Duration = Duration::from_secs(30);

/// Gives up a save of which no index can name anything: waits until `uploads` are aborted, then deletes the shard files
/// of `keys`. Takes 30 seconds at most; the keys of files that may stay.
pub async fn discard(
    client: &Client,
    bucket: &str,
    uploads: Vec<impl Future<Output = ()>>,
    keys: Vec<String>,
) -> Vec<String> {
    let discarded = async {
        join_all(uploads).await;
        let everywhere = Layout::new("");
        let storage = Storage::bucket(client, bucket);
        let deletion = delete_objects(&storage, &everywhere, keys.clone(), NamedBy::Nothing).await;
        match deletion.stopped {
            Some(Stopped { left, .. }) => left,
            None => deletion.failed.into_iter().map(|failure| failure.key).collect(),
        }
    };
    let discarded = tokio::time::timeout(DISCARD_LIMIT, discarded).await;
    discarded.unwrap_or(keys)
}

/// The keys of the shard files that an index would name.
pub(crate) fn named_keys(location: &Location, index: &Index) -> Vec<String> {
    let layout = location.layout();
    index.shard_files().filter_map(|file| layout.resolve(file).ok()).collect()
}

/// Deletes the shard files of a save whose index was not written and never will be, as far as that goes in 30 seconds: its own, none of
/// an earlier one that it reuses.
pub(crate) async fn discard_uncommitted(
    client: &Client,
    location: &Location,
    observed: &Observed,
    index: &Index,
    intent: Option<&Intent>,
) {
    let layout = location.layout();
    let mut keys = named_keys(location, index);
    if let Some(intent) = intent {
        keys.retain(|key| !intent.files.contains(key));
        keys.push(intent.key.clone());
    }
    // What stays is found by a prune; the save has its own error to report.
    let storage = Storage::bucket(client, &location.bucket);
    let discarded = delete_objects(&storage, &layout, keys, named_by(location, observed));
    let _in_time = tokio::time::timeout(DISCARD_LIMIT, discarded).await;
}

/// The indexes of the path, those that are likely to name what a commit replaced first.
fn named_by(location: &Location, observed: &Observed) -> NamedBy<'static> {
    let mut likely = vec![location.index_key(), location.root_key()];
    if let Some(epoch) = observed.root.as_ref().and_then(|root| root.epoch) {
        likely.push(location.layout().epoch(epoch).index_key(None));
    }
    NamedBy::Path(likely)
}

/// Puts tombstones beside the indexes that a commit is about to replace, where their files have names of others; their keys.
///
/// # Errors
/// Those of the requests.
pub(crate) async fn note_replaced(
    client: &Client,
    location: &Location,
    observed: &Observed,
) -> Result<Vec<String>, Error> {
    let storage = Storage::bucket(client, &location.bucket);
    let mut tombstones = Vec::new();
    for (key, seen) in [(location.index_key(), &observed.index), (location.root_key(), &observed.root)] {
        let Some(SeenIndex { etag, keys: Some(named), .. }) = seen else { continue };
        let (folder, named) = (Layout::beside(&key), named.iter().map(String::as_str));
        tombstones.extend(tombstone::put(&storage, &folder, [(&key[..], etag.as_deref())], named).await?);
    }
    Ok(tombstones)
}

/// What became of the files of a replaced index.
#[derive(Default)]
pub(crate) struct CleanedUp {
    /// For the user: what went less well than it should.
    pub(crate) warnings: Vec<String>,
    /// Keys of those that are gone.
    pub(crate) deleted: Vec<String>,
    /// Keys of those that nothing names and that could not be deleted.
    pub(crate) left: Vec<String>,
}

/// Deletes what the indexes that a commit has replaced named and no index names any more, and then their `tombstones`.
pub(crate) async fn clean_up(
    client: &Client,
    location: &Location,
    observed: &Observed,
    tombstones: Vec<String>,
) -> CleanedUp {
    let mut cleaned = CleanedUp::default();
    let mut keys = BTreeSet::new();
    for seen in [&observed.index, &observed.root].into_iter().flatten() {
        match &seen.keys {
            Some(named) => keys.extend(named.iter().cloned()),
            None => cleaned
                .warnings
                .push("the replaced index could not be read: the shard files it named stay".to_owned()),
        }
    }
    let (layout, named_by) = (location.layout(), named_by(location, observed));
    let storage = Storage::bucket(client, &location.bucket);
    let deletion = delete_objects(&storage, &layout, keys, named_by).await;
    if let Some(Stopped { error, left, asked }) = deletion.stopped {
        let count = left.len();
        let stay = if asked { "may stay" } else { "stay" };
        cleaned.warnings.push(format!("{count} shard files of the replaced checkpoint {stay}: {error}"));
        cleaned.left = left;
        return cleaned;
    }
    if !deletion.failed.is_empty() {
        let count = deletion.failed.len();
        cleaned.warnings.push(format!("{count} shard files of the replaced checkpoint could not be deleted"));
    }
    cleaned.deleted = deletion.deleted;
    cleaned.left = deletion.failed.into_iter().map(|failure| failure.key).collect();
    if cleaned.left.is_empty() {
        delete_objects(&storage, &layout, tombstones, NamedBy::Nothing).await;
    }
    cleaned
}
