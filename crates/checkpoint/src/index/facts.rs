//! What an index says that matters before it is unpickled, or without.

use std::collections::BTreeSet;

/// What commit, clean-up and listing need to know of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexFacts {
    /// The shard files, as the items name them: relative to the index's folder.
    pub relative_paths: BTreeSet<String>,
    /// The id of the save that wrote the index.
    pub save_id: Option<String>,
    /// How many ranks saved; in indexes of this project.
    pub ranks: Option<u64>,
    /// The epoch; in indexes of this project that have one.
    pub epoch: Option<i64>,
    /// What was noted with the save, as a JSON object: see [`Notes`](crate::Notes).
    pub notes: Option<String>,
    /// Items, over all shard files.
    pub item_count: u64,
    /// Writes per minute that the save found the service to take; `None` where it was asked for no fewer than were sent.
    pub writes_per_minute: Option<u64>,
    /// At least one item carries checksums.
    pub has_checksums: bool,
}
