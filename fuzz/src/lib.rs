//! Fuzz targets: each takes any bytes, and panics where a rule is broken that no input may break.
//!
//! `make fuzz` runs them in libFuzzer with AddressSanitizer (`libfuzzer/`), the tests run them over the files of
//! `corpus/`. They see what users of the crates see; nothing here looks inside.

mod archive;
mod exchange;
mod index;
mod keys;
mod names;
mod objects;
mod service;

pub use archive::archive;
pub use exchange::{answers, wire};
pub use index::index;
pub use keys::keys;
pub use names::names;
pub use objects::objects;

/// A target.
pub type Target = fn(&[u8]);

/// Every target under its name, which is also that of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 7] = [
    ("answers", answers),
    ("archive", archive),
    ("index", index),
    ("keys", keys),
    ("names", names),
    ("objects", objects),
    ("wire", wire),
];
