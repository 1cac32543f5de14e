//! What lies below a path: which checkpoints, what each holds, what no index names, and the one way to delete it.

pub(crate) mod bands;
pub(crate) mod delete;
pub(crate) mod diff;
pub(crate) mod folder_mark;
pub(crate) mod inspect;
pub(crate) mod keep;
pub(crate) mod list;
pub(crate) mod named;
pub(crate) mod nearby;
pub(crate) mod open;
pub(crate) mod prune;
pub(crate) mod remove;
pub(crate) mod statistics;
pub(crate) mod sums;
pub(crate) mod tombstone;
pub(crate) mod verified;
pub(crate) mod verify;
pub(crate) mod walk;
