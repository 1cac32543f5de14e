//! Short constructors for this crate's errors, which are the engine's [`Error`].

use s3dcp_s3::{Error, ErrorKind};

/// Bytes that are not what their format says.
pub(crate) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message.into())
}

/// An argument that cannot work.
pub(crate) fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message.into())
}

/// Whether there is no such object; where the bucket itself is missing, that is another error.
pub(crate) fn is_absent(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && error.code() != Some("NoSuchBucket")
}
