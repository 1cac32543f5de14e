//! Memory that Python owns, seen from Rust: the only raw pointers of the project.
//!
//! Upload: a segment of tensor memory keeps the Python object alive until the request that holds it is torn down;
//! its last owner may be dropped on an I/O thread, where PyO3 defers the release to the next holder of the GIL.
//! Download: the caller keeps the tensors alive while `Client.download` runs, which returns only after every task
//! that could write has ended.
#![expect(unsafe_code, reason = "the one place where tensor memory is read and written")]

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use s3dcp_checkpoint::{Destination, GATHER_BELOW};

/// Memory of a tensor for the duration of one call, or for as long as its owner is held.
pub(crate) struct TensorMemory {
    address: usize,
    length: usize,
    owner: Option<Py<PyAny>>,
}

impl TensorMemory {
    /// `length` bytes at `address`, memory of `owner`. The owner of little is not kept: whoever calls keeps it alive
    /// until this is dropped.
    pub(crate) fn new(address: usize, length: usize, owner: &Bound<'_, PyAny>) -> PyResult<Self> {
        if address == 0 && length > 0 {
            return Err(PyValueError::new_err("address=0: the tensor has no memory"));
        }
        let owner = (length >= GATHER_BELOW).then(|| owner.clone().unbind());
        Ok(Self { address, length, owner })
    }
}

impl AsRef<[u8]> for TensorMemory {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `address..address + length` is memory of `owner`, or of an object that the caller of `new` keeps
        // alive, so it lives as long as `self`. That nobody changes it meanwhile is the caller's promise (torch: a
        // state dict must not change during a save).
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}

/// Without a copy where the owner is held.
impl From<TensorMemory> for Bytes {
    fn from(memory: TensorMemory) -> Bytes {
        match memory.owner {
            Some(_) => Bytes::from_owner(memory),
            None => Bytes::copy_from_slice(memory.as_ref()),
        }
    }
}

/// Tensor memory that a download writes into.
pub(crate) struct TensorDestination {
    address: usize,
    length: u64,
}

impl TensorDestination {
    /// `length` bytes at `address`; the caller keeps them alive, and nobody else writes them, until the download
    /// has returned.
    pub(crate) fn new(address: usize, length: u64) -> PyResult<Self> {
        if address == 0 && length > 0 {
            return Err(PyValueError::new_err("address=0: the tensor has no memory"));
        }
        Ok(Self { address, length })
    }

    /// `length` bytes of it from `offset` on, and no others.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "a write past the end of a tensor");
        Self { address: self.address + offset as usize, length }
    }
}

impl Destination for TensorDestination {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.memory(offset)[..bytes.len()].copy_from_slice(bytes);
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
        Some(Box::new(Self { address: self.address + at as usize, length: rest }))
    }
}

/// A plain view of `length` bytes at `address` for the staging pool, whose buffers outlive every view.
pub(crate) struct BufferView {
    address: usize,
    length: usize,
}

impl BufferView {
    pub(crate) fn new(address: usize, length: usize) -> Self {
        Self { address, length }
    }
}

impl AsRef<[u8]> for BufferView {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the pool that handed out the buffer is alive (its guard holds it) and the buffer is not handed
        // out again before the guard is dropped.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}
