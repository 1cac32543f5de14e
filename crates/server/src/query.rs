//! The query of a request, as it was sent.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::percent_decode_str;

pub(crate) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(crate) fn of(uri: &'a Uri) -> Self {
        Self(uri.query().unwrap_or_default())
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs().any(|(found, _)| found == name)
    }

    /// The first value of that name, percent-encoded as it is.
    pub(crate) fn value(&self, name: &str) -> Option<&'a str> {
        self.pairs().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The values of that name, however the name is encoded.
    fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs()
            .filter_map(move |(found, value)| percent_decode_str(found).eq(name.bytes()).then_some(value))
    }

    /// Whether the name is there, however it is encoded.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// The decoded value of a name that is there once, however it is encoded.
    pub(crate) fn only(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut values = self.values(name);
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        percent_decode_str(value).decode_utf8().ok()
    }
}
