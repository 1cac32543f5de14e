//! Checkpoints on the move: copied, written in other formats, read from them.
//!
//! Whatever is made is a [`Body`](body::Body) first: a file as pieces of other files and bytes of its own. A service copies
//! what it can of that ([`parts`] says what); the rest is read and sent.

pub(crate) mod body;
pub(crate) mod cast;
pub(crate) mod commit;
pub(crate) mod copy;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod names;
pub(crate) mod parts;
pub(crate) mod planned;
pub(crate) mod ranks;
pub(crate) mod rename;
pub(crate) mod subset;
pub(crate) mod torch_file;
pub(crate) mod torch_pickle;
pub(crate) mod torch_records;
pub(crate) mod write;
