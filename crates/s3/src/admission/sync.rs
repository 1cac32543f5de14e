//! The locks and counters of [`crate::admission::connection_limit`]; `fuzz/models` has others here.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex, PoisonError};
