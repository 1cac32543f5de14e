//! A rate of events, averaged over the recent past.

use std::time::Duration;

/// Counts events with weights that fade by the age of each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heat {
    weight: f64,
    updated: Duration,
}

impl Heat {
    pub(crate) fn add(&mut self, now: Duration, window: Duration) {
        self.weight = self.weight_at(now, window) + 1.0;
        self.updated = self.updated.max(now);
    }

    /// Events per second.
    pub(crate) fn rate(&self, now: Duration, window: Duration) -> f64 {
        self.weight_at(now, window) / window.as_secs_f64()
    }

    /// What is left when a part of the events went elsewhere.
    pub(crate) fn share(&self, share: f64) -> Self {
        Self { weight: self.weight * share, updated: self.updated }
    }

    /// The events of two.
    pub(crate) fn joined(&self, other: &Self, now: Duration, window: Duration) -> Self {
        Self { weight: self.weight_at(now, window) + other.weight_at(now, window), updated: now }
    }

    fn weight_at(&self, now: Duration, window: Duration) -> f64 {
        let age = now.saturating_sub(self.updated).as_secs_f64();
        self.weight * (-age / window.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_and_fades() {
        let window = Duration::from_secs(10);
        let mut heat = Heat::default();
        for tenth in 0..1000 {
            heat.add(Duration::from_millis(100 * tenth), window);
        }
        let end = Duration::from_secs(100);
        assert!((heat.rate(end, window) - 10.0).abs() < 0.2, "{}", heat.rate(end, window));
        assert!(heat.rate(end + 5 * window, window) < 0.1);
        assert!((heat.share(0.5).rate(end, window) - 5.0).abs() < 0.2);
    }
}
