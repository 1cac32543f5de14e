//! The locks of [`crate::pool`]; `fuzz/models` has others here.

pub(crate) use std::sync::{Arc, Condvar, Mutex, PoisonError};
