//! The trait all strategies share.

use std::fmt::{self, Debug};
use std::num::NonZeroU64;
use std::ops::Range;

use crate::error::PrefixError;
use crate::key::MAX_KEY_BYTES;

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

    /// How many patterns ranks are dealt out over: rank `r` gets number `r % pattern_count`. At least 1.
    fn pattern_count(&self) -> u64 {
        1
    }

    /// Appends pattern number `index`, below [`pattern_count`](Self::pattern_count), and the `/` after it; nothing where
    /// there are no patterns.
    fn write_pattern(&self, index: u64, out: &mut String) {
        let _ = (index, out);
    }

    /// The part of the prefix that spreads ranks, such as `a000000000`; empty when nothing does.
    fn pattern(&self, rank: i64) -> String {
        let mut pattern = String::new();
        self.write_pattern(pattern_index(rank, self.pattern_count()), &mut pattern);
        pattern.pop();
        pattern
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

/// The formula of every strategy of this crate: the pattern of `rank`, the epoch if there is one, and the rank.
pub(crate) fn push_prefix(strategy: &impl PrefixStrategy, rank: i64, out: &mut String) {
    strategy.write_pattern(pattern_index(rank, strategy.pattern_count()), out);
    push_tail(strategy.epoch_num().map(Number::Small), Number::Small(rank), out);
}

/// The prefix that [`push_prefix`] appends.
pub(crate) fn prefix_of(strategy: &impl PrefixStrategy, rank: i64) -> String {
    let mut prefix = String::new();
    push_prefix(strategy, rank, &mut prefix);
    prefix
}

/// The prefix of a rank and an epoch of any size; `index` is that of the pattern that the rank gets.
///
/// # Errors
/// [`PrefixError::TooLong`], in the name of the rank, where no key could hold the prefix.
pub fn write_any_prefix(
    strategy: &dyn PrefixStrategy,
    index: u64,
    epoch_num: Option<Number<'_>>,
    rank: Number<'_>,
    out: &mut String,
) -> Result<(), PrefixError> {
    let start = out.len();
    strategy.write_pattern(index, out);
    push_tail(epoch_num, rank, out);
    match out.len() - start {
        ..=MAX_KEY_BYTES => Ok(()),
        bytes => Err(PrefixError::TooLong { argument: "rank".to_owned(), value: rank.to_string(), bytes }),
    }
}

/// The number of the pattern that `rank` gets of `count`: the remainder, never negative.
pub fn pattern_index(rank: i64, count: u64) -> u64 {
    match u64::try_from(rank) {
        Ok(rank) => rank % count,
        // -1 is the last one: count - 1 - ((-rank - 1) % count), and !rank is -rank - 1.
        Err(_) => count - 1 - (!rank).unsigned_abs() % count,
    }
}

/// A rank or an epoch as it stands in a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number<'a> {
    /// One of 64 bits.
    Small(i64),
    /// The text of any other.
    Text(&'a str),
}

impl fmt::Display for Number<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Number<'_> {
    fn push(self, out: &mut String) {
        match self {
            Self::Small(number) => push_integer(number, out),
            Self::Text(text) => out.push_str(text),
        }
    }
}

/// Appends `epoch_<num>/` if there is an epoch, then `__<rank>_`: the tail of every prefix.
fn push_tail(epoch_num: Option<Number<'_>>, rank: Number<'_>, out: &mut String) {
    if let Some(epoch_num) = epoch_num {
        out.push_str("epoch_");
        epoch_num.push(out);
        out.push('/');
    }
    out.push_str("__");
    rank.push(out);
    out.push('_');
}

/// Refuses a pattern of so many bytes, its `/` included, that no key has room for it with the epoch and a rank of one
/// digit. The error names `argument` and its `value`, or `epoch_num` where the epoch is the longer of the two.
///
/// # Errors
/// [`PrefixError::TooLong`].
pub(crate) fn check_room(
    argument: &str,
    value: &dyn fmt::Display,
    pattern: usize,
    epoch_num: Option<Number<'_>>,
) -> Result<(), PrefixError> {
    let mut tail = String::with_capacity(64);
    push_tail(epoch_num, Number::Small(0), &mut tail);
    let bytes = pattern + tail.len();
    if bytes <= MAX_KEY_BYTES {
        return Ok(());
    }
    let (argument, value) = match epoch_num {
        Some(epoch) if tail.len() - "__0_".len() > pattern => ("epoch_num".to_owned(), epoch.to_string()),
        _ => (argument.to_owned(), value.to_string()),
    };
    Err(PrefixError::TooLong { argument, value, bytes })
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
    use crate::{DefaultPrefixStrategy, RoundRobinPrefixStrategy};

    #[test]
    fn the_remainder_is_that_of_python() {
        for rank in [i64::MIN, i64::MIN + 1, -17, -16, -1, 0, 1, 15, 16, i64::MAX] {
            for count in [1, 2, 3, 16, 17, 1 << 40, u64::MAX] {
                let expected = i128::from(rank).rem_euclid(i128::from(count));
                assert_eq!(i128::from(pattern_index(rank, count)), expected, "{rank} % {count}");
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

    #[test]
    fn ranks_and_epochs_of_any_size_stand_as_their_text() {
        let strategy = RoundRobinPrefixStrategy::new(["a", "b"], None).unwrap();
        let (epoch, rank) = (Number::Text("True"), Number::Text("18446744073709551617"));
        let mut prefix = String::new();
        write_any_prefix(&strategy, 1, Some(epoch), rank, &mut prefix).unwrap();
        assert_eq!(prefix, "b/epoch_True/__18446744073709551617_");
    }

    #[test]
    fn what_makes_a_prefix_too_long_is_named() {
        let digits = "7".repeat(1_019);
        let mut prefix = String::new();
        let write = |rank, prefix: &mut String| {
            write_any_prefix(&DefaultPrefixStrategy, 0, None, Number::Text(rank), prefix)
        };
        write(&digits, &mut prefix).unwrap();
        let refused = write(&"7".repeat(1_022), &mut prefix).unwrap_err();
        assert_eq!(refused.argument(), "rank");

        let refused = check_room("user_prefixes[0]", &"p", 2, Some(Number::Text(&digits))).unwrap_err();
        assert_eq!(refused.argument(), "epoch_num");
        let refused = check_room("user_prefixes[0]", &"p", 1_020, Some(Number::Small(1))).unwrap_err();
        assert_eq!(refused.argument(), "user_prefixes[0]");
        check_room("user_prefixes[0]", &"p", 1_020, None).unwrap();
    }
}
