//! Admission: every attempt, first or repeated, passes here, and holds its permit until its answer is read.
//!
//! The layers are Retry(Pacing(Limit(Http))): a sleeping retry holds nothing, and what waits for the pace of its keys
//! ([`crate::turns`]) no connection. This is the limit on connections, which follows what they move ([`Concurrency`]).
//!
//! `fuzz/models` compiles this file too, with locks whose interleavings it tries.

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::stats::Counters;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, PoisonError};
use crate::tuning::Concurrency;

/// The limit on requests at once, which follows what they move.
pub(crate) struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

struct State {
    concurrency: Concurrency,
    /// Permits that exist, given out or not.
    permits: usize,
}

/// The right to one attempt.
pub(crate) struct Permit {
    turn: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
}

impl Gate {
    pub(crate) fn new(concurrency: Concurrency, counters: Arc<Counters>) -> Gate {
        let permits = concurrency.limit();
        let shared = Shared {
            turns: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State { concurrency, permits }),
            counters,
        };
        Gate { shared: Arc::new(shared) }
    }

    /// Waits for the right to send one attempt.
    pub(crate) async fn admit(&self) -> Permit {
        let shared = Arc::clone(&self.shared);
        let turn = {
            let _waiting = Waiting::new(&shared.waiting);
            Arc::clone(&shared.turns).acquire_owned().await.expect("the semaphore is never closed")
        };
        Permit { turn: Some(turn), shared }
    }

    /// Requests that may be under way at once now.
    pub(crate) fn limit(&self) -> usize {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).concurrency.limit()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        let stats = self.shared.counters.snapshot();
        let waiting = self.shared.waiting.load(Ordering::Relaxed) > 0;
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.concurrency.request_ended(clock::now(), stats.bytes_sent + stats.bytes_received, waiting);
        let limit = state.concurrency.limit();
        if state.permits > limit {
            state.permits -= 1;
            turn.forget();
        } else if state.permits < limit {
            self.shared.turns.add_permits(limit - state.permits);
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

/// Bytes of one unit of the budget; a semaphore counts at most 2^32 of them at once.
const UNIT: u64 = 4096;

/// The limit on the bytes that uploads have in flight.
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        let total = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until so many bytes may go; more than the whole budget counts as the whole budget.
    pub(crate) async fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.total);
        Arc::clone(&self.units)
            .acquire_many_owned(units)
            .await
            .map_err(|_| Error::new(ErrorKind::Interrupted, "the client was closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_follow_the_limit_both_ways() {
        let gate = Gate::new(Concurrency::new(2, 2), Arc::default());
        let held = (gate.admit().await, gate.admit().await);
        assert_eq!(gate.shared.turns.available_permits(), 0);
        gate.shared.state.lock().unwrap().concurrency = Concurrency::new(5, 5);
        drop(held.0);
        assert_eq!((gate.limit(), gate.shared.turns.available_permits()), (5, 4));
        gate.shared.state.lock().unwrap().concurrency = Concurrency::new(3, 3);
        drop(held.1);
        drop((gate.admit().await, gate.admit().await));
        assert_eq!(gate.shared.turns.available_permits(), 3);
    }

    #[tokio::test]
    async fn a_given_up_wait_is_not_counted() {
        let gate = Gate::new(Concurrency::new(1, 1), Arc::default());
        let held = gate.admit().await;
        let waiting = gate.admit();
        assert!(futures_util::FutureExt::now_or_never(waiting).is_none());
        assert_eq!(gate.shared.waiting.load(Ordering::Relaxed), 0);
        drop(held);
    }

    #[tokio::test]
    async fn a_part_larger_than_the_budget_still_goes_alone() {
        let budget = Budget::new(1 << 20);
        let all = budget.take(1 << 30).await.unwrap();
        assert_eq!(budget.units.available_permits(), 0);
        drop(all);
        assert_eq!(budget.units.available_permits(), 256);
    }
}
