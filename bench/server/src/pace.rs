//! Holds one connection to a rate, smoothly: a few milliseconds' worth of bytes at a time.

use std::time::{Duration, Instant};

/// Time that one slice takes.
const SLICE: Duration = Duration::from_millis(4);
/// A sleep that ran over is caught up on, as far as this.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Slice where there is no rate to hold.
const UNPACED: usize = 4 << 20;

/// The pace of one connection.
pub(crate) struct Pace {
    bytes_per_second: Option<f64>,
    free_at: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1) as f64), free_at: Instant::now() }
    }

    /// Most bytes to move before the next [`Pace::spend`].
    pub(crate) fn slice(&self) -> usize {
        self.bytes_per_second
            .map_or(UNPACED, |rate| ((rate * SLICE.as_secs_f64()) as usize).clamp(1, UNPACED))
    }

    /// Accounts for bytes that were moved: sleeps for as long as they take at this rate.
    pub(crate) fn spend(&mut self, bytes: usize) {
        if self.bytes_per_second.is_some() {
            std::thread::sleep(self.wait(bytes, Instant::now()));
        }
    }

    /// How long to wait from `now` when `bytes` have just been moved.
    fn wait(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let start = now.checked_sub(CATCH_UP).map_or(self.free_at, |earliest| self.free_at.max(earliest));
        self.free_at = start + Duration::from_secs_f64(bytes as f64 / rate);
        self.free_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1 << 20;

    #[test]
    fn a_busy_connection_moves_as_much_as_its_rate_says() {
        let mut pace = Pace::new(Some(RATE));
        let began = pace.free_at;
        let mut now = began;
        for _ in 0..1000 {
            // Every sleep runs over by a millisecond, which the next ones make up for.
            now += pace.wait(pace.slice(), now) + Duration::from_millis(1);
        }
        let expected = 1000.0 * pace.slice() as f64 / RATE as f64;
        let took = (now - began).as_secs_f64();
        assert!((took - expected).abs() < 0.01, "{took} s where {expected} s were due");
    }

    #[test]
    fn an_idle_time_is_not_saved_up_for_later() {
        let mut pace = Pace::new(Some(RATE));
        let later = pace.free_at + Duration::from_secs(10);
        assert_eq!(pace.wait(RATE as usize, later), Duration::from_secs(1) - CATCH_UP);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(None);
        assert_eq!(pace.wait(usize::MAX, Instant::now()), Duration::ZERO);
        assert_eq!(pace.slice(), UNPACED);
    }
}
