//! No panic crosses into Python: a defect of ours is an error like any other there.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use crate::errors::internal;

/// Whether a test wants an entry point to panic, and which.
static REHEARSING: AtomicBool = AtomicBool::new(false);
static REHEARSED: Mutex<Option<String>> = Mutex::new(None);

/// Runs the body of an entry point; `#[entry]` writes the call.
///
/// What a panic leaves behind is not looked at again: locks here are taken whatever happened under them, and what
/// belongs to a call is dropped with it.
pub(crate) fn caught<T>(entry: &str, body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    let run = AssertUnwindSafe(|| {
        rehearse(entry);
        body()
    });
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = format!("{entry}: internal error of s3dcp, please report it: {}", message(&*panic));
        Err(Python::attach(|py| internal(py, &text)))
    })
}

/// The same for a body that does not fail otherwise.
pub(crate) fn caught_value<T>(entry: &str, body: impl FnOnce() -> T) -> PyResult<T> {
    caught(entry, || Ok(body()))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

fn rehearse(entry: &str) {
    if REHEARSING.load(Ordering::Relaxed)
        && REHEARSED.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(entry)
    {
        panic!("rehearsed");
    }
}

/// Let an entry point panic whenever it is called, until this is called with None: for tests.
#[pyfunction]
#[pyo3(signature = (entry))]
fn _rehearse_panic(entry: Option<String>) {
    REHEARSING.store(entry.is_some(), Ordering::Relaxed);
    *REHEARSED.lock().unwrap_or_else(PoisonError::into_inner) = entry;
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_rehearse_panic, module)?)
}
