//! The bounds of one attempt, and how what went wrong on a connection is told.

use std::error::Error as StdError;
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
