//! Time and chance: the only module of this crate that reads a clock, sleeps or draws a random number.
//!
//! Decisions elsewhere take `now` and random numbers as arguments, so they are tested without waiting.
#![expect(clippy::disallowed_methods, reason = "this is the one place that may")]

use std::future::Future;
use std::time::{Duration, SystemTime};

pub(crate) use tokio::time::Instant;

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock, for signatures and expiry times.
pub(crate) fn wall_now() -> SystemTime {
    SystemTime::now()
}

/// Waits.
pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A timer that can be set again.
pub(crate) fn timer(at: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(at)
}

/// The future's output, or `None` when `at` came first. Without a time it is waited for as long as it takes.
pub(crate) async fn before<F: Future>(at: impl Into<Option<Instant>>, future: F) -> Option<F::Output> {
    match at.into() {
        Some(at) => tokio::time::timeout_at(at, future).await.ok(),
        None => Some(future.await),
    }
}

/// A random number in `0.0..1.0`.
pub(crate) fn random() -> f64 {
    fastrand::f64()
}
