//! Prefix strategies: from a rank to the key prefix of its shard files.
//!
//! S3 gives every key range (a *partition*) a request budget of its own. Keys that differ in their first
//! characters can be split over many partitions; keys that share a long head, such as
//! `run-7/__0_0.distcp`, `run-7/__1_0.distcp`, cannot be until their last characters. A strategy puts the part
//! that varies from rank to rank, the *pattern*, in front:
//!
//! | strategy | rank 10 of 16 |
//! | --- | --- |
//! | [`DefaultPrefixStrategy`] | `__10_` |
//! | [`BinaryPrefixStrategy`] | `0101000000/__10_` |
//! | [`HexPrefixStrategy`] with epoch 5 | `a000000000/epoch_5/__10_` |
//! | [`RoundRobinPrefixStrategy`] over `p1`, `p2`, `p3` | `p2/__10_` |
//!
//! ```
//! use std::num::NonZeroU64;
//! use s3dcp_prefix::{HexPrefixStrategy, NumericOptions, PrefixStrategy};
//!
//! let options = NumericOptions { epoch_num: Some(5), ..NumericOptions::default() };
//! let strategy = HexPrefixStrategy::new(options)?;
//! let ranks = NonZeroU64::new(16).expect("16 is not zero");
//! let bound = strategy.bind(ranks).expect("no prefix_count was given, so the number of ranks decides");
//! assert_eq!(bound.generate_prefix(10), "a000000000/epoch_5/__10_");
//! assert_eq!(bound.generate_prefix(255), "f000000000/epoch_5/__255_");
//! # Ok::<(), s3dcp_prefix::PrefixError>(())
//! ```
//!
//! Every strategy computes a prefix from its few numbers alone: a million prefixes take no more memory than one.
//! The crate is pure (no clock, no socket, no dependency) and joins nothing to a bucket or a path.

mod error;
mod key;
mod numeric;
mod strategies;
mod strategy;
mod text;

pub use error::{Cut, PrefixError};
pub use numeric::{
    BinaryPrefixStrategy, DEFAULT_MIN_PREFIX_LENGTH, FixedBasePrefixStrategy, HexPrefixStrategy, MAX_BASE,
    MIN_BASE, NumericOptions, NumericPrefixStrategy, digits_needed, numeric_pattern,
};
// Whatever stands there is a strategy and is public: a new one changes nothing here.
pub use key::MAX_KEY_BYTES;
pub use strategies::*;
pub use strategy::{Number, PrefixStrategy, pattern_index, write_any_prefix};
pub use text::check_user_prefix;
