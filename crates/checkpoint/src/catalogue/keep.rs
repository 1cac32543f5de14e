//! Which checkpoints of a path are kept, and the deletion of the others.
//!
//! Those of a path are its own and those in the folders directly below it, epochs' and steps'. What any rule keeps stays;
//! so does the one that was committed last, whatever the rules say. Each index goes first, only as long as it is the one
//! that was judged; files go after, and only those that no index names by then.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, ObjectInfo};
use serde::Serialize;

use crate::catalogue::delete::{NamedBy, delete_as_listed, delete_objects};
use crate::catalogue::folder_mark;
use crate::catalogue::list::{Checkpoint, Checkpoints};
use crate::catalogue::named::Indexes;
use crate::catalogue::tombstone;
use crate::error::config;
use crate::layout::Layout;
use crate::storage::Storage;

/// Deletions of indexes under way at once.
const CONCURRENT_DELETES: usize = 16;

/// What to keep.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct KeepRules {
    /// The newest so many, by step.
    pub last: Option<usize>,
    /// Every step that this divides.
    pub every: Option<u64>,
    /// The best by metrics that were noted.
    pub best: Vec<Best>,
    /// What is younger than this.
    pub younger: Option<Duration>,
    /// Names of folders, such as `step-700`.
    pub names: Vec<String>,
}

/// The best by a metric that was noted with each save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    /// Its name.
    pub metric: String,
    /// The largest are the best, rather than the smallest.
    pub largest: bool,
    /// How many.
    pub count: usize,
}

/// What the rules say of the checkpoints of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Choice {
    /// What stays.
    pub keep: Vec<Kept>,
    /// What goes.
    pub delete: Vec<Checkpoint>,
    #[serde(skip)]
    layout: Layout,
    /// The indexes of all that stays, as they were listed.
    #[serde(skip)]
    known: Vec<ObjectInfo>,
}

/// A checkpoint that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Why: `newest`, `last 3`, `every 1000`, `best loss`, `younger`, `named`, or `not of this path` for one further below.
    pub why: Vec<String>,
}

/// How the deletion went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Deleted {
    /// Checkpoints that are gone, as URIs or local paths.
    pub deleted: Vec<String>,
    /// Those that stay because their index was replaced meanwhile.
    pub replaced: Vec<String>,
    /// Files that are gone.
    pub files: u64,
    /// Files that stay because an index names them.
    pub named: u64,
    /// Files that could not be deleted, and why.
    pub failed: Vec<String>,
}

/// Judges the checkpoints of a path by the rules.
///
/// # Errors
/// `Config` for no rule, a rule that cannot be, or a metric that no checkpoint has; `Corrupt` where an index cannot be read,
/// because it may name any file.
pub fn choose(found: Checkpoints, rules: &KeepRules) -> Result<Choice, Error> {
    check(rules)?;
    if let Some(checkpoint) = found.checkpoints.iter().find(|checkpoint| checkpoint.fault.is_some()) {
        let (uri, fault) = (&checkpoint.uri, checkpoint.fault.as_deref().unwrap_or_default());
        let message = format!("{uri}: {fault}; while an index cannot be read, nothing is deleted");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let Checkpoints { checkpoints, layout, followers, asked, .. } = found;
    let mut why: Vec<Vec<String>> = vec![Vec::new(); checkpoints.len()];
    let is_own = |checkpoint: &Checkpoint| {
        checkpoint.folder == layout || checkpoint.folder.above().as_ref() == Some(&layout)
    };
    // By step, the largest first; those without one by their time.
    let mut judged: Vec<usize> = (0..checkpoints.len())
        .filter(|&number| is_own(&checkpoints[number]) && checkpoints[number].complete)
        .collect();
    judged.sort_by_key(|&number| {
        let checkpoint = &checkpoints[number];
        std::cmp::Reverse((checkpoint.step, checkpoint.modified))
    });
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let follows = followers.iter().any(|follower| follower.of == checkpoint.folder);
        if !is_own(checkpoint) {
            why[number].push("not of this path".to_owned());
        } else if checkpoint.newest || (follows && checkpoint.complete) {
            why[number].push("newest".to_owned());
        }
        if rules.names.iter().any(|name| checkpoint.folder.name() == Some(name)) {
            why[number].push("named".to_owned());
        }
    }
    if let Some(&newest) =
        judged.iter().max_by_key(|&&number| (checkpoints[number].modified, checkpoints[number].step))
        && !why[newest].iter().any(|why| why == "newest")
    {
        why[newest].push("newest".to_owned());
    }
    for name in &rules.names {
        if !checkpoints.iter().any(|checkpoint| checkpoint.folder.name() == Some(name)) {
            return Err(config(format!("name {name:?}: no checkpoint is in a folder of this name")));
        }
    }
    if let Some(last) = rules.last {
        for &number in judged.iter().take(last) {
            why[number].push(format!("last {last}"));
        }
    }
    for &number in &judged {
        let checkpoint = &checkpoints[number];
        if let (Some(every), Some(step)) = (rules.every, checkpoint.step)
            && step.unsigned_abs() % every == 0
        {
            why[number].push(format!("every {every}"));
        }
        if let Some(limit) = rules.younger
            && checkpoint.age(asked).is_none_or(|age| age < limit)
        {
            why[number].push("younger".to_owned());
        }
    }
    for best in &rules.best {
        for number in the_best(best, &judged, &checkpoints)? {
            why[number].push(format!("best {}", best.metric));
        }
    }
    let mut choice = Choice { keep: Vec::new(), delete: Vec::new(), layout, known: Vec::new() };
    choice.known.extend(followers.into_iter().map(|follower| follower.index));
    for (checkpoint, why) in checkpoints.into_iter().zip(why) {
        if why.is_empty() {
            choice.delete.push(checkpoint);
        } else {
            choice.known.extend(checkpoint.indexes.iter().cloned());
            choice.keep.push(Kept { checkpoint, why });
        }
    }
    Ok(choice)
}

fn check(rules: &KeepRules) -> Result<(), Error> {
    let KeepRules { last, every, best, younger, names } = rules;
    if last.is_none() && every.is_none() && best.is_empty() && younger.is_none() && names.is_empty() {
        return Err(config("no rule says what to keep: last, every, best, younger or a name"));
    }
    if *last == Some(0) || *every == Some(0) || best.iter().any(|best| best.count == 0) {
        return Err(config("last, every and best must be at least 1"));
    }
    Ok(())
}

fn the_best(best: &Best, judged: &[usize], checkpoints: &[Checkpoint]) -> Result<Vec<usize>, Error> {
    let metric = &best.metric;
    let value = |number: usize| checkpoints[number].notes.metric(metric);
    let mut valued: Vec<(f64, usize)> =
        judged.iter().filter_map(|&number| Some((value(number)?, number))).collect();
    if valued.is_empty() {
        return Err(config(format!("best {metric:?}: no complete checkpoint has a metric of this name")));
    }
    // Of equals the newest, which stand first.
    valued.sort_by(|one, other| {
        let order = one.0.total_cmp(&other.0);
        if best.largest { order.reverse() } else { order }
    });
    Ok(valued.into_iter().take(best.count).map(|(_, number)| number).collect())
}

impl Choice {
    /// Deletes what goes: every index that is still the one that was judged, then its files that no index names, then what
    /// else was in its folder.
    ///
    /// # Errors
    /// Those of the requests, and of an index that cannot be read: then no more is deleted. Called again with a new choice, it
    /// goes on; what is left of checkpoints whose indexes are gone already is found by a prune, by name or by a tombstone.
    pub async fn delete(&self, storage: &Storage) -> Result<Deleted, Error> {
        let mut deleted = Deleted::default();
        if self.delete.is_empty() {
            return Ok(deleted);
        }
        let mut gone: Vec<&Checkpoint> = Vec::new();
        let mut tombstones: Vec<String> = Vec::new();
        let mut deletions = stream::iter(0..self.delete.len())
            .map(|number| async move {
                let checkpoint = &self.delete[number];
                (checkpoint, delete_indexes(storage, checkpoint).await)
            })
            .buffered(CONCURRENT_DELETES);
        while let Some((checkpoint, deletion)) = deletions.next().await {
            let (all, tombstone) = deletion?;
            tombstones.extend(tombstone);
            if all {
                deleted.deleted.push(checkpoint.uri.clone());
                gone.push(checkpoint);
            } else {
                deleted.replaced.push(checkpoint.uri.clone());
            }
        }
        drop(deletions);

        let files: BTreeSet<String> =
            gone.iter().flat_map(|checkpoint| checkpoint.named.iter().cloned()).collect();
        let within = [Some(self.layout.clone()), self.layout.above()];
        let within = within
            .into_iter()
            .flatten()
            .find(|layout| files.iter().all(|key| key.starts_with(layout.folder())));
        let mut unnamed = files;
        for kept in &self.keep {
            let before = unnamed.len();
            unnamed.retain(|key| !kept.checkpoint.named.contains(key));
            deleted.named += (before - unnamed.len()) as u64;
        }
        let mut known = Indexes::known(self.known.iter().cloned());
        let layout = within.unwrap_or_else(|| Layout::new(""));
        let deletion = delete_objects(storage, &layout, unnamed, NamedBy::Any(&mut known)).await;
        if let Some(stopped) = deletion.stopped {
            return Err(stopped.error);
        }
        deleted.files += deletion.deleted.len() as u64;
        deleted.named += deletion.named.len() as u64;
        deleted.failed =
            deletion.failed.into_iter().map(|failure| storage.refusal(failure).to_string()).collect();
        for checkpoint in gone {
            for object in &checkpoint.beside {
                deleted.files += u64::from(delete_as_listed(storage, object).await?);
            }
            if checkpoint.has_mark {
                folder_mark::clear(storage, &checkpoint.folder).await?;
            }
        }
        if deleted.failed.is_empty() {
            delete_objects(storage, &layout, tombstones, NamedBy::Nothing).await;
        }
        Ok(deleted)
    }
}

/// Deletes the indexes of a checkpoint, as they were listed; whether all are gone, and the tombstone that was put before.
async fn delete_indexes(storage: &Storage, checkpoint: &Checkpoint) -> Result<(bool, Option<String>), Error> {
    let Checkpoint { folder, indexes, named, beside, .. } = checkpoint;
    let listed = indexes.iter().map(|index| (&index.key[..], index.etag.as_deref()));
    let files = named.iter().chain(beside.iter().map(|object| &object.key)).map(String::as_str);
    let tombstone = tombstone::put(storage, folder, listed, files).await?;
    for (number, index) in indexes.iter().enumerate() {
        if !delete_as_listed(storage, index).await? {
            // With some of its indexes gone, a prune has to look for what those named.
            return Ok((false, tombstone.filter(|_| number == 0)));
        }
    }
    Ok((true, tombstone))
}
