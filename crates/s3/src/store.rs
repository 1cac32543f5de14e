//! What is known of the service: in which ways it is not quite S3, each found out once.
//!
//! A client speaks to one service, so this belongs to the client, and to nothing that outlives it. What one bucket does
//! says nothing of another: buckets of one service may have versions, locks or back-ends of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::config::environment::Environment;
use crate::error::{Error, ErrorKind};
use crate::protocol::conditions::Conditions;

/// The settings of AWS tools for checksums of requests and of responses.
const VARIABLES: [&str; 2] = ["AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"];

/// What a client knows of its service.
#[derive(Debug)]
pub(crate) struct Store {
    /// Whether checksums go with what is written, and are asked for with what is read.
    writes: AtomicBool,
    reads: AtomicBool,
    /// Whether a refusal of them is an error.
    insists: bool,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
}

/// What a client knows of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// What it does with conditional writes, once they were tried.
    pub(crate) conditions: OnceCell<Conditions>,
    /// It has no DeleteObjects.
    pub(crate) deletes_one_by_one: Flag,
    /// It compares the ETag of If-Match without its quotes.
    pub(crate) bare_etags: Flag,
    /// It wants a Content-MD5 with every object, as for Object Lock.
    pub(crate) wants_md5: Flag,
}

/// Something that may become known.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Nothing is known but what the caller (`checksum_headers`) or else the environment says.
    ///
    /// # Errors
    /// `Config` for a variable with an unknown value.
    pub(crate) fn new(checksum_headers: Option<bool>, environment: &Environment) -> Result<Store, Error> {
        let sends = |name| checksum_headers.map_or_else(|| when_supported(environment, name), Ok);
        let [writes, reads] = VARIABLES.map(sends);
        Ok(Store {
            writes: AtomicBool::new(writes?),
            reads: AtomicBool::new(reads?),
            insists: checksum_headers == Some(true),
            buckets: Mutex::default(),
        })
    }

    /// Whether to send the checksum headers of a write, or else of a read.
    pub(crate) fn takes_checksums(&self, write: bool) -> bool {
        self.checksums(write).load(Ordering::Relaxed)
    }

    /// Whether the service may be asked to do without.
    pub(crate) fn may_do_without_checksums(&self) -> bool {
        !self.insists
    }

    /// The service refused the checksum headers of a write, or of a read, and took the same request without.
    pub(crate) fn refused_checksums(&self, write: bool) {
        if self.checksums(write).swap(false, Ordering::Relaxed) {
            tracing::info!(write, "the service takes no checksum headers: they are left out from now on");
        }
    }

    pub(crate) fn bucket(&self, name: &str) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.get(name) {
            Some(known) => Arc::clone(known),
            None => Arc::clone(buckets.entry(name.to_owned()).or_default()),
        }
    }

    fn checksums(&self, write: bool) -> &AtomicBool {
        if write { &self.writes } else { &self.reads }
    }
}

fn when_supported(environment: &Environment, name: &str) -> Result<bool, Error> {
    match environment.get(name)?.map(|value| value.to_ascii_lowercase()).as_deref() {
        None | Some("when_supported") => Ok(true),
        Some("when_required") => Ok(false),
        Some(value) => Err(Error::new(
            ErrorKind::Config,
            format!("{name} must be when_supported or when_required, not {value:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sends(field: Option<bool>, request: Option<&str>, response: Option<&str>) -> Result<[bool; 2], Error> {
        let values = VARIABLES.into_iter().zip([request, response]);
        let pairs: Vec<_> = values.filter_map(|(name, value)| Some((name, value?))).collect();
        let store = Store::new(field, &Environment::of(&pairs))?;
        Ok([true, false].map(|write| store.takes_checksums(write)))
    }

    #[test]
    fn checksums_are_sent_unless_the_field_or_else_a_variable_says_otherwise() {
        for (field, request, response, expected) in [
            (None, None, None, [true, true]),
            (None, Some("when_required"), None, [false, true]),
            (None, Some("when_supported"), Some("WHEN_REQUIRED"), [true, false]),
            (None, Some(" When_Required\n"), Some(""), [false, true]),
            (Some(true), Some("when_required"), Some("when_required"), [true, true]),
            (Some(false), Some("when_supported"), None, [false, false]),
            (Some(false), Some("nonsense"), None, [false, false]),
        ] {
            assert_eq!(
                sends(field, request, response).unwrap(),
                expected,
                "{field:?} {request:?} {response:?}"
            );
        }
    }

    #[test]
    fn an_unknown_value_is_refused_with_the_name_of_its_variable() {
        for (request, response, name) in [
            (Some("sometimes"), None, "AWS_REQUEST_CHECKSUM_CALCULATION"),
            (None, Some("true"), "AWS_RESPONSE_CHECKSUM_VALIDATION"),
        ] {
            let error = sends(None, request, response).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(name) && error.message().contains("when_required"), "{error}");
        }
    }

    #[test]
    fn what_is_known_of_one_bucket_is_not_known_of_another() {
        let store = Store::new(None, &Environment::of(&[])).unwrap();
        store.bucket("one").deletes_one_by_one.set();
        assert!(store.bucket("one").deletes_one_by_one.is_set());
        assert!(!store.bucket("two").deletes_one_by_one.is_set());
    }

    #[test]
    fn a_refusal_of_checksums_with_writes_says_nothing_of_reads() {
        let store = Store::new(None, &Environment::of(&[])).unwrap();
        store.refused_checksums(true);
        assert!(!store.takes_checksums(true) && store.takes_checksums(false));
    }
}
