//! Deletes the shard files that a replaced index named and that no index names any more.
//!
//! Only `.distcp` keys below the path are ever deleted, and only after every index there was read again: one that
//! cannot be read might name any of them, so then all stay. The indexes most likely to name them are read first,
//! and nothing more once no file is left to delete, so a save of a new epoch costs a few requests whatever the number of
//! epochs. Files that no index ever named (of killed jobs) are not looked for here.

use std::collections::BTreeSet;

use s3dcp_s3::{Client, Error};

use crate::commit::Committed;
use crate::keys::{Target, is_rank_index, join};
use crate::observe::{Observed, epoch_folders, read_named};

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
    let prefix = target.prefix();
    keys.retain(|key| key.starts_with(&prefix) && key.ends_with(".distcp"));
    let mut unnamed = Unnamed { client, target, keys };
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

impl Unnamed<'_> {
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
        folders.extend(epoch_folders(self.client, self.target).await?);
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
