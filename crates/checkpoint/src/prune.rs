//! Finds what killed and failed saves left below a path, and deletes it: multipart uploads under way, shard files that
//! no index names, and the objects with which servers are asked about conditional writes.
//!
//! Only names that this project gives are looked at, whatever prefix strategy, epoch or checkpoint below the path they
//! belong to. What is younger than a limit may belong to a save under way and stays. Ages are differences of the
//! service's own times: those of the objects and of its answer. An object is as old as its write (a multipart one, on
//! AWS, as the beginning of its upload), an upload under way as its latest part.
//!
//! Indexes are read after the shard files were listed, and those that are new or other since, before every round of
//! deletions: every index below the path, and of the folders above it and their epochs, because the path may be a prefix
//! within a checkpoint. One that cannot be read ends it. So a file is lost to an index only if that index was committed
//! within one round and by a save that took longer than the limit: S3 has no way to exclude that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Client, Error, ErrorKind, MultipartUpload, ObjectInfo};

use crate::keys::{is_index, is_probe, is_shard_file, join, parent};
use crate::observe::{epoch_folders, read_named};

/// Requests under way at once.
const CONCURRENT_REQUESTS: usize = 16;
/// Indexes in memory at once; that of a large job has some 100 MB.
const CONCURRENT_INDEXES: usize = 4;
/// Shard files of a round: what one request deletes, or more where there are many, as listing takes its time then.
const ROUND: usize = 1000;
const ROUNDS: usize = 10;

/// What a leftover is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
}

/// Something that a save left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Its key.
    pub key: String,
    /// Bytes that it takes up.
    pub bytes: u64,
    /// Time since it was last written to, by the service's clock.
    pub age: Duration,
}

/// What was found below a path.
#[derive(Debug)]
pub struct Leftovers {
    bucket: String,
    path_key: String,
    /// What is as old as the limit or older, by kind and key.
    pub old: Vec<Leftover>,
    /// How many more are younger, and stay.
    pub younger: usize,
    /// Why unfinished uploads are not among them, where the service cannot list those, or their parts.
    pub uploads_unlisted: Option<Error>,
    indexes: Indexes,
}

/// How a deletion went.
#[derive(Debug, Default)]
pub struct Pruned {
    /// What is gone.
    pub deleted: Vec<Leftover>,
    /// Shard files that stay because an index names them by now.
    pub named: Vec<Leftover>,
    /// What could not be deleted, and why.
    pub failed: Vec<(Leftover, String)>,
    /// Why the rest was not tried.
    pub stopped: Option<Error>,
}

/// Looks below the path `path_key` (empty for the whole bucket) for what is at least `older_than` old.
///
/// # Errors
/// Of an index that cannot be read, which may name any shard file: its own kind, with its key. `Service` when the service
/// does not tell its time. Else those of the requests.
pub async fn find_leftovers(
    client: &Client,
    bucket: &str,
    path_key: &str,
    older_than: Duration,
) -> Result<Leftovers, Error> {
    let prefix = join(path_key, "");
    let listing = client.list_objects(bucket, &prefix, None).await?;
    let mut uploads_unlisted = None;
    let uploads = match client.list_multipart_uploads(bucket, &prefix).await {
        Err(error) if error.not_understood() => {
            uploads_unlisted = Some(error);
            Vec::new()
        }
        uploads => uploads?,
    };
    let now = listing.service_time.ok_or_else(|| {
        let message = "ListObjectsV2: the service's answer has no date, so that nothing has an age";
        Error::new(ErrorKind::Service, message).with_bucket(bucket)
    })?;
    let age = |time: Option<SystemTime>| {
        time.and_then(|time| now.duration_since(time).ok()).unwrap_or(Duration::ZERO)
    };
    let mut indexes = Indexes::default();
    let mut shard_files: BTreeSet<String> =
        of_name(&listing.objects, is_shard_file).map(|object| object.key.clone()).collect();
    indexes.spare_named(client, bucket, path_key, &listing.objects, &mut shard_files).await?;
    let leftover = |kind: LeftoverKind, object: &ObjectInfo| Leftover {
        kind,
        key: object.key.clone(),
        bytes: object.size,
        age: age(object.last_modified),
    };
    let mut found: Vec<Leftover> = of_name(&listing.objects, is_shard_file)
        .filter(|object| shard_files.contains(&object.key))
        .map(|object| leftover(LeftoverKind::ShardFile, object))
        .collect();
    found.extend(of_name(&listing.objects, is_probe).map(|object| leftover(LeftoverKind::Probe, object)));
    let mut uploads = stream::iter(uploads.into_iter().filter(|upload| is_shard_file(name_of(&upload.key))))
        .map(|upload| measure(client, bucket, upload, &age))
        .buffered(CONCURRENT_REQUESTS);
    while let Some(upload) = uploads.next().await {
        match upload {
            // Without its parts it has no age.
            Err(error) if error.not_understood() => uploads_unlisted = Some(error),
            upload => found.extend(upload?),
        }
    }
    drop(uploads);
    let all = found.len();
    found.retain(|leftover| leftover.age >= older_than);
    let younger = all - found.len();
    found.sort_by(|one, other| (&one.kind, &one.key).cmp(&(&other.kind, &other.key)));
    Ok(Leftovers {
        bucket: bucket.to_owned(),
        path_key: path_key.to_owned(),
        old: found,
        younger,
        uploads_unlisted,
        indexes,
    })
}

/// An upload with the size and age of its parts; `None` when it has ended meanwhile.
async fn measure(
    client: &Client,
    bucket: &str,
    upload: MultipartUpload,
    age: &impl Fn(Option<SystemTime>) -> Duration,
) -> Result<Option<Leftover>, Error> {
    let parts = match client.list_parts(bucket, &upload.key, &upload.upload_id).await {
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
    /// Deletes what is old: first what no index can name, then the shard files, in rounds before each of which the
    /// indexes are looked at again.
    pub async fn delete(mut self, client: &Client) -> Pruned {
        let mut pruned = Pruned::default();
        let (shard_files, others): (Vec<_>, Vec<_>) =
            self.old.drain(..).partition(|leftover| leftover.kind == LeftoverKind::ShardFile);
        let (probes, uploads): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|leftover| leftover.kind == LeftoverKind::Probe);
        self.abort(client, uploads, &mut pruned).await;
        pruned.stopped = self.delete_objects(client, probes, &mut pruned).await.err();
        let round = ROUND.max(shard_files.len().div_ceil(ROUNDS));
        let mut shard_files = shard_files.into_iter().peekable();
        while pruned.stopped.is_none() && shard_files.peek().is_some() {
            let files = shard_files.by_ref().take(round).collect();
            pruned.stopped = self.delete_unnamed(client, files, &mut pruned).await.err();
        }
        pruned
    }

    async fn abort(&self, client: &Client, uploads: Vec<Leftover>, pruned: &mut Pruned) {
        let mut aborted = stream::iter(uploads)
            .map(|upload| async {
                let LeftoverKind::Upload { id } = &upload.kind else { return (upload, Ok(())) };
                let aborted = client.abort_multipart_upload(&self.bucket, &upload.key, id).await;
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

    /// One round.
    async fn delete_unnamed(
        &mut self,
        client: &Client,
        files: Vec<Leftover>,
        pruned: &mut Pruned,
    ) -> Result<(), Error> {
        let prefix = join(&self.path_key, "");
        let listing = client.list_objects(&self.bucket, &prefix, None).await?;
        let mut unnamed = files.iter().map(|file| file.key.clone()).collect();
        let (bucket, path_key) = (&self.bucket, &self.path_key);
        self.indexes.spare_named(client, bucket, path_key, &listing.objects, &mut unnamed).await?;
        let (files, named) = files.into_iter().partition(|file| unnamed.contains(&file.key));
        pruned.named.extend::<Vec<_>>(named);
        self.delete_objects(client, files, pruned).await
    }

    async fn delete_objects(
        &self,
        client: &Client,
        objects: Vec<Leftover>,
        pruned: &mut Pruned,
    ) -> Result<(), Error> {
        if objects.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
        let failures = client.delete_objects(&self.bucket, &keys).await?;
        let mut reasons: BTreeMap<String, String> = failures
            .into_iter()
            .map(|failure| (failure.key, format!("{} {}", failure.code, failure.message)))
            .collect();
        for object in objects {
            match reasons.remove(&object.key) {
                None => pruned.deleted.push(object),
                Some(reason) => pruned.failed.push((object, reason)),
            }
        }
        Ok(())
    }
}

/// The indexes read so far, each with the ETag that it had in a listing.
#[derive(Debug, Default)]
struct Indexes {
    read: BTreeMap<String, String>,
}

impl Indexes {
    /// Takes out of `keys` what an index names, of those in `listed` and above the path; one that was read before and is
    /// still the same is not read again. What an earlier call took out must not be in `keys`.
    async fn spare_named(
        &mut self,
        client: &Client,
        bucket: &str,
        path_key: &str,
        listed: &[ObjectInfo],
        keys: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut indexes = above(client, bucket, path_key).await.map_err(unreadable)?;
        indexes.extend(of_name(listed, is_index).cloned());
        indexes.retain(|index| index.etag.is_none() || self.read.get(&index.key) != index.etag.as_ref());
        let mut reads = stream::iter(indexes)
            .map(|index| async { (read_named(client, bucket, &index.key).await, index) })
            .buffered(CONCURRENT_INDEXES);
        while let Some((named, index)) = reads.next().await {
            if let Some(named) = named.map_err(unreadable)? {
                keys.retain(|key| !named.contains(key));
            }
            self.read.insert(index.key, index.etag.unwrap_or_default());
        }
        Ok(())
    }
}

fn unreadable(error: Error) -> Error {
    let message =
        format!("an index that may name shard files cannot be read, so none is deleted: {}", error.message());
    error.with_message(message)
}

/// The indexes of the folders above a path and of their epochs, which may name files below it.
async fn above(client: &Client, bucket: &str, path_key: &str) -> Result<Vec<ObjectInfo>, Error> {
    let mut found = Vec::new();
    let path = join(path_key, "");
    let mut folder = path.as_str();
    while let Some(above) = parent(folder) {
        folder = above;
        let mut folders = epoch_folders(client, bucket, folder).await?;
        folders.push(folder.to_owned());
        let mut listings = stream::iter(folders)
            .map(|folder| indexes_in(client, bucket, folder))
            .buffered(CONCURRENT_REQUESTS);
        while let Some(indexes) = listings.next().await {
            found.extend(indexes?);
        }
    }
    Ok(found)
}

/// The indexes directly in a folder.
async fn indexes_in(client: &Client, bucket: &str, folder: String) -> Result<Vec<ObjectInfo>, Error> {
    let mut found = Vec::new();
    for prefix in [".metadata", "__"] {
        let listing = client.list_objects(bucket, &join(&folder, prefix), Some("/")).await?;
        found.extend(listing.objects.into_iter().filter(|object| is_index(name_of(&object.key))));
    }
    Ok(found)
}

/// The objects with such a name.
fn of_name(objects: &[ObjectInfo], matches: impl Fn(&str) -> bool) -> impl Iterator<Item = &ObjectInfo> {
    objects.iter().filter(move |object| matches(name_of(&object.key)))
}

fn name_of(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, name)| name)
}
