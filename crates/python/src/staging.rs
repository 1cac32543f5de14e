//! Which staging buffers are free: Python fills a buffer, an upload holds it until its part is up.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::BufferView;

/// How often a waiting `acquire` looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

struct Buffer {
    address: usize,
    capacity: usize,
}

struct Shared {
    buffers: Vec<Buffer>,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    _owner: Py<PyAny>,
}

impl Shared {
    fn release(&self, slot: usize) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.freed.notify_one();
    }
}

/// A filled buffer on its way up; dropping it frees the buffer.
struct Filled {
    view: BufferView,
    slot: usize,
    shared: Arc<Shared>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.view.as_ref()
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.shared.release(self.slot);
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
        let buffers = buffers.into_iter().map(|(address, capacity)| Buffer { address, capacity }).collect();
        Ok(Self { shared: Arc::new(Shared { buffers, free, freed: Condvar::new(), _owner: owner }) })
    }

    /// Wait for a free buffer; its number.
    fn acquire(&self, py: Python<'_>) -> PyResult<usize> {
        loop {
            let slot = py.detach(|| {
                let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut free, _) = self
                    .shared
                    .freed
                    .wait_timeout_while(free, SIGNAL_INTERVAL, |free| free.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                free.pop()
            });
            match slot {
                Some(slot) => return Ok(slot),
                None => py.check_signals()?,
            }
        }
    }

    /// Give a buffer back that was not handed to a writer.
    fn release(&self, slot: usize) {
        self.shared.release(slot);
    }
}

impl StagingPool {
    /// The first `length` bytes of buffer `slot`; the buffer is free again when they are dropped.
    pub(crate) fn filled(&self, slot: usize, length: usize) -> PyResult<Bytes> {
        let buffer =
            self.shared.buffers.get(slot).filter(|buffer| length <= buffer.capacity).ok_or_else(|| {
                PyValueError::new_err(format!("slot={slot}, length={length}: no such buffer"))
            })?;
        let view = BufferView::new(buffer.address, length);
        Ok(Bytes::from_owner(Filled { view, slot, shared: Arc::clone(&self.shared) }))
    }
}
