//! Many bytes: uploads in parts, downloads in ranges, and how large those are.

pub(crate) mod assembly;
pub(crate) mod begun;
pub(crate) mod download;
pub(crate) mod fetch;
pub(crate) mod network_estimate;
pub(crate) mod part_size;
pub(crate) mod payload;
pub(crate) mod segment;
pub(crate) mod upload;
