//! Patterns that are numbers: written in a base, padded with zeros, and reversed so that the digit that varies
//! fastest comes first.
//!
//! Reversal is what spreads: S3 splits a key range by its first characters, and the last digit of a rank is the
//! one in which neighbours differ. The reversed number is written directly, from its least significant digit on.

use std::num::NonZeroU64;
use std::ops::Range;

use crate::error::PrefixError;
use crate::key::MAX_KEY_BYTES;
use crate::strategy::{Number, PrefixStrategy, check_room, pattern_index, push_prefix};

/// The smallest base.
pub const MIN_BASE: u32 = 2;
/// The largest base: ten digits and the 26 lower-case letters.
pub const MAX_BASE: u32 = 36;
/// The length of a pattern in digits where none is asked for.
pub const DEFAULT_MIN_PREFIX_LENGTH: usize = 10;

const DIGITS: &[u8; MAX_BASE as usize] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// What all numeric strategies take besides their base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumericOptions {
    /// Put `epoch_<num>/` into every prefix.
    pub epoch_num: Option<i64>,
    /// Pad patterns to at least this many digits, 1 to 1,024. Default 10.
    pub min_prefix_length: usize,
    /// How many patterns to spread over, at least 1. `None`: as many as there are ranks, which
    /// [`PrefixStrategy::bind`] tells; 1 until then.
    pub prefix_count: Option<u64>,
}

impl Default for NumericOptions {
    fn default() -> Self {
        Self { epoch_num: None, min_prefix_length: DEFAULT_MIN_PREFIX_LENGTH, prefix_count: None }
    }
}

/// `<pattern>/__<rank>_`, or `<pattern>/epoch_<num>/__<rank>_` with an epoch. The pattern is
/// `rank % prefix_count` in a base of 2 to 36, padded with zeros to the larger of `min_prefix_length` and the digits
/// that `prefix_count` patterns need, then reversed.
///
/// ```
/// use s3dcp_prefix::{NumericOptions, NumericPrefixStrategy, PrefixStrategy};
///
/// let options = NumericOptions { prefix_count: Some(1_000), min_prefix_length: 4, ..Default::default() };
/// let strategy = NumericPrefixStrategy::new(36, options)?;
/// assert_eq!(strategy.generate_prefix(71), "z100/__71_");
/// assert_eq!(strategy.generate_prefix(1_071), "z100/__1071_");
///
/// let refused = NumericPrefixStrategy::new(37, options).unwrap_err();
/// assert_eq!(refused.to_string(), "base must be an integer from 2 to 36, got 37");
/// # Ok::<(), s3dcp_prefix::PrefixError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumericPrefixStrategy {
    base: u32,
    options: NumericOptions,
    count: u64,
    length: usize,
}

impl NumericPrefixStrategy {
    /// A strategy in `base`.
    ///
    /// # Errors
    /// [`PrefixError::OutOfRange`] for a base outside 2 to 36, a `prefix_count` of 0, or a `min_prefix_length` outside
    /// 1 to 1,024; [`PrefixError::TooLong`] where no key could hold even the prefix.
    pub fn new(base: u32, options: NumericOptions) -> Result<Self, PrefixError> {
        in_range("base", base.into(), MIN_BASE.into(), MAX_BASE.into())?;
        in_range("min_prefix_length", options.min_prefix_length as u64, 1, MAX_KEY_BYTES as u64)?;
        if let Some(count) = options.prefix_count {
            in_range("prefix_count", count, 1, u64::MAX)?;
        }
        let strategy = Self::with_count(base, options, options.prefix_count.unwrap_or(1));
        strategy.check_room(options.epoch_num.map(Number::Small))?;
        Ok(strategy)
    }

    fn with_count(base: u32, options: NumericOptions, count: u64) -> Self {
        let length = options.min_prefix_length.max(digits_needed(base, count));
        Self { base, options, count, length }
    }

    /// Refuses an epoch, of any size, that leaves no key room for a prefix.
    ///
    /// # Errors
    /// [`PrefixError::TooLong`].
    pub fn check_room(&self, epoch_num: Option<Number<'_>>) -> Result<(), PrefixError> {
        let asked = &self.options.min_prefix_length;
        check_room("min_prefix_length", asked, self.length + "/".len(), epoch_num)
    }

    /// The base of the patterns, 2 to 36.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// The length asked for, in digits. Patterns are longer where `prefix_count` needs it: see
    /// [`pattern_length`](Self::pattern_length).
    pub fn min_prefix_len(&self) -> usize {
        self.options.min_prefix_length
    }

    /// The length of every pattern, in digits.
    pub fn pattern_length(&self) -> usize {
        self.length
    }

    /// How many patterns ranks are spread over.
    pub fn prefix_count(&self) -> u64 {
        self.count
    }

    /// All patterns in order, one at a time.
    ///
    /// ```
    /// use s3dcp_prefix::{NumericOptions, NumericPrefixStrategy};
    /// let options = NumericOptions { prefix_count: Some(4), min_prefix_length: 3, ..Default::default() };
    /// let patterns: Vec<_> = NumericPrefixStrategy::new(2, options)?.prefix_map().collect();
    /// assert_eq!(patterns, ["000", "100", "010", "110"]);
    /// # Ok::<(), s3dcp_prefix::PrefixError>(())
    /// ```
    pub fn prefix_map(&self) -> impl Iterator<Item = String> + use<> {
        let Self { base, length, count, .. } = *self;
        (0..count).map(move |index| {
            let mut pattern = String::with_capacity(length);
            push_pattern(base, index, length, &mut pattern);
            pattern
        })
    }

    fn bound_to(&self, ranks: NonZeroU64) -> Option<Self> {
        self.options.prefix_count.is_none().then(|| Self::with_count(self.base, self.options, ranks.get()))
    }
}

impl PrefixStrategy for NumericPrefixStrategy {
    fn generate_prefix(&self, rank: i64) -> String {
        let mut prefix = String::with_capacity(self.length + 32);
        self.write_prefix(rank, &mut prefix);
        prefix
    }

    fn write_prefix(&self, rank: i64, out: &mut String) {
        push_prefix(self, rank, out);
    }

    /// Counts up in place, digit by digit, where neighbours differ in a few.
    fn for_each_prefix(&self, ranks: Range<i64>, visit: &mut dyn FnMut(i64, &str)) {
        let mut prefix = String::new();
        for rank in ranks {
            // Whatever stands there is the prefix of the rank before.
            let mut bytes = std::mem::take(&mut prefix).into_bytes();
            let follows = rank > 0
                && pattern_index(rank, self.count) > 0
                && bytes.len() > self.length
                && count_up(bytes[..self.length].iter_mut(), self.base)
                && count_up(rank_digits(&mut bytes), 10);
            prefix = String::from_utf8(bytes).expect("digits are ASCII");
            if !follows {
                prefix.clear();
                self.write_prefix(rank, &mut prefix);
            }
            visit(rank, &prefix);
        }
    }

    fn pattern_count(&self) -> u64 {
        self.count
    }

    fn write_pattern(&self, index: u64, out: &mut String) {
        push_pattern(self.base, index, self.length, out);
        out.push('/');
    }

    fn epoch_num(&self) -> Option<i64> {
        self.options.epoch_num
    }

    fn bind(&self, ranks: NonZeroU64) -> Option<Box<dyn PrefixStrategy>> {
        Some(Box::new(self.bound_to(ranks)?))
    }
}

/// [`NumericPrefixStrategy`] in a base that the type fixes: [`BinaryPrefixStrategy`] and [`HexPrefixStrategy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FixedBasePrefixStrategy<const BASE: u32>(NumericPrefixStrategy);

/// Patterns of 0 and 1.
///
/// ```
/// use s3dcp_prefix::{BinaryPrefixStrategy, NumericOptions, PrefixStrategy};
/// let options = NumericOptions { prefix_count: Some(4), ..Default::default() };
/// assert_eq!(BinaryPrefixStrategy::new(options)?.generate_prefix(3), "1100000000/__3_");
/// # Ok::<(), s3dcp_prefix::PrefixError>(())
/// ```
pub type BinaryPrefixStrategy = FixedBasePrefixStrategy<2>;

/// Patterns of hexadecimal digits, lower case.
///
/// ```
/// use s3dcp_prefix::{HexPrefixStrategy, NumericOptions, PrefixStrategy};
/// let options = NumericOptions { prefix_count: Some(257), ..Default::default() };
/// assert_eq!(HexPrefixStrategy::new(options)?.generate_prefix(256), "0010000000/__256_");
/// # Ok::<(), s3dcp_prefix::PrefixError>(())
/// ```
pub type HexPrefixStrategy = FixedBasePrefixStrategy<16>;

impl<const BASE: u32> FixedBasePrefixStrategy<BASE> {
    /// A strategy in base `BASE`.
    ///
    /// # Errors
    /// As [`NumericPrefixStrategy::new`].
    pub fn new(options: NumericOptions) -> Result<Self, PrefixError> {
        NumericPrefixStrategy::new(BASE, options).map(Self)
    }

    /// The same as a [`NumericPrefixStrategy`], for its lengths and counts.
    pub fn as_numeric(&self) -> &NumericPrefixStrategy {
        &self.0
    }
}

impl<const BASE: u32> PrefixStrategy for FixedBasePrefixStrategy<BASE> {
    fn generate_prefix(&self, rank: i64) -> String {
        self.0.generate_prefix(rank)
    }

    fn write_prefix(&self, rank: i64, out: &mut String) {
        self.0.write_prefix(rank, out);
    }

    fn for_each_prefix(&self, ranks: Range<i64>, visit: &mut dyn FnMut(i64, &str)) {
        self.0.for_each_prefix(ranks, visit);
    }

    fn pattern_count(&self) -> u64 {
        self.0.pattern_count()
    }

    fn write_pattern(&self, index: u64, out: &mut String) {
        self.0.write_pattern(index, out);
    }

    fn epoch_num(&self) -> Option<i64> {
        self.0.epoch_num()
    }

    fn bind(&self, ranks: NonZeroU64) -> Option<Box<dyn PrefixStrategy>> {
        Some(Box::new(Self(self.0.bound_to(ranks)?)))
    }
}

/// The digits that `count` different patterns in `base` need: the least `n >= 1` with `base^n >= count`.
///
/// A `base` below 2 is read as 2, because no number of digits would do.
pub fn digits_needed(base: u32, count: u64) -> usize {
    let base = u64::from(base.max(MIN_BASE));
    let mut digits = 1;
    let mut size = base;
    while size < count {
        digits += 1;
        size = size.saturating_mul(base);
    }
    digits
}

/// `number` in `base`, least significant digit first, then zeros up to `length` digits.
///
/// # Errors
/// [`PrefixError::OutOfRange`] for a base outside 2 to 36, or a length beyond that of a key.
pub fn numeric_pattern(base: u32, number: u64, length: usize) -> Result<String, PrefixError> {
    in_range("base", base.into(), MIN_BASE.into(), MAX_BASE.into())?;
    in_range("length", length as u64, 0, MAX_KEY_BYTES as u64)?;
    let mut pattern = String::with_capacity(length);
    push_pattern(base, number, length, &mut pattern);
    Ok(pattern)
}

/// Appends `number` in `base`, least significant digit first, then zeros up to `length` digits.
///
/// A number of more than `length` digits is written in full. `base` must be 2 to 36.
fn push_pattern(base: u32, number: u64, length: usize, out: &mut String) {
    debug_assert!((MIN_BASE..=MAX_BASE).contains(&base));
    let mut digits = [b'0'; u64::BITS as usize];
    let mut significant = 0;
    let mut rest = number;
    if base.is_power_of_two() {
        // Shifts instead of divisions: binary patterns have the most digits.
        let (shift, mask) = (base.trailing_zeros(), u64::from(base - 1));
        while rest > 0 {
            digits[significant] = DIGITS[(rest & mask) as usize];
            rest >>= shift;
            significant += 1;
        }
    } else {
        let base = u64::from(base);
        while rest > 0 {
            digits[significant] = DIGITS[(rest % base) as usize];
            rest /= base;
            significant += 1;
        }
    }
    let at_once = length.clamp(significant, digits.len());
    out.push_str(std::str::from_utf8(&digits[..at_once]).expect("digits are ASCII"));
    out.extend(std::iter::repeat_n('0', length.saturating_sub(at_once)));
}

/// Adds one to a number of digits, the least significant first; false where it would need one more.
fn count_up<'a>(digits: impl Iterator<Item = &'a mut u8>, base: u32) -> bool {
    let largest = DIGITS[base as usize - 1];
    for digit in digits {
        if *digit != largest {
            *digit = if *digit == b'9' { b'a' } else { *digit + 1 };
            return true;
        }
        *digit = b'0';
    }
    false
}

/// The digits of the rank at the end of a prefix, the least significant first.
fn rank_digits(prefix: &mut [u8]) -> impl Iterator<Item = &mut u8> {
    prefix.iter_mut().rev().skip("_".len()).take_while(|byte| byte.is_ascii_digit())
}

fn in_range(argument: &str, value: u64, min: u64, max: u64) -> Result<(), PrefixError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(PrefixError::OutOfRange { argument: argument.to_owned(), value: value.to_string(), min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(options: NumericOptions) -> HexPrefixStrategy {
        HexPrefixStrategy::new(options).unwrap()
    }

    #[test]
    fn patterns_grow_with_the_count_and_not_before() {
        for (base, count, digits) in
            [(2, 1, 1), (2, 2, 1), (2, 3, 2), (16, 16, 1), (16, 17, 2), (36, u64::MAX, 13), (2, u64::MAX, 64)]
        {
            assert_eq!(digits_needed(base, count), digits, "{count} in base {base}");
        }
    }

    #[test]
    fn a_quintillion_prefixes_cost_what_one_costs() {
        let strategy = hex(NumericOptions { prefix_count: Some(u64::MAX), ..Default::default() });
        assert_eq!(strategy.generate_prefix(i64::MAX), format!("fffffffffffffff7/__{}_", i64::MAX));
        assert_eq!(strategy.generate_prefix(-1), "effffffffffffff".to_owned() + "f/__-1_");
    }

    #[test]
    fn binding_speaks_only_where_no_count_was_given() {
        let ranks = NonZeroU64::new(300).unwrap();
        let free = hex(NumericOptions { epoch_num: Some(-3), ..Default::default() });
        let bound = free.bind(ranks).unwrap();
        assert_eq!(bound.generate_prefix(299), "b210000000/epoch_-3/__299_");
        assert_eq!(bound.epoch_num(), Some(-3));
        assert_eq!(bound.bind(NonZeroU64::MIN).unwrap().generate_prefix(299), free.generate_prefix(299));

        let given = hex(NumericOptions { prefix_count: Some(1), ..Default::default() });
        assert!(given.bind(ranks).is_none());
    }

    #[test]
    fn a_pattern_that_no_key_can_hold_is_refused_at_construction() {
        let longest = NumericOptions { min_prefix_length: 1_024 - "/__0_".len(), ..Default::default() };
        assert_eq!(hex(longest).generate_prefix(0).len(), MAX_KEY_BYTES);

        let longer = NumericOptions { min_prefix_length: longest.min_prefix_length + 1, ..longest };
        let refused = HexPrefixStrategy::new(longer).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "min_prefix_length makes a prefix of 1025 bytes; a whole key on S3 has at most 1024 bytes, got 1020"
        );
        let with_epoch = NumericOptions { epoch_num: Some(0), ..longest };
        assert_eq!(HexPrefixStrategy::new(with_epoch).unwrap_err().argument(), "min_prefix_length");
    }

    #[test]
    fn a_range_of_ranks_reads_like_each_rank_alone() {
        for (base, prefix_count, min_prefix_length) in [
            (2, 8, 1),
            (2, 5_000, 20),
            (10, 100, 2),
            (16, 37, 10),
            (36, 1_296, 1),
            (36, 1, 3),
            (11, 4_000, 3),
        ] {
            let options =
                NumericOptions { epoch_num: Some(9), prefix_count: Some(prefix_count), min_prefix_length };
            let strategy = NumericPrefixStrategy::new(base, options).unwrap();
            let mut rank = -40;
            strategy.for_each_prefix(-40..3_000, &mut |given, prefix| {
                assert_eq!((given, prefix), (rank, strategy.generate_prefix(rank).as_str()));
                assert!(prefix.starts_with(&strategy.pattern(rank)));
                rank += 1;
            });
            assert_eq!(rank, 3_000);
        }
    }
}
