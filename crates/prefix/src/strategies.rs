//! The strategies besides the numeric ones: what each puts in front of the rank.
//!
//! A strategy says how many patterns it has and writes one of them; the rest of a prefix is the same for all.

use crate::error::PrefixError;
use crate::strategy::{Number, PrefixStrategy, prefix_of, push_prefix};
use crate::text::check_user_prefix;

/// `__<rank>_`, the names that torch itself gives shard files: every rank side by side under the checkpoint's path.
///
/// ```
/// use s3dcp_prefix::{DefaultPrefixStrategy, PrefixStrategy};
/// assert_eq!(DefaultPrefixStrategy.generate_prefix(7), "__7_");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DefaultPrefixStrategy;

impl PrefixStrategy for DefaultPrefixStrategy {
    fn generate_prefix(&self, rank: i64) -> String {
        prefix_of(self, rank)
    }

    fn write_prefix(&self, rank: i64, out: &mut String) {
        push_prefix(self, rank, out);
    }
}

/// `<pattern>/__<rank>_`, with the one pattern that was chosen elsewhere and goes unchecked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GivenPrefixStrategy(pub String);

impl PrefixStrategy for GivenPrefixStrategy {
    fn generate_prefix(&self, rank: i64) -> String {
        prefix_of(self, rank)
    }

    fn write_pattern(&self, _index: u64, out: &mut String) {
        out.push_str(&self.0);
        out.push('/');
    }
}

/// `<user prefix>/__<rank>_`, or `<user prefix>/epoch_<num>/__<rank>_` with an epoch: rank `r` gets user prefix
/// `r % len`.
///
/// ```
/// use s3dcp_prefix::{PrefixStrategy, RoundRobinPrefixStrategy};
///
/// let strategy = RoundRobinPrefixStrategy::new(["p1", "p2", "p3"], Some(5))?;
/// assert_eq!(strategy.generate_prefix(4), "p2/epoch_5/__4_");
///
/// let refused = RoundRobinPrefixStrategy::new(["p1", "../p2"], None).unwrap_err();
/// assert_eq!(refused.to_string(), r#"user_prefixes[1] has a segment '.' or '..', got "../p2""#);
/// # Ok::<(), s3dcp_prefix::PrefixError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoundRobinPrefixStrategy {
    user_prefixes: Vec<String>,
    epoch_num: Option<i64>,
}

impl RoundRobinPrefixStrategy {
    /// A strategy that deals `user_prefixes` out in order.
    ///
    /// # Errors
    /// [`PrefixError::OutOfRange`] when there are none; [`PrefixError::BadText`] for one that is empty, starts with
    /// `/`, has a segment `.` or `..`, or holds `://` or a control character; [`PrefixError::TooLong`] for one that no key
    /// could hold.
    pub fn new<P: Into<String>>(
        user_prefixes: impl IntoIterator<Item = P>,
        epoch_num: Option<i64>,
    ) -> Result<Self, PrefixError> {
        let user_prefixes: Vec<String> = user_prefixes.into_iter().map(Into::into).collect();
        if user_prefixes.is_empty() {
            let (argument, value) = ("len(user_prefixes)".to_owned(), "0".to_owned());
            return Err(PrefixError::OutOfRange { argument, value, min: 1, max: u64::MAX });
        }
        for (position, user_prefix) in user_prefixes.iter().enumerate() {
            let argument = format!("user_prefixes[{position}]");
            check_user_prefix(&argument, user_prefix, epoch_num.map(Number::Small))?;
        }
        Ok(Self { user_prefixes, epoch_num })
    }

    /// The prefixes, in the order in which they are dealt out.
    pub fn user_prefixes(&self) -> &[String] {
        &self.user_prefixes
    }
}

impl PrefixStrategy for RoundRobinPrefixStrategy {
    fn generate_prefix(&self, rank: i64) -> String {
        prefix_of(self, rank)
    }

    fn write_prefix(&self, rank: i64, out: &mut String) {
        push_prefix(self, rank, out);
    }

    fn pattern_count(&self) -> u64 {
        self.user_prefixes.len() as u64
    }

    fn write_pattern(&self, index: u64, out: &mut String) {
        out.push_str(&self.user_prefixes[index as usize]);
        out.push('/');
    }

    fn epoch_num(&self) -> Option<i64> {
        self.epoch_num
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::MAX_KEY_BYTES;

    #[test]
    fn a_trailing_slash_stays() {
        let strategy = RoundRobinPrefixStrategy::new(["p1/", "a//b"], None).unwrap();
        assert_eq!(strategy.generate_prefix(0), "p1//__0_");
        assert_eq!(strategy.generate_prefix(-1), "a//b/__-1_");
        assert_eq!(strategy.pattern(2), "p1/");
    }

    #[test]
    fn no_prefixes_at_all_are_refused_by_name() {
        let refused = RoundRobinPrefixStrategy::new(Vec::<String>::new(), None).unwrap_err();
        assert_eq!(refused.argument(), "len(user_prefixes)");
    }

    #[test]
    fn a_prefix_that_no_key_can_hold_is_refused_by_its_position() {
        let longest = "é".repeat((MAX_KEY_BYTES - "/__0_".len()) / 2);
        let strategy = RoundRobinPrefixStrategy::new([longest.clone()], None).unwrap();
        assert!(strategy.generate_prefix(0).len() <= MAX_KEY_BYTES);

        let refused = RoundRobinPrefixStrategy::new(["p".to_owned(), longest], Some(12)).unwrap_err();
        assert_eq!(refused.argument(), "user_prefixes[1]");
    }
}
