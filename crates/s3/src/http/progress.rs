//! When bytes of one attempt last moved, so that a stalled connection is told from a slow one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::stats::Counters;

/// Shared between an attempt and the body it sends.
pub(crate) struct Progress {
    started: Instant,
    last_ms: AtomicU64,
    sent: AtomicU64,
    counters: Arc<Counters>,
}

impl Progress {
    pub(crate) fn new(counters: Arc<Counters>) -> Progress {
        Progress { started: clock::now(), last_ms: AtomicU64::new(0), sent: AtomicU64::new(0), counters }
    }

    /// Body bytes were handed to the connection.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.counters.add_sent(bytes);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = clock::now().duration_since(self.started).as_millis();
        self.last_ms.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When a byte last moved (the start, before any did).
    pub(crate) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
impl Default for Progress {
    fn default() -> Progress {
        Progress::new(Arc::default())
    }
}
