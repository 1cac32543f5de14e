//! Memory that Python owns, seen from Rust: the only raw pointers of the project.
//!
//! Upload: a segment of tensor memory keeps the Python object alive until the request that holds it is torn down;
//! its last owner may be dropped on an I/O thread, where PyO3 defers the release to the next holder of the GIL.
//! Download: a running download holds the Python object that owns the memory, and cannot be dropped before every task
//! that could write has ended.
#![expect(unsafe_code, reason = "the one place where tensor memory is read and written")]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use s3dcp_checkpoint::{Destination, GATHER_BELOW, Runs};
use s3dcp_entry::entry;
use s3dcp_s3::Segment;

use crate::uses::Use;

/// Counts values while they exist.
struct Counter(AtomicUsize);

impl Counter {
    fn counted(&'static self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One value that counts.
struct Counted(&'static Counter);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

static SOURCES: Counter = Counter(AtomicUsize::new(0));
static DESTINATIONS: Counter = Counter(AtomicUsize::new(0));

/// How many pieces of Python's memory uploads may still read, and how many downloads may still write.
#[entry]
#[pyfunction]
fn memory_in_use() -> (usize, usize) {
    (SOURCES.count(), DESTINATIONS.count())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(memory_in_use, module)?)
}

/// Memory of a tensor for the duration of one call, or for as long as its owner is held.
pub(crate) struct TensorMemory {
    address: usize,
    length: usize,
    _counted: Counted,
    /// What the memory belongs to, and, dropped last, the word that it is in use.
    owner: Option<(Py<PyAny>, Use)>,
}

impl TensorMemory {
    /// `length` bytes at `address`, memory of `owner`, which is kept; but not the owner of less than [`GATHER_BELOW`].
    ///
    /// # Safety
    /// These bytes must be alive as long as `owner` is, and nobody may write them until this is dropped. Of fewer than
    /// [`GATHER_BELOW`] whoever calls keeps the owner alive until then.
    pub(crate) unsafe fn new(
        address: usize,
        length: usize,
        owner: &Bound<'_, PyAny>,
        in_use: Use,
    ) -> PyResult<Self> {
        if address == 0 && length > 0 {
            return Err(PyValueError::new_err("address=0: the tensor has no memory"));
        }
        let owner = (length >= GATHER_BELOW).then(|| (owner.clone().unbind(), in_use));
        Ok(Self { address, length, owner, _counted: SOURCES.counted() })
    }
}

impl AsRef<[u8]> for TensorMemory {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the owner is held here or by the caller of `new`, who promised that these bytes live as long as it does
        // and are not written meanwhile.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}

/// Without a copy where the owner is held.
impl From<TensorMemory> for Segment {
    fn from(memory: TensorMemory) -> Segment {
        match memory.owner {
            Some(_) => Segment::borrowed(Bytes::from_owner(memory)),
            None => Bytes::copy_from_slice(memory.as_ref()).into(),
        }
    }
}

/// Tensor memory that a download writes into.
pub(crate) struct TensorDestination {
    address: usize,
    length: u64,
    _counted: Counted,
}

impl TensorDestination {
    /// `length` bytes at `address`.
    ///
    /// # Safety
    /// Until the last value that is made of this one is dropped, these bytes must be alive, and nobody else may read or write
    /// them, but for those that other destinations are given to write into the gaps between runs of this one.
    pub(crate) unsafe fn new(address: usize, length: u64) -> PyResult<Self> {
        if address == 0 && length > 0 {
            return Err(PyValueError::new_err("address=0: the tensor has no memory"));
        }
        Ok(Self::counted(address, length))
    }

    fn counted(address: usize, length: u64) -> Self {
        Self { address, length, _counted: DESTINATIONS.counted() }
    }

    /// The same memory, into which only these runs are written.
    pub(crate) fn scattered(self, runs: Runs) -> ScatteredDestination {
        ScatteredDestination { memory: self, runs }
    }

    fn put(&self, place: u64, run: &[u8]) {
        let end = place.checked_add(run.len() as u64);
        assert!(end.is_some_and(|end| end <= self.length), "a write past the end of a tensor");
        let to = (self.address + place as usize) as *mut u8;
        // SAFETY: `place..end` lies within the memory that `new` was given, which is alive, and whose bytes of this run
        // nobody else reads or writes meanwhile.
        unsafe { to.copy_from_nonoverlapping(run.as_ptr(), run.len()) }
    }
}

impl Destination for TensorDestination {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.put(offset, bytes);
    }

    fn memory(&mut self, offset: u64) -> &mut [u8] {
        let length = self.length.checked_sub(offset).expect("an offset inside the tensor");
        if length == 0 {
            return &mut []; // perhaps there is no address either
        }
        // SAFETY: `offset..offset + length` lies within the memory that `new` was given, which is alive and which
        // nobody else reads or writes meanwhile, as `new` demands. Every byte of it is initialised for this language:
        // it comes from an allocator that Rust knows nothing of.
        unsafe {
            std::slice::from_raw_parts_mut((self.address as *mut u8).add(offset as usize), length as usize)
        }
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let rest = self.length.checked_sub(at)?;
        self.length = at;
        Some(Box::new(Self::counted(self.address + at as usize, rest)))
    }
}

/// Tensor memory into which runs of a block are written. Parts of it are written at the same time, so each run is seen
/// alone, never the memory as a whole.
pub(crate) struct ScatteredDestination {
    memory: TensorDestination,
    runs: Runs,
}

impl Destination for ScatteredDestination {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.runs.scatter(offset, bytes, |place, run| self.memory.put(place, run));
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let memory = TensorDestination::counted(self.memory.address, self.memory.length);
        Some(Box::new(memory.scattered(self.runs.after(at))))
    }
}

/// A plain view of `length` bytes at `address`, of a staging buffer.
pub(crate) struct BufferView {
    address: usize,
    length: usize,
}

impl BufferView {
    /// # Safety
    /// These bytes must be alive, and nobody may write them, until this is dropped.
    pub(crate) unsafe fn new(address: usize, length: usize) -> Self {
        Self { address, length }
    }
}

impl AsRef<[u8]> for BufferView {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as `new` demands.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}
