//! The checkpoint layer: its formats against golden files, and its saves, loads and deletions against the embedded server.
//! `hostile` measures memory, and so has a process of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod commit;
mod index;
mod kill;
mod load;
mod look;
mod prune;
mod read_plan;
mod remove;
mod reuse;
mod save;
mod shard_writer;
mod support;
mod tombstone;
