//! Checkpoints near a path that holds none, for whoever got the path a little wrong: a run instead of a step of it, a
//! folder within a checkpoint, the index itself.
//!
//! This is help for an error message. It never fails, never hides the error that it explains, and is bounded: one page
//! of a listing, a HEAD or two for each folder in it and above the path, and a time after which what was found is all.

use std::fmt;
use std::time::Duration;

use futures_util::future::join;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout;

use crate::layout::Layout;
use crate::storage::Storage;

/// HEAD requests under way at once.
const CONCURRENT_HEADS: usize = 32;
/// Folders below a path that are looked at.
const MOST_BELOW: usize = 1000;
/// Folders above the path that are looked at.
const MOST_ABOVE: usize = 16;
/// Checkpoints below the path that are named.
const NAMED: usize = 5;
/// Longest time to look: whoever reads the error waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// What was found; `Display` is a sentence, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nearby {
    /// URIs of the checkpoints one level below the path, in the order of their keys.
    pub below: Vec<String>,
    /// URI of the nearest checkpoint above the path.
    pub above: Option<String>,
}

impl fmt::Display for Nearby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = &self.above {
            write!(f, "there is a checkpoint above it, at {above}")?;
        }
        let (named, more) = self.below.split_at(self.below.len().min(NAMED));
        if named.is_empty() {
            return Ok(());
        }
        let separator = if self.above.is_some() { "; " } else { "" };
        let verb = if self.below.len() == 1 { "is a checkpoint" } else { "are checkpoints" };
        write!(f, "{separator}there {verb} below it, at {}", named.join(", "))?;
        if more.is_empty() { Ok(()) } else { write!(f, " (and {} more)", more.len()) }
    }
}

/// Looks for checkpoints in the folders just below the path `path_key`, and in those above it.
pub async fn nearby_checkpoints(storage: &Storage, path_key: &str) -> Nearby {
    let path = Layout::new(path_key);
    let mut nearby = Nearby::default();
    let below = async {
        // Whoever may not list can still load.
        let Ok(listing) = storage.list_first(path.folder(), Some("/"), MOST_BELOW).await else {
            return;
        };
        let mut folders = stream::iter(listing.common_prefixes)
            .map(|folder| checkpoint_in(storage, Layout::new(&folder)))
            .buffered(CONCURRENT_HEADS);
        while let Some(found) = folders.next().await {
            nearby.below.extend(found);
        }
    };
    let above = async {
        let mut folders = stream::iter(folders_above(&path))
            .map(|folder| checkpoint_in(storage, folder))
            .buffered(MOST_ABOVE);
        while nearby.above.is_none()
            && let Some(found) = folders.next().await
        {
            nearby.above = found;
        }
    };
    let _in_time = join(timeout(LIMIT, below), timeout(LIMIT, above)).await;
    nearby
}

/// The folders above one, the nearest first.
fn folders_above(path: &Layout) -> Vec<Layout> {
    std::iter::successors(path.above(), Layout::above).take(MOST_ABOVE).collect()
}

/// The URI of the checkpoint in a folder, if there is one that can be seen.
async fn checkpoint_in(storage: &Storage, folder: Layout) -> Option<String> {
    for rank in [None, Some(0)] {
        if storage.head(&folder.index_key(rank)).await.is_ok() {
            return Some(storage.uri(path_key(folder.folder())));
        }
    }
    None
}

/// The key that a person writes for a folder: without its slash, where that is the same folder.
fn path_key(folder: &str) -> &str {
    let bare = folder.strip_suffix('/').unwrap_or(folder);
    if Layout::new(bare).folder() == folder { bare } else { folder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_a_sentence_that_stays_short() {
        let of = |count: usize| (0..count).map(|step| format!("s3://b/step-{step}")).collect();
        let says = |below: usize, above: Option<&str>| {
            Nearby { below: of(below), above: above.map(str::to_owned) }.to_string()
        };
        assert_eq!(says(0, None), "");
        assert_eq!(says(1, None), "there is a checkpoint below it, at s3://b/step-0");
        assert_eq!(says(2, None), "there are checkpoints below it, at s3://b/step-0, s3://b/step-1");
        assert!(says(5, None).ends_with("s3://b/step-4"));
        assert!(says(17, None).ends_with("s3://b/step-4 (and 12 more)"));
        assert_eq!(
            says(1, Some("s3://b/run")),
            "there is a checkpoint above it, at s3://b/run; there is a checkpoint below it, at s3://b/step-0"
        );
    }

    #[test]
    fn a_folder_is_written_so_that_it_is_the_same_folder_when_read() {
        for (folder, text) in [
            ("", "s3://b/"),
            ("run/", "s3://b/run"),
            ("run//", "s3://b/run//"),
            ("/", "s3://b//"),
            ("/run/", "s3://b//run"),
        ] {
            assert_eq!(format!("s3://b/{}", path_key(folder)), text);
            let (_, key) = s3dcp_s3::parse_s3_uri(text).unwrap();
            assert_eq!(Layout::new(&key).folder(), folder);
        }
    }
}
