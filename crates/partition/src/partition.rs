//! One partition: a range of keys with its budgets and its heat.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bucket::TokenBucket;
use crate::heat::Heat;
use crate::limits::Limits;

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// PUT, COPY, POST, DELETE.
    Write,
    /// GET, HEAD, and listings.
    Read,
}

/// How many of the latest keys are remembered to find where to split.
const REMEMBERED_KEYS: usize = 512;

#[derive(Debug, Clone)]
pub(crate) struct Partition {
    writes: Lane,
    reads: Lane,
    /// Keys of the latest requests.
    keys: VecDeque<Box<str>>,
    hot_since: Option<Duration>,
    cold_since: Duration,
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
}

#[derive(Debug, Clone)]
struct Lane {
    budget: TokenBucket,
    heat: Heat,
}

impl Lane {
    fn new(rate: f64, limits: &Limits, now: Duration) -> Self {
        Self { budget: TokenBucket::full(capacity(rate, limits), now), heat: Heat::default() }
    }
}

/// A bucket that could never hold one token would admit nothing.
fn capacity(rate: f64, limits: &Limits) -> f64 {
    (rate * limits.burst.as_secs_f64()).max(1.0)
}

impl Partition {
    pub(crate) fn new(limits: &Limits, now: Duration) -> Self {
        Self {
            writes: Lane::new(limits.writes_per_second, limits, now),
            reads: Lane::new(limits.reads_per_second, limits, now),
            keys: VecDeque::new(),
            hot_since: None,
            cold_since: now,
            admitted: 0,
            refused: 0,
        }
    }

    /// Admits a request, or says how long until another would be. Refused ones make heat as well.
    pub(crate) fn admit(
        &mut self,
        now: Duration,
        key: &str,
        access: Access,
        limits: &Limits,
    ) -> Result<(), Duration> {
        if self.keys.len() == REMEMBERED_KEYS {
            self.keys.pop_front();
        }
        self.keys.push_back(key.into());
        let (lane, rate) = match access {
            Access::Write => (&mut self.writes, limits.writes_per_second),
            Access::Read => (&mut self.reads, limits.reads_per_second),
        };
        lane.heat.add(now, limits.heat_window);
        let admitted = lane.budget.take(now, rate, capacity(rate, limits));
        *(if admitted.is_ok() { &mut self.admitted } else { &mut self.refused }) += 1;
        self.feel(now, limits);
        admitted
    }

    /// Notes since when the partition is hot, and since when it is cold.
    fn feel(&mut self, now: Duration, limits: &Limits) {
        let load = self.load(now, limits);
        match self.hot_since {
            None if load >= limits.hot => self.hot_since = Some(now),
            Some(_) if load < limits.hot => self.hot_since = None,
            _ => {}
        }
        if load >= limits.cold {
            self.cold_since = now;
        }
    }

    /// Requests per second, refused ones too.
    pub(crate) fn rates(&self, now: Duration, limits: &Limits) -> (f64, f64) {
        (self.writes.heat.rate(now, limits.heat_window), self.reads.heat.rate(now, limits.heat_window))
    }

    /// The larger share of the two budgets that is asked for; above 1 more than there is.
    pub(crate) fn load(&self, now: Duration, limits: &Limits) -> f64 {
        let (writes, reads) = self.rates(now, limits);
        (writes / limits.writes_per_second).max(reads / limits.reads_per_second)
    }

    /// As of the last request; a partition that is asked for nothing since has cooled.
    pub(crate) fn is_hot(&self, now: Duration, limits: &Limits) -> bool {
        self.hot_since.is_some() && self.load(now, limits) >= limits.hot
    }

    pub(crate) fn is_cold(&self, now: Duration, limits: &Limits) -> bool {
        self.load(now, limits) < limits.cold && now.saturating_sub(self.cold_since) >= limits.merge_after
    }

    /// The key at which the upper half of the recent load begins, once the partition was hot for long enough; `None` as
    /// well where one key has it all.
    pub(crate) fn split_key(&self, now: Duration, limits: &Limits) -> Option<Box<str>> {
        if now.saturating_sub(self.hot_since?) < limits.split_after {
            return None;
        }
        let mut keys: Vec<&str> = self.keys.iter().map(AsRef::as_ref).collect();
        keys.sort_unstable();
        let (lowest, median) = (*keys.first()?, keys[keys.len() / 2]);
        // Many requests for the median key may leave all others above it.
        let split = if median > lowest { median } else { *keys.iter().find(|&&key| key > lowest)? };
        Some(split.into())
    }

    /// Gives what begins at `key` to a partition of its own, with a full budget.
    pub(crate) fn split(&mut self, key: &str, limits: &Limits, now: Duration) -> Self {
        let mut upper = Self::new(limits, now);
        let all = self.keys.len().max(1) as f64;
        let (lower_keys, upper_keys) = self.keys.drain(..).partition(|remembered| &**remembered < key);
        self.keys = lower_keys;
        upper.keys = upper_keys;
        let share = upper.keys.len() as f64 / all;
        for (below, above) in [(&mut self.writes, &mut upper.writes), (&mut self.reads, &mut upper.reads)] {
            above.heat = below.heat.share(share);
            below.heat = below.heat.share(1.0 - share);
        }
        for half in [&mut *self, &mut upper] {
            half.hot_since = None;
            half.feel(now, limits);
        }
        upper
    }

    /// Takes over the keys of the partition above; of the two budgets one is left.
    pub(crate) fn merge(&mut self, above: Self, limits: &Limits, now: Duration) {
        for (ours, theirs) in [(&mut self.writes, above.writes), (&mut self.reads, above.reads)] {
            ours.heat = ours.heat.joined(&theirs.heat, now, limits.heat_window);
        }
        self.keys.extend(above.keys);
        let surplus = self.keys.len().saturating_sub(REMEMBERED_KEYS);
        self.keys.drain(..surplus);
        self.admitted += above.admitted;
        self.refused += above.refused;
        self.cold_since = now;
    }
}
