//! Marks of folders, such as `step-700`, whose indexes name files above them: whoever deletes reads these indexes too.
//!
//! A mark is there before the index and goes after it. A save sets it once more behind its index, and whoever clears it
//! looks for an index afterwards: of the two that come together, the later one sees the other.

use s3dcp_s3::{Client, Error, PutOptions};

use crate::layout::Layout;

pub(crate) async fn set(client: &Client, bucket: &str, mark_key: &str) -> Result<(), Error> {
    client.put_object(bucket, mark_key, Default::default(), &PutOptions::default()).await.map(drop)
}

/// Deletes the mark of a folder, unless the folder has an index.
pub(crate) async fn clear(client: &Client, bucket: &str, folder: &Layout) -> Result<(), Error> {
    let Some(mark_key) = folder.mark_key() else { return Ok(()) };
    let failed = client.delete_objects(bucket, std::slice::from_ref(&mark_key)).await?;
    if let Some(failure) = failed.into_iter().next() {
        return Err(failure.into_error(bucket));
    }
    let indexes = client.list_objects(bucket, &folder.index_key(None), Some("/")).await?;
    let ranks = client.list_objects(bucket, &folder.rank_indexes(), Some("/")).await?;
    if indexes.objects.is_empty() && ranks.objects.is_empty() {
        Ok(())
    } else {
        set(client, bucket, &mark_key).await
    }
}
