//! The trait all strategies share.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::ops::Range;

/// Gives each rank the key prefix of its shard files.
///
/// Only [`generate_prefix`](Self::generate_prefix) must be written; the other methods have defaults that are right
/// for a strategy without an epoch whose spread does not depend on the number of ranks.
///
/// ```
/// use s3dcp_prefix::PrefixStrategy;
///
/// #[derive(Debug)]
/// struct EvenOdd;
///
/// impl PrefixStrategy for EvenOdd {
///     fn generate_prefix(&self, rank: i64) -> String {
///         format!("{}/__{rank}_", if rank % 2 == 0 { "even" } else { "odd" })
///     }
/// }
///
/// let mut seen = Vec::new();
/// EvenOdd.for_each_prefix(0..3, &mut |_, prefix| seen.push(prefix.to_owned()));
/// assert_eq!(seen, ["even/__0_", "odd/__1_", "even/__2_"]);
/// ```
pub trait PrefixStrategy: Debug + Send + Sync {
    /// The prefix of one rank, such as `a000000000/epoch_5/__10_`. Every integer is a rank: those beyond the number
    /// of prefixes and negative ones wrap around (`-1` gets the last pattern).
    fn generate_prefix(&self, rank: i64) -> String;

    /// Appends the prefix of `rank` to `out`.
    fn write_prefix(&self, rank: i64, out: &mut String) {
        out.push_str(&self.generate_prefix(rank));
    }

    /// Calls `visit` with every rank of `ranks` and its prefix, in order. One buffer serves all of them, so the
    /// strategies of this crate allocate nothing per rank.
    fn for_each_prefix(&self, ranks: Range<i64>, visit: &mut dyn FnMut(i64, &str)) {
        let mut prefix = String::new();
        for rank in ranks {
            prefix.clear();
            self.write_prefix(rank, &mut prefix);
            visit(rank, &prefix);
        }
    }

    /// The part of the prefix that spreads ranks, such as `a000000000`; empty when nothing does.
    fn pattern(&self, rank: i64) -> String {
        let _ = rank;
        String::new()
    }

    /// The epoch that stands in every prefix, if any.
    fn epoch_num(&self) -> Option<i64> {
        None
    }

    /// This strategy for a job of `ranks` ranks, or `None` where the number of ranks changes nothing.
    fn bind(&self, ranks: NonZeroU64) -> Option<Box<dyn PrefixStrategy>> {
        let _ = ranks;
        None
    }
}

/// The remainder of `rank` by `count`, never negative.
pub(crate) fn wrap(rank: i64, count: u64) -> u64 {
    match u64::try_from(rank) {
        Ok(rank) => rank % count,
        // -1 is the last one: count - 1 - ((-rank - 1) % count), and !rank is -rank - 1.
        Err(_) => count - 1 - (!rank).unsigned_abs() % count,
    }
}

/// Appends `epoch_<num>/` if there is an epoch, then `__<rank>_`: the tail of every prefix.
pub(crate) fn push_tail(epoch_num: Option<i64>, rank: i64, out: &mut String) {
    if let Some(epoch_num) = epoch_num {
        out.push_str("epoch_");
        push_integer(epoch_num, out);
        out.push('/');
    }
    out.push_str("__");
    push_integer(rank, out);
    out.push('_');
}

/// Bytes of the tail for a rank of one digit: the shortest it can be.
pub(crate) fn shortest_tail_bytes(epoch_num: Option<i64>) -> usize {
    let mut tail = String::new();
    push_tail(epoch_num, 0, &mut tail);
    tail.len()
}

fn push_integer(number: i64, out: &mut String) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        digits[start] = b'-';
    }
    out.push_str(std::str::from_utf8(&digits[start..]).expect("digits and a sign are ASCII"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remainder_is_that_of_python() {
        for rank in [i64::MIN, i64::MIN + 1, -17, -16, -1, 0, 1, 15, 16, i64::MAX] {
            for count in [1, 2, 3, 16, 17, 1 << 40, u64::MAX] {
                let expected = i128::from(rank).rem_euclid(i128::from(count));
                assert_eq!(i128::from(wrap(rank, count)), expected, "{rank} % {count}");
            }
        }
    }

    #[test]
    fn integers_are_written_as_format_writes_them() {
        for number in [i64::MIN, -1_000, -10, -9, 0, 9, 10, 123_456_789, i64::MAX] {
            let mut out = String::new();
            push_integer(number, &mut out);
            assert_eq!(out, number.to_string());
        }
    }
}
