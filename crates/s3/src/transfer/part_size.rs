//! How many bytes one request moves.
//!
//! Large enough that waiting for responses costs a tenth of the time, small enough that every connection has work. Where
//! many ranks share one range of keys, larger still: S3 counts requests there, not bytes.
//!
//! Parts have limits of their own: S3 allows 10,000 of 5 MiB to 5 GiB, and an upload may not know its size when it
//! begins. A given part size holds as long as the object can fit; without one, an object has about a thousand parts at
//! most. From part 5,000 on, parts double every 500, so that an upload of unknown size reaches S3's largest object
//! before the last part number.

use std::time::Duration;

use s3dcp_pacing::Budget;

use crate::config::{DEFAULT_PART_SIZE, MAX_PART_SIZE};
use crate::protocol::bucket::is_directory_bucket;

/// Bytes moved per byte that could have been moved while waiting for a response: a tenth of the time is waiting.
const WORK_PER_WAIT: f64 = 9.0;
/// Most bytes of a request for the sake of latency: what a broken connection may cost to send again, and half of what
/// tensors on their way through staging buffers need.
const MAX_FOR_LATENCY: f64 = (32 << 20) as f64;

/// How much of its budget of requests a transfer plans to use: the rest is for those that begin and complete uploads, and for
/// finding out that there is less.
const USUAL_SHARE: f64 = 0.9;

/// What a transfer's speed depends on.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Requests at once.
    pub connections: usize,
    /// Time until a response begins.
    pub latency: Duration,
    /// Bytes per second of one connection.
    pub rate: f64,
    /// Bytes per second of all of them together.
    pub network: f64,
    /// Requests per second that this process may send without passing its share of its keys' budget.
    pub requests_per_second: Option<f64>,
    /// Most bytes in flight at once; [`u64::MAX`] where they cost no memory.
    pub in_flight: u64,
}

impl Capacity {
    /// Bytes of one request, in whole MiB from `smallest` to 5 GiB, of a transfer of `total` bytes (`None`: unknown).
    ///
    /// Requests so large that the network, as fast as it is, gets by with most of the budget cost no time. Where that leaves
    /// no work for all connections: of `n` requests, `n / budget` seconds pass for the budget and `total / n / rate` for the
    /// last connection, and `n` is where the two are equal. The same holds for so many bytes as may be in flight, where that
    /// is less than all.
    pub fn request_size(&self, total: Option<u64>, smallest: u64) -> u64 {
        let total = total.map(|total| total as f64);
        let connections = self.connections as f64;
        let for_latency = (WORK_PER_WAIT * self.latency.as_secs_f64() * self.rate).min(MAX_FOR_LATENCY);
        let work_for_all = total.map_or(f64::INFINITY, |total| total / connections);
        let for_budget = self.requests_per_second.map_or(0.0, |budget| {
            let for_all = (connections * self.rate).min(self.network) / (USUAL_SHARE * budget);
            let at_once = total.unwrap_or(f64::INFINITY).min(self.in_flight as f64);
            for_all.min((at_once * self.rate / budget).sqrt())
        });
        let size = for_latency.min(work_for_all).max(for_budget) as u64;
        size.max(smallest).min(MAX_PART_SIZE).next_multiple_of(MIB).min(MAX_PART_SIZE)
    }
}

/// Requests per second, writes or else reads, that each of `files` files in this bucket may cost each of `ranks` ranks: see
/// [`s3dcp_pacing::share_of_budget`].
///
/// ```
/// use s3dcp_s3::share_of_budget;
/// assert_eq!(share_of_budget("models", true, 7, 5), 100.0);
/// // A directory bucket has no partitions, whose budget would be shared.
/// assert_eq!(share_of_budget("models--use1-az4--x-s3", true, 8, 1), 25_000.0);
/// ```
pub fn share_of_budget(bucket: &str, write: bool, ranks: u64, files: u64) -> f64 {
    let budget = if is_directory_bucket(bucket) { Budget::DirectoryBucket } else { Budget::Partition };
    s3dcp_pacing::share_of_budget(budget, write, ranks, files)
}

/// S3's limit on the parts of one upload.
pub(crate) const MAX_PARTS: u64 = 10_000;
const STEADY_PARTS: u64 = 5_000;
const PARTS_PER_DOUBLING: u64 = 500;
const USUAL_PARTS: u64 = 1_000;
const MIB: u64 = 1 << 20;

/// The part sizes of one upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartPlan {
    base: u64,
    whole: Option<u64>,
    /// Whether no part size was given.
    grows: bool,
}

impl PartPlan {
    /// A plan for an object of about `size_hint` bytes (`None`: unknown). `explicit` is a valid part size.
    pub fn new(explicit: Option<u64>, size_hint: Option<u64>, capacity: &Capacity) -> PartPlan {
        let smallest =
            |parts: u64| size_hint.unwrap_or(0).div_ceil(parts).next_multiple_of(MIB).min(MAX_PART_SIZE);
        let base = match explicit {
            Some(size) if size_hint.is_some_and(|hint| hint.div_ceil(size) > STEADY_PARTS) => {
                size.max(smallest(MAX_PARTS))
            }
            Some(size) => size,
            None => capacity.request_size(size_hint, DEFAULT_PART_SIZE).max(smallest(USUAL_PARTS)),
        };
        // With a known size that fits, no doubling: the parts are as asked for.
        let whole = size_hint.filter(|hint| hint.div_ceil(base) <= MAX_PARTS);
        PartPlan { base, whole, grows: explicit.is_none() }
    }

    /// Lets the parts from here on be larger, where the service takes fewer requests than was counted on. A given part size
    /// stays.
    pub fn grow(&mut self, capacity: &Capacity, rest: Option<u64>) {
        if self.grows {
            let larger = capacity.request_size(rest, self.base);
            self.base = self.base.max(larger);
        }
    }

    /// Size in bytes of part `number` (from 1), when `offset` bytes are before it.
    pub fn part_size(&self, number: u64, offset: u64) -> u64 {
        let doublings = match self.whole {
            Some(whole) if offset < whole => 0,
            _ => number.saturating_sub(STEADY_PARTS + 1).div_ceil(PARTS_PER_DOUBLING).min(20),
        };
        self.base.saturating_mul(1 << doublings).min(MAX_PART_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MIN_PART_SIZE;

    /// What S3 is like, with nobody else there.
    const USUAL: Capacity = Capacity {
        connections: 32,
        latency: Duration::from_millis(20),
        rate: 85e6,
        network: f64::INFINITY,
        requests_per_second: None,
        in_flight: u64::MAX,
    };

    fn plan(explicit: Option<u64>, size_hint: Option<u64>) -> PartPlan {
        PartPlan::new(explicit, size_hint, &USUAL)
    }

    const TIB: u64 = 1 << 40;
    const GIB: u64 = 1 << 30;

    /// Number of parts and size of the first.
    fn split(plan: PartPlan, size: u64) -> (u64, u64) {
        let (mut number, mut offset) = (0, 0);
        while offset < size {
            number += 1;
            let part = plan.part_size(number, offset);
            assert!((MIN_PART_SIZE..=MAX_PART_SIZE).contains(&part));
            offset += part;
        }
        (number, plan.part_size(1, 0))
    }

    #[test]
    fn an_explicit_size_holds_as_long_as_the_object_fits() {
        let explicit = Some(8 * MIB);
        assert_eq!(split(plan(explicit, Some(GIB)), GIB), (128, 8 * MIB));
        assert_eq!(split(plan(explicit, None), GIB), (128, 8 * MIB));
        assert_eq!(split(plan(explicit, Some(70 * GIB)), 70 * GIB), (8960, 8 * MIB));
        let (parts, first) = split(plan(Some(MIN_PART_SIZE), Some(TIB)), TIB);
        assert!(parts <= MAX_PARTS && first > MIN_PART_SIZE, "{parts} parts of {first}");
    }

    #[test]
    fn without_one_it_follows_the_size() {
        for (hint, first) in
            [(None, 16 * MIB), (Some(0), 16 * MIB), (Some(GIB), 16 * MIB), (Some(64 * GIB), 66 * MIB)]
        {
            assert_eq!(plan(None, hint).part_size(1, 0), first, "{hint:?}");
        }
        assert!(split(plan(None, Some(5 * TIB)), 5 * TIB).0 <= MAX_PARTS);
    }

    #[test]
    fn an_upload_of_unknown_size_reaches_the_largest_object() {
        for explicit in [None, Some(8 * MIB)] {
            assert!(split(plan(explicit, None), 5 * TIB).0 <= MAX_PARTS);
        }
        assert!(split(plan(Some(MIN_PART_SIZE), None), 4 * TIB).0 <= MAX_PARTS);
    }

    #[test]
    fn a_hint_that_was_too_low_does_not_run_out_of_parts() {
        assert!(split(plan(None, Some(GIB)), 5 * TIB).0 <= MAX_PARTS);
        assert!(split(plan(Some(16 * MIB), Some(100 * GIB)), 3 * TIB).0 <= MAX_PARTS);
    }

    #[test]
    fn slow_answers_ask_for_larger_requests() {
        let size = |millis| {
            let capacity = Capacity { latency: Duration::from_millis(millis), ..USUAL };
            capacity.request_size(Some(100 * GIB), 4 * MIB) / MIB
        };
        assert_eq!([0, 1, 20, 50, 100, 1000].map(size), [4, 4, 15, 32, 32, 32]);
    }

    #[test]
    fn a_small_transfer_is_cut_so_that_every_connection_has_work() {
        let size = |total| USUAL.request_size(Some(total), 4 * MIB) / MIB;
        assert_eq!([0, MIB, 128 * MIB, 256 * MIB, GIB].map(size), [4, 4, 4, 8, 15]);
    }

    #[test]
    fn a_small_share_of_the_budget_asks_for_fewer_and_larger_requests() {
        let size = |ranks: f64, total| {
            let capacity = Capacity { requests_per_second: Some(3500.0 / ranks), ..USUAL };
            capacity.request_size(Some(total), 16 * MIB) / MIB
        };
        assert_eq!(size(1.0, 16 * GIB), 16);
        assert_eq!(size(64.0, 16 * GIB), 53); // as fast as 32 connections are, 49 requests/s of 55
        assert_eq!(size(8192.0, 700 * MIB), 365); // two requests each
        assert_eq!(size(1e6, 700 * MIB), 4027); // more than the file: one request
        assert_eq!(size(1e9, TIB), 5 * 1024);
        let capacity = Capacity { requests_per_second: Some(5.0), in_flight: GIB, ..USUAL };
        assert_eq!(capacity.request_size(Some(16 * GIB), 16 * MIB) / MIB, 129); // eight of them fill what may be in flight
        let in_place = Capacity { in_flight: u64::MAX, ..capacity };
        assert_eq!(in_place.request_size(Some(16 * GIB), 16 * MIB) / MIB, 516);
        let slower = Capacity { network: 1.25e9, ..in_place };
        assert_eq!(slower.request_size(Some(16 * GIB), 16 * MIB) / MIB, 265); // 4.5 requests/s of 5
    }

    #[test]
    fn parts_grow_while_an_upload_is_under_way_unless_their_size_was_given() {
        let slow = Capacity { requests_per_second: Some(5.0), ..USUAL };
        for (explicit, larger) in [(None, true), (Some(16 * MIB), false)] {
            let mut plan = plan(explicit, Some(4 * GIB));
            let before = plan.part_size(3, 32 * MIB);
            plan.grow(&slow, Some(3 * GIB));
            assert_eq!(plan.part_size(3, 32 * MIB) > before, larger);
            let grown = plan.part_size(3, 32 * MIB);
            plan.grow(&USUAL, Some(3 * GIB));
            assert_eq!(plan.part_size(3, 32 * MIB), grown);
        }
    }
}
