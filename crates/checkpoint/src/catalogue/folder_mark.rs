//! Marks of folders, such as `step-700`, whose indexes name files above them: whoever deletes reads these indexes too.
//!
//! A mark is there before the index and goes after it. A save sets it once more behind its index, and whoever clears it
//! looks for an index afterwards: of the two that come together, the later one sees the other.

use bytes::Bytes;
use s3dcp_s3::{Error, PutOptions};

use crate::layout::Layout;
use crate::storage::Storage;

pub(crate) async fn set(storage: &Storage, mark_key: &str) -> Result<(), Error> {
    storage.put(mark_key, Bytes::new(), &PutOptions::default()).await
}

/// Deletes the mark of a folder, unless the folder has an index.
pub(crate) async fn clear(storage: &Storage, folder: &Layout) -> Result<(), Error> {
    let Some(mark_key) = folder.mark_key() else { return Ok(()) };
    let failed = storage.delete(std::slice::from_ref(&mark_key)).await?;
    if let Some(failure) = failed.into_iter().next() {
        return Err(storage.refusal(failure));
    }
    let indexes = storage.list(&folder.index_key(None), Some("/")).await?;
    let ranks = storage.list(&folder.rank_indexes(), Some("/")).await?;
    if indexes.objects.is_empty() && ranks.objects.is_empty() {
        Ok(())
    } else {
        set(storage, &mark_key).await
    }
}
