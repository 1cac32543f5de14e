//! What a save finds at its path before it writes anything: may it go on, and what will its index replace?
//!
//! A checkpoint exists exactly when its index does, so everything here is about indexes. The answer is kept until
//! the commit, which makes its write conditional on it.

use s3dcp_s3::{Client, Error, ErrorKind};
use tokio::task::JoinSet;

use crate::index::read::{SeenIndex, epoch_folders, see};
use crate::layout::Location;
use crate::storage::Storage;

/// HEAD requests under way at once.
const CONCURRENT_HEADS: usize = 32;
/// How every refusal begins where there is a checkpoint: torch's words, which programs look for in the text.
pub(crate) const EXISTS: &str = "Checkpoint already exists";

/// What planning saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The index that the commit will replace.
    pub index: Option<SeenIndex>,
    /// With an epoch: `<path>/.metadata`, which names the epoch committed last.
    pub root: Option<SeenIndex>,
    /// For the user, at the commit: what went less well than it should.
    pub notes: Vec<String>,
}

impl Observed {
    /// Writes per second that the last save to the path found the service to take, where its index notes that.
    #[must_use]
    pub fn writes_per_second(&self) -> Option<f64> {
        let noted = |seen: &Option<SeenIndex>| seen.as_ref()?.writes_per_minute;
        noted(&self.index).or_else(|| noted(&self.root)).map(|writes| writes as f64 / 60.0)
    }
}

/// Looks at the path of a save.
///
/// # Errors
/// `AlreadyExists` when `overwrite` is false and there is an index where this save's will be, or, with an epoch, a
/// `<path>/.metadata` that is no epoch's; and, whatever `overwrite` says, when the path holds the other kind of
/// checkpoint (with one index per rank, or with one for all). `Config` for a path or epoch that cannot be part of a
/// key. Else those of the requests; nothing has been written then.
pub async fn observe(client: &Client, location: &Location, overwrite: bool) -> Result<Observed, Error> {
    location.check()?;
    let storage = &Storage::bucket(client, &location.bucket);
    let (key, root_key) = (location.index_key(), location.root_key());
    let root = async { if location.has_root() { see(storage, &root_key).await } else { Ok(None) } };
    let (other_kind, index, root) =
        tokio::join!(refuse_other_kind(client, location), see(storage, &key), root);
    other_kind?;
    let index = index?;
    if let Some(seen) = &index
        && !overwrite
    {
        let by = seen.save_id.as_ref().map_or_else(String::new, |id| format!(" Its save id is {id}."));
        return Err(exists(location, &key, format!("{EXISTS} and self.overwrite=False.{by}")));
    }
    let root = root?;
    if root.as_ref().is_some_and(|seen| seen.epoch.is_none()) && !overwrite {
        let message = format!("{EXISTS} and self.overwrite=False. It has no epoch.");
        return Err(exists(location, &root_key, message));
    }
    Ok(Observed { index, root, notes: Vec::new() })
}

fn exists(location: &Location, key: &str, message: String) -> Error {
    Error::new(ErrorKind::AlreadyExists, message).with_bucket(&location.bucket).with_key(key)
}

/// A path holds one kind of checkpoint; the folder of a step is a path of its own.
async fn refuse_other_kind(client: &Client, location: &Location) -> Result<(), Error> {
    let (rank, kind) = match location.rank {
        None => (Some(0), "saved by each rank for itself (use_collectives=False)"),
        Some(_) => (None, "saved by all ranks together"),
    };
    let (layout, own) = (location.layout(), location.index_layout());
    let mut keys = vec![own.index_key(rank)];
    if location.folder.is_none() && location.epoch.is_some() {
        keys.push(layout.index_key(rank));
    }
    let in_epochs = async {
        if location.rank.is_some() || location.folder.is_some() {
            return Ok(None);
        }
        let mut folders = epoch_folders(&Storage::bucket(client, &location.bucket), &layout).await?;
        folders.retain(|folder| *folder != own);
        let keys = folders.iter().map(|folder| folder.index_key(rank)).collect();
        first_existing(client, &location.bucket, keys).await
    };
    let (here, in_epochs) = tokio::join!(first_existing(client, &location.bucket, keys), in_epochs);
    // A listing that fails says why; the answer to a HEAD has no room for it.
    let in_epochs = in_epochs?;
    if let Some(key) = here?.or(in_epochs) {
        let message = format!("{EXISTS}, {kind}, and one path holds one kind");
        return Err(exists(location, &key, message));
    }
    Ok(())
}

async fn first_existing(client: &Client, bucket: &str, keys: Vec<String>) -> Result<Option<String>, Error> {
    let mut waiting = keys.into_iter();
    let mut heads = JoinSet::new();
    loop {
        while heads.len() < CONCURRENT_HEADS
            && let Some(key) = waiting.next()
        {
            let (client, bucket) = (client.clone(), bucket.to_owned());
            heads.spawn(async move {
                match client.head_object(&bucket, &key).await {
                    Ok(_) => Ok(Some(key)),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            });
        }
        match heads.join_next().await {
            None => return Ok(None),
            Some(Ok(Ok(None))) => {}
            Some(Ok(found)) => return found,
            Some(Err(failure)) => {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    format!("a HEAD request ended early: {failure}"),
                ));
            }
        }
    }
}
