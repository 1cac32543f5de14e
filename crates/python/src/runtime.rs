//! The process's tokio runtime, and waiting for it without holding the GIL.
//!
//! A forked child has none of its parent's threads, so the runtime belongs to a process id: a child makes its own
//! and leaves the parent's alone. No lock is held that a fork could leave locked.
#![expect(
    unsafe_code,
    reason = "the runtime of a process is found through an atomic pointer, without a lock"
)]

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use s3dcp_s3::{Error, ErrorKind};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::errors::to_python;

/// How often a waiting call looks for signals such as Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
const WORKER_THREADS: usize = 2;

/// A value that belongs to the process that made it.
///
/// What is behind it (threads, connections, locks that one of the threads may hold) does not come along into a forked
/// child: there the value is neither used nor dropped. Dropping a connection would also take it out of the event queue
/// that the child shares with its parent.
pub(crate) struct OfProcess<T> {
    pid: u32,
    value: Option<T>,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: Some(value) }
    }

    /// Nothing, until it is exchanged for something.
    pub(crate) fn none() -> Self {
        Self { pid: std::process::id(), value: None }
    }

    fn is_here(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.is_here())
    }

    /// The value, in the process that made it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        if self.is_here() { self.value.as_mut() } else { None }
    }

    /// The value, in the process that made it; nothing is left here then.
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.is_here() { self.value.take() } else { None }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

/// The error for what a forked child took over from its parent.
pub(crate) fn forked(what: &str) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        format!("{what} was begun before a fork and goes on in the parent process, not in this child"),
    )
}

struct PerProcess {
    pid: u32,
    runtime: Runtime,
}

static CURRENT: AtomicPtr<PerProcess> = AtomicPtr::new(std::ptr::null_mut());

/// The handle of this process's runtime, started at first use.
pub(crate) fn handle() -> PyResult<Handle> {
    let pid = std::process::id();
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: every pointer ever stored comes from `Box::into_raw` below and is never freed.
    if let Some(process) = unsafe { current.as_ref() }.filter(|process| process.pid == pid) {
        return Ok(process.runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("s3dcp")
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("cannot start the I/O threads: {error}")))?;
    let fresh = Box::into_raw(Box::new(PerProcess { pid, runtime }));
    let winner = match CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other) => {
            // SAFETY: `fresh` was made above and never shared.
            drop(unsafe { Box::from_raw(fresh) });
            other
        }
    };
    // SAFETY: as above, never null and never freed once stored.
    Ok(unsafe { &*winner }.runtime.handle().clone())
}

/// Runs `work`, which blocks, with the GIL released: in a destructor, where it may be held or not. At the end of the
/// interpreter it cannot be released, and `work` runs all the same.
pub(crate) fn without_gil(work: impl Fn() + Send + Sync) {
    if Python::try_attach(|py| py.detach(&work)).is_none() {
        work();
    }
}

/// Runs `future` to its end with the GIL released, looking for signals in between.
///
/// When a signal handler raises, the future is dropped and the exception goes on.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, Error>> + Send,
) -> PyResult<T> {
    let handle = handle()?;
    // One type for all, so that waiting is compiled once for each result and not for each call.
    let mut future: Pin<&mut (dyn Future<Output = Result<T, Error>> + Send)> = pin!(future);
    loop {
        let step = py.detach(|| {
            handle.block_on(async { tokio::time::timeout(SIGNAL_INTERVAL, future.as_mut()).await })
        });
        match step {
            Ok(result) => return result.map_err(|error| to_python(py, &error)),
            Err(_still_running) => py.check_signals()?,
        }
    }
}

/// The same of a future that has to stay in the thread that makes it; `also` is called after each look for signals, and what it
/// raises ends the future like what a handler raises.
pub(crate) fn wait_for<T: Send, F: Future<Output = Result<T, Error>>>(
    py: Python<'_>,
    make: impl FnOnce() -> F + Send,
    also: impl Fn(Python<'_>) -> PyResult<()> + Send,
) -> PyResult<T> {
    let handle = handle()?;
    py.detach(move || {
        let mut future: Pin<&mut dyn Future<Output = Result<T, Error>>> = pin!(make());
        loop {
            let step =
                handle.block_on(async { tokio::time::timeout(SIGNAL_INTERVAL, future.as_mut()).await });
            match step {
                Ok(result) => return result.map_err(|error| Python::attach(|py| to_python(py, &error))),
                Err(_still_running) => Python::attach(|py| py.check_signals().and_then(|()| also(py)))?,
            }
        }
    })
}
