//! What S3 allows a key to be.

/// The longest key S3 takes, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1_024;
