//! No spreading: every rank side by side under the checkpoint's path.

use crate::strategy::{PrefixStrategy, push_tail};

/// `__<rank>_`, the names that torch itself gives shard files.
///
/// ```
/// use s3dcp_prefix::{DefaultPrefixStrategy, PrefixStrategy};
/// assert_eq!(DefaultPrefixStrategy.generate_prefix(7), "__7_");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DefaultPrefixStrategy;

impl PrefixStrategy for DefaultPrefixStrategy {
    fn generate_prefix(&self, rank: i64) -> String {
        let mut prefix = String::new();
        self.write_prefix(rank, &mut prefix);
        prefix
    }

    fn write_prefix(&self, rank: i64, out: &mut String) {
        push_tail(None, rank, out);
    }
}
