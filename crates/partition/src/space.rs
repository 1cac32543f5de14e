//! The whole key space: partitions side by side.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use crate::limits::Limits;
use crate::partition::{Access, Partition};

/// A request is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowDown {
    /// When the partition would admit another.
    pub retry_after: Duration,
}

/// All keys, divided into partitions. Each key lies in exactly one.
#[derive(Debug, Clone)]
pub struct KeySpace {
    limits: Limits,
    /// By first key; the first partition begins at the empty key.
    partitions: BTreeMap<Box<str>, Partition>,
    next_merge: Duration,
}

/// One partition as seen from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionView {
    /// Its first key, itself in the partition; empty for the lowest.
    pub first_key: String,
    /// Where the next one begins; `None` for the highest.
    pub end_key: Option<String>,
    /// Writes asked for per second, lately, refused ones too.
    pub writes_per_second: f64,
    /// Reads, likewise.
    pub reads_per_second: f64,
    /// The larger share of the two budgets that is asked for; above 1 more than there is.
    pub load: f64,
    /// Whether it is on its way to a split.
    pub hot: bool,
    /// Requests admitted since it came to be.
    pub admitted: u64,
    /// Requests refused since then.
    pub refused: u64,
}

impl KeySpace {
    /// One cold partition with all keys, as a new bucket has.
    ///
    /// # Panics
    /// When [`Limits::invalid`] says why.
    pub fn new(limits: Limits) -> Self {
        Self::divided(limits, [])
    }

    /// Partitions that begin at these keys, besides the lowest: a key space that was warmed up, or that AWS
    /// divided on request.
    ///
    /// # Panics
    /// When [`Limits::invalid`] says why.
    pub fn divided(limits: Limits, first_keys: impl IntoIterator<Item = String>) -> Self {
        if let Some(reason) = limits.invalid() {
            panic!("{reason}");
        }
        let first_keys = first_keys.into_iter().map(String::into_boxed_str).chain(["".into()]);
        let partitions = first_keys.map(|key| (key, Partition::new(&limits, Duration::ZERO))).collect();
        Self { next_merge: limits.merge_after, limits, partitions }
    }

    /// The constants of this model.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Admits a request for `key` at `now`, which never goes back.
    ///
    /// # Errors
    /// The partition of the key has no budget left.
    pub fn admit(&mut self, now: Duration, key: &str, access: Access) -> Result<(), SlowDown> {
        if now >= self.next_merge {
            self.merge_cold(now);
        }
        let limits = &self.limits;
        let (_, partition) = self
            .partitions
            .range_mut::<str, _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .expect("the lowest partition begins at the empty key");
        let admitted = partition.admit(now, key, access, limits);
        if let Some(split_key) = partition.split_key(now, limits) {
            let upper = partition.split(&split_key, limits, now);
            self.partitions.insert(split_key, upper);
        }
        admitted.map_err(|retry_after| SlowDown { retry_after })
    }

    /// The partitions in the order of their keys.
    pub fn partitions(&self, now: Duration) -> Vec<PartitionView> {
        let mut views: Vec<PartitionView> = Vec::with_capacity(self.partitions.len());
        for (first_key, partition) in &self.partitions {
            if let Some(below) = views.last_mut() {
                below.end_key = Some(first_key.to_string());
            }
            let (writes_per_second, reads_per_second) = partition.rates(now, &self.limits);
            views.push(PartitionView {
                first_key: first_key.to_string(),
                end_key: None,
                writes_per_second,
                reads_per_second,
                load: partition.load(now, &self.limits),
                hot: partition.is_hot(now, &self.limits),
                admitted: partition.admitted,
                refused: partition.refused,
            });
        }
        views
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.partitions.len()
    }

    fn merge_cold(&mut self, now: Duration) {
        self.next_merge = now + self.limits.merge_after / 8;
        let mut kept: BTreeMap<Box<str>, Partition> = BTreeMap::new();
        for (first_key, partition) in std::mem::take(&mut self.partitions) {
            let below = kept.last_entry().filter(|below| below.get().is_cold(now, &self.limits));
            match below {
                Some(mut below) if partition.is_cold(now, &self.limits) => {
                    below.get_mut().merge(partition, &self.limits, now);
                }
                _ => {
                    kept.insert(first_key, partition);
                }
            }
        }
        self.partitions = kept;
    }
}
