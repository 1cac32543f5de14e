//! The bounds of one attempt, and how what went wrong on a connection is told.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use crate::admission::retry::{Class, Failure};
use crate::clock::Instant;
use crate::error::{Error, ErrorKind};

/// The bounds of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) read_timeout: Duration,
    pub(crate) deadline: Instant,
    /// Whom the attempt waits for, for errors.
    pub(crate) host: Arc<str>,
}

impl Limits {
    /// No byte moved for too long.
    pub(crate) fn silence(&self, when: &str) -> Failure {
        let limit = self.read_timeout.as_secs_f64();
        let text = format!("no byte moved for {limit:.1} s {when} of {} (read_timeout)", self.host);
        Failure::new(Class::Transient, Error::new(ErrorKind::Timeout, text)).ambiguous()
    }

    /// The operation's total time is over.
    pub(crate) fn deadline_passed(&self, when: &str) -> Failure {
        let text = format!("the deadline of the operation passed {when} of {}", self.host);
        Failure::fatal(Error::new(ErrorKind::Timeout, text)).ambiguous()
    }
}

/// Host and port of a request, as errors name them.
pub(crate) fn host_and_port(uri: &Uri) -> String {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// The operation's total time is over, before anything was sent.
pub(crate) fn deadline_passed() -> Failure {
    Failure::fatal(Error::new(ErrorKind::Timeout, "the deadline of the operation passed"))
}

/// An error with all its causes, each once.
pub(crate) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.join(": ")
}

/// The innermost error of this type among an error and its causes.
pub(crate) fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let below = error.source().and_then(find);
    // What an I/O error wraps is passed over by its `source`, which goes on with that one's own.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    below.or_else(|| wrapped.and_then(|inner| find(inner))).or_else(|| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_below_its_wrappers() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(tls));
        assert!(matches!(find(&wrapped), Some(rustls::Error::InvalidCertificate(_))));
        let refused = io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(find::<io::Error>(&refused).unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
