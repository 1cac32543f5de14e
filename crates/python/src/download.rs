//! A download of tensor memory while Python goes on.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use s3dcp_s3::{Error, ErrorKind};
use tokio::task::{AbortHandle, JoinHandle};

use crate::errors::to_python;
use crate::runtime::{OfProcess, forked, handle, wait, without_gil};
use crate::uses::Uses;

type Outcome = Result<(), Error>;

/// The task of a download.
struct Task {
    /// Taken by whoever waits first.
    outcome: Mutex<Option<JoinHandle<Outcome>>>,
    abort: AbortHandle,
    /// Held by the task until it is gone.
    uses: Uses,
}

/// A download that is under way, until it ends or this is dropped: after either, nothing is written any more.
pub(crate) struct Running {
    task: OfProcess<Task>,
    /// What owns the memory that is written into.
    _memory: Py<PyAny>,
}

impl Running {
    /// Starts `fetch` on an I/O thread; `memory` owns the places that it writes.
    pub(crate) fn start(
        fetch: impl Future<Output = Outcome> + Send + 'static,
        memory: Py<PyAny>,
    ) -> PyResult<Running> {
        let runtime = handle()?;
        let uses = Uses::new();
        let in_use = uses.begin();
        let task = runtime.spawn(async move {
            let outcome = fetch.await;
            // Captured last and let go of here, so that the reads are gone before it, also when the task is aborted.
            drop(in_use);
            outcome
        });
        let abort = task.abort_handle();
        let task = Task { outcome: Mutex::new(Some(task)), abort, uses };
        Ok(Running { task: OfProcess::new(task), _memory: memory })
    }

    /// Waits until every byte is in place and verified; a second wait returns at once. Also when this fails, nothing
    /// is written any more.
    pub(crate) fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let Some(task) = self.task.get() else {
            return Err(to_python(py, &forked("the download")));
        };
        let outcome = task.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(outcome) = outcome else { return Ok(()) };
        let result = wait(py, async {
            outcome.await.unwrap_or_else(|failure| {
                Err(Error::new(ErrorKind::Interrupted, format!("the download ended early: {failure}")))
            })
        });
        // After a signal the task is still there.
        py.detach(|| self.stop());
        result
    }

    /// Has it stop soon.
    pub(crate) fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort.abort();
        }
    }

    /// Stops it, if it still runs; nothing is written after this. Does nothing in a forked child.
    pub(crate) fn stop(&self) {
        self.abort();
        if let Some(task) = self.task.get() {
            task.uses.end();
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.task.get().is_none_or(|task| task.abort.is_finished())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        without_gil(|| self.stop());
    }
}
