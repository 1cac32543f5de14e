//! The one error of this crate, and of the crates on top of it.
//!
//! Callers branch on [`ErrorKind`] and on the flags, never on text. The details live in one box, so that a
//! `Result` stays small. An error never holds a secret: it is built from what S3 answered (code, message,
//! request id) and from names the caller gave, never from request headers.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

/// What went wrong, in the terms a caller acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object, the multipart upload or the bucket does not exist; [`Error::code`] tells which.
    NotFound,
    /// Something is already there and was not to be replaced.
    AlreadyExists,
    /// Another request on the same object was under way (409).
    Conflict,
    /// The condition of a conditional request did not hold (412).
    PreconditionFailed,
    /// The service asked for fewer requests (503 `SlowDown`, 429).
    Throttled,
    /// The service refused these credentials, or this request for them, or there are no credentials.
    Denied,
    /// Bytes are not what they should be: wrong checksum, wrong length, a truncated object.
    Corrupt,
    /// Nothing moved for too long, or the total deadline passed.
    Timeout,
    /// A setting or an argument cannot work.
    Config,
    /// No connection, or it broke.
    Connection,
    /// The work was cancelled before it ended.
    Interrupted,
    /// Any other failure of the service.
    Service,
}

impl ErrorKind {
    fn usually_passes(self) -> bool {
        matches!(
            self,
            ErrorKind::Conflict
                | ErrorKind::Throttled
                | ErrorKind::Timeout
                | ErrorKind::Connection
                | ErrorKind::Interrupted
        )
    }
}

/// A setting or an argument that cannot work.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Codes of S3 for requests that it understood well.
const OTHER_REFUSALS: [&str; 12] = [
    "EntityTooLarge",
    "EntityTooSmall",
    "InvalidEncryptionAlgorithmError",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidTag",
    "InvalidURI",
    "MalformedXML",
    "MaxMessageLengthExceeded",
    "MetadataTooLarge",
    "MissingRequestBodyError",
    "UnexpectedContent",
];

#[derive(Debug, Clone)]
struct Details {
    kind: ErrorKind,
    message: String,
    retryable: bool,
    maybe_applied: bool,
    bucket: Option<String>,
    key: Option<String>,
    part: Option<u32>,
    attempts: u32,
    elapsed: Duration,
    request_id: Option<String>,
    status: Option<u16>,
    code: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// A failure, with what is needed to act on it and to report it.
///
/// `Display` is one line, which names the cause too where there is one; [`source`](std::error::Error::source) is the cause
/// itself. The engine has done its retries before it hands out an error.
#[derive(Clone)]
pub struct Error(Box<Details>);

impl Error {
    /// An error of this kind; `message` is what a person reads first.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Details {
            kind,
            message: message.into(),
            retryable: kind.usually_passes(),
            maybe_applied: false,
            bucket: None,
            key: None,
            part: None,
            attempts: 0,
            elapsed: Duration::ZERO,
            request_id: None,
            status: None,
            code: None,
            source: None,
        }))
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again later could help. The engine has already retried what it could.
    pub fn retryable(&self) -> bool {
        self.0.retryable
    }

    /// Whether the request may have taken effect although it is reported as failed (a lost response).
    pub fn maybe_applied(&self) -> bool {
        self.0.maybe_applied
    }

    /// The bucket, where the error concerns one.
    pub fn bucket(&self) -> Option<&str> {
        self.0.bucket.as_deref()
    }

    /// The key, where the error concerns one.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The part number (from 1) of a multipart upload.
    pub fn part(&self) -> Option<u32> {
        self.0.part
    }

    /// Requests sent for this operation; 0 where none was.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Time from the first attempt to the failure, pauses included.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// The service's id of the last request.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// The HTTP status of the last response.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// S3's error code of the last response (`"NoSuchKey"`); a HEAD has none.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Whether the service seems not to know the operation, or something in the request's headers. Services say so in many
    /// ways, also in ways that mean something else: what goes on in another way then fails again where it was that.
    pub fn not_understood(&self) -> bool {
        let other = |code: &str| code.starts_with("KMS.") || OTHER_REFUSALS.contains(&code);
        let unclear = match (self.status(), self.code()) {
            (Some(405 | 501), _) | (Some(400), None) => true,
            // The latter inside a response of 200.
            (Some(400) | None, Some(code)) => !self.retryable() && !other(code),
            _ => false,
        };
        self.kind() == ErrorKind::Service && unclear
    }

    /// The message without the context that `Display` adds.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Names the bucket.
    #[must_use]
    pub fn with_bucket(mut self, bucket: impl Into<String>) -> Error {
        self.0.bucket = Some(bucket.into());
        self
    }

    /// Names the key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Error {
        self.0.key = Some(key.into());
        self
    }

    /// Names the part (from 1).
    #[must_use]
    pub fn with_part(mut self, part: u32) -> Error {
        self.0.part = Some(part);
        self
    }

    /// Sets the number of requests sent and the time they took together.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32, elapsed: Duration) -> Error {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    /// Sets the service's request id.
    #[must_use]
    pub fn with_request_id(mut self, request_id: impl Into<String>) -> Error {
        self.0.request_id = Some(request_id.into());
        self
    }

    /// Sets the HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Error {
        self.0.status = Some(status);
        self
    }

    /// Sets S3's error code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Error {
        self.0.code = Some(code.into());
        self
    }

    /// Says whether trying again later could help.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Error {
        self.0.retryable = retryable;
        self
    }

    /// Says whether the request may have taken effect.
    #[must_use]
    pub fn with_maybe_applied(mut self, maybe_applied: bool) -> Error {
        self.0.maybe_applied = maybe_applied;
        self
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// Replaces the message, keeping everything else: for a caller that knows more about the purpose.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Error {
        self.0.message = message.into();
        self
    }
}

impl Error {
    /// What happened, and in brackets where.
    fn text(&self) -> String {
        let d = &*self.0;
        let mut context: Vec<String> = Vec::new();
        match (&d.bucket, &d.key) {
            (Some(bucket), Some(key)) => context.push(format!("s3://{bucket}/{key}")),
            (Some(bucket), None) => context.push(format!("bucket {bucket}")),
            (None, Some(key)) => context.push(format!("key {key}")),
            (None, None) => {}
        }
        if let Some(part) = d.part {
            context.push(format!("part {part}"));
        }
        match (d.status, &d.code) {
            (Some(status), Some(code)) => context.push(format!("{status} {code}")),
            (Some(status), None) => context.push(format!("status {status}")),
            (None, Some(code)) => context.push(code.clone()),
            (None, None) => {}
        }
        if let Some(id) = &d.request_id {
            context.push(format!("request id {id}"));
        }
        if d.attempts > 1 {
            context.push(format!("{} attempts in {:.1} s", d.attempts, d.elapsed.as_secs_f64()));
        }
        if d.maybe_applied {
            context.push("may have taken effect".to_owned());
        }
        match context.is_empty() {
            true => d.message.clone(),
            false => format!("{} [{}]", d.message, context.join(", ")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever a server put into its message, or a user into a key.
        self.text().chars().try_for_each(|c| f.write_char(if c.is_control() { ' ' } else { c }))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_the_context_a_report_needs() {
        let error = Error::new(ErrorKind::Throttled, "Please reduce\nyour request rate")
            .with_bucket("b")
            .with_key("k/1")
            .with_part(3)
            .with_status(503)
            .with_code("SlowDown")
            .with_request_id("RID")
            .with_attempts(10, Duration::from_millis(32_140));
        assert_eq!(
            error.to_string(),
            "Please reduce your request rate [s3://b/k/1, part 3, 503 SlowDown, request id RID, 10 attempts in 32.1 s]"
        );
        assert!(error.retryable());
        assert!(!error.maybe_applied());
        let named = Error::new(ErrorKind::NotFound, "x").with_bucket("b").with_key("k\n1");
        assert_eq!(named.to_string(), "x [s3://b/k 1]");
    }

    #[test]
    fn what_a_service_does_not_know_is_told_from_what_it_refuses() {
        let error = |kind, status: u16, code: &str| {
            let error = Error::new(kind, "x").with_status(status);
            if code.is_empty() { error } else { error.with_code(code) }
        };
        use ErrorKind::*;
        for (kind, status, code, expected) in [
            (Service, 501, "", true),
            (Service, 405, "MethodNotAllowed", true),
            (Service, 400, "", true),
            (Service, 400, "NotImplemented", true),
            (Service, 400, "SomethingOfTheirOwn", true),
            (Service, 400, "MalformedXML", false),
            (Service, 400, "KMS.DisabledException", false),
            (Service, 500, "InternalError", false),
            (Denied, 400, "ExpiredToken", false),
            (Corrupt, 400, "BadDigest", false),
            (NotFound, 404, "NoSuchKey", false),
        ] {
            assert_eq!(error(kind, status, code).not_understood(), expected, "{status} {code}");
        }
        assert!(Error::new(Service, "inside a 200").with_code("NotImplemented").not_understood());
        assert!(!Error::new(Service, "no answer at all").not_understood());
    }

    #[test]
    fn the_cause_is_kept_and_changes_no_text() {
        let bare = Error::new(ErrorKind::Connection, "it broke");
        assert!(bare.source().is_none());
        let cause = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = bare.clone().with_source(cause).with_message("it broke").clone();
        let kept = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        assert_eq!(kept.map(std::io::Error::kind), Some(std::io::ErrorKind::BrokenPipe));
        assert_eq!((error.to_string(), format!("{error:?}")), (bare.to_string(), format!("{bare:?}")));
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn what_a_setting_causes_is_not_worth_trying_again() {
        for kind in [ErrorKind::Config, ErrorKind::Denied, ErrorKind::NotFound, ErrorKind::Corrupt] {
            assert!(!Error::new(kind, "x").retryable(), "{kind}");
        }
    }
}
