//! Where the objects of a checkpoint lie: folders, indexes, and the keys that an index's relative paths mean.

use s3dcp_s3::Error;
pub(crate) use s3dcp_s3::join_key as join;

use crate::error::{config, corrupt};

/// Longest key S3 takes, in bytes.
const MAX_KEY: usize = 1024;
const PROBE: &str = ".s3dcp-probe-";

/// The key of `relative_path`, seen from the folder `base_key` in which its index lies.
///
/// `"a/epoch_5"` and `"../x/__0_0.distcp"` give `"a/x/__0_0.distcp"`. Both may hold empty segments (`a//b`), which
/// S3 keeps as they are.
///
/// # Errors
/// `Corrupt` for a path that climbs above the bucket, climbs after it went down, is absolute, has a scheme, a `.`
/// segment, an empty name or a control character, or gives a key beyond 1,024 bytes.
pub fn resolve_key(base_key: &str, relative_path: &str) -> Result<String, Error> {
    let refuse = |why: &str| {
        let shown: String = relative_path.chars().take(200).collect();
        Err(corrupt(format!("index: relative path {shown:?} {why}")))
    };
    if relative_path.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    if relative_path.contains("://") {
        return refuse("has a scheme");
    }
    if relative_path.starts_with('/') {
        return refuse("is absolute");
    }
    let base = join(base_key, "");
    let mut folder = base.as_str();
    let mut rest = relative_path;
    while let Some(after) = rest.strip_prefix("../") {
        let Some(above) = parent(folder) else { return refuse("climbs above the bucket") };
        folder = above;
        rest = after;
    }
    if rest.is_empty() || rest.ends_with('/') {
        return refuse("names no object");
    }
    if rest.starts_with('/') {
        return refuse("is absolute");
    }
    if rest.split('/').any(|segment| segment == "." || segment == "..") {
        return refuse("has a . or .. segment");
    }
    let key = join(folder, rest);
    if key.len() > MAX_KEY {
        return refuse("gives a key beyond 1,024 bytes");
    }
    Ok(key)
}

/// The folder in which `key` lies, with its slash; "" is the bucket itself.
pub(crate) fn folder_of(key: &str) -> &str {
    key.rfind('/').map_or("", |slash| &key[..=slash])
}

/// The folder above one that is given with its slash; `None` above the bucket.
pub(crate) fn parent(folder: &str) -> Option<&str> {
    folder.strip_suffix('/').map(folder_of)
}

/// Where one save puts its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The bucket.
    pub bucket: String,
    /// The key of the checkpoint's path, which is a folder: see [`join_key`](s3dcp_s3::join_key).
    pub path_key: String,
    /// The epoch's number, where the prefix strategy has one.
    pub epoch: Option<String>,
    /// This rank, where each rank keeps an index of its own (no collectives).
    pub rank: Option<u64>,
}

impl Target {
    /// The folder of the index, with its slash: the path, or its `epoch_<n>`.
    #[must_use]
    pub fn folder(&self) -> String {
        match &self.epoch {
            Some(epoch) => join(&self.path_key, &format!("epoch_{epoch}/")),
            None => self.prefix(),
        }
    }

    /// The index's key.
    #[must_use]
    pub fn index_key(&self) -> String {
        match self.rank {
            Some(rank) => join(&self.folder(), &format!("__{rank}.metadata")),
            None => join(&self.folder(), ".metadata"),
        }
    }

    /// `<path>/.metadata`.
    #[must_use]
    pub fn root_key(&self) -> String {
        join(&self.path_key, ".metadata")
    }

    /// What every key of this checkpoint begins with.
    pub(crate) fn prefix(&self) -> String {
        join(&self.path_key, "")
    }

    /// # Errors
    /// `Config` when an epoch could not be part of a key.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad_epoch =
            |epoch: &String| epoch.is_empty() || epoch.contains('/') || epoch.chars().any(char::is_control);
        if self.epoch.as_ref().is_some_and(bad_epoch) {
            return Err(config(format!("epoch {:?} cannot be part of a key", self.epoch)));
        }
        Ok(())
    }
}

/// True for the key of a rank's own index directly in `folder_prefix`.
pub(crate) fn is_rank_index(name: &str) -> bool {
    name.strip_prefix("__")
        .and_then(|rest| rest.strip_suffix(".metadata"))
        .is_some_and(|rank| !rank.is_empty() && rank.bytes().all(|byte| byte.is_ascii_digit()))
}

/// True for the name of an index: the one of all ranks, or a rank's own.
pub(crate) fn is_index(name: &str) -> bool {
    name == ".metadata" || is_rank_index(name)
}

/// True for the name of a shard file as this project writes it: what a prefix strategy put before it, the number of the
/// file and the save id.
pub(crate) fn is_shard_file(name: &str) -> bool {
    name.strip_suffix(".distcp")
        .and_then(|stem| stem.rsplit_once('-'))
        .is_some_and(|(front, save_id)| front.ends_with(|last: char| last.is_ascii_digit()) && is_id(save_id))
}

/// The name of an object that asks a server about conditional writes.
pub(crate) fn probe_name(id: u64) -> String {
    format!("{PROBE}{id:016x}")
}

/// True for such a name.
pub(crate) fn is_probe(name: &str) -> bool {
    name.strip_prefix(PROBE).is_some_and(is_id)
}

/// 64 bits in lower-case hexadecimal.
fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(resolve_key(base, relative).unwrap(), key, "{base} + {relative}");
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
            assert!(resolve_key(base, relative).is_err(), "{base} + {relative:?}");
        }
    }

    #[test]
    fn only_what_a_save_of_this_project_writes_has_the_name_of_a_shard_file_or_probe() {
        for name in
            ["__0_0-0123456789abcdef.distcp", "__12_345-ffffffffffffffff.distcp", "0-0000000000000000.distcp"]
        {
            assert!(is_shard_file(name), "{name}");
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
            assert!(!is_shard_file(name), "{name}");
        }
        assert!(is_probe(&probe_name(0)) && is_probe(&probe_name(u64::MAX)));
        assert!(!is_probe(".s3dcp-probe-") && !is_probe(".s3dcp-probe-mine") && !is_probe("notes.txt"));
    }

    #[test]
    fn indexes_lie_where_the_layout_says() {
        let mut target =
            Target { bucket: "b".into(), path_key: "run".into(), epoch: Some("5".into()), rank: None };
        assert_eq!(target.index_key(), "run/epoch_5/.metadata");
        assert_eq!(target.root_key(), "run/.metadata");
        target.rank = Some(3);
        assert_eq!(target.index_key(), "run/epoch_5/__3.metadata");
        target.epoch = None;
        assert_eq!(target.index_key(), "run/__3.metadata");
        target.path_key = String::new();
        assert_eq!(target.index_key(), "__3.metadata");
        target.rank = None;
        for (path_key, index_key, index_key_of_epoch) in [
            ("run/", "run/.metadata", "run/epoch_5/.metadata"),
            ("run//", "run//.metadata", "run//epoch_5/.metadata"),
            ("/run", "/run/.metadata", "/run/epoch_5/.metadata"),
            ("/", "/.metadata", "/epoch_5/.metadata"),
            ("a//b", "a//b/.metadata", "a//b/epoch_5/.metadata"),
            ("x/../y", "x/../y/.metadata", "x/../y/epoch_5/.metadata"),
            ("run ", "run /.metadata", "run /epoch_5/.metadata"),
        ] {
            target.path_key = path_key.to_owned();
            for (epoch, key) in [(None, index_key), (Some("5".to_owned()), index_key_of_epoch)] {
                target.epoch = epoch;
                assert!(target.check().is_ok(), "{path_key}");
                assert_eq!(target.index_key(), key);
                assert_eq!(target.folder(), folder_of(key));
                assert_eq!(target.root_key(), index_key);
                assert_eq!(target.prefix(), folder_of(index_key));
            }
        }
        assert!(
            is_rank_index("__12.metadata") && !is_rank_index("__.metadata") && !is_rank_index(".metadata")
        );
    }
}
