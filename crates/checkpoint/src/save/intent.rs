//! What a save says before it relies on files of an earlier one: an intent, a small object below the path.
//!
//! Whoever deletes files looks for intents after an index was deleted or replaced, and before any file is
//! (`catalogue/named.rs`). A save looks at the index that it relies on once its intent is there.
//! So of the two that come together, one sees the other. The intent goes once the save's own index names the files.
//!
//! Nobody can tell a save that was killed from one that is slow. So an intent counts for [`COUNTS_FOR`] and no longer, by the
//! service's clock, and a save whose intent is older than [`COMMITS_WITHIN`] does not commit.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, Listing, ObjectInfo, PutOptions};
use serde::{Deserialize, Serialize};

use crate::error::{corrupt, is_absent};
use crate::layout::{Layout, Name};
use crate::storage::Storage;

/// How long whoever deletes spares what an intent names.
pub(crate) const COUNTS_FOR: Duration = Duration::from_hours(24);
/// How old an intent may be when its save commits.
pub(crate) const COMMITS_WITHIN: Duration = Duration::from_hours(12);
/// The longest intent that is read, in bytes: a million files.
const MAX_BYTES: u64 = 256 << 20;
/// HEAD requests under way at once.
const CONCURRENT_HEADS: usize = 32;

/// Files of earlier saves that a save relies on.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) key: String,
    /// The keys of the files.
    pub(crate) files: BTreeSet<String>,
}

/// What the object holds.
#[derive(Serialize, Deserialize)]
struct Body {
    save_id: String,
    /// The key of the index that the save will write.
    index: String,
    /// As seen from the folder of the intent.
    files: Vec<String>,
}

impl Intent {
    /// Writes the intent of a save on the path of `layout`, whose index will have this key.
    ///
    /// # Errors
    /// Those of the request; `Service` where the service does not tell its time, by which the intent would count.
    pub(crate) async fn write(
        storage: &Storage,
        layout: &Layout,
        save_id: &str,
        index_key: &str,
        files: BTreeSet<String>,
    ) -> Result<Intent, Error> {
        let below = |key: &String| key.strip_prefix(layout.folder()).map(str::to_owned);
        let body = Body {
            save_id: save_id.to_owned(),
            index: index_key.to_owned(),
            files: files.iter().filter_map(below).collect(),
        };
        let body = serde_json::to_vec(&body).map_err(|error| corrupt(format!("intent: {error}")))?;
        let intent = Intent { key: layout.intent_key(save_id), files };
        storage.put(&intent.key, body.into(), &PutOptions::default()).await?;
        match intent.age(storage).await {
            Ok(_) => Ok(intent),
            Err(error) => {
                intent.delete(storage).await.ok();
                Err(error)
            }
        }
    }

    /// Its age, by the service's clock.
    async fn age(&self, storage: &Storage) -> Result<Duration, Error> {
        let listing = storage.list(&self.key, Some("/")).await?;
        let Some(object) = listing.objects.iter().find(|object| object.key == self.key) else {
            let message = "the intent of this save is gone: what it relies on may have been deleted";
            return Err(storage.at(&self.key, Error::new(ErrorKind::Conflict, message)));
        };
        listing.service_time.zip(object.last_modified).map(|(now, then)| age(now, then)).ok_or_else(|| {
            let message = "the service does not tell its time, which a save that reuses files needs";
            storage.at(&self.key, Error::new(ErrorKind::Service, message))
        })
    }

    /// Sees, right before a commit, that the index may name what it does of `named`: the files of earlier saves are there, and
    /// the intent has kept others from deleting them.
    ///
    /// # Errors
    /// `Conflict` for a file that is gone, and for an intent that is gone or too old; else those of the requests.
    pub(crate) async fn check(&self, storage: &Storage, mut named: Vec<String>) -> Result<(), Error> {
        named.retain(|key| self.files.contains(key));
        if named.is_empty() {
            return Ok(());
        }
        let mut heads = stream::iter(named)
            .map(|key| async { (storage.head(&key).await, key) })
            .buffered(CONCURRENT_HEADS);
        while let Some((head, key)) = heads.next().await {
            match head {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let message = "a file of an earlier save, which this one reuses, is gone";
                    let error = Error::new(ErrorKind::Conflict, message).with_source(error);
                    return Err(storage.at(&key, error));
                }
                Err(error) => return Err(error),
            }
        }
        drop(heads);
        let age = self.age(storage).await?;
        if age > COMMITS_WITHIN {
            let (hours, most) = (age.as_secs() / 3600, COMMITS_WITHIN.as_secs() / 3600);
            let message = format!(
                "this save began {hours} hours ago; one that reuses files of earlier saves must commit within {most}"
            );
            return Err(storage.at(&self.key, Error::new(ErrorKind::Conflict, message)));
        }
        Ok(())
    }

    /// Deletes the intent, once the save is committed or given up.
    ///
    /// # Errors
    /// Those of the request.
    pub(crate) async fn delete(&self, storage: &Storage) -> Result<(), Error> {
        match storage.delete(std::slice::from_ref(&self.key)).await?.into_iter().next() {
            Some(failure) => Err(storage.refusal(failure)),
            None => Ok(()),
        }
    }
}

fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or(Duration::ZERO)
}

/// Whether an object is an intent that counts, at this time of the service.
pub(crate) fn counts(object: &ObjectInfo, now: Option<SystemTime>) -> bool {
    let is_old = now.zip(object.last_modified).is_some_and(|(now, then)| age(now, then) >= COUNTS_FOR);
    Name::of(&object.key) == Name::Intent && !is_old
}

/// The intents that count, of a listing.
pub(crate) fn that_count(listing: &Listing) -> impl Iterator<Item = &ObjectInfo> {
    listing.objects.iter().filter(|object| counts(object, listing.service_time))
}

/// The keys of the files that the intent at `key` names; `None` when there is none.
///
/// # Errors
/// `Corrupt`, with its key, for one that cannot be read; else those of the request.
pub(crate) async fn read_named(storage: &Storage, key: &str) -> Result<Option<BTreeSet<String>>, Error> {
    let object = match storage.get(key, MAX_BYTES).await {
        Ok(object) => object,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let body: Result<Body, _> = serde_json::from_slice(&object.body);
    let named = body
        .map_err(|error| corrupt(format!("intent: {error}")))
        .and_then(|body| Layout::beside(key).resolve_all(&body.files));
    named.map(Some).map_err(|error| storage.at(key, error))
}
