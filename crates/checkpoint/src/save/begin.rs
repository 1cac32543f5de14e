//! One save, as one rank knows it: from its first look at the path to its commit, or to its end without one.

use s3dcp_s3::{Client, Error, ErrorKind, UploadOptions};

use crate::index::write::IndexWriter;
use crate::layout::{ShardName, Target, new_save_id};
use crate::save::clean_up::discard;
use crate::save::commit::{Committed, commit};
use crate::save::conditions::{ConditionalCommit, prepare};
use crate::save::observe::Observed;
use crate::save::shard_writer::ShardWriter;

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
/// Of a job's ranks one commits: it [begins](Save::begin) the save, the others [join](Save::join) it. Where each rank keeps
/// an index of its own ([`Target::rank`]), each begins.
#[derive(Debug)]
pub struct Save {
    client: Client,
    target: Target,
    save_id: String,
    conditional_commit: ConditionalCommit,
    /// What the commit will replace; `None` for a rank that does not commit.
    observed: Option<Observed>,
    /// The keys of shard files so far.
    keys: Vec<String>,
}

/// A shard file of a save.
pub struct Shard {
    /// Key, and name in the index.
    pub name: ShardName,
    /// Writes its items; to be finished before the commit. Dropped, it gives up.
    pub writer: ShardWriter,
}

impl Save {
    /// Begins a save that this rank will commit: looks at what is there. Nothing is written yet that stays.
    ///
    /// # Errors
    /// Those of [`prepare`]: `AlreadyExists` for a checkpoint that may not be replaced, `Config` for a server that does not
    /// honour a condition that is required.
    pub async fn begin(client: &Client, target: Target, options: SaveOptions) -> Result<Save, Error> {
        let mode = options.conditional_commit;
        let observed = prepare(client, &target, options.overwrite, mode).await?;
        Ok(Save { observed: Some(observed), conditional_commit: mode, ..Save::join(client, target) })
    }

    /// Takes part in a save that another rank commits.
    #[must_use]
    pub fn join(client: &Client, target: Target) -> Save {
        Save {
            client: client.clone(),
            target,
            save_id: new_save_id(),
            conditional_commit: ConditionalCommit::default(),
            observed: None,
            keys: Vec::new(),
        }
    }

    /// The id of this rank's part of the save, as in the names of its shard files; that of the rank which commits is the
    /// save's.
    #[must_use]
    pub fn save_id(&self) -> &str {
        &self.save_id
    }

    /// What was at the path; `None` for a rank that does not commit.
    #[must_use]
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    /// A new shard file, of about `size_hint` bytes: the `number`th of this rank, whose `prefix` is the strategy's.
    ///
    /// # Errors
    /// `Config` for a prefix under which nothing could be found again: see
    /// [`Layout::prefix_fault`](crate::Layout::prefix_fault).
    pub fn shard(&mut self, prefix: &str, number: u32, size_hint: Option<u64>) -> Result<Shard, Error> {
        let name = self.target.layout().shard_file(prefix, number, &self.save_id)?;
        let mut options = UploadOptions::default();
        options.size_hint = size_hint;
        let upload = self.client.upload(&self.target.bucket, &name.key, options);
        self.keys.push(name.key.clone());
        Ok(Shard { name, writer: ShardWriter::new(upload) })
    }

    /// Commits: makes the checkpoint visible, whose shard files are complete, those of other ranks too. Then cleans up after
    /// the one that it replaced.
    ///
    /// # Errors
    /// Those of [`commit`]. Where the index was certainly not written, the shard files that it names are deleted. `Config`
    /// for a save that was joined.
    pub async fn commit(self, index: IndexWriter) -> Result<Committed, Error> {
        let Some(observed) = &self.observed else {
            return Err(Error::new(ErrorKind::Config, "the rank that began the save commits it, no other"));
        };
        let index = index.finish(self.save_id);
        commit(&self.client, &self.target, observed, &index, self.conditional_commit).await
    }

    /// Gives the save up before its commit: aborts the uploads of `shards`, and deletes every shard file that this rank has
    /// completed. Takes 30 seconds at most; the keys of files that may stay.
    pub async fn discard(self, shards: Vec<Shard>) -> Vec<String> {
        let uploads = shards.into_iter().map(|shard| shard.writer.abort()).collect();
        discard(&self.client, &self.target.bucket, uploads, self.keys).await
    }
}
