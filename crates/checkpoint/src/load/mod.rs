//! A load: which bytes of which shard files, and where each goes.

pub(crate) mod blocks;
pub(crate) mod chunks;
pub(crate) mod destination;
pub(crate) mod plan;
pub(crate) mod sink;
