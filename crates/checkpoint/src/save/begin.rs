//! One save, as one rank knows it: from its first look at the path to its commit, or to its end without one.

use std::collections::BTreeSet;

use s3dcp_s3::{Client, Error, ErrorKind, UploadOptions, WhenLate, share_of_budget};

use crate::error::config;
use crate::index::write::Index;
use crate::layout::{Location, check_save_id, new_save_id};
use crate::save::base::{Base, find_base};
use crate::save::clean_up::discard;
use crate::save::commit::{Committed, commit_relying_on};
use crate::save::conditions::{ConditionalCommit, prepare};
use crate::save::intent::Intent;
use crate::save::observe::Observed;
use crate::save::shard_writer::ShardWriter;
use crate::storage::Storage;

/// What a save may do at its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// Replace a checkpoint that is there.
    pub overwrite: bool,
    /// What to do about servers that do not honour the condition that the commit needs.
    pub conditional_commit: ConditionalCommit,
}

/// A save under way. Nothing of it is global, and no two have the same id, so that saves to one path, in one process or in
/// many, touch none of each other's files.
///
/// Each of a job's ranks [joins](Save::join) the save. One commits, and so must [prepare](Save::prepare) it before; where
/// each rank keeps an index of its own ([`Location::rank`]), each does.
#[derive(Debug)]
pub struct Save {
    client: Client,
    location: Location,
    save_id: String,
    conditional_commit: ConditionalCommit,
    /// What the commit will replace; `None` for a rank that does not commit.
    observed: Option<Observed>,
    /// Writes per second that each shard file should keep to; `None`: as many as it likes.
    requests_per_second: Option<f64>,
    /// The keys of shard files so far.
    keys: BTreeSet<String>,
    /// What keeps others from deleting files of the base.
    intent: Option<Intent>,
}

impl Save {
    /// Takes part in a save to this place, under a new id.
    #[must_use]
    pub fn join(client: &Client, location: Location) -> Save {
        Save {
            client: client.clone(),
            location,
            save_id: new_save_id(),
            conditional_commit: ConditionalCommit::default(),
            observed: None,
            requests_per_second: None,
            keys: BTreeSet::new(),
            intent: None,
        }
    }

    /// The same, under an id that the caller has drawn.
    ///
    /// # Errors
    /// `Config` for anything but 64 bits in lower-case hexadecimal.
    pub fn join_as(client: &Client, location: Location, save_id: &str) -> Result<Save, Error> {
        check_save_id(save_id)?;
        Ok(Save { save_id: save_id.to_owned(), ..Save::join(client, location) })
    }

    /// Begins a save that this rank will commit: joins and prepares it.
    ///
    /// # Errors
    /// Those of [`Save::prepare`].
    pub async fn begin(client: &Client, location: Location, options: SaveOptions) -> Result<Save, Error> {
        let mut save = Save::join(client, location);
        save.prepare(options).await?;
        Ok(save)
    }

    /// Looks at what is there, for this rank will commit the save. Nothing is written yet that stays.
    ///
    /// # Errors
    /// Those of [`prepare`]: `AlreadyExists` for a checkpoint that may not be replaced, `Config` for a server that does not
    /// honour a condition that is required.
    pub async fn prepare(&mut self, options: SaveOptions) -> Result<&Observed, Error> {
        let mode = options.conditional_commit;
        let observed = prepare(&self.client, &self.location, options.overwrite, mode).await?;
        self.conditional_commit = mode;
        Ok(self.observed.insert(observed))
    }

    /// Reads what this save, which this rank will commit, need not send again: its index may name these items of an earlier
    /// one. From now on nobody deletes their files; where somebody may have begun to, there is nothing to reuse.
    ///
    /// # Errors
    /// `Config` for a save that was not prepared; `Service` where the service does not tell its time; else those of the requests.
    pub async fn rely_on_base(&mut self) -> Result<Base, Error> {
        let Some(observed) = &self.observed else {
            return Err(config("a save relies on an earlier one once it is prepared"));
        };
        let (storage, layout) = (self.storage(), self.location.layout());
        let Some(found) = find_base(&storage, &self.location, observed).await? else {
            return Ok(Base::default());
        };
        let index_key = self.location.index_key();
        let intent = Intent::write(&storage, &layout, &self.save_id, &index_key, found.files).await?;
        let is_there = match storage.head(&found.key).await {
            Ok(index) => Ok(index.etag == Some(found.etag)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        if let Ok(true) = is_there {
            self.intent = Some(intent);
            return Ok(found.base);
        }
        intent.delete(&storage).await?;
        is_there.map(|_| Base::default())
    }

    fn storage(&self) -> Storage {
        Storage::bucket(&self.client, &self.location.bucket)
    }

    /// Divides S3's budget of writes between so many ranks that save at once, and so many shard files of each, from the
    /// next file on: parts grow where that takes fewer of them.
    pub fn divide_budget(&mut self, ranks: u64, files: u64) {
        self.requests_per_second = Some(share_of_budget(&self.location.bucket, true, ranks, files));
    }

    /// The id of this rank's part of the save, as in the names of its shard files; that of the rank which commits is the
    /// save's.
    #[must_use]
    pub fn save_id(&self) -> &str {
        &self.save_id
    }

    /// What was at the path; `None` for a rank that has not prepared a commit.
    #[must_use]
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    /// A new shard file, of about `size_hint` bytes: the `number`th of this rank, whose `prefix` is the strategy's.
    ///
    /// # Errors
    /// `Config` for a prefix under which nothing could be found again: see
    /// [`Layout::prefix_fault`](crate::Layout::prefix_fault).
    pub fn shard(&mut self, prefix: &str, number: u32, size_hint: Option<u64>) -> Result<ShardWriter, Error> {
        let name = self.location.layout().shard_file(prefix, number, &self.save_id)?;
        let mut options = UploadOptions::default();
        options.size_hint = size_hint;
        options.requests_per_second = self.requests_per_second;
        // It has the id of this save.
        options.when_late = WhenLate::SendAgain;
        self.keys.insert(name.key.clone());
        Ok(ShardWriter::new(&self.client, &self.location.bucket, name, options))
    }

    /// Commits: makes the checkpoint visible, whose shard files are complete, those of other ranks too. Then cleans up after
    /// the one that it replaced.
    ///
    /// # Errors
    /// Those of [`commit`](crate::commit). Where the index was certainly not written, the shard files of this save that it names are
    /// deleted. `Conflict` where files of an earlier save, which it names, may be gone. `Config` for a save that was not prepared, and
    /// for an index of another one.
    pub async fn commit(self, index: &Index) -> Result<Committed, Error> {
        let Some(observed) = &self.observed else {
            return Err(config("a save is committed by the rank that prepared it, and no other"));
        };
        if index.save_id() != self.save_id {
            return Err(config(format!("index: of save {}, not of {}", index.save_id(), self.save_id)));
        }
        let (intent, mode) = (self.intent.as_ref(), self.conditional_commit);
        commit_relying_on(&self.client, &self.location, observed, index, mode, intent).await
    }

    /// Gives the save up before its commit: aborts the uploads of `shards`, and deletes every shard file that this rank may
    /// have completed, and those of this save that an index would have named (`relative_paths`). Takes 30 seconds at most; the keys
    /// of files that may stay.
    pub async fn discard<'a>(
        mut self,
        shards: impl IntoIterator<Item = &'a mut ShardWriter>,
        relative_paths: impl IntoIterator<Item = &'a str>,
    ) -> Vec<String> {
        let mut ends = Vec::new();
        for shard in shards {
            if shard.is_open() {
                self.keys.remove(&shard.name().key);
            }
            ends.push(shard.stop());
        }
        let layout = self.location.layout();
        self.keys.extend(relative_paths.into_iter().filter_map(|path| layout.resolve(path).ok()));
        if let Some(intent) = self.intent {
            self.keys.retain(|key| !intent.files.contains(key));
            self.keys.insert(intent.key);
        }
        discard(&self.client, &self.location.bucket, ends, self.keys.into_iter().collect()).await
    }
}
