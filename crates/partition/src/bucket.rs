//! A token bucket.

use std::time::Duration;

/// Holds tokens up to a capacity, which come in at a rate; a request takes one.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    tokens: f64,
    updated: Duration,
}

impl TokenBucket {
    pub(crate) fn full(capacity: f64, now: Duration) -> Self {
        Self { tokens: capacity, updated: now }
    }

    /// Takes a token; else the time until there is one.
    pub(crate) fn take(&mut self, now: Duration, rate: f64, capacity: f64) -> Result<(), Duration> {
        self.fill(now, rate, capacity);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }

    fn fill(&mut self, now: Duration, rate: f64, capacity: f64) {
        let passed = now.saturating_sub(self.updated).as_secs_f64();
        self.tokens = passed.mul_add(rate, self.tokens).min(capacity);
        self.updated = self.updated.max(now);
    }
}
