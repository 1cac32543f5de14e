//! What lies below a path: which checkpoints, what no index names, and the one way to delete it.

pub(crate) mod delete;
pub(crate) mod folder_mark;
pub(crate) mod keep;
pub(crate) mod list;
pub(crate) mod named;
pub(crate) mod nearby;
pub(crate) mod prune;
pub(crate) mod remove;
