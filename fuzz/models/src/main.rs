//! The limit on connections, that on bytes in flight, and the staging pool under many interleavings of their users, which Shuttle draws.
//!
//! The files are the product's own; only their locks, counters, semaphores and clock are others. A failure prints the
//! schedule that leads to it.
#![allow(dead_code, reason = "the models use a part of each file")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc as Plain;
use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use shuttle::{future, thread};

use admission::connection_limit::ConnectionLimit;
use admission::in_flight::InFlight;
use admission::tuning::Concurrency;
use pool::{InUse, Pool};

#[path = "../../../crates/s3/src/error.rs"]
mod error;
#[path = "../../../crates/python/src/pool.rs"]
mod pool;
#[path = "../../../crates/s3/src/stats.rs"]
mod stats;

#[path = "../../../crates/s3/src/admission"]
mod admission {
    pub(crate) mod connection_limit;
    pub(crate) mod in_flight;
    pub(crate) mod tuning;

    pub(crate) use super::sync;
}

mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex};
}

mod clock {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    pub(crate) use std::time::Instant;

    /// A second later at every look, so that the limit on requests changes after a few of them.
    pub(crate) fn now() -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        *START + Duration::from_secs(LOOKS.fetch_add(1, Ordering::Relaxed))
    }
}

const SCHEDULES: usize = 20_000;

fn main() {
    for (name, model) in [("pool", pool_model as fn()), ("connection limit", connection_limit_model), ("bytes in flight", in_flight_model)] {
        shuttle::check_random(model, SCHEDULES);
        shuttle::check_pct(model, SCHEDULES, 3);
        println!("{name}: {} schedules", 2 * SCHEDULES);
    }
}

/// How many of something are taken; never more than there are.
struct Taken {
    now: Count,
    most: usize,
}

impl Taken {
    fn new(most: usize) -> Plain<Taken> {
        Plain::new(Taken { now: Count::new(0), most })
    }

    fn take(&self, many: usize) {
        let now = self.now.fetch_add(many, SeqCst) + many;
        assert!(now <= self.most, "{now} are taken, and there are {}", self.most);
    }

    fn give_back(&self, many: usize) {
        self.now.fetch_sub(many, SeqCst);
    }
}

/// A buffer has one user, an upload of it may be the last to let go, whoever waits gets one, all come back, and what
/// the pool keeps outlives them.
fn pool_model() {
    struct Kept(Plain<Count>);
    impl Drop for Kept {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    struct Filled {
        users: Plain<[Plain<Taken>; 2]>,
        buffer: sync::Arc<InUse<Kept>>,
    }
    impl Drop for Filled {
        fn drop(&mut self) {
            self.users[self.buffer.slot()].give_back(1);
        }
    }
    let gone = Plain::new(Count::new(0));
    let pool = sync::Arc::new(Pool::new(2, Kept(Plain::clone(&gone))));
    let users = Plain::new([Taken::new(1), Taken::new(1)]);
    let savers: Vec<_> = (0..3)
        .map(|_| {
            let (pool, users) = (sync::Arc::clone(&pool), Plain::clone(&users));
            thread::spawn(move || {
                let buffer = pool.acquire(Duration::MAX).expect("somebody lets go of one");
                users[buffer.slot()].take(1);
                let filled = sync::Arc::new(Filled { users, buffer });
                let upload = sync::Arc::clone(&filled);
                let upload = thread::spawn(move || {
                    thread::yield_now();
                    drop(upload);
                });
                drop(filled);
                upload.join().expect("the upload ends");
            })
        })
        .collect();
    for saver in savers {
        saver.join().expect("the save ends");
    }
    let both = [(); 2].map(|()| pool.acquire(Duration::MAX).expect("all came back"));
    drop(pool);
    assert_eq!(gone.load(SeqCst), 0);
    drop(both);
    assert_eq!(gone.load(SeqCst), 1);
}

/// Not more requests at once than the cap, while the limit climbs and goes back; one that is given up while it waits takes
/// no turn with it; in the end as many may go as the limit says, and no more.
fn connection_limit_model() {
    const CAP: usize = 3;
    let counters = sync::Arc::new(stats::Counters::default());
    let limit = sync::Arc::new(ConnectionLimit::new(Concurrency::new(1, CAP), sync::Arc::clone(&counters)));
    let taken = Taken::new(CAP);
    let requests: Vec<_> = (0..6)
        .map(|number| {
            let (limit, counters) = (sync::Arc::clone(&limit), sync::Arc::clone(&counters));
            let taken = Plain::clone(&taken);
            future::spawn(async move {
                for round in 0..4 {
                    let permit = limit.acquire().await;
                    taken.take(1);
                    future::yield_now().await;
                    // The first requests move much, so that the last step up does not pay.
                    counters.add_sent(if round == 0 { 1000 } else { 1 });
                    taken.give_back(1);
                    drop(permit);
                }
                if number == 0 {
                    goes_at_once(&limit).await;
                }
            })
        })
        .collect();
    future::block_on(async {
        for request in requests {
            request.await.expect("the request ends");
        }
        let mut held = Vec::new();
        for _ in 0..limit.limit() {
            held.push(limit.acquire().await);
        }
        assert!(!goes_at_once(&limit).await, "more than the limit");
    });
}

/// Whether a request need not wait; it is given up at once.
async fn goes_at_once(limit: &ConnectionLimit) -> bool {
    let mut given_up = pin!(limit.acquire());
    poll_fn(|context| Poll::Ready(given_up.as_mut().poll(context).is_ready())).await
}

/// Not more bytes in flight than may be, except one part that is larger than all of it; every part goes in the end.
fn in_flight_model() {
    const UNITS: usize = 3;
    const UNIT: u64 = 4096;
    let in_flight = sync::Arc::new(InFlight::new(UNITS as u64 * UNIT));
    let taken = Taken::new(UNITS);
    let parts: Vec<_> = [1, 2, 3, 10, 1]
        .into_iter()
        .map(|units: usize| {
            let (in_flight, taken) = (sync::Arc::clone(&in_flight), Plain::clone(&taken));
            future::spawn(async move {
                let bytes = in_flight.take(units as u64 * UNIT).await.expect("an open limit");
                taken.take(units.min(UNITS));
                future::yield_now().await;
                taken.give_back(units.min(UNITS));
                drop(bytes);
            })
        })
        .collect();
    future::block_on(async {
        for part in parts {
            part.await.expect("the part goes");
        }
    });
}
