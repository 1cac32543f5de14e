//! Which keys no index names, nor the intent of a save under way: the one answer, for whoever deletes.
//!
//! A save deletes its intent once its index is there. So intents are looked for first, by requests of their own: whoever
//! finds no intent of a save that is being committed finds its index.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, Listing, ObjectInfo};

use crate::index::read::{index_folders, read_named};
use crate::layout::{Layout, Name};
use crate::save::intent;
use crate::storage::Storage;

/// Listings under way at once.
const CONCURRENT_LISTINGS: usize = 16;
/// Indexes in memory at once; that of a large job has some 100 MB.
const CONCURRENT_INDEXES: usize = 4;

/// The indexes and intents read so far, each with the ETag that it had in a listing.
#[derive(Debug, Default)]
pub(crate) struct Indexes {
    read: BTreeMap<String, Option<String>>,
}

/// An index or intent to read.
struct Found {
    key: String,
    /// As a listing says it; `None` for one that no listing showed, and where the service gives none.
    etag: Option<String>,
}

impl Indexes {
    /// Those that were read already: whoever read them has taken out what they name.
    pub(crate) fn known(indexes: impl IntoIterator<Item = ObjectInfo>) -> Indexes {
        let read = indexes.into_iter().map(|index| (index.key, index.etag));
        Indexes { read: read.collect() }
    }

    /// Takes out of `keys` what an intent or index of the path names, of its epochs and steps, or of a rank there. Of the indexes the
    /// `first` are read first, and nothing more once no key is left.
    ///
    /// # Errors
    /// Of an index that cannot be read, with its key; else those of the requests.
    pub(crate) async fn spare_of_path(
        &mut self,
        storage: &Storage,
        layout: &Layout,
        first: Vec<String>,
        keys: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let listing = storage.list(&layout.intents(), Some("/")).await?;
        self.spare(storage, intents_of(&listing).collect(), keys).await?;
        let unlisted = |key| Found { key, etag: None };
        for index in first {
            self.spare(storage, vec![unlisted(index)], keys).await?;
        }
        if keys.is_empty() {
            return Ok(());
        }
        let mut folders = vec![layout.clone()];
        folders.extend(index_folders(storage, layout).await?);
        for folder in folders {
            self.spare(storage, vec![unlisted(folder.index_key(None))], keys).await?;
            if keys.is_empty() {
                return Ok(());
            }
            let listing = storage.list(&folder.rank_indexes(), Some("/")).await?;
            let ranks = listing.objects.into_iter().map(|object| object.key);
            for index in ranks.filter(|key| Name::of(key) == Name::RankIndex) {
                self.spare(storage, vec![unlisted(index)], keys).await?;
            }
        }
        Ok(())
    }

    /// Takes out of `keys` what any intent or index names, below the path or above it: lists them, and reads those that are new
    /// or other since the last look.
    ///
    /// # Errors
    /// Those of [`Indexes::spare_of_listed`].
    pub(crate) async fn spare_of_any(
        &mut self,
        storage: &Storage,
        layout: &Layout,
        keys: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut intents = intents_above(storage, layout).await.map_err(unreadable)?;
        intents.extend(intents_of(&storage.list(layout.folder(), None).await?));
        self.spare(storage, intents, keys).await.map_err(unreadable)?;
        let listing = storage.list(layout.folder(), None).await?;
        self.spare_of_listed(storage, layout, &listing, keys).await
    }

    /// The same of what a `listing` of all below the path shows. What an earlier look took out must not be in `keys`.
    ///
    /// # Errors
    /// Of an index that cannot be read: its own kind, with its key.
    pub(crate) async fn spare_of_listed(
        &mut self,
        storage: &Storage,
        layout: &Layout,
        listing: &Listing,
        keys: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        // Whether these are still the same nobody can tell.
        self.read.retain(|_, etag| etag.is_some());
        let mut intents = intents_above(storage, layout).await.map_err(unreadable)?;
        intents.extend(intents_of(listing));
        self.spare(storage, intents, keys).await.map_err(unreadable)?;
        let mut indexes = above(storage, layout).await.map_err(unreadable)?;
        indexes.extend(indexes_of(&listing.objects));
        self.spare(storage, indexes, keys).await.map_err(unreadable)
    }

    /// Takes out of `keys` what these indexes or intents name, but for those that were read before and are still the same.
    async fn spare(
        &mut self,
        storage: &Storage,
        mut indexes: Vec<Found>,
        keys: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        indexes.retain(|index| self.read.get(&index.key) != Some(&index.etag));
        let mut reads = stream::iter(indexes)
            .map(|index| async {
                let named = match Name::of(&index.key) {
                    Name::Intent => intent::read_named(storage, &index.key).await,
                    _ => read_named(storage, &index.key).await,
                };
                (named, index)
            })
            .buffered(CONCURRENT_INDEXES);
        while let Some((named, index)) = reads.next().await {
            if let Some(named) = named? {
                keys.retain(|key| !named.contains(key));
            }
            self.read.insert(index.key, index.etag);
        }
        Ok(())
    }
}

fn unreadable(error: Error) -> Error {
    let message =
        format!("an index that may name shard files cannot be read, so none is deleted: {}", error.message());
    error.with_message(message)
}

/// The intents of the paths above one, which may name files below it.
async fn intents_above(storage: &Storage, layout: &Layout) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let mut folder = layout.above();
    while let Some(above) = folder {
        let listing = storage.list(&above.intents(), Some("/")).await?;
        found.extend(intents_of(&listing));
        folder = above.above();
    }
    Ok(found)
}

/// The indexes of the folders above a path and of their epochs and steps, which may name files below it.
async fn above(storage: &Storage, layout: &Layout) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let mut folder = layout.clone();
    while let Some(above) = folder.above() {
        let mut folders = index_folders(storage, &above).await?;
        folders.push(above.clone());
        let mut listings =
            stream::iter(folders).map(|folder| indexes_in(storage, folder)).buffered(CONCURRENT_LISTINGS);
        while let Some(indexes) = listings.next().await {
            found.extend(indexes?);
        }
        folder = above;
    }
    Ok(found)
}

/// The indexes directly in a folder.
async fn indexes_in(storage: &Storage, folder: Layout) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for prefix in [folder.index_key(None), folder.rank_indexes()] {
        let listing = storage.list(&prefix, Some("/")).await?;
        found.extend(indexes_of(&listing.objects));
    }
    Ok(found)
}

fn intents_of(listing: &Listing) -> impl Iterator<Item = Found> {
    intent::that_count(listing).map(found)
}

fn found(object: &ObjectInfo) -> Found {
    Found { key: object.key.clone(), etag: object.etag.clone() }
}

fn indexes_of(objects: &[ObjectInfo]) -> impl Iterator<Item = Found> {
    objects.iter().filter(|object| Name::of(&object.key).is_index()).map(found)
}
