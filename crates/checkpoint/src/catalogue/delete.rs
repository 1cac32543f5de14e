//! The one way in which objects of a checkpoint are deleted, whoever asks: only what the layout calls deletable, and of
//! that only what no index names, nor the intent of a save under way.
//!
//! An index or intent that cannot be read might name any of them, so then all stay.

use std::collections::BTreeSet;

use s3dcp_s3::{DeleteFailure, Error, ErrorKind, ObjectInfo};

use crate::catalogue::named::Indexes;
use crate::layout::Layout;
use crate::storage::Storage;

/// What can name the objects that are to go.
pub(crate) enum NamedBy<'a> {
    /// No index: they carry the id of a save that no index has heard of, or are no shard files.
    Nothing,
    /// An index of the path, of a rank there, or of its epochs and steps. These keys of indexes are read first, because they are
    /// the likeliest, and nothing more once no object is left to delete: a save of a new epoch costs a few requests
    /// whatever the number of epochs.
    Path(Vec<String>),
    /// Any index below the path, or in the folders above it and their epochs and steps, because the path may be a prefix within a
    /// checkpoint.
    Any(&'a mut Indexes),
}

/// How a deletion went.
#[derive(Debug, Default)]
pub(crate) struct Deletion {
    /// What is gone.
    pub(crate) deleted: Vec<String>,
    /// What stays because an index names it.
    pub(crate) named: BTreeSet<String>,
    /// What the service did not delete.
    pub(crate) failed: Vec<DeleteFailure>,
    /// Why the rest may stay.
    pub(crate) stopped: Option<Stopped>,
}

/// A deletion that ended early.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) error: Error,
    /// What may stay: nothing of it was deleted, or it is not known what.
    pub(crate) left: Vec<String>,
    /// Whether the service was asked to delete it.
    pub(crate) asked: bool,
}

/// Deletes an object while it is as it was listed; whether it is gone.
pub(crate) async fn delete_as_listed(storage: &Storage, object: &ObjectInfo) -> Result<bool, Error> {
    match storage.delete_if(&object.key, object.etag.as_deref()).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes what may go of `keys`, which lie below the path of `layout`.
pub(crate) async fn delete_objects(
    storage: &Storage,
    layout: &Layout,
    keys: impl IntoIterator<Item = String>,
    named_by: NamedBy<'_>,
) -> Deletion {
    let all: BTreeSet<String> = keys.into_iter().filter(|key| layout.deletable(key)).collect();
    let mut unnamed = all.clone();
    let spared = match named_by {
        NamedBy::Nothing => Ok(()),
        NamedBy::Path(first) => Indexes::default().spare_of_path(storage, layout, first, &mut unnamed).await,
        NamedBy::Any(indexes) => indexes.spare_of_any(storage, layout, &mut unnamed).await,
    };
    let keys: Vec<String> = unnamed.iter().cloned().collect();
    if let Err(error) = spared {
        return Deletion {
            stopped: Some(Stopped { error, left: keys, asked: false }),
            ..Deletion::default()
        };
    }
    let named = all.difference(&unnamed).cloned().collect();
    if keys.is_empty() {
        return Deletion { named, ..Deletion::default() };
    }
    match storage.delete(&keys).await {
        Ok(failed) => {
            let refused: BTreeSet<&str> = failed.iter().map(|failure| &failure.key[..]).collect();
            let deleted = keys.iter().filter(|key| !refused.contains(&key[..])).cloned().collect();
            Deletion { deleted, named, failed, stopped: None }
        }
        Err(error) => Deletion {
            named,
            stopped: Some(Stopped { error, left: keys, asked: true }),
            ..Deletion::default()
        },
    }
}
