//! Copies a checkpoint: its shard files, or the selected items of them, and its index last.
//!
//! What a copy makes lies below its destination, under the names of this project where the source has those. A copy that was
//! stopped leaves no index: the next one goes on where it ended, and a prune finds what it left.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use s3dcp_s3::{Error, ErrorKind, ObjectInfo};
use serde::Serialize;

use crate::catalogue::nearby::nearby_checkpoints;
use crate::error::{config, corrupt};
use crate::index::allow::AllowList;
use crate::index::facts::IndexFacts;
use crate::index::judge::{check_index, read_facts};
use crate::index::read::get;
use crate::index::rename::rename_files;
use crate::layout::{Layout, Name};
use crate::load::contents::{Contents, read_contents};
use crate::load::source::Entry;
use crate::name_filter::NameFilter;
use crate::save::observe::EXISTS;
use crate::storage::Storage;
use crate::transfer::body::{Body, Content};
use crate::transfer::commit::{delete_unnamed, named_keys, note_replaced, write_last};
use crate::transfer::names::{FileNames, base};
use crate::transfer::subset::{names_by_key, subset};
use crate::transfer::write::{Mover, OnBytes};

/// HEAD requests under way at once.
const CONCURRENT_HEADS: usize = 32;
/// Files that are written at once.
const CONCURRENT_FILES: usize = 8;

/// How a checkpoint is copied.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CopyOptions {
    /// What its files are called.
    pub names: FileNames,
    /// Which of its items are copied.
    pub selection: NameFilter,
    /// Replace a checkpoint that is there.
    pub overwrite: bool,
}

/// A copy that has been made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// The folder of the source's index, as a URI or a local path.
    pub from: String,
    /// The folder of the copy's.
    pub to: String,
    /// Items of the copy: chunks of tensors, and objects.
    pub items: u64,
    /// Files of the copy, its index not counted.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Files that were there before.
    pub skipped_files: u64,
    /// Bytes of those.
    pub skipped_bytes: u64,
    /// Bytes that the service copied by itself.
    pub bytes_by_service: u64,
    /// Bytes of files and indexes that went through this process.
    pub bytes_through_client: u64,
}

/// A copy that is about to be made.
#[derive(Debug)]
pub struct CopyPlan {
    source: Storage,
    target: Storage,
    target_layout: Layout,
    files: Vec<PlannedFile>,
    sources: Vec<ObjectInfo>,
    indexes: Vec<PlannedIndex>,
    result: Copied,
}

#[derive(Debug)]
struct PlannedFile {
    key: String,
    body: Body,
    /// CRC-32 of the source, where it is a whole file whose service keeps one.
    crc32: Option<u32>,
}

#[derive(Debug)]
struct PlannedIndex {
    key: String,
    body: Bytes,
    /// What is there now.
    seen: Option<(Bytes, Option<String>)>,
}

/// An index of a checkpoint.
struct FoundIndex {
    key: String,
    body: Bytes,
    facts: IndexFacts,
}

/// Looks at a checkpoint and at where it is to be copied to. Nothing is written yet.
///
/// Of one service, it is the service that copies. Where another client reaches the destination, of another region or with other
/// credentials, that is tried, and what it refuses goes through this process.
///
/// # Errors
/// `NotFound` where no checkpoint is, or one that lacks a file; `Corrupt` for an index that is damaged or holds what none
/// needs; `AlreadyExists` where the destination has another index that may not be replaced; `Config` for options that do not fit; else
/// those of the requests.
pub async fn plan_copy(
    source: &Storage,
    source_key: &str,
    target: &Storage,
    target_key: &str,
    options: &CopyOptions,
) -> Result<CopyPlan, Error> {
    let (from, to) = (Layout::new(source_key), Layout::new(target_key));
    let same_place = source.is_same_place(target);
    if same_place && from == to {
        return Err(config(format!("{} is to be copied to itself", source.uri(source_key))));
    }
    let found = read_indexes(source, &from).await?;
    let relative: BTreeSet<String> =
        found.iter().flat_map(|index| index.facts.relative_paths.iter().cloned()).collect();
    let names = options.names.map(&relative, &to)?;
    let mut plan = CopyPlan {
        source: source.clone(),
        target: target.clone(),
        target_layout: to.clone(),
        files: Vec::new(),
        sources: Vec::new(),
        indexes: Vec::new(),
        result: Copied {
            from: source.uri(from.folder().trim_end_matches('/')),
            to: target.uri(to.folder().trim_end_matches('/')),
            ..Copied::default()
        },
    };
    let mut files: Vec<(String, Wanted)> = Vec::new();
    if options.selection.is_all() {
        for index in &found {
            let mut body = index.body.clone();
            let own: BTreeMap<String, String> = names
                .iter()
                .filter(|(old, _)| index.facts.relative_paths.contains(*old))
                .map(|(old, new)| (old.clone(), new.clone()))
                .collect();
            if own.iter().any(|(old, new)| old != new) {
                body = rename_files(&index.body, &own).map_err(|error| source.at(&index.key, error))?.into();
            }
            plan.result.items += index.facts.item_count;
            plan.indexes.push(PlannedIndex {
                key: to.folder().to_owned() + base(&index.key),
                body,
                seen: None,
            });
        }
        for (old, new) in &names {
            files.push((to.resolve(new)?, Wanted::Whole(from.resolve(old)?)));
        }
    } else {
        let mut all = Vec::with_capacity(found.len());
        for index in &found {
            let contents = read_contents(&index.body, &from, &AllowList::default_globals());
            all.push(contents.map_err(|error| source.at(&index.key, error))?);
        }
        options.selection.check(all.iter().flat_map(Contents::names))?;
        let names = names_by_key(&names, &from)?;
        for (index, contents) in found.iter().zip(&all) {
            let ranks = index.facts.ranks.unwrap_or(found.len() as u64);
            let is_part = Name::of(&index.key) == Name::RankIndex;
            let subset = subset(&index.body, contents, ranks, is_part, &options.selection, &names)?;
            plan.result.items += read_facts(&subset.index)?.item_count;
            plan.indexes.push(PlannedIndex {
                key: to.folder().to_owned() + base(&index.key),
                body: subset.index,
                seen: None,
            });
            for (new, body) in subset.files {
                files.push((to.resolve(&new)?, Wanted::Items(body)));
            }
        }
    }
    for index in &mut plan.indexes {
        index.seen = get(target, &index.key).await?;
        if index.seen.as_ref().is_some_and(|(there, _)| *there != index.body) && !options.overwrite {
            let message = format!("{EXISTS} at {}; overwrite replaces it", target.uri(&index.key));
            return Err(target.at(&index.key, Error::new(ErrorKind::AlreadyExists, message)));
        }
    }
    plan.look_at(files, same_place).await?;
    Ok(plan)
}

/// Where the bytes of a file come from.
enum Wanted {
    /// From the file of this key.
    Whole(String),
    /// From items of others.
    Items(Body),
}

/// The indexes of a checkpoint, which have been judged: that of all ranks, or those of each.
async fn read_indexes(storage: &Storage, layout: &Layout) -> Result<Vec<FoundIndex>, Error> {
    let key = layout.index_key(None);
    let mut bodies = Vec::new();
    match get(storage, &key).await? {
        Some((body, _)) => bodies.push((key, body)),
        None => {
            let listing = storage.list(&layout.rank_indexes(), Some("/")).await?;
            for object in listing.objects.iter().filter(|object| Name::of(&object.key) == Name::RankIndex) {
                if let Some((body, _)) = get(storage, &object.key).await? {
                    bodies.push((object.key.clone(), body));
                }
            }
        }
    }
    if bodies.is_empty() {
        return Err(no_checkpoint(storage, layout).await);
    }
    let judged = |(key, body): (String, Bytes)| {
        let facts = check_index(&body, &AllowList::default_globals()).and_then(|()| {
            let facts = read_facts(&body)?;
            layout
                .check_shard_files(layout.resolve_all(&facts.relative_paths)?.iter().map(|key| &key[..]))?;
            Ok(facts)
        });
        let facts = facts.map_err(|error| storage.at(&key, error))?;
        Ok(FoundIndex { key, body, facts })
    };
    bodies.into_iter().map(judged).collect()
}

/// The error where no checkpoint is, with those that are near.
pub(crate) async fn no_checkpoint(storage: &Storage, layout: &Layout) -> Error {
    let folder = layout.folder().trim_end_matches('/');
    let nearby = nearby_checkpoints(storage, folder).await.to_string();
    let nearby = if nearby.is_empty() { nearby } else { format!("; {nearby}") };
    let message = format!("there is no checkpoint at {}{nearby}", storage.uri(folder));
    storage.at(&layout.index_key(None), Error::new(ErrorKind::NotFound, message))
}

/// Size, ETag and time of files, in their order, with the CRC-32 of each where a service keeps one; `None` for one that is
/// not there.
pub(crate) async fn look_at_files(
    storage: &Storage,
    keys: impl IntoIterator<Item = String>,
) -> Result<Vec<Option<(ObjectInfo, Option<u32>)>>, Error> {
    let heads = stream::iter(keys).map(|key| async move {
        match storage.head_checksum(&key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    });
    heads.buffered(CONCURRENT_HEADS).try_collect().await
}

/// The same for files that must be there.
pub(crate) async fn look_at_sources(
    storage: &Storage,
    keys: BTreeSet<String>,
) -> Result<Vec<(ObjectInfo, Option<u32>)>, Error> {
    let found = look_at_files(storage, keys.iter().cloned()).await?;
    let missing: Vec<&String> =
        keys.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(key, _)| key).collect();
    if let Some(first) = missing.first() {
        let message = match missing.len() {
            1 => format!("the checkpoint is incomplete: {} is missing", storage.uri(first)),
            count => {
                format!(
                    "the checkpoint is incomplete: {count} files are missing, such as {}",
                    storage.uri(first)
                )
            }
        };
        return Err(storage.at(first, Error::new(ErrorKind::NotFound, message)));
    }
    Ok(found.into_iter().flatten().collect())
}

impl CopyPlan {
    /// Bytes that are to be moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.body.length()).sum()
    }

    /// Looks at the files on both sides, and leaves out those that are there.
    async fn look_at(&mut self, files: Vec<(String, Wanted)>, same_place: bool) -> Result<(), Error> {
        let mut keys = BTreeSet::new();
        for (_, wanted) in &files {
            match wanted {
                Wanted::Whole(key) => {
                    keys.insert(key.clone());
                }
                Wanted::Items(body) => {
                    keys.extend(body.pieces().iter().filter_map(|piece| match &piece.content {
                        Content::Item { entry, .. } => Some(entry.key.to_string()),
                        _ => None,
                    }));
                }
            }
        }
        let sources = look_at_sources(&self.source, keys).await?;
        let there = look_at_files(&self.target, files.iter().map(|(key, _)| key.clone())).await?;
        let found: BTreeMap<&str, &(ObjectInfo, Option<u32>)> =
            sources.iter().map(|found| (&found.0.key[..], found)).collect();
        for ((key, wanted), there) in files.into_iter().zip(there) {
            let (body, from) = match wanted {
                Wanted::Items(body) => {
                    check_items(&self.source, &body, &found)?;
                    (body, None)
                }
                Wanted::Whole(from) => {
                    let found = found.get(&from[..]).copied();
                    let size = found.map_or(0, |(info, _)| info.size);
                    let mut body = Body::default();
                    let entry = Entry {
                        key: from.into(),
                        offset: 0,
                        length: size,
                        data_offset: None,
                        checksums: None,
                    };
                    body.push(Content::Item { name: entry.key.clone(), entry, head: None, start: 0 }, size);
                    (body, found)
                }
            };
            let length = body.length();
            self.result.files += 1;
            self.result.bytes += length;
            let is_source = same_place && from.is_some_and(|(info, _)| info.key == key);
            let sides = (&self.source, &self.target);
            let is_there = match &there {
                Some(there) => is_source || is_copy(sides, there, length, from).await?,
                None => false,
            };
            if is_there {
                self.result.skipped_files += 1;
                self.result.skipped_bytes += length;
            } else {
                self.files.push(PlannedFile { key, body, crc32: from.and_then(|(_, crc32)| *crc32) });
            }
        }
        self.sources = sources.into_iter().map(|(info, _)| info).collect();
        Ok(())
    }

    /// Copies, the indexes last. `on_bytes` is told of the bytes of files that have reached their place.
    ///
    /// # Errors
    /// The first failure; the files that were complete by then stay, and no index was written. `PreconditionFailed` for a source that changed
    /// meanwhile, `AlreadyExists` for a destination that did.
    pub async fn run(mut self, on_bytes: OnBytes<'_>) -> Result<Copied, Error> {
        let replaced: Vec<(String, Bytes, Option<String>)> = self
            .indexes
            .iter()
            .filter_map(|index| {
                let (there, etag) = index.seen.as_ref().filter(|(there, _)| *there != index.body)?;
                Some((index.key.clone(), there.clone(), etag.clone()))
            })
            .collect();
        let old = replaced.iter().map(|(key, there, etag)| (&key[..], &there[..], etag.as_deref()));
        let tombstone = note_replaced(&self.target, &self.target_layout, old.clone()).await?;
        self.withdraw_index().await?;
        let mover =
            Mover::new(&self.source, &self.target, std::mem::take(&mut self.sources), on_bytes).await?;
        let mut written = pin!(
            stream::iter(&self.files)
                .map(async |file| {
                    let crc32 = mover.write(&file.key, &file.body).await?;
                    if let (Some(written), Some(expected)) = (crc32, file.crc32)
                        && written != expected
                    {
                        self.target.delete_if(&file.key, None).await.ok();
                        return Err(self
                            .target
                            .at(&file.key, corrupt("what was copied has another checksum than its source")));
                    }
                    Ok(())
                })
                .buffer_unordered(CONCURRENT_FILES)
        );
        while let Some(result) = written.next().await {
            result?;
        }
        let mut result = self.result.clone();
        result.bytes_by_service = mover.by_service.load(Ordering::Relaxed);
        result.bytes_through_client = mover.through_client.load(Ordering::Relaxed);
        for index in &self.indexes {
            result.bytes_through_client += index.body.len() as u64;
            let seen = index.seen.as_ref();
            if seen.is_none_or(|(there, _)| *there != index.body) {
                let etag = seen.and_then(|(_, etag)| etag.as_deref());
                write_last(&self.target, &index.key, index.body.clone(), etag).await?;
            }
        }
        let old = old.map(|(_, there, _)| there);
        let new = self.indexes.iter().map(|index| (&index.key[..], &index.body[..]));
        delete_unnamed(&self.target, &self.target_layout, old, new, tombstone).await;
        Ok(result)
    }

    /// Takes away an index that is to be replaced where it names files that are about to change: it would tell of a
    /// checkpoint that is none.
    async fn withdraw_index(&mut self) -> Result<(), Error> {
        let changing: BTreeSet<&str> = self.files.iter().map(|file| &file.key[..]).collect();
        for index in &mut self.indexes {
            let Some((there, etag)) = &index.seen else { continue };
            let named = named_keys(&self.target_layout, there);
            if named.iter().any(|key| changing.contains(&key[..])) {
                self.target.delete_if(&index.key, etag.as_deref()).await?;
                index.seen = None;
            }
        }
        Ok(())
    }
}

/// Sees that the items of a file lie in their files.
fn check_items(
    storage: &Storage,
    body: &Body,
    found: &BTreeMap<&str, &(ObjectInfo, Option<u32>)>,
) -> Result<(), Error> {
    for piece in body.pieces() {
        let Content::Item { name, entry, .. } = &piece.content else { continue };
        let size = found.get(&entry.key[..]).map_or(0, |(info, _)| info.size);
        if entry.offset.checked_add(entry.length).is_none_or(|end| end > size) {
            let Entry { key, offset, length, .. } = entry;
            let message =
                format!("{name}: the index gives this item {length} bytes at {offset} of a file of {size}");
            return Err(storage.at(key, corrupt(message)));
        }
    }
    Ok(())
}

/// Whether a file that is there is what would be written. It has as many bytes and, where both sides keep one, the same CRC-32. A
/// name that other saves give too says nothing of the rest: there files of a disk are read for theirs.
async fn is_copy(
    (source, target): (&Storage, &Storage),
    there: &(ObjectInfo, Option<u32>),
    length: u64,
    from: Option<&(ObjectInfo, Option<u32>)>,
) -> Result<bool, Error> {
    let (info, mut crc32) = (&there.0, there.1);
    if info.size != length {
        return Ok(false);
    }
    let mut expected = from.and_then(|(_, crc32)| *crc32);
    let is_own = Name::of(&info.key).is_own_shard_file();
    if let Some((from, _)) = from.filter(|_| !is_own) {
        crc32 = crc32.or(target.read_checksum(&info.key)?);
        expected = expected.or(source.read_checksum(&from.key)?);
    }
    Ok(match (crc32, expected) {
        (Some(crc32), Some(expected)) => crc32 == expected,
        _ => is_own,
    })
}
