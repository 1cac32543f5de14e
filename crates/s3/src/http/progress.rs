//! When bytes of one attempt last moved, so that a stalled connection is told from a slow one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::stats::Counters;

/// Shared between an attempt and the body it sends.
pub(crate) struct Progress {
    started: Instant,
    last_ms: AtomicU64,
    longest_ms: AtomicU64,
    sent: AtomicU64,
    counters: Arc<Counters>,
}

impl Progress {
    pub(crate) fn new(counters: Arc<Counters>) -> Progress {
        Progress {
            started: clock::now(),
            last_ms: AtomicU64::new(0),
            longest_ms: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            counters,
        }
    }

    /// Body bytes were handed to the connection.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.counters.add_sent(bytes);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = clock::now().duration_since(self.started).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let last = self.last_ms.swap(elapsed, Ordering::Relaxed);
        self.longest_ms.fetch_max(elapsed.saturating_sub(last), Ordering::Relaxed);
    }

    /// When a byte last moved (the start, before any did).
    pub(crate) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// Waits for what it is the progress of until no byte has moved for so long; `None` then.
    pub(crate) async fn until_silent<F: Future>(
        &self,
        limit: Option<Duration>,
        mut exchange: Pin<&mut F>,
    ) -> Option<F::Output> {
        loop {
            let silent_at = limit.map(|limit| self.last() + limit);
            match clock::before(silent_at, exchange.as_mut()).await {
                None if limit.is_some_and(|limit| clock::now() < self.last() + limit) => {}
                output => return output,
            }
        }
    }

    /// The longest time until now in which no byte moved.
    pub(crate) fn longest_silence(&self) -> Duration {
        let longest = Duration::from_millis(self.longest_ms.load(Ordering::Relaxed));
        longest.max(clock::now().duration_since(self.last()))
    }
}

#[cfg(test)]
impl Default for Progress {
    fn default() -> Progress {
        Progress::new(Arc::default())
    }
}
