//! The one error of this crate: an argument that cannot make a usable key prefix.

use std::fmt;

/// Why an argument was refused. Every variant names the argument, and its text also the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrefixError {
    /// A number outside its limits, both inclusive.
    OutOfRange {
        /// The argument's name, as in the constructor.
        argument: String,
        /// What was given, as it prints.
        value: String,
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
        /// What was given, as it prints.
        value: String,
        /// Length of the prefix in bytes of UTF-8, for a rank of one digit where the rank is not known yet.
        bytes: usize,
    },
}

impl PrefixError {
    /// The name of the refused argument, with its position where it is one of several.
    pub fn argument(&self) -> &str {
        match self {
            Self::OutOfRange { argument, .. }
            | Self::BadText { argument, .. }
            | Self::TooLong { argument, .. } => argument,
        }
    }
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { argument, value, min, max } => {
                write!(f, "{argument} must be an integer from {min} to {max}, got {}", Cut(value))
            }
            Self::BadText { argument, value, reason } => {
                write!(f, "{argument} {reason}, got {:?}", Cut(value))
            }
            Self::TooLong { argument, value, bytes } => write!(
                f,
                "{argument} makes a prefix of {bytes} bytes; a whole key on S3 has at most {} bytes, got {}",
                crate::key::MAX_KEY_BYTES,
                Cut(value)
            ),
        }
    }
}

/// A text of any length, cut where it is long.
pub struct Cut<'a>(pub &'a str);

impl Cut<'_> {
    fn head(&self) -> (&str, &str) {
        match self.0.char_indices().nth(100) {
            Some((end, _)) => (&self.0[..end], "..."),
            None => (self.0, ""),
        }
    }
}

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, more) = self.head();
        write!(f, "{head}{more}")
    }
}

impl fmt::Debug for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, more) = self.head();
        write!(f, "{head:?}{more}")
    }
}

impl std::error::Error for PrefixError {}
