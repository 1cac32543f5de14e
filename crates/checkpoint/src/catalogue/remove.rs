//! All that lies below a path goes, but never what a checkpoint elsewhere needs.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, ObjectInfo};

use crate::catalogue::delete::{NamedBy, delete_as_listed, delete_objects};
use crate::catalogue::folder_mark;
use crate::catalogue::named::Indexes;
use crate::index::read::read_named;
use crate::layout::{Layout, Name};
use crate::save::intent;
use crate::storage::Storage;

/// Deletions of indexes under way at once.
const CONCURRENT_DELETES: usize = 16;

/// How a removal went.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What is gone, in the order of the keys.
    pub deleted: Vec<String>,
    /// What stays: shard files that an index elsewhere or a save under way names, its intent, and an index that was replaced
    /// meanwhile, with its files.
    pub kept: Vec<String>,
}

/// Deletes all objects below the path `path_key` (empty for the whole bucket).
///
/// Indexes go first, each only as long as it is the one that was listed, so that from then on nobody finds a checkpoint
/// there. Shard files go after, and only those that no index names, above the path included. Those that an index of the
/// path itself names beside it (`../`), as that of an epoch or step does, go too. Whatever else lies there goes as well. A
/// save that commits meanwhile keeps its checkpoint.
///
/// # Errors
/// All kinds that a request can end with, that of an index which cannot be read included (no shard file is deleted then);
/// `Service` for a key that the service does not delete. Called again, it goes on where it ended.
pub async fn remove(storage: &Storage, path_key: &str) -> Result<Removed, Error> {
    let layout = Layout::new(path_key);
    let listing = storage.list(layout.folder(), None).await?;
    let mut removed = Removed::default();
    removed.kept.extend(intent::that_count(&listing).map(|intent| intent.key.clone()));
    let (indexes, rest): (Vec<_>, Vec<_>) = listing
        .objects
        .into_iter()
        .filter(|object| !intent::counts(object, listing.service_time))
        .partition(|object| Name::of(&object.key).is_index());
    let (files, others): (Vec<String>, Vec<String>) =
        rest.into_iter().map(|object| object.key).partition(|key| layout.deletable(key));

    let beside = named_beside(storage, &layout, &indexes).await?;
    let mut deletions = stream::iter(indexes)
        .map(|index| async { (delete_as_listed(storage, &index).await, index.key) })
        .buffered(CONCURRENT_DELETES);
    while let Some(deletion) = deletions.next().await {
        let (gone, key) = deletion;
        if gone? { removed.deleted.push(key) } else { removed.kept.push(key) }
    }
    drop(deletions);

    let mut indexes = Indexes::default();
    let mut deletions = vec![delete_objects(storage, &layout, files, NamedBy::Any(&mut indexes)).await];
    if let Some(above) = layout.above().filter(|_| !beside.is_empty()) {
        let likely = NamedBy::Path(vec![above.index_key(None)]);
        deletions.push(delete_objects(storage, &above, beside, likely).await);
        folder_mark::clear(storage, &layout).await?;
    }
    let mut refused = Vec::new();
    for deletion in deletions {
        if let Some(stopped) = deletion.stopped {
            return Err(stopped.error);
        }
        removed.deleted.extend(deletion.deleted);
        removed.kept.extend(deletion.named);
        refused.extend(deletion.failed);
    }
    if !others.is_empty() {
        refused.extend(storage.delete(&others).await?);
        removed.deleted.extend(others);
    }
    if let Some(failure) = refused.into_iter().next() {
        return Err(storage.refusal(failure));
    }
    removed.deleted.sort_unstable();
    removed.kept.sort_unstable();
    Ok(removed)
}

/// What the indexes directly in the folder name outside it; nothing for one that cannot be read, whose files a prune finds.
async fn named_beside(
    storage: &Storage,
    layout: &Layout,
    indexes: &[ObjectInfo],
) -> Result<BTreeSet<String>, Error> {
    let mut beside = BTreeSet::new();
    for index in indexes.iter().filter(|index| Layout::beside(&index.key) == *layout) {
        match read_named(storage, &index.key).await {
            Ok(named) => {
                beside.extend(named.into_iter().flatten().filter(|key| !key.starts_with(layout.folder())))
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(beside)
}
