//! Which staging buffers are free: Python fills a buffer, uploads hold it until their parts are up.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::BufferView;

/// How often a waiting `acquire` looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

struct Shared {
    /// Address and capacity of each buffer.
    buffers: Vec<(usize, usize)>,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    _owner: Py<PyAny>,
}

/// A buffer in use; it is free again when the last holder of this is gone.
struct InUse {
    slot: usize,
    shared: Arc<Shared>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        self.shared.freed.notify_one();
    }
}

/// Filled bytes of a buffer on their way up.
struct Filled {
    view: BufferView,
    _in_use: Arc<InUse>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.view.as_ref()
    }
}

/// Bookkeeping of reused host buffers, which `owner` keeps alive.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StagingPool {
    shared: Arc<Shared>,
}

#[pymethods]
impl StagingPool {
    #[new]
    fn new(buffers: Vec<(usize, usize)>, owner: Py<PyAny>) -> PyResult<Self> {
        if buffers.iter().any(|&(address, capacity)| address == 0 || capacity == 0) {
            return Err(PyValueError::new_err("buffers: each must have memory"));
        }
        let free = Mutex::new((0..buffers.len()).rev().collect());
        Ok(Self { shared: Arc::new(Shared { buffers, free, freed: Condvar::new(), _owner: owner }) })
    }

    /// Wait up to `seconds` for a free buffer; None when there is none by then.
    fn acquire(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<StagingBuffer>> {
        let looks = (seconds / SIGNAL_INTERVAL.as_secs_f64()).ceil().max(1.0) as u64;
        for _ in 0..looks {
            let slot = py.detach(|| {
                let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut free, _) = self
                    .shared
                    .freed
                    .wait_timeout_while(free, SIGNAL_INTERVAL, |free| free.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                free.pop()
            });
            if let Some(slot) = slot {
                let in_use = Arc::new(InUse { slot, shared: Arc::clone(&self.shared) });
                return Ok(Some(StagingBuffer { in_use }));
            }
            py.check_signals()?;
        }
        Ok(None)
    }
}

/// One buffer of a pool, Python's to fill; free again once this is gone and all that was written from it is up.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StagingBuffer {
    in_use: Arc<InUse>,
}

#[pymethods]
impl StagingBuffer {
    /// Its number in the pool.
    #[getter]
    fn slot(&self) -> usize {
        self.in_use.slot
    }
}

impl StagingBuffer {
    /// `length` bytes from `start` on, which Python does not touch any more.
    pub(crate) fn filled(&self, start: usize, length: usize) -> PyResult<Bytes> {
        let (address, capacity) = self.in_use.shared.buffers[self.in_use.slot];
        if start.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(PyValueError::new_err(format!(
                "start={start}, length={length}: past the end of the buffer of {capacity} bytes"
            )));
        }
        let view = BufferView::new(address + start, length);
        Ok(Bytes::from_owner(Filled { view, _in_use: Arc::clone(&self.in_use) }))
    }
}
