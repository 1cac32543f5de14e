//! The layout of `torch.distributed.checkpoint` on S3.
//!
//! - Names: [`Layout`] writes, parses and checks every name of a checkpoint's objects; [`Target`] is where one save puts its index.
//! - Tensor archives: [`TensorSpec`], [`archive_layout`], [`parse_archive_head`], [`ends_archive`].
//! - Writing a shard file: [`ShardWriter`] with [`ItemChecksums`].
//! - Reading: [`check_chunks`] sees that an index gives a tensor's every element once; [`plan_reads`] turns wanted bytes of items into ranges of shard files, [`BlockLayout`] takes blocks out of
//!   rows.
//! - The index: [`IndexWriter`] writes it, [`check_index`] judges it before Python unpickles it, [`read_facts`] reads
//!   what this crate needs.
//! - Commit: [`prepare`] before a save, which looks at the path as [`observe`] does, [`commit`] at its end, [`discard`] when it fails.
//! - What killed and failed saves leave: [`find_leftovers`] lists and deletes it.
//!
//! Errors are the engine's, [`s3dcp_s3::Error`].

mod archive;
mod block;
mod checksums;
mod chunks;
mod clean_up;
mod commit;
mod conditions;
mod delete;
mod dtype;
mod error;
mod index;
mod index_writer;
mod layout;
mod named;
mod nearby;
mod observe;
mod pickle;
mod prune;
mod read_plan;
mod read_sink;
mod shard_writer;

pub use archive::parse::{ArchiveHead, HeadState, MAX_END, MAX_HEAD, ends_archive, parse_archive_head};
pub use archive::spec::TensorSpec;
pub use archive::write::{ArchiveLayout, archive_layout};
pub use block::{BlockDim, BlockLayout};
pub use checksums::{ItemChecksums, SLICE_SIZE};
pub use chunks::{Chunk, Cover, check_chunks, has_all};
pub use clean_up::discard;
pub use commit::{Committed, commit};
pub use conditions::{ConditionalCommit, prepare};
pub use dtype::DType;
pub use index::{IndexFacts, MAX_INDEX_BYTES, check_index, read_facts, seal_index};
pub use index_writer::{Index, IndexWriter, SealedIndex};
pub use layout::{Layout, ShardName, Target, resolve_key};
pub use nearby::{Nearby, nearby_checkpoints};
pub use observe::{Observed, SeenIndex, observe};
pub use pickle::allow::AllowList;
pub use pickle::scan::scan_index;
pub use pickle::write::{PickleWriter, ValueStart};
pub use prune::{Leftover, LeftoverKind, Leftovers, Pruned, find_leftovers};
pub use read_plan::{Destination, ItemHead, ItemRead, Piece, ReadOptions, plan_reads};
pub use shard_writer::{GATHER_BELOW, ItemRecord, ShardWriter};
