//! The names of a checkpoint's objects: every name is written and parsed here, checked and compared.
//!
//! | name | object |
//! | --- | --- |
//! | `<path>/.metadata` | the index of all ranks |
//! | `<path>/__<rank>.metadata` | the index of one rank (no collectives) |
//! | `<path>/epoch_<n>/.metadata` | the index of one epoch; it names its files from `../` on |
//! | `<path>/<folder>/.metadata` | the same in a folder of another name, such as `step-700` |
//! | `<path>/.s3dcp-folders/<folder>` | says that such a folder is there |
//! | `<path>/<prefix><number>-<save id>.distcp` | a shard file; the prefix is what a strategy made for a rank |
//! | `<path>/.s3dcp-writer` | says which writer is at work |
//! | `<path>/.s3dcp-intent-<save id>` | says which files of earlier saves a save relies on |
//! | `<path>/.s3dcp-probe-<id>` | what asks a server about conditional writes |
//!
//! What a prefix strategy puts into its prefixes is the strategy's to say (`s3dcp-prefix`). Nothing here sends a request.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use s3dcp_s3::{Error, MAX_KEY_BYTES, join_key};

use crate::error::{config, corrupt};

// The strategies, which know no S3 client, keep a number of their own.
const _: () = assert!(MAX_KEY_BYTES == s3dcp_prefix::MAX_KEY_BYTES);

const INDEX: &str = ".metadata";
const RANK: &str = "__";
const EPOCH: &str = "epoch_";
const SHARD_FILE: &str = ".distcp";
const SAFETENSORS: &str = ".safetensors";
const FOLDERS: &str = ".s3dcp-folders/";
const INTENT: &str = ".s3dcp-intent-";
const PROBE: &str = ".s3dcp-probe-";
const TOMBSTONE: &str = ".s3dcp-tombstone-";
const LEASE: &str = ".s3dcp-writer";
const ABOVE: &str = "../";

/// Why a text cannot be part of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ControlCharacter,
    Scheme,
    Absolute,
    DotSegment,
}

impl Fault {
    /// The first there is.
    fn of(text: &str) -> Option<Fault> {
        if text.chars().any(char::is_control) {
            Some(Fault::ControlCharacter)
        } else if text.contains("://") {
            Some(Fault::Scheme)
        } else if text.starts_with('/') {
            Some(Fault::Absolute)
        } else if text.split('/').any(|segment| segment == "." || segment == "..") {
            Some(Fault::DotSegment)
        } else {
            None
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::ControlCharacter => "has a control character",
            Fault::Scheme => "has a scheme",
            Fault::Absolute => "is absolute",
            Fault::DotSegment => "has a . or .. segment",
        })
    }
}

/// The names in one folder that holds a checkpoint: a path, or an epoch's folder of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// With its slash; "" is the bucket itself.
    folder: String,
}

impl Layout {
    /// The names below a path's key: see [`join_key`].
    #[must_use]
    pub fn new(path_key: &str) -> Layout {
        Layout { folder: join_key(path_key, "") }
    }

    /// The names beside an index.
    pub(crate) fn beside(index_key: &str) -> Layout {
        let end = index_key.rfind('/').map_or(0, |slash| slash + 1);
        Layout { folder: index_key[..end].to_owned() }
    }

    /// The names in the folder of an epoch.
    #[must_use]
    pub fn epoch(&self, epoch: impl fmt::Display) -> Layout {
        self.below(&format!("{EPOCH}{epoch}"))
    }

    /// The names in a folder of this one.
    #[must_use]
    pub fn below(&self, name: &str) -> Layout {
        Layout { folder: format!("{}{name}/", self.folder) }
    }

    /// The folder above; `None` above the bucket.
    pub(crate) fn above(&self) -> Option<Layout> {
        self.folder.strip_suffix('/').map(Layout::beside)
    }

    /// The folder's own name; `None` for the bucket.
    pub(crate) fn name(&self) -> Option<&str> {
        let bare = self.folder.strip_suffix('/')?;
        Some(bare.rsplit_once('/').map_or(bare, |(_, name)| name))
    }

    /// What every key here begins with: the folder, with its slash.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The key of the index: that of all ranks, or a rank's own.
    #[must_use]
    pub fn index_key(&self, rank: Option<u64>) -> String {
        match rank {
            None => format!("{}{INDEX}", self.folder),
            Some(rank) => format!("{}{RANK}{rank}{INDEX}", self.folder),
        }
    }

    /// What the keys of ranks' own indexes in this folder begin with, and other keys too: see [`Name`].
    pub(crate) fn rank_indexes(&self) -> String {
        format!("{}{RANK}", self.folder)
    }

    /// What the folders of epochs begin with.
    pub(crate) fn epochs(&self) -> String {
        format!("{}{EPOCH}", self.folder)
    }

    /// What begins the key of a mark, which says that a folder has an index with files above it. Behind it is the folder's
    /// name.
    pub(crate) fn folder_marks(&self) -> String {
        format!("{}{FOLDERS}", self.folder)
    }

    /// Whether the object of this key is such a mark, of whichever path.
    pub(crate) fn is_mark(key: &str) -> bool {
        key.rsplit_once('/')
            .is_some_and(|(folder, _)| format!("/{folder}/").ends_with(&format!("/{FOLDERS}")))
    }

    /// The key of a mark for this folder, in the one above.
    pub(crate) fn mark_key(&self) -> Option<String> {
        let name = self.name().filter(|name| !name.is_empty())?;
        Some(format!("{}{name}", self.above()?.folder_marks()))
    }

    /// The key of what says that a writer is at work on this path.
    pub(crate) fn lease_key(&self) -> String {
        format!("{}{LEASE}", self.folder)
    }

    /// What the keys of intents on this path begin with.
    pub(crate) fn intents(&self) -> String {
        format!("{}{INTENT}", self.folder)
    }

    /// The key of the intent of a save.
    pub(crate) fn intent_key(&self, save_id: &str) -> String {
        format!("{}{INTENT}{save_id}", self.folder)
    }

    /// The key of a new probe.
    pub(crate) fn probe_key(&self, id: u64) -> String {
        format!("{}{PROBE}{}", self.folder, id_text(id))
    }

    /// The key of a new tombstone.
    pub(crate) fn tombstone_key(&self, id: u64) -> String {
        format!("{}{TOMBSTONE}{}", self.folder, id_text(id))
    }

    /// Why shard files with this prefix would not be found again, or not be taken by S3; `None` for a prefix that works.
    #[must_use]
    pub fn prefix_fault(&self, prefix: &str) -> Option<String> {
        if prefix.is_empty() {
            return Some("must be a string that is not empty".to_owned());
        }
        match Fault::of(prefix) {
            Some(Fault::ControlCharacter) => return Some("holds a control character".to_owned()),
            Some(Fault::Scheme) => {
                return Some("holds '://', which readers take for another place".to_owned());
            }
            Some(Fault::Absolute | Fault::DotSegment) => {
                return Some("would leave the checkpoint's path".to_owned());
            }
            None => {}
        }
        let length = self.folder.len() + shard_file_name(prefix, u32::MAX, &id_text(0)).len();
        (length > MAX_KEY_BYTES).then(|| format!("makes keys of {length} bytes; S3 allows {MAX_KEY_BYTES}"))
    }

    /// A shard file of a save, by the prefix of its rank, which [`Layout::prefix_fault`] has nothing against.
    ///
    /// # Errors
    /// `Config` for another prefix, or what is no save id: 64 bits in lower-case hexadecimal.
    pub fn shard_file(&self, prefix: &str, number: u32, save_id: &str) -> Result<ShardName, Error> {
        if let Some(fault) = self.prefix_fault(prefix) {
            return Err(config(format!("prefix {prefix:?} {fault}")));
        }
        check_save_id(save_id)?;
        let relative_path = shard_file_name(prefix, number, save_id);
        Ok(ShardName { key: format!("{}{relative_path}", self.folder), relative_path })
    }

    /// The key of a shard file that an index in this folder names.
    ///
    /// `"../x/__0_0.distcp"` seen from `"a/epoch_5"` is `"a/x/__0_0.distcp"`. Both may hold empty segments (`a//b`), which
    /// S3 keeps as they are.
    ///
    /// # Errors
    /// `Corrupt` for a path that climbs above the bucket, climbs after it went down, is absolute, has a scheme, a `.`
    /// segment, an empty name or a control character, or gives a key beyond 1,024 bytes.
    pub fn resolve(&self, relative_path: &str) -> Result<String, Error> {
        let refuse = |why: &dyn fmt::Display| {
            let shown: String = relative_path.chars().take(200).collect();
            Err(corrupt(format!("index: relative path {shown:?} {why}")))
        };
        // What climbs may do so at its front alone.
        let mut rest = relative_path;
        let mut climbs = 0;
        while let Some(after) = rest.strip_prefix(ABOVE) {
            climbs += 1;
            rest = after;
        }
        if let Some(fault) = Fault::of(rest) {
            return refuse(&fault);
        }
        if rest.is_empty() || rest.ends_with('/') {
            return refuse(&"names no object");
        }
        let mut folder = self.clone();
        for _ in 0..climbs {
            let Some(above) = folder.above() else { return refuse(&"climbs above the bucket") };
            folder = above;
        }
        let key = folder.folder + rest;
        if key.len() > MAX_KEY_BYTES {
            return refuse(&"gives a key beyond 1,024 bytes");
        }
        Ok(key)
    }

    /// The keys of the shard files that an index in this folder names.
    ///
    /// # Errors
    /// Those of [`Layout::resolve`].
    pub(crate) fn resolve_all<'a>(
        &self,
        relative_paths: impl IntoIterator<Item = &'a String>,
    ) -> Result<BTreeSet<String>, Error> {
        relative_paths.into_iter().map(|path| self.resolve(path)).collect()
    }

    /// Sees that these keys are those of shard files of a checkpoint whose index lies here: below this folder or, as an epoch's are,
    /// the one above. What is copied for an index can be nothing else that whoever copies may read.
    ///
    /// # Errors
    /// `Corrupt`, naming the first other key.
    pub(crate) fn check_shard_files<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        let widest = self.above().unwrap_or_else(|| self.clone());
        let is_one = |key: &&str| {
            key.starts_with(&widest.folder)
                && (matches!(Name::of(key), Name::ShardFile { .. }) || key.ends_with(SAFETENSORS))
        };
        match keys.into_iter().find(|key| !is_one(key)) {
            Some(key) => {
                Err(corrupt(format!("index: it names {key:?}, which is no shard file of this checkpoint")))
            }
            None => Ok(()),
        }
    }

    /// Whether the object of this key can be one to delete: a shard file or an object of a save or deletion under way below this
    /// folder. No index is.
    pub(crate) fn deletable(&self, key: &str) -> bool {
        let is_ours =
            matches!(Name::of(key), Name::ShardFile { .. } | Name::Probe | Name::Intent | Name::Tombstone);
        key.starts_with(&self.folder) && is_ours
    }
}

/// A new shard file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// Its key.
    pub key: String,
    /// Its name in an index of the path; one in an epoch's folder puts `../` before it.
    pub relative_path: String,
}

/// What the last segment of a key says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// The index of all ranks.
    Index,
    /// A rank's own index.
    RankIndex,
    /// A shard file.
    ShardFile {
        /// The id of the save that wrote it, where this project did.
        save_id: Option<&'a str>,
    },
    /// What a save says before it relies on files of earlier ones.
    Intent,
    /// An object that asked a server about conditional writes.
    Probe,
    /// What a deletion of a checkpoint under way notes.
    Tombstone,
    /// None of these.
    Other,
}

impl Name<'_> {
    /// The name at the end of a key.
    pub(crate) fn of(key: &str) -> Name<'_> {
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        if name == INDEX {
            Name::Index
        } else if is_rank_index(name) {
            Name::RankIndex
        } else if let Some(stem) = name.strip_suffix(SHARD_FILE) {
            Name::ShardFile { save_id: save_id(stem) }
        } else if name.strip_prefix(PROBE).is_some_and(is_id) {
            Name::Probe
        } else if name.strip_prefix(TOMBSTONE).is_some_and(is_id) {
            Name::Tombstone
        } else if name.strip_prefix(INTENT).is_some_and(is_id) {
            Name::Intent
        } else {
            Name::Other
        }
    }

    /// True for an index, of whatever kind.
    pub(crate) fn is_index(self) -> bool {
        matches!(self, Name::Index | Name::RankIndex)
    }

    /// True for a shard file of this project.
    pub(crate) fn is_own_shard_file(self) -> bool {
        matches!(self, Name::ShardFile { save_id: Some(_) })
    }
}

/// The rank that the name at the end of a key tells: of a rank's index or of a shard file, `__<rank>_`.
pub(crate) fn rank_in(key: &str) -> Option<u64> {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name).strip_prefix(RANK)?;
    let end = name.find(|c: char| !c.is_ascii_digit())?;
    let (rank, rest) = name.split_at(end);
    (rest == INDEX || rest.starts_with('_')).then(|| rank.parse().ok()).flatten()
}

fn is_rank_index(name: &str) -> bool {
    name.strip_prefix(RANK)
        .and_then(|rest| rest.strip_suffix(INDEX))
        .is_some_and(|rank| !rank.is_empty() && rank.bytes().all(|byte| byte.is_ascii_digit()))
}

fn shard_file_name(prefix: &str, number: u32, save_id: &str) -> String {
    format!("{prefix}{number}-{save_id}{SHARD_FILE}")
}

/// The save id in such a name without its end; what stands before it ends with the number of the file.
fn save_id(stem: &str) -> Option<&str> {
    let (front, save_id) = stem.rsplit_once('-')?;
    (front.ends_with(|last: char| last.is_ascii_digit()) && is_id(save_id)).then_some(save_id)
}

pub(crate) fn id_text(id: u64) -> String {
    format!("{id:016x}")
}

/// The id of a new save, which no other has: from the system's randomness, and other in a forked child.
pub(crate) fn new_save_id() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(fastrand::u64(..));
    id_text(hasher.finish())
}

/// # Errors
/// `Config` for what is no save id.
pub(crate) fn check_save_id(save_id: &str) -> Result<(), Error> {
    if is_id(save_id) {
        return Ok(());
    }
    Err(config(format!("save id {save_id:?} must be 16 hexadecimal digits in lower case")))
}

/// 64 bits in lower-case hexadecimal.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Where one save puts its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The bucket.
    pub bucket: String,
    /// The key of the checkpoint's path, which is a folder: see [`join_key`].
    pub path_key: String,
    /// The epoch's number, where the prefix strategy has one.
    pub epoch: Option<String>,
    /// The folder of the epoch's index below the path; `None` for its `epoch_<n>`, whose index `<path>/.metadata` follows.
    pub folder: Option<String>,
    /// This rank, where each rank keeps an index of its own (no collectives).
    pub rank: Option<u64>,
}

impl Location {
    /// The names below the path.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(&self.path_key)
    }

    /// The names in the folder of the index: the path, or that of the epoch.
    #[must_use]
    pub fn index_layout(&self) -> Layout {
        match (&self.folder, &self.epoch) {
            (Some(folder), _) => self.layout().below(folder),
            (None, Some(epoch)) => self.layout().epoch(epoch),
            (None, None) => self.layout(),
        }
    }

    /// The key that says to whoever deletes that the folder has an index; none is needed where the name does.
    pub(crate) fn mark_key(&self) -> Option<String> {
        self.folder.as_ref().and_then(|_| self.index_layout().mark_key())
    }

    /// The index's key.
    #[must_use]
    pub fn index_key(&self) -> String {
        self.index_layout().index_key(self.rank)
    }

    /// `<path>/.metadata`.
    #[must_use]
    pub fn root_key(&self) -> String {
        self.layout().index_key(None)
    }

    /// Whether the save also writes `<path>/.metadata`, after its epoch's index.
    pub(crate) fn has_root(&self) -> bool {
        self.epoch.is_some() && self.folder.is_none() && self.rank.is_none()
    }

    /// What stands before the names of shard files in the index, which are seen from the path.
    pub(crate) fn to_path(&self) -> &'static str {
        if self.epoch.is_some() || self.folder.is_some() { ABOVE } else { "" }
    }

    /// # Errors
    /// `Config` when an epoch or folder could not be part of a key.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (what, part) in [("epoch", &self.epoch), ("folder", &self.folder)] {
            let Some(part) = part else { continue };
            if part.is_empty() || part.contains('/') || Fault::of(part).is_some() {
                return Err(config(format!("{what} {part:?} cannot be part of a key")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_checkpoint_lie_below_its_index_or_one_folder_above() {
        let epoch = Layout::new("run/epoch_5");
        for (key, fits) in [
            ("run/epoch_5/__0_0.distcp", true),
            ("run/a0/epoch_5/__0_0-0123456789abcdef.distcp", true),
            ("run/model-00001.safetensors", true),
            ("other/__0_0.distcp", false),
            ("etc/passwd", false),
            ("run/epoch_5/.metadata", false),
        ] {
            assert_eq!(epoch.check_shard_files([key]).is_ok(), fits, "{key}");
        }
        assert!(Layout::new("").check_shard_files(["__0_0.distcp"]).is_ok());
    }

    #[test]
    fn relative_paths_are_seen_from_the_folder_of_their_index() {
        for (base, relative, key) in [
            ("a", "__0_0.distcp", "a/__0_0.distcp"),
            ("", "x/__0_0.distcp", "x/__0_0.distcp"),
            ("a/epoch_5", "../x/__0_0.distcp", "a/x/__0_0.distcp"),
            ("epoch_5", "../x/__0_0.distcp", "x/__0_0.distcp"),
            ("a//b", "../c", "a//c"),
            ("a/epoch_5/", "../x/__0_0.distcp", "a/x/__0_0.distcp"),
            ("run//", "x", "run//x"),
            ("run//epoch_5", "../x", "run//x"),
            ("run//", "../x", "run/x"),
            ("/run", "x", "/run/x"),
            ("/run/epoch_5", "../x", "/run/x"),
            ("/epoch_5", "../x", "/x"),
            ("/", "x", "/x"),
            ("/", "../x", "x"),
            ("x/../y/epoch_5", "../z", "x/../y/z"),
            ("a", "p1//__4_0.distcp", "a/p1//__4_0.distcp"),
            ("a/b", "../../c", "c"),
            ("a", "x/..y/...z", "a/x/..y/...z"),
        ] {
            assert_eq!(Layout::new(base).resolve(relative).unwrap(), key, "{base} + {relative}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_bucket_or_names_nothing_is_refused() {
        let long = "x".repeat(1024);
        for (base, relative) in [
            ("a", "../../c"),
            ("", "../c"),
            ("a", "/c"),
            ("a", "..//c"),
            ("/", "../../c"),
            ("/", "/c"),
            ("a", "s3://other/c"),
            ("a", ""),
            ("a", "x/"),
            ("a", "../"),
            ("a", ".."),
            ("a", "x/../y"),
            ("a", "./y"),
            ("a", "x\ny"),
            ("a", &long),
        ] {
            assert!(Layout::new(base).resolve(relative).is_err(), "{base} + {relative:?}");
        }
    }

    #[test]
    fn only_what_a_save_of_this_project_writes_has_the_name_of_a_shard_file_or_probe() {
        for name in
            ["__0_0-0123456789abcdef.distcp", "__12_345-ffffffffffffffff.distcp", "0-0000000000000000.distcp"]
        {
            assert!(Name::of(name).is_own_shard_file(), "{name}");
        }
        for name in [
            "__0_0.distcp",
            "__0_0-0123456789abcde.distcp",
            "__0_0-0123456789abcdef0.distcp",
            "__0_0-0123456789ABCDEF.distcp",
            "__0_0-0123456789abcdef.distcp.bak",
            "__0_0-0123456789abcdef",
            "__0_-0123456789abcdef.distcp",
            "-0123456789abcdef.distcp",
            "notes.txt",
            ".metadata",
        ] {
            assert!(!Name::of(name).is_own_shard_file(), "{name}");
        }
        let layout = Layout::new("run");
        for id in [0, u64::MAX] {
            assert_eq!(Name::of(&layout.probe_key(id)), Name::Probe);
            assert_eq!(Name::of(&layout.tombstone_key(id)), Name::Tombstone);
            let intent = layout.intent_key(&id_text(id));
            assert_eq!(Name::of(&intent), Name::Intent);
            assert!(intent.starts_with(&layout.intents()) && layout.deletable(&intent));
        }
        for name in [
            ".s3dcp-probe-",
            ".s3dcp-probe-mine",
            ".s3dcp-intent-",
            ".s3dcp-intent-mine",
            ".s3dcp-tombstone-",
            "notes.txt",
        ] {
            assert_eq!(Name::of(name), Name::Other, "{name}");
        }
    }

    #[test]
    fn every_name_that_is_written_is_read_back_as_what_it_is() {
        let save_id = "0123456789abcdef";
        for path_key in ["", "run", "run/", "run//", "/", "/run", "a//b", "x/../y", "run "] {
            let layout = Layout::new(path_key);
            for prefix in ["__0_", "a000/epoch_5/__255_", "p1//__4_", "s3:/", "x/", "ä/日本/__0_", "0"] {
                assert_eq!(layout.prefix_fault(prefix), None, "{prefix}");
                for number in [0, 7, u32::MAX] {
                    let ShardName { key, relative_path } =
                        layout.shard_file(prefix, number, save_id).unwrap();
                    assert_eq!(Name::of(&key), Name::ShardFile { save_id: Some(save_id) }, "{key}");
                    assert!(layout.deletable(&key) && key == layout.resolve(&relative_path).unwrap());
                    let from_epoch = format!("{ABOVE}{relative_path}");
                    assert_eq!(layout.epoch(5).resolve(&from_epoch).unwrap(), key);
                }
            }
            for layout in [layout.clone(), layout.epoch(-3), layout.epoch("5")] {
                assert_eq!(Name::of(&layout.index_key(None)), Name::Index);
                assert_eq!(Name::of(&layout.index_key(Some(u64::MAX))), Name::RankIndex);
                for rank in [None, Some(0)] {
                    assert_eq!(Layout::beside(&layout.index_key(rank)), layout);
                    assert!(!layout.deletable(&layout.index_key(rank)));
                }
            }
            assert!(layout.epoch(5).folder().starts_with(&layout.epochs()));
            assert!(layout.index_key(Some(12)).starts_with(&layout.rank_indexes()));
            assert_eq!(layout.epoch(5).above(), Some(layout));
        }
    }

    #[test]
    fn a_prefix_that_makes_names_which_are_not_found_again_is_refused() {
        let layout = Layout::new("run");
        for (prefix, why) in [
            ("", "must be a string that is not empty"),
            ("/p", "would leave the checkpoint's path"),
            ("../p", "would leave the checkpoint's path"),
            ("p/./q", "would leave the checkpoint's path"),
            ("p/..", "would leave the checkpoint's path"),
            ("s3://p", "holds '://', which readers take for another place"),
            ("p\n", "holds a control character"),
            ("p\u{85}", "holds a control character"),
        ] {
            assert_eq!(layout.prefix_fault(prefix).as_deref(), Some(why), "{prefix:?}");
            assert!(layout.shard_file(prefix, 0, "0123456789abcdef").is_err(), "{prefix:?}");
        }
        let name = "4294967295-0123456789abcdef.distcp";
        let longest = "p".repeat(MAX_KEY_BYTES - "run/".len() - name.len());
        assert_eq!(layout.prefix_fault(&longest), None);
        let fault = layout.prefix_fault(&(longest + "p")).unwrap();
        assert_eq!(fault, "makes keys of 1025 bytes; S3 allows 1024");
        for save_id in ["", "mine", "0123456789ABCDEF", "0123456789abcdef0"] {
            assert!(layout.shard_file("__0_", 0, save_id).is_err(), "{save_id}");
        }
    }

    #[test]
    fn only_shard_files_and_probes_of_a_path_can_be_deleted() {
        let layout = Layout::new("run");
        for key in
            ["run/__0_0.distcp", "run/p/__0_0-0123456789abcdef.distcp", "run/.s3dcp-probe-0123456789abcdef"]
        {
            assert!(layout.deletable(key), "{key}");
        }
        for key in
            ["run/.metadata", "run/__0.metadata", "run/notes.txt", "other/__0_0.distcp", "run2/__0_0.distcp"]
        {
            assert!(!layout.deletable(key), "{key}");
        }
    }

    #[test]
    fn indexes_lie_where_the_layout_says() {
        let mut location = Location {
            bucket: "b".into(),
            path_key: "run".into(),
            epoch: Some("5".into()),
            folder: None,
            rank: None,
        };
        assert_eq!(location.index_key(), "run/epoch_5/.metadata");
        assert_eq!(location.root_key(), "run/.metadata");
        location.rank = Some(3);
        assert_eq!(location.index_key(), "run/epoch_5/__3.metadata");
        location.epoch = None;
        assert_eq!(location.index_key(), "run/__3.metadata");
        location.path_key = String::new();
        assert_eq!(location.index_key(), "__3.metadata");
        location.rank = None;
        for (path_key, index_key, index_key_of_epoch) in [
            ("run/", "run/.metadata", "run/epoch_5/.metadata"),
            ("run//", "run//.metadata", "run//epoch_5/.metadata"),
            ("/run", "/run/.metadata", "/run/epoch_5/.metadata"),
            ("/", "/.metadata", "/epoch_5/.metadata"),
            ("a//b", "a//b/.metadata", "a//b/epoch_5/.metadata"),
            ("x/../y", "x/../y/.metadata", "x/../y/epoch_5/.metadata"),
            ("run ", "run /.metadata", "run /epoch_5/.metadata"),
        ] {
            location.path_key = path_key.to_owned();
            for (epoch, key) in [(None, index_key), (Some("5".to_owned()), index_key_of_epoch)] {
                location.epoch = epoch;
                assert!(location.check().is_ok(), "{path_key}");
                assert_eq!(location.index_key(), key);
                assert_eq!(location.index_layout(), Layout::beside(key));
                assert_eq!(location.root_key(), index_key);
                assert_eq!(location.layout(), Layout::beside(index_key));
            }
        }
        location.path_key = "run".to_owned();
        location.folder = Some("step-5".to_owned());
        location.epoch = Some("5".to_owned());
        assert_eq!(location.index_key(), "run/step-5/.metadata");
        assert_eq!(location.mark_key().as_deref(), Some("run/.s3dcp-folders/step-5"));
        assert!(!location.has_root() && location.check().is_ok());
        for bad in ["", "a/b", "..", "a\n"] {
            location.folder = Some(bad.to_owned());
            assert!(location.check().is_err(), "{bad:?}");
        }
        assert!(
            is_rank_index("__12.metadata") && !is_rank_index("__.metadata") && !is_rank_index(".metadata")
        );
    }
}
