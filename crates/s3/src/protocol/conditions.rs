//! Conditions of writes, and what a bucket does with them.

use crate::error::Error;

/// What a write must find at the key to take effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Anything: the object is replaced.
    #[default]
    None,
    /// No object (`If-None-Match: *`).
    IfNoneMatch,
    /// The object with this ETag, as the service wrote it, quotes included.
    IfMatch(String),
}

/// What becomes of writes with a certain condition.
#[derive(Debug, Clone)]
pub enum Support {
    /// The condition decides.
    Honoured,
    /// They are carried out whether it holds or not.
    Ignored,
    /// They are refused as not understood, with this response.
    Refused(Error),
    /// They are never carried out, as if the condition never held.
    NeverHolds,
    /// It could not be found out, for this reason.
    Unknown(Error),
}

/// What a bucket does with conditional writes.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// With [`Condition::IfNoneMatch`].
    pub if_none_match: Support,
    /// With [`Condition::IfMatch`] and an ETag as the service gives it.
    pub if_match: Support,
    /// The same where the ETag is a weak one (`W/"…"`), which by the book matches nothing.
    pub if_match_weak: Support,
}

impl Conditions {
    /// What becomes of writes with this condition.
    pub fn support(&self, condition: &Condition) -> &Support {
        match condition {
            Condition::None => &Support::Honoured,
            Condition::IfNoneMatch => &self.if_none_match,
            Condition::IfMatch(etag) if is_weak(etag) => &self.if_match_weak,
            Condition::IfMatch(_) => &self.if_match,
        }
    }

    pub(crate) fn unknown(error: &Error) -> Conditions {
        let unknown = || Support::Unknown(error.clone());
        Conditions { if_none_match: unknown(), if_match: unknown(), if_match_weak: unknown() }
    }

    pub(crate) fn is_known(&self) -> bool {
        ![&self.if_none_match, &self.if_match].iter().any(|support| matches!(support, Support::Unknown(_)))
    }
}

/// Whether this is a weak ETag (`W/"…"`).
pub(crate) fn is_weak(etag: &str) -> bool {
    etag.starts_with("W/")
}
