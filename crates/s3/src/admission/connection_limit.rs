//! The limit on connections: how many requests are under way at once, which follows what they move ([`Concurrency`]).
//!
//! `fuzz/models` compiles this file too, with locks whose interleavings it tries.

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::sync::{Arc, AtomicUsize, Mutex, Ordering, PoisonError};
use crate::admission::tuning::Concurrency;
use crate::clock;
use crate::stats::Counters;

/// The limit on requests at once, which follows what they move.
pub(crate) struct ConnectionLimit {
    shared: Arc<Shared>,
}

struct Shared {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

struct State {
    concurrency: Concurrency,
    /// Permits that exist, given out or not.
    permits: usize,
}

/// The right to use one connection.
pub(crate) struct Connection {
    slot: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
}

impl ConnectionLimit {
    pub(crate) fn new(concurrency: Concurrency, counters: Arc<Counters>) -> ConnectionLimit {
        let permits = concurrency.limit();
        let shared = Shared {
            slots: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State { concurrency, permits }),
            counters,
        };
        ConnectionLimit { shared: Arc::new(shared) }
    }

    /// Waits until one more request may be under way.
    pub(crate) async fn acquire(&self) -> Connection {
        let shared = Arc::clone(&self.shared);
        let slot = {
            let _waiting = Waiting::new(&shared.waiting);
            Arc::clone(&shared.slots).acquire_owned().await.expect("the semaphore is never closed")
        };
        Connection { slot: Some(slot), shared }
    }

    /// Requests that may be under way at once now.
    pub(crate) fn limit(&self) -> usize {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).concurrency.limit()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let stats = self.shared.counters.snapshot();
        let waiting = self.shared.waiting.load(Ordering::Relaxed) > 0;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.concurrency.request_ended(clock::now(), stats.bytes_sent + stats.bytes_received, waiting);
        let limit = state.concurrency.limit();
        if state.permits > limit {
            state.permits -= 1;
            slot.forget();
        } else if state.permits < limit {
            self.shared.slots.add_permits(limit - state.permits);
            state.permits = limit;
        }
    }
}

/// Counts a waiting request, also when it is given up.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_follow_the_limit_both_ways() {
        let limit = ConnectionLimit::new(Concurrency::new(2, 2), Arc::default());
        let held = (limit.acquire().await, limit.acquire().await);
        assert_eq!(limit.shared.slots.available_permits(), 0);
        limit.shared.state.lock().unwrap().concurrency = Concurrency::new(5, 5);
        drop(held.0);
        assert_eq!((limit.limit(), limit.shared.slots.available_permits()), (5, 4));
        limit.shared.state.lock().unwrap().concurrency = Concurrency::new(3, 3);
        drop(held.1);
        drop((limit.acquire().await, limit.acquire().await));
        assert_eq!(limit.shared.slots.available_permits(), 3);
    }

    #[tokio::test]
    async fn a_given_up_wait_is_not_counted() {
        let limit = ConnectionLimit::new(Concurrency::new(1, 1), Arc::default());
        let held = limit.acquire().await;
        let waiting = limit.acquire();
        assert!(futures_util::FutureExt::now_or_never(waiting).is_none());
        assert_eq!(limit.shared.waiting.load(Ordering::Relaxed), 0);
        drop(held);
    }
}
