//! A value of a setting, with where it stands: what errors name, and people ask for.

use crate::error::Error;

/// A value, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) source: String,
}

impl<T> Sourced<T> {
    pub(crate) fn new(value: impl Into<T>, source: impl Into<String>) -> Sourced<T> {
        Sourced { value: value.into(), source: source.into() }
    }

    /// The same place, with what its value comes to.
    pub(crate) fn try_map<U>(
        self,
        change: impl FnOnce(T, &str) -> Result<U, Error>,
    ) -> Result<Sourced<U>, Error> {
        let value = change(self.value, &self.source)?;
        Ok(Sourced { value, source: self.source })
    }
}
