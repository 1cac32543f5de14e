//! A load: what there is and where, which bytes of which shard files are wanted, and where each goes.

pub(crate) mod begin;
pub(crate) mod blocks;
pub(crate) mod chunks;
pub(crate) mod contents;
pub(crate) mod cut;
pub(crate) mod destination;
pub(crate) mod fetch;
pub(crate) mod foreign;
pub(crate) mod located;
pub(crate) mod memory;
pub(crate) mod plan;
pub(crate) mod sink;
pub(crate) mod source;
