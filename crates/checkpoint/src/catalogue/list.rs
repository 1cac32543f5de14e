//! Which checkpoints lie below a path, and whether each is complete.
//!
//! One listing tells of all objects, and every index is read once. A checkpoint is complete when every file that its index
//! names is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, ObjectInfo};
use serde::{Serialize, Serializer};
use tokio::sync::Semaphore;

use crate::index::facts::IndexFacts;
use crate::index::judge::read_facts;
use crate::index::notes::Notes;
use crate::index::read::MAX_INDEX_BYTES;
use crate::layout::{Layout, Name};
use crate::storage::Storage;

/// Indexes read at once, as long as they are small.
const CONCURRENT_READS: usize = 32;
/// Bytes of indexes in memory at once, in MiB; a larger one is read alone.
const INDEX_MEMORY_MIB: u32 = 128;

/// A checkpoint, as its index tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Where it is: the folder of its index, as a URI or a local path.
    pub uri: String,
    /// Its step or epoch: the epoch in its index, else the step in its notes, else the number in the name of its folder.
    pub step: Option<i64>,
    /// When its index was last written.
    #[serde(serialize_with = "rfc3339")]
    pub modified: Option<SystemTime>,
    /// What was noted with the save.
    pub notes: Notes,
    /// Ranks that saved it; of checkpoints of this project, and of those with an index for each rank.
    pub ranks: Option<u64>,
    /// Items: chunks of tensors, and objects.
    pub items: u64,
    /// Files that its index names.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Bytes of those that other checkpoints name as well.
    pub shared_bytes: u64,
    /// Whether every file is there.
    pub complete: bool,
    /// Whether it is the one that was committed last, of those that are complete.
    pub newest: bool,
    /// Files that its index names and that are not there, as URIs or local paths.
    pub missing: Vec<String>,
    /// Why its index cannot be read.
    pub fault: Option<String>,
    #[serde(skip)]
    pub(crate) folder: Layout,
    /// Its indexes, as they were listed.
    #[serde(skip)]
    pub(crate) indexes: Vec<ObjectInfo>,
    /// The files that its indexes name.
    #[serde(skip)]
    pub(crate) named: BTreeSet<String>,
    /// Everything else in its folder, as it was listed, where the folder is its own.
    #[serde(skip)]
    pub(crate) beside: Vec<ObjectInfo>,
    /// Whether the folder has a mark.
    #[serde(skip)]
    pub(crate) has_mark: bool,
}

/// What lies below a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checkpoints {
    /// The checkpoints, by step and folder. What follows the epoch that was committed last, `<path>/.metadata`, is none of
    /// its own.
    pub checkpoints: Vec<Checkpoint>,
    /// Shard files of this project that no index names: a save under way, or what one left, which `prune` finds.
    pub unnamed_files: u64,
    /// The service's clock when it was asked.
    #[serde(serialize_with = "rfc3339")]
    pub asked: Option<SystemTime>,
    /// The path that was looked below.
    #[serde(skip)]
    pub(crate) layout: Layout,
    /// `<path>/.metadata` of paths with epochs: they repeat the index of the epoch that was committed last.
    #[serde(skip)]
    pub(crate) followers: Vec<Follower>,
}

/// An index that repeats that of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Follower {
    pub(crate) index: ObjectInfo,
    /// The folder of the epoch.
    pub(crate) of: Layout,
}

pub(crate) fn rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&humantime::format_rfc3339_seconds(*time)),
        None => serializer.serialize_none(),
    }
}

impl Checkpoint {
    /// Time since its index was written, by the service's clock; `None` where that is not known.
    #[must_use]
    pub fn age(&self, asked: Option<SystemTime>) -> Option<Duration> {
        asked?.duration_since(self.modified?).ok()
    }
}

/// An index that was read.
struct Read {
    index: ObjectInfo,
    facts: Result<IndexFacts, Error>,
}

/// Lists the checkpoints below the path `path_key` (empty for the whole bucket), the path's own included.
///
/// # Errors
/// Those of the requests. An index that cannot be read is a checkpoint with a fault.
pub async fn list_checkpoints(storage: &Storage, path_key: &str) -> Result<Checkpoints, Error> {
    let layout = Layout::new(path_key);
    let listing = storage.list(layout.folder(), None).await?;
    let (mut indexes, mut others) = (Vec::new(), Vec::new());
    let mut files: HashMap<String, u64> = HashMap::new();
    for object in listing.objects {
        match Name::of(&object.key) {
            name if name.is_index() => indexes.push(object),
            Name::ShardFile { .. } => drop(files.insert(object.key, object.size)),
            Name::Probe | Name::Intent | Name::Tombstone => {}
            _ => others.push(object),
        }
    }
    // An index may call its files anything: those of safetensors have names of their own.
    files.extend(others.iter().map(|object| (object.key.clone(), object.size)));
    let mut reads = read_all(storage, indexes).await?;
    if let Some(above) = layout.above().filter(|_| names_outside(&reads, &layout)) {
        let listed = storage.list(above.folder(), None).await?;
        files.extend(listed.objects.into_iter().map(|object| (object.key, object.size)));
    }
    let followers = take_followers(&mut reads);
    let mut checkpoints: Vec<Checkpoint> = by_folder(reads)
        .into_iter()
        .map(|(folder, reads)| checkpoint(storage, folder, reads, &files))
        .collect();
    // How many checkpoints name each file.
    let mut named: HashMap<&str, u32> = HashMap::new();
    for key in checkpoints.iter().flat_map(|checkpoint| &checkpoint.named) {
        *named.entry(key).or_default() += 1;
    }
    let shared: Vec<u64> = checkpoints
        .iter()
        .map(|checkpoint| {
            let keys = checkpoint.named.iter().filter(|key| named[&key[..]] > 1);
            keys.filter_map(|key| files.get(key)).sum()
        })
        .collect();
    let is_unnamed = |key: &str| !named.contains_key(key);
    let unnamed = files.keys().filter(|key| {
        key.starts_with(layout.folder()) && Name::of(key).is_own_shard_file() && is_unnamed(key)
    });
    let unnamed_files = unnamed.count() as u64;
    others.retain(|object| is_unnamed(&object.key) && !Layout::is_mark(&object.key));
    for (checkpoint, shared) in checkpoints.iter_mut().zip(shared) {
        checkpoint.shared_bytes = shared;
    }
    note_beside(&mut checkpoints, others, &layout);
    checkpoints
        .sort_by(|one, other| (one.step, one.folder.folder()).cmp(&(other.step, other.folder.folder())));
    let complete = checkpoints.iter_mut().filter(|checkpoint| checkpoint.complete);
    if let Some(newest) = complete.max_by_key(|checkpoint| (checkpoint.modified, checkpoint.step)) {
        newest.newest = true;
    }
    Ok(Checkpoints { checkpoints, unnamed_files, asked: listing.service_time, layout, followers })
}

/// Reads every index, many small ones at once.
async fn read_all(storage: &Storage, indexes: Vec<ObjectInfo>) -> Result<Vec<Read>, Error> {
    let memory = Semaphore::new(INDEX_MEMORY_MIB as usize);
    let mut reads = stream::iter(indexes)
        .map(|index| async {
            let size = u32::try_from(index.size >> 20).unwrap_or(u32::MAX).saturating_add(1);
            let _held = memory.acquire_many(size.min(INDEX_MEMORY_MIB)).await;
            let facts = match storage.get(&index.key, MAX_INDEX_BYTES).await {
                Ok(object) => read_facts(&object.body),
                Err(error) if error.kind() == ErrorKind::Corrupt => Err(error),
                // Gone since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            Ok(Some(Read { index, facts }))
        })
        .buffered(CONCURRENT_READS);
    let mut all = Vec::new();
    while let Some(read) = reads.next().await {
        all.extend(read?);
    }
    Ok(all)
}

/// Whether an index names files that are not below the path.
fn names_outside(reads: &[Read], layout: &Layout) -> bool {
    reads.iter().any(|read| {
        let folder = Layout::beside(&read.index.key);
        read.facts.as_ref().is_ok_and(|facts| {
            let mut keys = facts.relative_paths.iter().filter_map(|path| folder.resolve(path).ok());
            keys.any(|key| !key.starts_with(layout.folder()))
        })
    })
}

/// Takes out each path's `.metadata` that repeats the index of an epoch there.
fn take_followers(reads: &mut Vec<Read>) -> Vec<Follower> {
    let id = |read: &Read| read.facts.as_ref().ok().and_then(|facts| facts.save_id.clone());
    let epochs: HashMap<(String, Option<String>), Layout> = reads
        .iter()
        .filter_map(|read| {
            let epoch = read.facts.as_ref().ok()?.epoch?;
            let folder = Layout::beside(&read.index.key);
            let above = folder.above()?;
            (folder == above.epoch(epoch)).then(|| ((above.index_key(None), id(read)), folder))
        })
        .collect();
    let mut followers = Vec::new();
    reads.retain(|read| match epochs.get(&(read.index.key.clone(), id(read))) {
        Some(of) => {
            followers.push(Follower { index: read.index.clone(), of: of.clone() });
            false
        }
        None => true,
    });
    followers
}

fn by_folder(reads: Vec<Read>) -> BTreeMap<String, Vec<Read>> {
    let mut folders: BTreeMap<String, Vec<Read>> = BTreeMap::new();
    for read in reads {
        folders.entry(Layout::beside(&read.index.key).folder().to_owned()).or_default().push(read);
    }
    folders
}

fn checkpoint(
    storage: &Storage,
    folder: String,
    reads: Vec<Read>,
    files: &HashMap<String, u64>,
) -> Checkpoint {
    let folder = Layout::new(&folder);
    let of_ranks = reads.iter().filter(|read| Name::of(&read.index.key) == Name::RankIndex).count() as u64;
    let mut named = BTreeSet::new();
    let mut fault = None;
    let (mut items, mut ranks, mut epoch) = (0, (of_ranks > 0).then_some(of_ranks), None);
    let mut notes = Notes::default();
    for read in &reads {
        let resolved = match &read.facts {
            Ok(facts) => {
                items += facts.item_count;
                ranks = ranks.max(facts.ranks);
                epoch = epoch.or(facts.epoch);
                if let Some(noted) = facts.notes.as_deref().and_then(|json| Notes::parse(json).ok()) {
                    notes = noted;
                }
                folder.resolve_all(&facts.relative_paths)
            }
            Err(error) => Err(error.clone()),
        };
        match resolved {
            Ok(keys) => named.extend(keys),
            Err(error) => fault = Some(error.message().to_owned()),
        }
    }
    let missing: Vec<String> =
        named.iter().filter(|key| !files.contains_key(*key)).map(|key| storage.uri(key)).collect();
    Checkpoint {
        uri: storage.uri(folder.folder().trim_end_matches('/')),
        step: epoch.or(notes.step()).or_else(|| folder.name().and_then(last_number)),
        notes,
        modified: reads.iter().filter_map(|read| read.index.last_modified).max(),
        ranks,
        items,
        files: named.len() as u64,
        bytes: named.iter().filter_map(|key| files.get(key)).sum(),
        shared_bytes: 0,
        complete: missing.is_empty() && fault.is_none(),
        newest: false,
        missing,
        fault,
        has_mark: folder.mark_key().is_some_and(|mark| files.contains_key(&mark)),
        folder,
        indexes: reads.into_iter().map(|read| read.index).collect(),
        named,
        beside: Vec::new(),
    }
}

/// Gives what lies in a folder directly below the path to the one checkpoint there.
fn note_beside(checkpoints: &mut [Checkpoint], others: Vec<ObjectInfo>, layout: &Layout) {
    let mut own: HashMap<String, Option<usize>> = HashMap::new();
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        let folder = checkpoint.folder.folder();
        let child = folder[layout.folder().len()..].split_inclusive('/').next().unwrap_or_default();
        let is_child = layout.folder().len() + child.len() == folder.len();
        // A folder with checkpoints further below is not one checkpoint's own.
        own.entry(child.to_owned()).and_modify(|of| *of = None).or_insert(is_child.then_some(number));
    }
    for object in others {
        let child = object.key[layout.folder().len()..].split_inclusive('/').next().unwrap_or_default();
        if let Some(&Some(number)) = own.get(child).filter(|_| child.ends_with('/')) {
            checkpoints[number].beside.push(object);
        }
    }
}

/// The last number in a name, as `step-700` and `checkpoint-500` have one.
pub(crate) fn last_number(name: &str) -> Option<i64> {
    let digits = |c: char| c.is_ascii_digit();
    let end = name.rfind(digits)? + 1;
    let start = name[..end]
        .rfind(|c: char| !digits(c))
        .map_or(0, |before| before + name[before..].chars().next().map_or(1, char::len_utf8));
    name[start..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_called_by_its_last_number() {
        for (name, number) in [
            ("step-700", Some(700)),
            ("epoch_5", Some(5)),
            ("700", Some(700)),
            ("epoch=3-step=400.ckpt", Some(400)),
            ("größe7é", Some(7)),
            ("latest", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(last_number(name), number, "{name}");
        }
    }
}
