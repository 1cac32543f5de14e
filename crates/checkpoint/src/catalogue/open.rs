//! The checkpoint at a path, however a person names it: its folder, its index, or a folder in which each rank has one.

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind};

use super::nearby::nearby_checkpoints;
use crate::index::read::MAX_INDEX_BYTES;
use crate::layout::{Layout, Name, rank_in};
use crate::load::begin::Load;
use crate::storage::Storage;

/// Indexes of ranks that are read at once.
const CONCURRENT_INDEXES: usize = 16;

/// A checkpoint whose indexes have been read and judged.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenCheckpoint {
    /// Where it lies.
    pub storage: Storage,
    /// The folder of its index, as a URI or a local path.
    pub uri: String,
    /// Its one index; or those of its ranks, by rank.
    pub indexes: Vec<OpenIndex>,
}

/// An index of a checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenIndex {
    /// Its key.
    pub key: String,
    /// The rank whose index it is; `None` for that of all ranks.
    pub rank: Option<u64>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its ETag, where the storage gives one.
    pub etag: Option<String>,
    /// What it says of the save, and what there is.
    pub load: Load,
}

/// Opens the checkpoint at `path_key`: the key of its folder, or of an index. Nothing in it is run.
///
/// # Errors
/// `NotFound` where no checkpoint is, with those nearby; `Corrupt` for an index that is damaged or holds what none needs;
/// else those of the requests.
pub async fn open_checkpoint(storage: &Storage, path_key: &str) -> Result<OpenCheckpoint, Error> {
    let is_index = Name::of(path_key).is_index();
    let layout = if is_index { Layout::beside(path_key) } else { Layout::new(path_key) };
    let key = if is_index { path_key.to_owned() } else { layout.index_key(None) };
    let indexes = match open_index(storage, key).await {
        Ok(index) => vec![index],
        Err(error) if error.kind() != ErrorKind::NotFound || error.code() == Some("NoSuchBucket") => {
            return Err(error);
        }
        Err(_) if is_index => Vec::new(),
        Err(_) => of_ranks(storage, &layout).await?,
    };
    let uri = storage.uri(layout.folder().trim_end_matches('/'));
    if indexes.is_empty() {
        let nearby = nearby_checkpoints(storage, layout.folder()).await.to_string();
        let nearby = if nearby.is_empty() { nearby } else { format!("; {nearby}") };
        let at = if is_index { storage.uri(path_key) } else { uri };
        return Err(Error::new(ErrorKind::NotFound, format!("there is no checkpoint at {at}{nearby}")));
    }
    Ok(OpenCheckpoint { storage: storage.clone(), uri, indexes })
}

async fn of_ranks(storage: &Storage, layout: &Layout) -> Result<Vec<OpenIndex>, Error> {
    let listing = storage.list(&layout.rank_indexes(), Some("/")).await?;
    let keys = listing.objects.into_iter().map(|object| object.key);
    let mut reads = stream::iter(keys.filter(|key| Name::of(key) == Name::RankIndex))
        .map(|key| open_index(storage, key))
        .buffered(CONCURRENT_INDEXES);
    let mut indexes = Vec::new();
    while let Some(index) = reads.next().await {
        indexes.push(index?);
    }
    indexes.sort_by_key(|index| index.rank);
    Ok(indexes)
}

async fn open_index(storage: &Storage, key: String) -> Result<OpenIndex, Error> {
    let object = storage.get(&key, MAX_INDEX_BYTES).await?;
    let load = Load::of(storage, &key, &object.body)?;
    Ok(OpenIndex {
        rank: (Name::of(&key) == Name::RankIndex).then(|| rank_in(&key)).flatten(),
        bytes: object.body.len() as u64,
        etag: object.info.etag,
        load,
        key,
    })
}
