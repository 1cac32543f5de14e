//! Tensor archives: one `torch.save` zip file per tensor item, written and read without torch.

pub(crate) mod directory;
pub(crate) mod parse;
pub(crate) mod spec;
pub(crate) mod write;
pub(crate) mod zip;
