//! Part sizes: S3 allows 10,000 parts of 5 MiB to 5 GiB, and an upload may not know its size when it begins.
//!
//! A given part size holds as long as the object can fit; without one, a known size of up to 16 GiB gives parts of
//! 16 MiB and a larger one about a thousand parts. From part 5,000 on, parts double every 500, so that an upload of
//! unknown size reaches S3's largest object before the last part number.

use crate::config::{DEFAULT_PART_SIZE, MAX_PART_SIZE};

/// S3's limit on the parts of one upload.
pub(crate) const MAX_PARTS: u64 = 10_000;
const STEADY_PARTS: u64 = 5_000;
const PARTS_PER_DOUBLING: u64 = 500;
const USUAL_PARTS: u64 = 1_000;
const MIB: u64 = 1 << 20;

/// The part sizes of one upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartPlan {
    base: u64,
    whole: Option<u64>,
}

impl PartPlan {
    /// A plan for an object of about `size_hint` bytes (`None`: unknown). `explicit` is a valid part size.
    pub(crate) fn new(explicit: Option<u64>, size_hint: Option<u64>) -> PartPlan {
        let smallest =
            |parts: u64| size_hint.unwrap_or(0).div_ceil(parts).next_multiple_of(MIB).min(MAX_PART_SIZE);
        let base = match explicit {
            Some(size) if size_hint.is_some_and(|hint| hint.div_ceil(size) > STEADY_PARTS) => {
                size.max(smallest(MAX_PARTS))
            }
            Some(size) => size,
            None => DEFAULT_PART_SIZE.max(smallest(USUAL_PARTS)),
        };
        // With a known size that fits, no doubling: the parts are as asked for.
        let whole = size_hint.filter(|hint| hint.div_ceil(base) <= MAX_PARTS);
        PartPlan { base, whole }
    }

    /// Size in bytes of part `number` (from 1), when `offset` bytes are before it.
    pub(crate) fn part_size(&self, number: u64, offset: u64) -> u64 {
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
        assert_eq!(split(PartPlan::new(explicit, Some(GIB)), GIB), (128, 8 * MIB));
        assert_eq!(split(PartPlan::new(explicit, None), GIB), (128, 8 * MIB));
        assert_eq!(split(PartPlan::new(explicit, Some(70 * GIB)), 70 * GIB), (8960, 8 * MIB));
        let (parts, first) = split(PartPlan::new(Some(MIN_PART_SIZE), Some(TIB)), TIB);
        assert!(parts <= MAX_PARTS && first > MIN_PART_SIZE, "{parts} parts of {first}");
    }

    #[test]
    fn without_one_it_follows_the_size() {
        for (hint, first) in
            [(None, 16 * MIB), (Some(0), 16 * MIB), (Some(GIB), 16 * MIB), (Some(64 * GIB), 66 * MIB)]
        {
            assert_eq!(PartPlan::new(None, hint).part_size(1, 0), first, "{hint:?}");
        }
        assert!(split(PartPlan::new(None, Some(5 * TIB)), 5 * TIB).0 <= MAX_PARTS);
    }

    #[test]
    fn an_upload_of_unknown_size_reaches_the_largest_object() {
        for explicit in [None, Some(8 * MIB)] {
            assert!(split(PartPlan::new(explicit, None), 5 * TIB).0 <= MAX_PARTS);
        }
        assert!(split(PartPlan::new(Some(MIN_PART_SIZE), None), 4 * TIB).0 <= MAX_PARTS);
    }

    #[test]
    fn a_hint_that_was_too_low_does_not_run_out_of_parts() {
        assert!(split(PartPlan::new(None, Some(GIB)), 5 * TIB).0 <= MAX_PARTS);
        assert!(split(PartPlan::new(Some(16 * MIB), Some(100 * GIB)), 3 * TIB).0 <= MAX_PARTS);
    }
}
