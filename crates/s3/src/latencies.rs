//! How long answers took to begin, by quantile.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told from a longer one.
const LONGEST: Duration = Duration::from_secs(3600);
/// Digits that are right.
const DIGITS: u8 = 2;

/// How long the answers to a client's requests took to begin, in microseconds, from 1 µs to an hour, to two digits: of a
/// request that sends a body from its first byte sent, of every other from its end.
#[derive(Clone, PartialEq)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    /// Answers that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The time that this part of all answers, in `0.0..=1.0`, did not exceed: `0.5` is the median, `1.0` the longest. `None`
    /// where there was no answer.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let time = || Duration::from_micros(self.histogram.value_at_quantile(part));
        (self.count() > 0).then(time)
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Those that came after `before` was taken of the same client.
    pub(crate) fn since(&self, before: &Latencies) -> Latencies {
        let mut since = self.histogram.clone();
        match since.subtract(&before.histogram) {
            Ok(()) => Latencies { histogram: since },
            // of another client: there is nothing to take away
            Err(_) => self.clone(),
        }
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, DIGITS);
        Latencies { histogram: histogram.expect("the bounds are in order") }
    }
}

impl Debug for Latencies {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [median, longest] = [0.5, 1.0].map(|part| self.quantile(part));
        write!(f, "Latencies({} answers, median {median:?}, longest {longest:?})", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_two_digits() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.count(), latencies.quantile(0.5)), (0, None));
        (1..=1000).for_each(|time| latencies.add(Duration::from_millis(time)));
        for (part, expected) in [(0.0, 0.001), (0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let found = latencies.quantile(part).map_or(0.0, |time| time.as_secs_f64());
            assert!((found - expected).abs() <= expected / 100.0, "{part}: {found}");
        }
        latencies.add(Duration::from_secs(86_400));
        assert!(latencies.quantile(1.0) >= Some(LONGEST));
    }

    #[test]
    fn what_came_before_is_taken_away() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::from_secs(10));
        let before = latencies.clone();
        latencies.add(Duration::from_millis(5));
        let since = latencies.since(&before);
        assert_eq!(since.count(), 1);
        assert!(since.quantile(1.0) < Some(Duration::from_millis(6)));
        assert_eq!(before.since(&latencies), before);
    }
}
