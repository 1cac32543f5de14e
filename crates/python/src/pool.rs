//! Which buffers of a pool are free; nothing here touches their memory.
//!
//! `fuzz/models` compiles this file too, with locks whose interleavings it tries.

use std::time::Duration;

use crate::sync::{Arc, Condvar, Mutex, PoisonError};

/// A fixed number of buffers, known by their numbers.
pub(crate) struct Pool<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    kept: K,
}

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Pool<K> {
        Pool { shared: Arc::clone(&self.shared) }
    }
}

/// A buffer in use; it is free again when the last holder of this is gone.
pub(crate) struct InUse<K> {
    slot: usize,
    shared: Arc<Shared<K>>,
}

impl<K> Pool<K> {
    /// `count` buffers, all free; `kept` stays alive while one of them is in use.
    pub(crate) fn new(count: usize, kept: K) -> Pool<K> {
        let free = Mutex::new((0..count).rev().collect());
        Pool { shared: Arc::new(Shared { free, freed: Condvar::new(), kept }) }
    }

    pub(crate) fn kept(&self) -> &K {
        &self.shared.kept
    }

    /// Waits that long for a free buffer: the one that was freed last, so that others stay untouched.
    pub(crate) fn acquire(&self, patience: Duration) -> Option<Arc<InUse<K>>> {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut free, _) = self
            .shared
            .freed
            .wait_timeout_while(free, patience, |free| free.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let slot = free.pop()?;
        Some(Arc::new(InUse { slot, shared: Arc::clone(&self.shared) }))
    }
}

impl<K> InUse<K> {
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn kept(&self) -> &K {
        &self.shared.kept
    }
}

impl<K> Drop for InUse<K> {
    fn drop(&mut self) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        self.shared.freed.notify_one();
    }
}
