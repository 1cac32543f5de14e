#![doc = include_str!("../README.md")]

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
