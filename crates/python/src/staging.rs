//! Which staging buffers are free: Python fills a buffer, uploads hold it until their parts are up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use s3dcp_entry::entry;

use crate::memory::BufferView;
use crate::pool::{InUse, Pool};

/// How often a waiting `acquire` looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

struct Buffers {
    /// Address and capacity of each.
    places: Vec<(usize, usize)>,
    _owner: Py<PyAny>,
}

/// Filled bytes of a buffer on their way up.
struct Filled {
    view: BufferView,
    _in_use: Arc<InUse<Buffers>>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.view.as_ref()
    }
}

/// Bookkeeping of reused host buffers, which `owner` keeps alive.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StagingPool {
    pool: Pool<Buffers>,
}

#[entry]
#[pymethods]
impl StagingPool {
    #[new]
    fn new(buffers: Vec<(usize, usize)>, owner: Py<PyAny>) -> PyResult<Self> {
        if buffers.iter().any(|&(address, capacity)| address == 0 || capacity == 0) {
            return Err(PyValueError::new_err("buffers: each must have memory"));
        }
        Ok(Self { pool: Pool::new(buffers.len(), Buffers { places: buffers, _owner: owner }) })
    }

    /// Wait up to `seconds` for a free buffer; None when there is none by then.
    fn acquire(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<StagingBuffer>> {
        let looks = (seconds / SIGNAL_INTERVAL.as_secs_f64()).ceil().max(1.0) as u64;
        for _ in 0..looks {
            if let Some(in_use) = py.detach(|| self.pool.acquire(SIGNAL_INTERVAL)) {
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
    in_use: Arc<InUse<Buffers>>,
}

#[entry]
#[pymethods]
impl StagingBuffer {
    /// Its number in the pool.
    #[getter]
    fn slot(&self) -> usize {
        self.in_use.slot()
    }
}

impl StagingBuffer {
    /// `length` bytes from `start` on, which Python does not touch any more.
    pub(crate) fn filled(&self, start: usize, length: usize) -> PyResult<Bytes> {
        let (address, capacity) = self.in_use.kept().places[self.in_use.slot()];
        if start.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(PyValueError::new_err(format!(
                "start={start}, length={length}: past the end of the buffer of {capacity} bytes"
            )));
        }
        let view = BufferView::new(address + start, length);
        Ok(Bytes::from_owner(Filled { view, _in_use: Arc::clone(&self.in_use) }))
    }
}
