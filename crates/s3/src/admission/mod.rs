//! Admission: whoever sends bytes to S3 has a permit of this, and all that S3 says of its load comes back through it.
//!
//! The layers are Retry(Pacing(Limit(Http))): a sleeping retry holds nothing, and what waits for the rate of its keys holds no
//! connection. What uploads have in flight is counted here too: parts, and the bytes of those that are copies.

pub(crate) mod connection_limit;
pub(crate) mod hedging;
pub(crate) mod in_flight;
pub(crate) mod pacing;
pub(crate) mod retry;
mod sync;
mod tuning;

use std::sync::Arc;

use s3dcp_pacing::Share;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::connection_limit::{Connection, ConnectionLimit};
use crate::admission::hedging::Hedging;
use crate::admission::in_flight::InFlight;
use crate::admission::pacing::{Keys, Pacing};
use crate::admission::tuning::Concurrency;
use crate::clock::{self, Instant};
use crate::error::Error;
use crate::stats::Counters;

/// What limits the requests of one client.
pub(crate) struct Admission {
    pacing: Arc<Pacing>,
    connections: ConnectionLimit,
    parts: Arc<Semaphore>,
    copies: InFlight,
    hedging: Arc<Hedging>,
    counters: Arc<Counters>,
}

/// What a response says of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The service let the request in, whatever else it said.
    Admitted,
    /// The service wants fewer requests.
    Refused,
}

/// The right to one attempt. Its connection is free for another request when this is dropped.
pub(crate) struct Permit {
    pacing: Arc<Pacing>,
    hedging: Arc<Hedging>,
    counters: Arc<Counters>,
    keys: Arc<Keys>,
    again: bool,
    sent: Instant,
    _connection: Option<Connection>,
}

impl Admission {
    /// `first` connections at first, `most` at most, and so many bytes of copies in flight.
    pub(crate) fn new(first: usize, most: usize, copies: u64, counters: &Arc<Counters>) -> Admission {
        Admission {
            pacing: Arc::new(Pacing::new()),
            connections: ConnectionLimit::new(Concurrency::new(first, most), Arc::clone(counters)),
            parts: Arc::new(Semaphore::new(most)),
            copies: InFlight::new(copies),
            hedging: Arc::default(),
            counters: Arc::clone(counters),
        }
    }

    /// Waits for the rate of these keys and for a connection; `None` when the deadline comes first. `attempt` counts from 1.
    pub(crate) async fn enter(
        &self,
        keys: &Arc<Keys>,
        attempt: u32,
        deadline: Option<Instant>,
    ) -> Option<Permit> {
        let entered = async {
            loop {
                self.pacing.wait(keys, attempt > 1).await;
                let taken = clock::now();
                let connection = self.connections.acquire().await;
                // Many may have had their turn before the service asked for fewer, and still wait for a connection.
                if self.pacing.hold(keys, taken) {
                    return connection;
                }
            }
        };
        let connection = clock::before(deadline, entered).await?;
        Some(self.permit(keys, attempt, Some(connection)))
    }

    /// Lets a request in at once, beyond the limit on connections: those that wait for it have them.
    pub(crate) fn pass(&self, keys: &Arc<Keys>, attempt: u32) -> Permit {
        self.permit(keys, attempt, None)
    }

    fn permit(&self, keys: &Arc<Keys>, attempt: u32, connection: Option<Connection>) -> Permit {
        Permit {
            pacing: Arc::clone(&self.pacing),
            hedging: Arc::clone(&self.hedging),
            counters: Arc::clone(&self.counters),
            keys: Arc::clone(keys),
            again: attempt > 1,
            sent: clock::now(),
            _connection: connection,
        }
    }

    /// Waits until a part may be in flight, of which so many bytes are copies.
    pub(crate) async fn in_flight(&self, copied: u64) -> Result<[OwnedSemaphorePermit; 2], Error> {
        let part = Arc::clone(&self.parts).acquire_owned().await.expect("the semaphore is never closed");
        Ok([part, self.copies.take(copied).await?])
    }

    /// What tells when an answer is late.
    pub(crate) fn hedging(&self) -> &Hedging {
        &self.hedging
    }

    /// Requests that may be under way at once now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.limit()
    }

    /// Requests per second at which those about these keys are held back.
    pub(crate) fn rate(&self, keys: &Keys) -> Option<f64> {
        self.pacing.rate(keys)
    }

    /// A part, from now on, in the rate that clients agree on: see [`Pacing::share`].
    pub(crate) fn share(&self, write: bool, within: &str, clients: u32, found: Option<f64>) -> Share {
        self.pacing.share(write, within, clients, found)
    }

    /// What those who share a pace have found: see [`Pacing::found`].
    pub(crate) fn found(&self, write: bool, share: &Share) -> Option<f64> {
        self.pacing.found(write, share)
    }

    /// What `share` adds to its counter.
    pub(crate) fn change(&self, write: bool, share: &mut Share) -> Option<i64> {
        self.pacing.change(write, share)
    }

    /// The rate is what the counter of `share` says.
    pub(crate) fn agree(&self, write: bool, share: &mut Share, counter: i64) {
        self.pacing.agree(write, share, counter);
    }
}

impl Permit {
    /// The request is sent now.
    pub(crate) fn leave(&mut self) {
        self.sent = clock::now();
        self.counters.add_request();
        if self.again {
            self.counters.add_retry();
        }
    }

    /// What tells when the answer to its request is late.
    pub(crate) fn hedging(&self) -> &Hedging {
        &self.hedging
    }

    /// The request is sent once more, beside the first.
    pub(crate) fn leave_again(&self) {
        self.counters.add_request();
        self.counters.add_hedge();
    }

    /// The response says this of the load.
    pub(crate) fn answered(&self, outcome: Outcome) {
        match outcome {
            Outcome::Admitted => self.pacing.admitted(&self.keys),
            Outcome::Refused => self.refused(std::slice::from_ref(&*self.keys)),
        }
    }

    /// The response says that the service wants fewer requests about these keys, each lane once.
    pub(crate) fn refused(&self, keys: &[Keys]) {
        self.counters.add_throttled();
        self.hedging.slowed_down(clock::now());
        let mut told: Vec<&Keys> = Vec::new();
        for keys in keys {
            if !told.iter().any(|other| other.share_a_lane(keys)) {
                self.pacing.refused(keys, self.sent);
                told.push(keys);
            }
        }
    }
}
