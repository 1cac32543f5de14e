//! The operations of S3, one file per family; `call` and `attempt` are what they share.

pub(crate) mod attempt;
pub(crate) mod call;
pub(crate) mod conditions;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod multipart;
pub(crate) mod object;
pub(crate) mod session;
