//! Counters of what a client has done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::latencies::Latencies;

/// A snapshot of a client's counters since it was made.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests sent, repeated ones included.
    pub requests: u64,
    /// Of these, requests that repeated a failed one.
    pub retries: u64,
    /// Of these, requests sent once more because the answer to the first was late.
    pub hedged: u64,
    /// Answers that asked for fewer requests (503, 429).
    pub throttled: u64,
    /// Body bytes sent, repeated ones included.
    pub bytes_sent: u64,
    /// Object bytes received, repeated ones included.
    pub bytes_received: u64,
    /// How long answers took to begin.
    pub latencies: Latencies,
}

impl Stats {
    /// What the client did since an earlier snapshot of it.
    #[must_use]
    pub fn since(&self, before: &Stats) -> Stats {
        Stats {
            requests: self.requests.saturating_sub(before.requests),
            retries: self.retries.saturating_sub(before.retries),
            hedged: self.hedged.saturating_sub(before.hedged),
            throttled: self.throttled.saturating_sub(before.throttled),
            bytes_sent: self.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_received: self.bytes_received.saturating_sub(before.bytes_received),
            latencies: self.latencies.since(&before.latencies),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    latencies: Mutex<Latencies>,
    requests: AtomicU64,
    retries: AtomicU64,
    hedged: AtomicU64,
    throttled: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

impl Counters {
    pub(crate) fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_hedge(&self) {
        self.hedged.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.bytes_received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_latency(&self, time: Duration) {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).add(time);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            requests: self.requests.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            hedged: self.hedged.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            latencies: self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
