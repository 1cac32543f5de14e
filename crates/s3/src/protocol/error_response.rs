//! From a response of S3 that is no success to an [`Error`] and what to do about it.
//!
//! The code in the body decides where there is one, else the status. Also for an error that arrives inside a 200.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use crate::admission::retry::{Class, Failure, Remedy};
use crate::error::{Error, ErrorKind};
use crate::protocol::dates::parse_http_date;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::xml::{self, Element};

/// What the mapping needs to know of the request.
pub(crate) struct Context<'a> {
    pub(crate) operation: &'static str,
    pub(crate) bucket: &'a str,
    /// The region the request was signed for; `None` when unsigned.
    pub(crate) region: Option<&'a str>,
    pub(crate) endpoint: &'a Endpoint,
    /// The request's.
    pub(crate) headers: &'a HeaderMap,
    /// The request was signed within a session with its bucket.
    pub(crate) in_session: bool,
    /// The time, as far as it is known, for a response that does not tell it.
    pub(crate) now: SystemTime,
}

/// Bytes before a document's first element that are looked through.
const MAX_PROLOG: usize = 512;
/// Longest code, request id or region that is taken from a response, in bytes.
const MAX_NAME: usize = 128;

/// A header as text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// A code, an id or a region, which errors repeat: a short word.
pub(crate) fn name(text: &str) -> Option<&str> {
    (text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

/// The first characters of a message, which errors repeat.
pub(crate) fn shortened(message: &str) -> String {
    message.chars().take(500).collect()
}

/// The `<Error>` that a response holds, whatever its status: S3 says 200 before it is done with a long request, and a
/// gateway may do so with any.
pub(crate) fn error_inside(body: &[u8]) -> Option<Element> {
    // Spares the other documents, which may be long, a second parse.
    let start = &body[..body.len().min(MAX_PROLOG)];
    start
        .windows(5)
        .any(|bytes| bytes == b"Error")
        .then(|| xml::parse(body).ok())?
        .filter(|root| root.name == "Error")
}

/// The failure that a response means. `body` may be empty (HEAD) or no XML (a proxy's page).
pub(crate) fn failure(asked: &Context<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let document = error_inside(body);
    let text = |name: &str| document.as_ref().and_then(|root| root.text_of(name));
    let code = text("Code").and_then(name);
    let (kind, mut class) = classify(status, code);
    if asked.in_session && ends_session(status, code) {
        class = Class::Once(Remedy::RefreshCredentials);
    }
    let mut failure = Failure::new(class, Error::new(kind, describe(asked, status, code, text("Message"))));
    if let Some(error) = wrong_region(asked, status, code, headers, text("Region")) {
        failure = Failure::fatal(error);
    }
    // A proxy has statuses of its own (520 and on) for a service that it lost sight of.
    failure.ambiguous = class == Class::Transient && status.is_success()
        || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED && class != Class::Throttled;
    failure.server_time = server_time(headers);
    let now = failure.server_time.unwrap_or(asked.now);
    failure.retry_after = header(headers, "retry-after").and_then(|text| pause_of(text, now));
    let retryable =
        matches!(failure.class, Class::Transient | Class::Throttled) || kind == ErrorKind::Conflict;
    let mut error = failure.error.with_retryable(retryable);
    if !status.is_success() {
        error = error.with_status(status.as_u16());
    }
    if let Some(code) = code {
        error = error.with_code(code);
    }
    if let Some(id) = header(headers, "x-amz-request-id").or(text("RequestId")).and_then(name) {
        error = error.with_request_id(id);
    }
    Failure { error, ..failure }
}

/// The failure that a response reports of one key among many, which it took otherwise.
pub(crate) fn failure_of_key(operation: &str, key: &str, code: &str, message: &str) -> Failure {
    let (kind, class) = match classify(StatusCode::OK, Some(code)) {
        // Something else is being done with the key, and soon is not any more.
        (ErrorKind::Conflict, Class::Final) => (ErrorKind::Conflict, Class::Transient),
        known => known,
    };
    let why = if message.is_empty() { code } else { message };
    let error = Error::new(kind, format!("{operation}: {}", shortened(why))).with_key(key).with_code(code);
    Failure::new(class, error.with_retryable(class != Class::Final))
}

/// The pause that a `Retry-After` asks for: seconds, or the time when it ends.
fn pause_of(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // Digits that no number holds are a very long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    parse_http_date(text).map(|end| end.duration_since(now).unwrap_or_default())
}

/// The service's clock, from its response.
pub(crate) fn server_time(headers: &HeaderMap) -> Option<SystemTime> {
    header(headers, "date").and_then(parse_http_date)
}

fn classify(status: StatusCode, code: Option<&str>) -> (ErrorKind, Class) {
    use ErrorKind::*;
    match code.unwrap_or_default() {
        "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" | "NoSuchVersion" | "NotFound" => {
            (NotFound, Class::Final)
        }
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded" => (Throttled, Class::Throttled),
        "InternalError" | "InternalFailure" => (Service, Class::Transient),
        "RequestTimeout" | "RequestTimeoutException" => (Timeout, Class::Transient),
        "IncompleteBody" => (Connection, Class::Transient),
        "RequestTimeTooSkewed" => (Denied, Class::Once(Remedy::AdjustClock)),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            (Denied, Class::Once(Remedy::RefreshCredentials))
        }
        // Garage says InvalidDigest of bytes that do not fit their checksum; S3, of a Content-MD5.
        "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" => {
            (Corrupt, Class::Once(Remedy::SendAgain))
        }
        "PreconditionFailed" => (PreconditionFailed, Class::Final),
        "ConditionalRequestConflict" | "OperationAborted" => (Conflict, Class::Final),
        "InvalidRange" => (Corrupt, Class::Final),
        "InvalidBucketName"
        | "InvalidStorageClass"
        | "KeyTooLongError"
        | "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "IllegalLocationConstraintException" => (Config, Class::Final),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "InvalidToken" => {
            (Denied, Class::Final)
        }
        _ => match status.as_u16() {
            301 | 302 | 307 | 308 => (Config, Class::Final),
            // A HEAD has no body to say why: credentials that expired, and another clock, are what one more try can mend.
            400 if code.is_none() => (Service, Class::Once(Remedy::RefreshCredentials)),
            403 if code.is_none() => (Denied, Class::Once(Remedy::AdjustClock)),
            401 | 403 => (Denied, Class::Final),
            404 => (NotFound, Class::Final),
            408 => (Timeout, Class::Transient),
            409 => (Conflict, Class::Final),
            412 => (PreconditionFailed, Class::Final),
            416 => (Corrupt, Class::Final),
            429 | 503 => (Throttled, Class::Throttled),
            500 | 502 | 504 => (Service, Class::Transient),
            _ => (Service, Class::Final),
        },
    }
}

/// Whether this may be the answer to credentials of a session that has ended, or was never there.
fn ends_session(status: StatusCode, code: Option<&str>) -> bool {
    match code {
        Some(code) => matches!(code, "InvalidToken" | "InvalidAccessKeyId"),
        None => status == StatusCode::FORBIDDEN,
    }
}

fn describe(asked: &Context<'_>, status: StatusCode, code: Option<&str>, message: Option<&str>) -> String {
    let operation = asked.operation;
    match (code, message) {
        (Some("NoSuchBucket"), _) => {
            format!("bucket {:?} does not exist at {}", asked.bucket, asked.endpoint.told())
        }
        (Some("InvalidAccessKeyId"), message) => format!(
            "{operation}: {}; the endpoint is {}",
            message.map_or_else(|| "the access key id is unknown".to_owned(), shortened),
            asked.endpoint.told()
        ),
        (Some("NoSuchKey"), _) => format!("{operation}: no such object"),
        (_, Some(message)) => format!("{operation}: {}", shortened(message)),
        (Some(code), None) => format!("{operation}: {code}{}", settings(asked.headers)),
        (None, None) => match status.as_u16() {
            403 => format!("{operation}: access denied"),
            404 => format!("{operation}: not found"),
            412 => format!("{operation}: the condition of the request did not hold"),
            _ => {
                let reason = status.canonical_reason().unwrap_or("an unknown status");
                format!("{operation}: the service answered {} ({reason})", status.as_u16())
            }
        },
    }
}

/// Names what the caller has set and a service may refuse without a word (Ceph does).
fn settings(headers: &HeaderMap) -> String {
    let names: Vec<&str> = [
        ("x-amz-server-side-encryption", "server_side_encryption"),
        ("x-amz-storage-class", "storage_class"),
    ]
    .into_iter()
    .filter_map(|(header, setting)| headers.contains_key(header).then_some(setting))
    .collect();
    if names.is_empty() { String::new() } else { format!(", sent with {}", names.join(" and ")) }
}

/// A request that went to another region than the bucket's.
fn wrong_region(
    asked: &Context<'_>,
    status: StatusCode,
    code: Option<&str>,
    headers: &HeaderMap,
    region_in_body: Option<&str>,
) -> Option<Error> {
    let given = asked.region?;
    let redirected = matches!(status.as_u16(), 301 | 307 | 308);
    let named = matches!(
        code,
        Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException")
    );
    // A HEAD has no body: there the header alone tells.
    let silent = status == StatusCode::BAD_REQUEST && code.is_none();
    let expected = header(headers, "x-amz-bucket-region")
        .or(region_in_body)
        .and_then(name)
        .filter(|region| *region != given);
    match expected {
        Some(expected) if redirected || named || silent => Some(Error::new(
            ErrorKind::Config,
            format!(
                "region is {given:?}, but bucket {:?} is in {expected:?}: set region to {expected:?}",
                asked.bucket
            ),
        )),
        None if redirected || code == Some("PermanentRedirect") => Some(Error::new(
            ErrorKind::Config,
            format!(
                "bucket {:?} is not served here (redirected): region is {given:?}, set region and endpoint_url to those of the bucket",
                asked.bucket
            ),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::endpoint::Addressing;

    /// What a response to a PutObject with these headers means.
    fn judged(sent: &HeaderMap, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
        let endpoint = Endpoint::custom("http://store:9000", "AWS_ENDPOINT_URL", None, Addressing::default());
        let asked = Context {
            operation: "PutObject",
            bucket: "bkt",
            region: Some("us-east-1"),
            endpoint: &endpoint.unwrap(),
            headers: sent,
            in_session: false,
            now: parse_http_date("Tue, 15 Nov 1994 08:12:00 GMT").unwrap(),
        };
        failure(&asked, StatusCode::from_u16(status).unwrap(), headers, body)
    }

    fn answer(status: u16, code: &str, extra: &str) -> Failure {
        let body = if code.is_empty() {
            String::new()
        } else {
            format!(
                "<Error><Code>{code}</Code><Message>Told so.</Message>{extra}<RequestId>RID</RequestId></Error>"
            )
        };
        judged(&HeaderMap::new(), status, &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn codes_and_statuses_map_to_kind_and_treatment() {
        use ErrorKind::*;
        for (status, code, kind, class) in [
            (404, "NoSuchKey", NotFound, Class::Final),
            (404, "NoSuchBucket", NotFound, Class::Final),
            (404, "", NotFound, Class::Final),
            (503, "SlowDown", Throttled, Class::Throttled),
            (503, "", Throttled, Class::Throttled),
            (429, "", Throttled, Class::Throttled),
            (500, "InternalError", Service, Class::Transient),
            (502, "", Service, Class::Transient),
            (504, "", Service, Class::Transient),
            (501, "NotImplemented", Service, Class::Final),
            (400, "RequestTimeout", Timeout, Class::Transient),
            (403, "RequestTimeTooSkewed", Denied, Class::Once(Remedy::AdjustClock)),
            (400, "ExpiredToken", Denied, Class::Once(Remedy::RefreshCredentials)),
            (400, "BadDigest", Corrupt, Class::Once(Remedy::SendAgain)),
            (400, "InvalidDigest", Corrupt, Class::Once(Remedy::SendAgain)),
            (403, "AccessDenied", Denied, Class::Final),
            (403, "SignatureDoesNotMatch", Denied, Class::Final),
            (400, "", Service, Class::Once(Remedy::RefreshCredentials)),
            (403, "", Denied, Class::Once(Remedy::AdjustClock)),
            (401, "", Denied, Class::Final),
            (412, "PreconditionFailed", PreconditionFailed, Class::Final),
            (412, "", PreconditionFailed, Class::Final),
            (409, "ConditionalRequestConflict", Conflict, Class::Final),
            (416, "InvalidRange", Corrupt, Class::Final),
            (400, "InvalidRequest", Service, Class::Final),
            // An error inside a 200 is judged by its code.
            (200, "SlowDown", Throttled, Class::Throttled),
            (200, "InternalError", Service, Class::Transient),
        ] {
            let failure = answer(status, code, "");
            assert_eq!((failure.error.kind(), failure.class), (kind, class), "{status} {code}");
            assert_eq!(failure.error.code(), (!code.is_empty()).then_some(code));
            assert_eq!(
                failure.error.retryable(),
                matches!(class, Class::Transient | Class::Throttled) || kind == Conflict
            );
        }
    }

    #[test]
    fn only_a_server_error_leaves_it_open_whether_the_request_took_effect() {
        assert!(answer(500, "InternalError", "").ambiguous);
        assert!(answer(504, "", "").ambiguous);
        assert!(answer(524, "", "").ambiguous);
        assert!(answer(200, "InternalError", "").ambiguous);
        for (status, code) in
            [(503, "SlowDown"), (501, "NotImplemented"), (403, "AccessDenied"), (404, "NoSuchKey"), (412, "")]
        {
            assert!(!answer(status, code, "").ambiguous, "{status} {code}");
        }
    }

    #[test]
    fn a_missing_bucket_is_named() {
        let error = answer(404, "NoSuchBucket", "").error;
        assert_eq!(error.message(), "bucket \"bkt\" does not exist at http://store:9000 (AWS_ENDPOINT_URL)");
        assert_eq!((error.status(), error.request_id()), (Some(404), Some("RID")));
    }

    #[test]
    fn a_refusal_without_a_message_names_the_settings_that_were_sent() {
        let mut sent = HeaderMap::new();
        let message = |sent: &HeaderMap| {
            let body = b"<Error><Code>InvalidArgument</Code></Error>";
            judged(sent, 400, &HeaderMap::new(), body).error.message().to_owned()
        };
        assert_eq!(message(&sent), "PutObject: InvalidArgument");
        sent.insert("x-amz-storage-class", "COLD".parse().unwrap());
        assert_eq!(message(&sent), "PutObject: InvalidArgument, sent with storage_class");
        sent.insert("x-amz-server-side-encryption", "AES256".parse().unwrap());
        assert_eq!(
            message(&sent),
            "PutObject: InvalidArgument, sent with server_side_encryption and storage_class"
        );
    }

    #[test]
    fn a_wrong_region_names_the_argument_the_value_and_the_right_one() {
        let region = "<Region>eu-central-1</Region>";
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", "eu-central-1".parse().unwrap());
        let by_header = |status| judged(&HeaderMap::new(), status, &headers, b"");
        for failure in [
            answer(400, "AuthorizationHeaderMalformed", region),
            by_header(301),
            by_header(307),
            by_header(400),
        ] {
            assert_eq!((failure.error.kind(), failure.class), (ErrorKind::Config, Class::Final));
            for word in ["region", "\"us-east-1\"", "\"eu-central-1\""] {
                assert!(failure.error.message().contains(word), "{}", failure.error);
            }
        }
        assert_eq!(answer(301, "PermanentRedirect", "").error.kind(), ErrorKind::Config);
    }

    #[test]
    fn what_is_no_code_is_not_repeated() {
        for code in ["a code", "line\nbreak", &"x".repeat(129)] {
            let error = answer(503, code, "").error;
            assert_eq!((error.kind(), error.code()), (ErrorKind::Throttled, None));
        }
    }

    #[test]
    fn the_pause_asked_for_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        let failure = judged(&HeaderMap::new(), 503, &headers, b"<html>busy</html>");
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(failure.error.message(), "PutObject: the service answered 503 (Service Unavailable)");
    }

    #[test]
    fn a_pause_is_seconds_or_a_time_and_else_nothing() {
        let date = "Tue, 15 Nov 1994 08:12:31 GMT";
        for (asked, dated, seconds) in [
            ("0", None, Some(0)),
            (" 12 ", None, Some(12)),
            ("18446744073709551615", None, Some(u64::MAX)),
            ("184467440737095516150", None, Some(u64::MAX)),
            // The time is by the service's clock where it tells that.
            (date, None, Some(31)),
            (date, Some("Tue, 15 Nov 1994 08:12:21 GMT"), Some(10)),
            (date, Some("Tue, 15 Nov 1994 09:00:00 GMT"), Some(0)),
            ("-5", None, None),
            ("1.5", None, None),
            ("soon", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", asked.parse().unwrap());
            if let Some(dated) = dated {
                headers.insert("date", dated.parse().unwrap());
            }
            for status in [429, 500, 503] {
                let failure = judged(&HeaderMap::new(), status, &headers, b"");
                assert_eq!(failure.retry_after, seconds.map(Duration::from_secs), "{asked:?} {dated:?}");
            }
        }
    }
}
