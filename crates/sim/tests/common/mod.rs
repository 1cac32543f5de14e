//! What the tests of this crate share.

/// The same, changed.
pub(crate) fn with<T>(mut settings: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut settings);
    settings
}
