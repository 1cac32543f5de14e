//! What one connection to this service has been like: how long a response takes to begin, and how fast bytes move.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes per second of one connection before any was seen: what S3 gives, 85 to 90 MB/s.
/// Source: the Amazon S3 user guide, "Performance design patterns".
const USUAL_RATE: f64 = 85e6;
/// Time to the first byte before any was seen; the same page says 100 to 200 ms, S3 within a region is often faster.
const USUAL_LATENCY: Duration = Duration::from_millis(30);
/// Bytes below which a transfer says nothing about the rate.
const MEASURABLE: u64 = 4 << 20;
/// Weight of the newest observation.
const WEIGHT: f64 = 0.2;

/// Moving averages over the requests of a client.
#[derive(Debug, Default)]
pub(crate) struct NetworkEstimate {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    latency: Option<f64>,
    rate: Option<f64>,
}

fn average(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl NetworkEstimate {
    /// The response to a request without a body began after `time`.
    pub(crate) fn answered(&self, time: Duration) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.latency = average(seen.latency, time.as_secs_f64());
    }

    /// A request moved so many bytes of a body in `time`, its latency included.
    pub(crate) fn carried(&self, bytes: u64, time: Duration) {
        if bytes < MEASURABLE {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = seen.latency.unwrap_or(0.0).min(time.as_secs_f64() / 2.0);
        seen.rate = average(seen.rate, bytes as f64 / (time.as_secs_f64() - waited).max(1e-6));
    }

    /// Time until a response begins.
    pub(crate) fn latency(&self) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.latency.map_or(USUAL_LATENCY, Duration::from_secs_f64)
    }

    /// Bytes per second of one connection.
    pub(crate) fn rate(&self) -> f64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.rate.unwrap_or(USUAL_RATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_taken_out_of_the_rate() {
        let estimate = NetworkEstimate::default();
        estimate.answered(Duration::from_millis(20));
        estimate.carried(9_000_000, Duration::from_millis(120));
        assert!((estimate.rate() - 90e6).abs() < 1.0, "{}", estimate.rate());
    }

    #[test]
    fn small_bodies_say_nothing_about_the_rate() {
        let estimate = NetworkEstimate::default();
        estimate.carried(1000, Duration::from_secs(1));
        assert_eq!((estimate.rate(), estimate.latency()), (USUAL_RATE, USUAL_LATENCY));
    }

    #[test]
    fn averages_follow_a_change() {
        let estimate = NetworkEstimate::default();
        for _ in 0..40 {
            estimate.answered(Duration::from_millis(100));
        }
        for _ in 0..40 {
            estimate.answered(Duration::from_millis(10));
        }
        assert!(estimate.latency() < Duration::from_millis(11), "{:?}", estimate.latency());
    }
}
