//! Deletes the shard files that a replaced index named and that no index names any more, and those of a save that
//! failed.
//!
//! After a commit, or one that failed, only `.distcp` keys below the path are deleted, and only after every index there
//! was read again: one that cannot be read might name any of them, so then all stay. The indexes most likely to name
//! them are read first, and nothing more once no file is left to delete, so a save of a new epoch costs a few requests
//! whatever the number of epochs. A save that failed before its commit deletes its own files without asking, because no
//! index has ever heard of their save id. Files of killed jobs are not looked for here, but in [`prune`](crate::prune).

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use s3dcp_s3::{Client, Error};

use crate::commit::Committed;
use crate::index_writer::Index;
use crate::keys::{Target, is_rank_index, join, resolve_key};
use crate::observe::{Observed, epoch_folders, read_named};

/// Longest time for giving up what a failed save wrote: whoever failed on a dead service should not wait for it again.
const DISCARD_LIMIT: Duration = Duration::from_secs(30);

/// Gives up a save of which no index can name anything: waits until `uploads` are aborted, then deletes the objects of
/// `keys`. Takes 30 seconds at most; the keys of objects that may stay.
pub async fn discard(
    client: &Client,
    bucket: &str,
    uploads: Vec<impl Future<Output = ()>>,
    keys: Vec<String>,
) -> Vec<String> {
    let discarded = async {
        join_all(uploads).await;
        match client.delete_objects(bucket, &keys).await {
            Ok(failures) => failures.into_iter().map(|failure| failure.key).collect(),
            Err(_) => keys.clone(),
        }
    };
    let discarded = tokio::time::timeout(DISCARD_LIMIT, discarded).await;
    discarded.unwrap_or(keys)
}

/// Deletes the shard files of a save whose index was not written and never will be, as far as that goes in 30 seconds.
pub(crate) async fn discard_uncommitted(
    client: &Client,
    target: &Target,
    observed: &Observed,
    index: &Index,
) {
    let keys = index.shard_files().filter_map(|file| resolve_key(&target.path_key, file).ok()).collect();
    let mut unnamed = Unnamed::new(client, target, keys);
    let discarded = async {
        if unnamed.spare_named(observed).await.is_ok() {
            let keys: Vec<String> = unnamed.keys.into_iter().collect();
            // What stays is found by a prune; the save has its own error to report.
            let _left = client.delete_objects(&target.bucket, &keys).await;
        }
    };
    let _in_time = tokio::time::timeout(DISCARD_LIMIT, discarded).await;
}

pub(crate) async fn clean_up(
    client: &Client,
    target: &Target,
    observed: &Observed,
    committed: &mut Committed,
) {
    let mut keys = BTreeSet::new();
    for seen in [&observed.index, &observed.root].into_iter().flatten() {
        match &seen.keys {
            Some(named) => keys.extend(named.iter().cloned()),
            None => committed
                .warnings
                .push("the replaced index could not be read: the shard files it named stay".to_owned()),
        }
    }
    let mut unnamed = Unnamed::new(client, target, keys);
    if let Err(error) = unnamed.spare_named(observed).await {
        if !unnamed.keys.is_empty() {
            let count = unnamed.keys.len();
            committed.warnings.push(format!("{count} shard files of the replaced checkpoint stay: {error}"));
            committed.left.extend(unnamed.keys);
        }
        return;
    }
    let keys: Vec<String> = unnamed.keys.into_iter().collect();
    if keys.is_empty() {
        return;
    }
    let failed: BTreeSet<String> = match client.delete_objects(&target.bucket, &keys).await {
        Ok(failures) => failures.into_iter().map(|failure| failure.key).collect(),
        Err(error) => {
            let count = keys.len();
            committed
                .warnings
                .push(format!("{count} shard files of the replaced checkpoint may stay: {error}"));
            committed.left.extend(keys);
            return;
        }
    };
    if !failed.is_empty() {
        let count = failed.len();
        committed
            .warnings
            .push(format!("{count} shard files of the replaced checkpoint could not be deleted"));
    }
    committed.deleted.extend(keys.into_iter().filter(|key| !failed.contains(key)));
    committed.left.extend(failed);
}

/// Keys that no index read so far names.
struct Unnamed<'a> {
    client: &'a Client,
    target: &'a Target,
    keys: BTreeSet<String>,
}

impl<'a> Unnamed<'a> {
    /// Of these keys, the shard files below the path.
    fn new(client: &'a Client, target: &'a Target, mut keys: BTreeSet<String>) -> Unnamed<'a> {
        let prefix = target.prefix();
        keys.retain(|key| key.starts_with(&prefix) && key.ends_with(".distcp"));
        Unnamed { client, target, keys }
    }

    /// Takes out every key that an index below the path names.
    async fn spare_named(&mut self, observed: &Observed) -> Result<(), Error> {
        let mut read = BTreeSet::new();
        let mut likely = vec![self.target.index_key(), self.target.root_key()];
        if let Some(epoch) = observed.root.as_ref().and_then(|root| root.epoch) {
            likely.push(join(&self.target.path_key, &format!("epoch_{epoch}/.metadata")));
        }
        for key in likely {
            self.spare(key, &mut read).await?;
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        let mut folders = vec![self.target.path_key.clone()];
        folders.extend(epoch_folders(self.client, &self.target.bucket, &self.target.path_key).await?);
        for folder in folders {
            self.spare(join(&folder, ".metadata"), &mut read).await?;
            if self.keys.is_empty() {
                return Ok(());
            }
            let prefix = join(&folder, "__");
            let listing = self.client.list_objects(&self.target.bucket, &prefix, Some("/")).await?;
            for object in listing.objects {
                let name = object.key.rsplit_once('/').map_or(&object.key[..], |(_, name)| name);
                if is_rank_index(name) {
                    self.spare(object.key, &mut read).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes out the keys that this index names, reading it unless that was done before or nothing is left.
    async fn spare(&mut self, key: String, read: &mut BTreeSet<String>) -> Result<(), Error> {
        if self.keys.is_empty() || read.contains(&key) {
            return Ok(());
        }
        if let Some(named) = read_named(self.client, &self.target.bucket, &key).await? {
            self.keys.retain(|key| !named.contains(key));
        }
        read.insert(key);
        Ok(())
    }
}
