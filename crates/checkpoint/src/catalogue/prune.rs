//! Finds what killed and failed saves and deletions left below a path, and deletes it: multipart uploads under way, shard files
//! that no index names, the objects with which servers are asked about conditional writes, and intents that no longer count.
//!
//! Only names that this project gives are looked at, whatever prefix strategy, epoch or checkpoint below the path they
//! belong to, and what a deletion that was cut off has noted in its [tombstone](crate::catalogue::tombstone). Nothing tells who
//! began an upload under another name: it is told of, and deleted where the caller wants it. What is younger
//! than a limit may belong to a save under way and stays. Ages are differences of the service's own times: those of the
//! objects and of its answer. An object is as old as its write (a multipart one, on AWS, as the beginning of its upload), an
//! upload under way as its latest part.
//!
//! Indexes are read after the shard files were listed, and those that are new or other since, before every round of
//! deletions: every index below the path, and of the folders above it and their epochs and steps, because the path may be a
//! prefix within a checkpoint. One that cannot be read ends it. So a file is lost to an index only if that index was committed
//! within one round and by a save that took longer than the limit: S3 has no way to exclude that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, MultipartUpload, ObjectInfo};
use serde::{Serialize, Serializer};

use crate::catalogue::delete::{Deletion, NamedBy, delete_as_listed, delete_objects};
use crate::catalogue::named::Indexes;
use crate::catalogue::tombstone;
use crate::layout::{Layout, Name};
use crate::save::intent;
use crate::storage::Storage;

/// Requests under way at once.
const CONCURRENT_REQUESTS: usize = 16;
/// Shard files of a round: what one request deletes, or more where there are many, as listing takes its time then.
const ROUND: usize = 1000;
const ROUNDS: usize = 10;

/// What a leftover is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// A multipart upload that was neither completed nor aborted.
    Upload {
        /// Its id.
        id: String,
    },
    /// A shard file that no index names.
    ShardFile,
    /// An object that asked a server about conditional writes.
    Probe,
    /// What else lay in the folder of a checkpoint whose deletion was cut off.
    File,
    /// What such a deletion had noted.
    Tombstone,
    /// What a save said before it relied on files of earlier ones: one of 24 hours or more, whatever the limit.
    Intent,
}

/// Something that a save left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Its key.
    pub key: String,
    /// Bytes that it takes up.
    pub bytes: u64,
    /// Time since it was last written to, by the service's clock; as a record, in seconds.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Duration,
}

/// What was found below a path.
#[derive(Debug)]
pub struct Leftovers {
    layout: Layout,
    /// What is as old as the limit or older, by kind and key.
    pub old: Vec<Leftover>,
    /// How many more are younger, and stay. What a tombstone names is as old as that.
    pub younger: usize,
    /// Multipart uploads as old under names that this project does not give to files of saves. They may be what a copy, an export
    /// or a stream of its own left, or another program's, and stay; see [`Leftovers::take_other_uploads`].
    pub other_uploads: Vec<Leftover>,
    /// Why unfinished uploads, or some, are not among them: the service cannot list those or their parts, or denies the parts of one
    /// under another name.
    pub uploads_unlisted: Option<Error>,
    indexes: Indexes,
    tombstones: Vec<tombstone::Found>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs())
}

fn reason<S: Serializer>(error: &Option<Error>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(Error::to_string).serialize(serializer)
}

/// How a deletion went.
#[derive(Debug, Default, Serialize)]
pub struct Pruned {
    /// What is gone.
    pub deleted: Vec<Leftover>,
    /// Files that stay because an index names them by now, or their folder has one again.
    pub named: Vec<Leftover>,
    /// What could not be deleted, and why.
    pub failed: Vec<(Leftover, String)>,
    /// Why the rest was not tried.
    #[serde(serialize_with = "reason")]
    pub stopped: Option<Error>,
}

/// Looks below the path `path_key` (empty for the whole bucket) for what is at least `older_than` old.
///
/// # Errors
/// Of an index that cannot be read, which may name any shard file: its own kind, with its key. `Service` when the service
/// does not tell its time. Else those of the requests.
pub async fn find_leftovers(
    storage: &Storage,
    path_key: &str,
    older_than: Duration,
) -> Result<Leftovers, Error> {
    let layout = Layout::new(path_key);
    let listing = storage.list(layout.folder(), None).await?;
    let mut uploads_unlisted = None;
    let uploads = match storage.list_multipart_uploads(layout.folder()).await {
        Err(error) if error.not_understood() => {
            uploads_unlisted = Some(error);
            Vec::new()
        }
        uploads => uploads?,
    };
    let now = listing.service_time.ok_or_else(|| {
        let message = "ListObjectsV2: the service's answer has no date, so that nothing has an age";
        storage.at(layout.folder(), Error::new(ErrorKind::Service, message))
    })?;
    let age = |time: Option<SystemTime>| {
        time.and_then(|time| now.duration_since(time).ok()).unwrap_or(Duration::ZERO)
    };
    let mut indexes = Indexes::default();
    let objects = &listing.objects;
    let is_tombstone = |object: &&ObjectInfo| Name::of(&object.key) == Name::Tombstone;
    let mut tombstones: Vec<ObjectInfo> = objects.iter().filter(is_tombstone).cloned().collect();
    let all_tombstones = tombstones.len();
    tombstones.retain(|tombstone| age(tombstone.last_modified) >= older_than);
    let tombstones = read_tombstones(storage, tombstones, objects).await?;
    let own = objects.iter().filter(|object| Name::of(&object.key).is_own_shard_file());
    let unindexed: Vec<&ObjectInfo> =
        own.chain(tombstones.iter().flat_map(|found| &found.shard_files)).collect();
    let mut shard_files: BTreeSet<String> = unindexed.iter().map(|object| object.key.clone()).collect();
    indexes.spare_of_listed(storage, &layout, &listing, &mut shard_files).await?;
    let leftover = |kind: LeftoverKind, object: &ObjectInfo| Leftover {
        kind,
        key: object.key.clone(),
        bytes: object.size,
        age: age(object.last_modified),
    };
    let mut found: Vec<Leftover> = unindexed
        .into_iter()
        .filter(|object| shard_files.remove(&object.key))
        .map(|object| leftover(LeftoverKind::ShardFile, object))
        .collect();
    let probes = objects.iter().filter(|object| Name::of(&object.key) == Name::Probe);
    found.extend(probes.map(|object| leftover(LeftoverKind::Probe, object)));
    for tombstone::Found { others, tombstone, .. } in &tombstones {
        found.extend(others.iter().map(|object| leftover(LeftoverKind::File, object)));
        found.push(leftover(LeftoverKind::Tombstone, tombstone));
    }
    let intents = objects.iter().filter(|object| Name::of(&object.key) == Name::Intent);
    found.extend(intents.map(|object| leftover(LeftoverKind::Intent, object)));
    // An upload is no older than its beginning.
    let may_count = |upload: &MultipartUpload, is_own: bool| is_own || age(upload.initiated) >= older_than;
    let uploads = uploads.into_iter().map(|upload| (storage.is_own_upload(&upload), upload));
    let mut uploads = stream::iter(uploads.filter(|(is_own, upload)| may_count(upload, *is_own)))
        .map(async |(is_own, upload)| (is_own, measure(storage, upload, &age).await))
        .buffered(CONCURRENT_REQUESTS);
    let mut other_uploads = Vec::new();
    while let Some((is_own, upload)) = uploads.next().await {
        match upload {
            // Without its parts it has no age. Others' may be denied to who prunes.
            Err(error) if error.not_understood() || (!is_own && error.kind() == ErrorKind::Denied) => {
                uploads_unlisted = Some(error);
            }
            upload if is_own => found.extend(upload?),
            upload => other_uploads.extend(upload?),
        }
    }
    drop(uploads);
    other_uploads.retain(|upload| upload.age >= older_than);
    by_kind_and_key(&mut found);
    // Two tombstones may name one file.
    found.dedup();
    let all = found.len();
    found.retain(|leftover| {
        let counts = leftover.kind == LeftoverKind::Intent && leftover.age < intent::COUNTS_FOR;
        leftover.age >= older_than && !counts
    });
    let younger = all - found.len() + all_tombstones - tombstones.len();
    Ok(Leftovers { layout, old: found, younger, other_uploads, uploads_unlisted, indexes, tombstones })
}

fn by_kind_and_key(leftovers: &mut [Leftover]) {
    leftovers.sort_by(|one, other| (&one.kind, &one.key).cmp(&(&other.kind, &other.key)));
}

async fn read_tombstones(
    storage: &Storage,
    tombstones: Vec<ObjectInfo>,
    listed: &[ObjectInfo],
) -> Result<Vec<tombstone::Found>, Error> {
    let by_key: BTreeMap<&str, &ObjectInfo> = listed.iter().map(|object| (&object.key[..], object)).collect();
    let mut reads = stream::iter(tombstones)
        .map(|tombstone| tombstone::read(storage, tombstone, &by_key))
        .buffered(CONCURRENT_REQUESTS);
    let mut found = Vec::new();
    while let Some(read) = reads.next().await {
        found.extend(read?);
    }
    Ok(found)
}

/// An upload with the size and age of its parts; `None` when it has ended meanwhile.
async fn measure(
    storage: &Storage,
    upload: MultipartUpload,
    age: &impl Fn(Option<SystemTime>) -> Duration,
) -> Result<Option<Leftover>, Error> {
    let parts = match storage.list_parts(&upload).await {
        Err(error) if error.code() == Some("NoSuchUpload") => return Ok(None),
        parts => parts?,
    };
    let youngest = parts.iter().map(|part| age(part.last_modified)).min();
    Ok(Some(Leftover {
        bytes: parts.iter().map(|part| part.size).sum(),
        age: age(upload.initiated).min(youngest.unwrap_or(Duration::MAX)),
        key: upload.key,
        kind: LeftoverKind::Upload { id: upload.upload_id },
    }))
}

impl Leftovers {
    /// Counts uploads under other names as leftovers too.
    pub fn take_other_uploads(&mut self) {
        self.old.append(&mut self.other_uploads);
        by_kind_and_key(&mut self.old);
    }

    /// Deletes what is old: first what no index can name, then the shard files, in rounds before each of which the
    /// indexes are looked at again.
    pub async fn delete(mut self, storage: &Storage) -> Pruned {
        let mut pruned = Pruned::default();
        let (mut uploads, mut shard_files, mut unnamable) = (Vec::new(), Vec::new(), Vec::new());
        let (mut others, mut tombstones) = (Vec::new(), Vec::new());
        for leftover in self.old.drain(..) {
            match leftover.kind {
                LeftoverKind::Upload { .. } => uploads.push(leftover),
                LeftoverKind::ShardFile => shard_files.push(leftover),
                LeftoverKind::Probe | LeftoverKind::Intent => unnamable.push(leftover),
                LeftoverKind::File => others.push(leftover),
                LeftoverKind::Tombstone => tombstones.push(leftover),
            }
        }
        abort(storage, uploads, &mut pruned).await;
        let layout = &self.layout;
        let of = |leftovers: &[Leftover]| leftovers.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        let deletion = delete_objects(storage, layout, of(&unnamable), NamedBy::Nothing).await;
        pruned.note(unnamable, deletion);
        let round = ROUND.max(shard_files.len().div_ceil(ROUNDS));
        let mut shard_files = shard_files.into_iter().peekable();
        while pruned.stopped.is_none() && shard_files.peek().is_some() {
            let files: Vec<Leftover> = shard_files.by_ref().take(round).collect();
            let named_by = NamedBy::Any(&mut self.indexes);
            let deletion = delete_objects(storage, layout, of(&files), named_by).await;
            pruned.note(files, deletion);
        }
        if pruned.stopped.is_none() {
            delete_others(storage, &self.tombstones, others, &mut pruned).await;
        }
        // A tombstone stays as long as something that it may name does.
        if pruned.stopped.is_none() && pruned.failed.is_empty() {
            let deletion = delete_objects(storage, layout, of(&tombstones), NamedBy::Nothing).await;
            pruned.note(tombstones, deletion);
        }
        pruned
    }
}

/// Deletes what else lay in folders of checkpoints, as it was listed, unless there is a checkpoint again.
async fn delete_others(
    storage: &Storage,
    tombstones: &[tombstone::Found],
    leftovers: Vec<Leftover>,
    pruned: &mut Pruned,
) {
    let mut leftovers: BTreeMap<String, Leftover> =
        leftovers.into_iter().map(|leftover| (leftover.key.clone(), leftover)).collect();
    for found in tombstones.iter().filter(|found| !found.others.is_empty()) {
        let absent = found.has_no_index(storage).await;
        for object in &found.others {
            let Some(leftover) = leftovers.remove(&object.key) else { continue };
            let deletion = match &absent {
                Ok(true) => delete_as_listed(storage, object).await,
                Ok(false) => Ok(false),
                Err(error) => Err(error.clone()),
            };
            match deletion {
                Ok(true) => pruned.deleted.push(leftover),
                Ok(false) => pruned.named.push(leftover),
                Err(error) => pruned.failed.push((leftover, error.to_string())),
            }
        }
    }
}

async fn abort(storage: &Storage, uploads: Vec<Leftover>, pruned: &mut Pruned) {
    let mut aborted = stream::iter(uploads)
        .map(|upload| async {
            let LeftoverKind::Upload { id } = &upload.kind else { return (upload, Ok(())) };
            let aborted = storage.abort_multipart_upload(&upload.key, id).await;
            (upload, aborted)
        })
        .buffered(CONCURRENT_REQUESTS);
    while let Some((upload, aborted)) = aborted.next().await {
        match aborted {
            Ok(()) => pruned.deleted.push(upload),
            Err(error) => pruned.failed.push((upload, error.to_string())),
        }
    }
}

impl Pruned {
    /// Notes how the deletion of these went.
    fn note(&mut self, leftovers: Vec<Leftover>, deletion: Deletion) {
        let Deletion { named, failed, stopped, .. } = deletion;
        let mut reasons: BTreeMap<String, String> = failed
            .into_iter()
            .map(|failure| (failure.key, format!("{} {}", failure.code, failure.message)))
            .collect();
        for leftover in leftovers {
            if named.contains(&leftover.key) {
                self.named.push(leftover);
            } else if let Some(reason) = reasons.remove(&leftover.key) {
                self.failed.push((leftover, reason));
            } else if stopped.is_none() {
                self.deleted.push(leftover);
            }
        }
        self.stopped = stopped.map(|stopped| stopped.error);
    }
}
