//! Makes a save visible: one conditional PUT of its index.
//!
//! No temporary name and no rename, hence no instant without a checkpoint and none with half of one. Where the reply
//! is lost or the condition failed, the index that is there now tells how it went. Where that stays unknown, nothing
//! is deleted. Shard files are written before, and belong to the save that wrote them: they are deleted when its index
//! was not written and no attempt at it is left that could still be. Cleaning up after a replaced index comes last and
//! never fails a save.

use std::time::Duration;

use s3dcp_s3::{Client, Condition, Error, ErrorKind, PutOptions, Support, WhenLate};

use crate::catalogue::folder_mark;
use crate::error::is_absent;
use crate::index::judge::read_facts;
use crate::index::read::{SeenIndex, get, see};
use crate::index::write::{Index, SealedIndex};
use crate::layout::Location;
use crate::save::clean_up::{CleanedUp, clean_up, discard_uncommitted, named_keys, note_replaced};
use crate::save::conditions::{ConditionalCommit, Protection};
use crate::save::intent::Intent;
use crate::save::observe::{EXISTS, Observed};
use crate::storage::Storage;

/// How often a 409 (another write of the same key under way) is tried again, with doubling pauses from the first.
const CONFLICT_RETRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a `<path>/.metadata` that other saves keep writing is tried again; one of them succeeds each time.
const ROOT_RETRIES: u32 = 20;

/// A save that has been committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// For the user: what went less well than it should.
    pub warnings: Vec<String>,
    /// Keys of shard files that nothing names any more, and that are gone.
    pub deleted: Vec<String>,
    /// Keys of such files that could not be deleted.
    pub left: Vec<String>,
}

/// Commits a save whose shard files are complete.
///
/// With an epoch and collectives the index is also written to `<path>/.metadata`, as seen from there, afterwards. What
/// another save put there since planning is replaced, unless that save was of the same epoch.
///
/// # Errors
/// Before anything is committed: `Config` when the server does not honour the condition and `mode` is `Require`.
/// `AlreadyExists` when another save's index is there by now, naming both save ids;
/// `Conflict` when the one that planning saw has gone. An error whose [`Error::maybe_applied`] is set leaves the
/// outcome open. An error that names `<path>/.metadata` of an epoch came after the epoch's own index was committed.
/// Nothing is deleted on an error but the shard files that `index` names and no other index does, and those only where
/// no attempt to write it can have had an effect or still have one.
pub async fn commit(
    client: &Client,
    location: &Location,
    observed: &Observed,
    index: &Index,
    mode: ConditionalCommit,
) -> Result<Committed, Error> {
    commit_relying_on(client, location, observed, index, mode, None).await
}

/// The same of a save whose index names files of earlier ones, those of its intent. They are never deleted here but as what the
/// replaced index named and nothing names any more.
pub(crate) async fn commit_relying_on(
    client: &Client,
    location: &Location,
    observed: &Observed,
    index: &Index,
    mode: ConditionalCommit,
    intent: Option<&Intent>,
) -> Result<Committed, Error> {
    location.check()?;
    let storage = Storage::bucket(client, &location.bucket);
    if let Some(intent) = intent
        && let Err(error) = intent.check(&storage, named_keys(location, index)).await
    {
        discard_uncommitted(client, location, observed, index, Some(intent)).await;
        return Err(error);
    }
    let mut protection = Protection::new(client, location, mode);
    let mut commit = IndexCommit {
        client,
        location,
        key: location.index_key(),
        seen: observed.index.clone(),
        index: index.seal(location.to_path()),
        save_id: index.save_id(),
        maybe_applied: false,
    };
    let committed = async {
        let tombstones = note_replaced(client, location, observed).await?;
        commit.write(&mut protection).await.map(|()| tombstones)
    };
    let tombstones = match committed.await {
        Ok(tombstones) => tombstones,
        Err(error) => {
            if !commit.maybe_applied && !error.maybe_applied() {
                discard_uncommitted(client, location, observed, index, intent).await;
            }
            return Err(error);
        }
    };
    if location.has_root() {
        let root = IndexCommit {
            key: location.root_key(),
            seen: observed.root.clone(),
            index: index.seal(""),
            ..commit.clone()
        };
        commit.followed_by(root, &mut protection).await.map_err(|error| {
            let message = format!(
                "{} is committed, but .metadata of the path could not follow: {}",
                commit.key,
                error.message()
            );
            error.with_message(message)
        })?;
    }
    if let Some(mark_key) = location.mark_key()
        && let Err(error) = folder_mark::set(&storage, &mark_key).await
    {
        protection.warnings.push(format!(
            "the mark s3://{}/{mark_key} could not be written again: where it is missing, a prune below the path may take \
             files of this checkpoint for leftovers: {error}",
            location.bucket
        ));
    }
    // The index speaks for what it names; of the rest that the intent named the clean-up may take what the replaced one had.
    if let Some(intent) = intent
        && let Err(error) = intent.delete(&storage).await
    {
        protection.warnings.push(format!(
            "{} could not be deleted, so files that it names stay for a day: {error}",
            storage.uri(&intent.key)
        ));
    }
    let CleanedUp { warnings, deleted, left } = clean_up(client, location, observed, tombstones).await;
    Ok(Committed {
        warnings: [observed.notes.clone(), protection.warnings, warnings].concat(),
        deleted,
        left,
    })
}

/// The write of one index.
#[derive(Clone)]
struct IndexCommit<'a> {
    client: &'a Client,
    location: &'a Location,
    key: String,
    seen: Option<SeenIndex>,
    index: SealedIndex,
    save_id: &'a str,
    /// Whether an attempt may have taken effect, or may yet.
    maybe_applied: bool,
}

/// A write that failed.
struct Failed {
    error: Error,
    /// What it shows the server to do with the condition; everything is as planning saw it then.
    support: Option<Support>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, support: None }
    }
}

/// How a write that was not plainly acknowledged turned out.
enum Outcome {
    Ours,
    /// The index that planning saw is still there.
    Unchanged,
    Gone,
    Another(String),
    Unknown(Error),
}

impl IndexCommit<'_> {
    fn storage(&self) -> Storage {
        Storage::bucket(self.client, &self.location.bucket)
    }

    fn seen_etag(&self) -> Option<&str> {
        self.seen.as_ref()?.etag.as_deref()
    }

    async fn put(&mut self, condition: Condition, when_late: WhenLate) -> Result<(), Error> {
        let mut options = PutOptions::default();
        options.condition = condition;
        options.crc32 = Some(self.index.crc32);
        options.when_late = when_late;
        let mut pause = FIRST_PAUSE;
        for _ in 0..CONFLICT_RETRIES {
            match self.put_once(&options).await {
                Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(pause).await,
                result => return result,
            }
            pause *= 2;
        }
        self.put_once(&options).await
    }

    async fn put_once(&mut self, options: &PutOptions) -> Result<(), Error> {
        let body = self.index.payload.clone();
        let put = self.client.put_object(&self.location.bucket, &self.key, body, options).await;
        self.maybe_applied |= put.as_ref().is_err_and(Error::maybe_applied);
        put.map(drop)
    }

    async fn write(&mut self, protection: &mut Protection<'_>) -> Result<(), Error> {
        let condition = protection.condition(self.seen.as_ref()).await?;
        let when_late = match &condition {
            // The index that was seen never comes back, so what is carried out late is refused.
            Condition::IfMatch(_) if protection.is_honoured(&condition) => WhenLate::SendAgain,
            // It has the id of this save.
            _ => WhenLate::Look,
        };
        let written = match self.write_if(&condition, when_late).await {
            Err(Failed { support: Some(support), .. }) if protection.goes_without(&condition, &support) => {
                self.write_if(&Condition::None, WhenLate::Look).await
            }
            written => written,
        };
        written.map_err(|failed| failed.error)
    }

    async fn write_if(&mut self, condition: &Condition, when_late: WhenLate) -> Result<(), Failed> {
        if *condition == Condition::None {
            self.refuse_change().await?;
        }
        let Err(error) = self.put(condition.clone(), when_late).await else { return Ok(()) };
        let refused =
            matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::Conflict) || is_absent(&error);
        if !refused && !error.maybe_applied() {
            let misunderstood = error.not_understood() && !self.maybe_applied;
            let support = misunderstood.then(|| Support::Refused(error.clone()));
            return Err(Failed { error, support });
        }
        let outcome = self.outcome().await;
        let as_seen = matches!((&outcome, &self.seen), (Outcome::Unchanged, Some(_)) | (Outcome::Gone, None));
        let never_holds = error.kind() == ErrorKind::PreconditionFailed && as_seen && !self.maybe_applied;
        let support = never_holds.then_some(Support::NeverHolds);
        self.settle(error, refused, outcome).map_err(|error| Failed { error, support })
    }

    /// Writes `<path>/.metadata` after this index of an epoch.
    ///
    /// Where that epoch was saved again meanwhile, the files of this save may be gone and the other one writes it.
    async fn followed_by(
        &self,
        mut root: IndexCommit<'_>,
        protection: &mut Protection<'_>,
    ) -> Result<(), Error> {
        for _ in 0..ROOT_RETRIES {
            match root.write(protection).await {
                Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Conflict) => {}
                result => return result,
            }
            root.seen = see(&self.storage(), &root.key).await?;
            match self.outcome().await {
                Outcome::Ours => {}
                Outcome::Unknown(error) => return Err(error),
                _ => return Ok(()),
            }
        }
        root.write(protection).await
    }

    /// Without a condition the best there is: look right before writing.
    async fn refuse_change(&self) -> Result<(), Error> {
        match self.client.head_object(&self.location.bucket, &self.key).await {
            Ok(info) if self.seen.is_none() || info.etag.as_deref() != self.seen_etag() => {
                let outcome = self.outcome().await;
                let error = Error::new(
                    ErrorKind::AlreadyExists,
                    format!("{EXISTS}: an index appeared during the save"),
                );
                self.settle(error, true, outcome)
            }
            Err(error) if error.kind() == ErrorKind::NotFound && self.seen.is_some() => {
                self.settle(error, true, Outcome::Gone)
            }
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads what is there now.
    async fn outcome(&self) -> Outcome {
        match get(&self.storage(), &self.key).await {
            Err(error) => Outcome::Unknown(error),
            Ok(None) => Outcome::Gone,
            Ok(Some((body, _))) if self.index.is(&body) => Outcome::Ours,
            Ok(Some((body, etag))) => {
                let save_id = read_facts(&body).ok().and_then(|facts| facts.save_id);
                if save_id.as_deref() == Some(self.save_id) {
                    Outcome::Ours
                } else if etag.is_some() && etag.as_deref() == self.seen_etag() {
                    Outcome::Unchanged
                } else {
                    Outcome::Another(save_id.unwrap_or_else(|| "unknown".to_owned()))
                }
            }
        }
    }

    /// Turns an outcome into the commit's result. `refused`: the server answered that it did not write.
    fn settle(&self, cause: Error, refused: bool, outcome: Outcome) -> Result<(), Error> {
        let ours = self.save_id;
        let locate = |error: Error| error.with_bucket(&self.location.bucket).with_key(&self.key);
        let unknown = |cause: Error, why: String| {
            let message = format!(
                "the index may or may not have been written ({}; {why}); nothing was deleted",
                cause.message()
            );
            Err(locate(cause.with_message(message).with_maybe_applied(true)))
        };
        match outcome {
            Outcome::Ours => Ok(()),
            Outcome::Another(theirs) => Err(locate(Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "{EXISTS}: another save was committed during this one: its save id is {theirs}, this one's is {ours}"
                ),
            ))),
            Outcome::Gone if refused && self.seen.is_none() => Err(locate(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the server refuses to write an index, though there is none; save {ours} was not committed"
                ),
            ))),
            Outcome::Gone if refused => Err(locate(Error::new(
                ErrorKind::Conflict,
                format!("the index that planning saw has gone; save {ours} was not committed"),
            ))),
            Outcome::Unchanged if refused => Err(locate(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the server refuses to replace the index that planning saw; save {ours} was not committed"
                ),
            ))),
            Outcome::Gone => unknown(cause, "there is no index now".to_owned()),
            Outcome::Unchanged => unknown(cause, "the index is still the old one".to_owned()),
            Outcome::Unknown(error) => {
                let why = format!("reading it back failed: {error}");
                unknown(cause, why)
            }
        }
    }
}
