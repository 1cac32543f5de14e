#![doc = include_str!("../README.md")]
//!
//! What is in it:
//!
//! - Names: [`Layout`] writes, parses and checks every name of a checkpoint's objects; [`Location`] is where one save puts its index.
//!   [`StepFolders`] finds the step in a path.
//! - Tensor archives: [`TensorSpec`], [`archive_layout`], [`parse_archive_head`], [`ends_archive`].
//! - Writing a shard file: [`ShardWriter`] with [`ItemChecksums`], and [`ItemHash`] by which an item is known again.
//! - A load: [`Load`] opens a checkpoint and reads what is wanted of it. Its steps are [`read_contents`], [`check_chunks`], which
//!   sees that an index gives a tensor's every element once, [`OwnFormats`] and [`foreign_sources`], which say where a tensor
//!   lies, [`Block`], which cuts a wanted block of it into runs, [`plan_reads`], which makes ranges of shard files of these,
//!   and [`fetch_items`].
//! - The index: [`TensorIndex`] makes one of tensors, [`IndexWriter`] pickles any, [`check_index`] judges it before Python unpickles it, [`read_facts`] reads
//!   what this crate needs. [`NodeFolder`] is where the ranks of a node have one copy of it.
//! - A save: [`Save`] is joined by each rank, prepared by the one that commits it, writes each shard file by a [`ShardWriter`], and is committed or
//!   discarded. Its steps are [`prepare`], which looks at the path as [`observe`] does, [`commit`] and [`discard`].
//!   A [`Base`] is what a save need not send again. [`WriterLease`] holds a path for one writer. [`Notes`] are what a save notes in its index.
//! - Where checkpoints lie: [`Storage`], a bucket or the local file system.
//! - A look at a checkpoint: [`open_checkpoint`] finds it, [`inspect`] lists it, [`verify`] says whether it is whole, [`diff`] how it
//!   differs from another.
//! - On the move: [`plan_copy`], [`plan_export`] and [`plan_import`] look at both sides; what they answer, when it is run, copies a
//!   checkpoint, writes its tensors as a model, or makes one of a model.
//! - What lies below a path: [`list_checkpoints`] tells of its checkpoints, [`choose`] which stay by [`KeepRules`], and
//!   [`Choice::delete`] deletes the others. [`find_leftovers`] lists and deletes what killed and failed saves leave. [`remove`]
//!   deletes all below a path.
//!
//! Errors are the engine's, [`s3dcp_s3::Error`].

mod archive;
mod catalogue;
mod dtype;
mod error;
mod index;
mod layout;
mod load;
mod name_filter;
mod pickle;
mod save;
mod step_folder;
mod storage;
mod transfer;
mod two_threads;
mod values;

pub use archive::parse::{ArchiveHead, HeadState, MAX_END, MAX_HEAD, ends_archive, parse_archive_head};
pub use archive::spec::TensorSpec;
pub use archive::write::{ArchiveLayout, archive_layout};
pub use catalogue::diff::{ComparedBy, ComparedObject, ComparedTensor, Comparison, ItemName, diff};
pub use catalogue::inspect::{
    InspectedChunk, InspectedIndex, InspectedObject, InspectedTensor, Inspection, Place, Total, inspect,
};
pub use catalogue::keep::{Best, Choice, Deleted, KeepRules, Kept, choose};
pub use catalogue::list::{Checkpoint, Checkpoints, list_checkpoints};
pub use catalogue::nearby::{Nearby, nearby_checkpoints};
pub use catalogue::open::{OpenCheckpoint, OpenIndex, open_checkpoint};
pub use catalogue::prune::{Leftover, LeftoverKind, Leftovers, Pruned, find_leftovers};
pub use catalogue::remove::{Removed, remove};
pub use catalogue::statistics::read_statistics;
pub use catalogue::verify::{Verification, VerifiedBy, VerifyFault, VerifyOptions, verify};
pub use dtype::DType;
pub use index::allow::AllowList;
pub use index::checksums::{ItemChecksums, SLICE_SIZE};
pub use index::facts::IndexFacts;
pub use index::item_hash::{ItemFormat, ItemHash, ItemHasher};
pub use index::judge::{check_index, read_facts};
pub use index::notes::{MAX_NOTES_BYTES, Notes};
pub use index::outline::{MAPPINGS, Outline};
pub use index::read::{MAX_INDEX_BYTES, SeenIndex};
pub use index::scan::scan_index;
pub use index::seal::seal_index;
pub use index::shared::{Claim, NodeFolder, SharedIndex, VacantIndex};
pub use index::write::{Index, IndexWriter, SealedIndex};
pub use layout::{Layout, Location, ShardName};
pub use load::begin::Load;
pub use load::blocks::{BlockDim, BlockLayout};
pub use load::chunks::{Chunk, Cover, check_chunks, has_all};
pub use load::contents::{Contents, Stored, StoredChunk, StoredTensor, read_contents};
pub use load::cut::{Block, Nesting, Part, Runs, is_inside, shares_memory};
pub use load::destination::Destination;
pub use load::fetch::{check_in_file, fetch_items};
pub use load::foreign::{ForeignTensor, foreign_sources};
pub use load::plan::{ItemHead, ItemRead, Piece, ReadOptions, plan_reads};
pub use load::source::{Entry, OwnFormat, OwnFormats, Source};
pub use name_filter::NameFilter;
pub use pickle::write::{PickleWriter, ValueStart};
pub use save::base::{Base, BaseItem};
pub use save::begin::{Save, SaveOptions};
pub use save::clean_up::discard;
pub use save::commit::{Committed, commit};
pub use save::conditions::{ConditionalCommit, prepare};
pub use save::lease::{LEASE_BEAT, WriterLease};
pub use save::observe::{Observed, observe};
pub use save::shard_writer::{GATHER_BELOW, ItemRecord, ShardWriter};
pub use save::spread::spread;
pub use save::tensor_index::TensorIndex;
pub use step_folder::{StepFolder, StepFolders};
pub use storage::Storage;
pub use storage::disk::Disk;
pub use storage::writer::MOST_IN_FLIGHT;
pub use transfer::copy::{Copied, CopyOptions, CopyPlan, plan_copy};
pub use transfer::export::{ExportFormat, ExportOptions, ExportPlan, Exported, plan_export};
pub use transfer::import::{ImportOptions, ImportPlan, Imported, plan_import};
pub use transfer::names::FileNames;
pub use transfer::rename::Renaming;
pub use transfer::write::OnBytes;
pub use values::{Difference, Number, Statistics};
