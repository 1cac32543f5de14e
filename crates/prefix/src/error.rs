//! The one error of this crate: an argument that cannot make a usable key prefix.

use std::fmt;

/// Why an argument was refused. Every variant names the argument, and its text also the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrefixError {
    /// A number outside its limits, both inclusive.
    OutOfRange {
        /// The argument's name, as in the constructor.
        argument: &'static str,
        /// What was given.
        value: u64,
        /// The smallest value that works.
        min: u64,
        /// The largest value that works.
        max: u64,
    },
    /// A prefix whose text cannot stand in a key below the checkpoint's path.
    BadText {
        /// The argument's name, with its position where it is one of several: `user_prefixes[2]`.
        argument: String,
        /// What was given.
        value: String,
        /// What is wrong with it, as a clause: `"starts with '/'"`.
        reason: &'static str,
    },
    /// The prefix alone is already longer than a whole S3 key may be.
    TooLong {
        /// The argument that makes it long.
        argument: String,
        /// Length of the prefix in bytes of UTF-8, for a rank of one digit where the rank is not known yet.
        bytes: usize,
    },
}

impl PrefixError {
    /// The name of the refused argument, with its position where it is one of several.
    pub fn argument(&self) -> &str {
        match self {
            Self::OutOfRange { argument, .. } => argument,
            Self::BadText { argument, .. } | Self::TooLong { argument, .. } => argument,
        }
    }
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { argument, value, min, max } => {
                write!(f, "{argument} must be an integer from {min} to {max}, got {value}")
            }
            Self::BadText { argument, value, reason } => {
                let shown: String = value.chars().take(80).collect();
                let more = if shown.len() < value.len() { "..." } else { "" };
                write!(f, "{argument} {reason}, got {shown:?}{more}")
            }
            Self::TooLong { argument, bytes } => write!(
                f,
                "{argument} makes a prefix of {bytes} bytes; a whole key on S3 has at most {} bytes",
                crate::MAX_KEY_BYTES
            ),
        }
    }
}

impl std::error::Error for PrefixError {}
