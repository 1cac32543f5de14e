//! The query of a request, as it was sent.

use http::Uri;

pub(crate) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Self {
        Self(uri.query().unwrap_or_default())
    }

    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs().any(|(found, _)| found == name)
    }

    /// The first value of that name, percent-encoded as it is.
    pub(crate) fn value(&self, name: &str) -> Option<&'a str> {
        self.pairs().find_map(|(found, value)| (found == name).then_some(value))
    }
}
