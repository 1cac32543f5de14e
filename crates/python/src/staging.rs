//! The buffers through which goes what cannot go up as it is: Python fills one, uploads hold it until their parts are up.
#![expect(unsafe_code, reason = "Python hands over the memory of its buffers by address")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use s3dcp_entry::entry;

use crate::memory::BufferView;
use crate::pool::{InUse, Pool};
use crate::runtime::OfProcess;

/// How often a waiting `take` looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
/// Buffers of a pool at least.
const MIN_BUFFERS: usize = 8;

/// A buffer's memory.
struct Buffer {
    owner: Py<PyAny>,
    address: usize,
    capacity: usize,
}

/// Filled bytes of a buffer on their way up.
struct Filled {
    view: BufferView,
    _in_use: Arc<InUse<Vec<Buffer>>>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.view.as_ref()
    }
}

/// Reused buffers of host memory, made at first use and anew in a forked child: see the stub.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StagingPool {
    allocate: Py<PyAny>,
    buffer_bytes: usize,
    count: Option<usize>,
    patience: Duration,
    /// Locked with the GIL held and without giving it up, so never while a child is forked.
    current: Mutex<OfProcess<Pool<Vec<Buffer>>>>,
}

impl StagingPool {
    fn allocate(&self, py: Python<'_>) -> PyResult<Buffer> {
        let owner = self.allocate.call1(py, (self.buffer_bytes,))?;
        let address = owner.call_method0(py, "data_ptr")?.extract(py)?;
        let capacity = owner.getattr(py, "nbytes")?.extract(py)?;
        if address == 0 || capacity < self.buffer_bytes {
            return Err(PyValueError::new_err("allocate: gave less memory than was asked for"));
        }
        Ok(Buffer { owner, address, capacity })
    }

    /// The pool, of so many buffers at least.
    fn of_at_least(&self, py: Python<'_>, count: usize) -> PyResult<Pool<Vec<Buffer>>> {
        let current = || self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = current().get().filter(|pool| pool.kept().len() >= count) {
            return Ok(pool.clone());
        }
        let buffers = (0..count).map(|_| self.allocate(py)).collect::<PyResult<_>>()?;
        let pool = Pool::new(count, buffers);
        // What was there goes after the lock: Python's memory may be freed with it.
        let _before = std::mem::replace(&mut *current(), OfProcess::new(pool.clone()));
        Ok(pool)
    }
}

#[entry]
#[pymethods]
impl StagingPool {
    #[new]
    #[pyo3(signature = (allocate, buffer_bytes, *, count=None, patience=1.0))]
    fn new(allocate: Py<PyAny>, buffer_bytes: usize, count: Option<usize>, patience: f64) -> PyResult<Self> {
        if buffer_bytes == 0 || count == Some(0) {
            return Err(PyValueError::new_err("buffer_bytes, count: must be at least 1"));
        }
        let patience = Duration::try_from_secs_f64(patience).unwrap_or(Duration::ZERO);
        Ok(Self { allocate, buffer_bytes, count, patience, current: Mutex::new(OfProcess::none()) })
    }

    /// A free buffer, for a file whose parts have so many bytes.
    fn take(&self, py: Python<'_>, part_size: u64) -> PyResult<StagingBuffer> {
        // A quarter of a buffer may stay unused at its end.
        let of_part = part_size.div_ceil((self.buffer_bytes - self.buffer_bytes / 4) as u64) as usize + 1;
        let mut pool = self.of_at_least(py, self.count.unwrap_or(MIN_BUFFERS.max(2 * of_part)))?;
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(in_use) = py.detach(|| pool.acquire(left.min(SIGNAL_INTERVAL))) {
                return Ok(StagingBuffer { in_use });
            }
            py.check_signals()?;
            if left.is_zero() {
                pool = Pool::new(1, vec![self.allocate(py)?]);
            }
        }
    }
}

/// One buffer of a pool, Python's to fill; free again once this is gone and all that was written from it is up.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct StagingBuffer {
    in_use: Arc<InUse<Vec<Buffer>>>,
}

impl StagingBuffer {
    fn buffer(&self) -> &Buffer {
        &self.in_use.kept()[self.in_use.slot()]
    }

    /// `length` bytes from `start` on, which Python does not touch any more.
    pub(crate) fn filled(&self, start: usize, length: usize) -> PyResult<Bytes> {
        let &Buffer { address, capacity, .. } = self.buffer();
        if start.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(PyValueError::new_err(format!(
                "start={start}, length={length}: past the end of the buffer of {capacity} bytes"
            )));
        }
        // SAFETY: the view stands beside what holds the buffer, whose memory its owner keeps alive, and which is not
        // handed out again before. That Python writes these bytes no more is what it promises.
        let view = unsafe { BufferView::new(address + start, length) };
        Ok(Bytes::from_owner(Filled { view, _in_use: Arc::clone(&self.in_use) }))
    }
}

#[entry]
#[pymethods]
impl StagingBuffer {
    /// Its memory, as it was allocated.
    #[getter]
    fn memory(&self, py: Python<'_>) -> Py<PyAny> {
        self.buffer().owner.clone_ref(py)
    }
}
