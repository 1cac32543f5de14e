//! The index of a checkpoint: what it says, how it is judged, written, sealed and read.

pub(crate) mod allow;
pub(crate) mod checksums;
pub(crate) mod facts;
pub(crate) mod item_hash;
pub(crate) mod judge;
pub(crate) mod notes;
pub(crate) mod outline;
pub(crate) mod read;
pub(crate) mod rename;
pub(crate) mod scan;
pub(crate) mod seal;
pub(crate) mod shared;
pub(crate) mod write;
