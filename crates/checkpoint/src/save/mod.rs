//! A save: what it finds at its path, its shard files, its commit, and what it deletes.

pub(crate) mod base;
pub(crate) mod begin;
pub(crate) mod clean_up;
pub(crate) mod commit;
pub(crate) mod conditions;
pub(crate) mod intent;
pub(crate) mod lease;
pub(crate) mod observe;
pub(crate) mod shard_writer;
pub(crate) mod spread;
pub(crate) mod tensor_index;
