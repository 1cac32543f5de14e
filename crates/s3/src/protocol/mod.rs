//! What S3's requests and responses look like.

pub(crate) mod address;
pub(crate) mod bucket;
pub(crate) mod checksum;
pub(crate) mod conditions;
pub(crate) mod dates;
pub(crate) mod endpoint;
pub(crate) mod error_response;
pub(crate) mod xml;
