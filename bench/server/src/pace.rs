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
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let start = now.checked_sub(CATCH_UP).map_or(self.free_at, |earliest| self.free_at.max(earliest));
        self.free_at = start + Duration::from_secs_f64(bytes as f64 / rate);
        std::thread::sleep(self.free_at.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_at_least_as_long_as_the_rate_says() {
        let mut pace = Pace::new(Some(1 << 20));
        let began = Instant::now();
        for _ in 0..10 {
            pace.spend(pace.slice());
        }
        let least = SLICE * 9 - CATCH_UP;
        assert!(began.elapsed() >= least, "{:?} is under {least:?}", began.elapsed());
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(None);
        pace.spend(usize::MAX);
        assert_eq!(pace.slice(), UNPACED);
    }
}
