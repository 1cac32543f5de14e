//! How far a call has come, told to a function of Python whenever the call looks for signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use s3dcp_s3::Error;

use crate::runtime::wait_for;

/// The bytes that a call has done, and of how many.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<Counts>);

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub(crate) fn expect(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn tell(&self, py: Python<'_>, report: Option<&Py<PyAny>>) -> PyResult<()> {
        let total = self.0.total.load(Ordering::Relaxed);
        if let Some(report) = report.filter(|_| total > 0) {
            report.call1(py, (self.0.done.load(Ordering::Relaxed).min(total), total))?;
        }
        Ok(())
    }

    fn tell_end(&self, py: Python<'_>, report: Option<&Py<PyAny>>) -> PyResult<()> {
        if let Some(report) = report {
            let total = self.0.total.load(Ordering::Relaxed);
            report.call1(py, (total, total))?;
        }
        Ok(())
    }
}

/// Runs the future that `make` gives, and calls `report` with the bytes done and their total as it goes on and once at its end.
/// What `report` raises stops it.
pub(crate) fn wait_telling<T: Send, F: Future<Output = Result<T, Error>>>(
    py: Python<'_>,
    report: Option<&Py<PyAny>>,
    make: impl FnOnce(Progress) -> F + Send,
) -> PyResult<T> {
    let progress = Progress::default();
    let result = wait_for(py, || make(progress.clone()), |py| progress.tell(py, report))?;
    progress.tell_end(py, report)?;
    Ok(result)
}
