//! What the head of a request must say of its signature, judged before anything else of the request is looked at.
//!
//! The protocol crate computes signatures and compares them. What it leaves out is here, so that a request is refused as S3
//! refuses it, and by its head alone: whether there is a signature at all, of a kind that is served, over every header that
//! it must be over, and for no longer than S3 allows. A browser's form, whose signature is in its body, is not served: the
//! crate would gather the body first.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};

use crate::query::Query;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The longest a presigned request may be good for, in seconds: a week.
const MAX_EXPIRES: u64 = 604_800;

/// Why a request is refused, in S3's words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// The headers that had to be signed and were not.
    pub(crate) unsigned: Vec<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), unsigned: Vec::new() }
    }

    fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", message)
    }

    pub(crate) fn malformed_header(what: impl AsRef<str>) -> Self {
        let message = format!("The authorization header is malformed; {}", what.as_ref());
        Self::new(StatusCode::BAD_REQUEST, "AuthorizationHeaderMalformed", message)
    }

    fn malformed_query(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "AuthorizationQueryParametersError", message)
    }
}

/// The credential, `<access key>/<date>/<region>/<service>/aws4_request`, in the header of a request.
pub(crate) fn credential_of(authorization: &str) -> &str {
    let (_, rest) = authorization.split_once("Credential=").unwrap_or_default();
    rest.split(',').next().unwrap_or_default().trim()
}

/// Judges a request by its head, which is for `service`. What passes still has to have the right signature.
pub(crate) fn check(service: &str, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if is_form(method, headers) {
        let message = "Objects cannot be posted as forms here; send them with PUT";
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message));
    }
    let query = Query::of(uri);
    let in_headers: Vec<_> = headers.get_all(AUTHORIZATION).iter().collect();
    match (&in_headers[..], query.names("X-Amz-Signature"), query.names("Signature")) {
        ([], false, false) => Err(Refusal::denied("Access Denied")),
        ([header], false, false) => match header.to_str() {
            Ok(header) => check_header(service, header, headers),
            Err(_) => Err(Refusal::malformed_header("it is not text")),
        },
        ([], true, false) => check_query(service, &query, headers),
        // The older kind: its signature is over all x-amz-* headers there are, and over the time at which it ends.
        ([], false, true) => all_legible(headers),
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string \
             parameter or the Authorization header should be specified",
        )),
    }
}

/// Whether the protocol crate would take the request for a browser's form.
fn is_form(method: &Method, headers: &HeaderMap) -> bool {
    const FORM: &[u8] = b"multipart/form-data";
    let is_form = |value: &[u8]| value.get(..FORM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(FORM));
    method == Method::POST
        && headers.get_all(CONTENT_TYPE).iter().any(|value| is_form(value.as_bytes().trim_ascii_start()))
}

fn check_header(service: &str, authorization: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some((ALGORITHM, fields)) = authorization.split_once(' ') else {
        return Err(if authorization.starts_with("AWS ") {
            let message = format!(
                "The authorization mechanism you have provided is not supported. Please use {ALGORITHM}."
            );
            Refusal::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
        } else {
            Refusal::new(StatusCode::BAD_REQUEST, "InvalidArgument", "Unsupported Authorization Type")
        });
    };
    let [mut credential, mut signed, mut signature] = [None; 3];
    for field in fields.split(',') {
        let (name, value) = field.trim().split_once('=').unwrap_or((field, ""));
        let place = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed,
            "Signature" => &mut signature,
            _ => return Err(Refusal::malformed_header("it has a field that is not known")),
        };
        if place.replace(value).is_some() {
            return Err(Refusal::malformed_header(format!("it has {name} twice")));
        }
    }
    let (Some(credential), Some(signed), Some(_)) = (credential, signed, signature) else {
        return Err(Refusal::malformed_header("it needs Credential, SignedHeaders and Signature"));
    };
    let date = headers.get("x-amz-date").and_then(|value| value.to_str().ok());
    let date = date.filter(|date| is_date(date));
    let date =
        date.ok_or_else(|| Refusal::denied("AWS authentication requires a valid x-amz-date header"))?;
    check_scope(service, credential, date).map_err(Refusal::malformed_header)?;
    covers(signed, headers)
}

fn check_query(service: &str, query: &Query<'_>, headers: &HeaderMap) -> Result<(), Refusal> {
    let only = |name| {
        query.only(name).ok_or_else(|| {
            Refusal::malformed_query(
                "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, \
                 X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters, each once.",
            )
        })
    };
    let (algorithm, credential) = (only("X-Amz-Algorithm")?, only("X-Amz-Credential")?);
    let (date, expires) = (only("X-Amz-Date")?, only("X-Amz-Expires")?);
    let signed = only("X-Amz-SignedHeaders")?;
    only("X-Amz-Signature")?;
    if algorithm != ALGORITHM {
        return Err(Refusal::malformed_query(format!("X-Amz-Algorithm only supports \"{ALGORITHM}\"")));
    }
    if !is_date(&date) {
        return Err(Refusal::malformed_query(
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
        ));
    }
    check_expires(&expires).map_err(Refusal::malformed_query)?;
    check_scope(service, &credential, &date).map_err(Refusal::malformed_query)?;
    covers(&signed, headers)
}

fn check_expires(expires: &str) -> Result<(), &'static str> {
    const NO_NUMBER: &str = "X-Amz-Expires should be a number";
    let digits = expires.strip_prefix('-').unwrap_or(expires);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NO_NUMBER);
    }
    if digits.len() < expires.len() {
        return Err("X-Amz-Expires must be non-negative");
    }
    match expires.parse() {
        Ok(0) => Err("X-Amz-Expires must be at least 1 second"),
        Ok(1..=MAX_EXPIRES) => Ok(()),
        // What does not fit into the number is too long as well.
        Ok(_) | Err(_) => Err("X-Amz-Expires must be less than a week (in seconds); that is, the given \
             X-Amz-Expires must be less than 604800 seconds"),
    }
}

/// Whether a credential's scope, `<access key>/<date>/<region>/<service>/aws4_request`, is of this service and of the day of
/// `date`.
fn check_scope(expected: &str, credential: &str, date: &str) -> Result<(), String> {
    let mut scope = credential.rsplit('/');
    let (Some("aws4_request"), Some(service), Some(_region), Some(day), Some(_access_key)) =
        (scope.next(), scope.next(), scope.next(), scope.next(), scope.next())
    else {
        return Err(
            "the Credential is malformed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"."
                .to_owned(),
        );
    };
    if service != expected {
        return Err(format!("incorrect service \"{service}\". This endpoint belongs to \"{expected}\"."));
    }
    if !date.starts_with(day) || day.len() != "yyyyMMdd".len() {
        return Err(format!(
            "Invalid credential date \"{day}\". This date is not the same as X-Amz-Date: \"{date}\"."
        ));
    }
    Ok(())
}

/// Whether a date has the form `yyyyMMddTHHmmssZ`.
fn is_date(date: &str) -> bool {
    date.len() == 16
        && date.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        })
}

/// Whether `signed`, names between semicolons, has every header that the signature must be over: the host, and all there
/// are of S3's own.
fn covers(signed: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let signed: Vec<&str> = signed.split(';').collect();
    let is_covered = |name: &str| {
        let mut values = headers.get_all(name).iter().peekable();
        signed.contains(&name) && values.peek().is_some() && values.all(|value| is_legible(value.as_bytes()))
    };
    let own = headers.keys().map(HeaderName::as_str).filter(|name| is_own(name));
    all_signed(own.chain([HOST.as_str()]).filter(|name| !is_covered(name)))
}

/// What is not text is left out where signatures are computed, so none is over it.
fn all_legible(headers: &HeaderMap) -> Result<(), Refusal> {
    let own = headers.iter().filter(|(name, _)| is_own(name.as_str()));
    all_signed(own.filter(|(_, value)| !is_legible(value.as_bytes())).map(|(name, _)| name.as_str()))
}

fn all_signed<'a>(unsigned: impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
    let unsigned: Vec<String> = unsigned.map(str::to_owned).collect();
    if unsigned.is_empty() {
        return Ok(());
    }
    let refusal = Refusal::denied("There were headers present in the request which were not signed");
    Err(Refusal { unsigned, ..refusal })
}

fn is_own(name: &str) -> bool {
    name.starts_with("x-amz-")
}

fn is_legible(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const HEADER: &str = "AWS4-HMAC-SHA256 Credential=AK/20260102/r/s3/aws4_request, \
                          SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=00";
    const QUERY: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20260102%2Fr%2Fs3%2Faws4_request\
                         &X-Amz-Date=20260102T030405Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00";

    /// The code of the refusal, or nothing, and the headers that should have been signed.
    fn judged(method: &str, query: &str, headers: &[(&str, &[u8])]) -> (&'static str, Vec<String>) {
        let mut request = Request::builder().method(method).uri(format!("/bucket/key?{query}"));
        for (name, value) in [("host", &b"h"[..])].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        match check("s3", request.method(), request.uri(), request.headers()) {
            Ok(()) => ("", Vec::new()),
            Err(refusal) => (refusal.code, refusal.unsigned),
        }
    }

    fn signed(authorization: &str, more: &[(&str, &[u8])]) -> (&'static str, Vec<String>) {
        let own: [(&str, &[u8]); 3] = [
            ("authorization", authorization.as_bytes()),
            ("x-amz-date", b"20260102T030405Z"),
            ("x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),
        ];
        judged("PUT", "", &[&own, more].concat())
    }

    #[test]
    fn every_header_of_s3_and_the_host_must_be_signed() {
        let listed = |names: &str| HEADER.replace("host;x-amz-content-sha256;x-amz-date", names);
        let with_acl = listed("host;x-amz-acl;x-amz-content-sha256;x-amz-date");
        let acl: (&str, &[u8]) = ("x-amz-acl", b"public-read");
        for (authorization, more, unsigned) in [
            (HEADER.to_owned(), &[][..], &[][..]),
            (HEADER.to_owned(), &[("content-type", &b"text/plain"[..]), ("x-amzn-trace-id", b"1")], &[]),
            (HEADER.to_owned(), &[acl], &["x-amz-acl"]),
            (with_acl.clone(), &[acl], &[]),
            (with_acl.replace("x-amz-acl", "X-Amz-Acl"), &[acl], &["x-amz-acl"]),
            // The signature is over what is text only.
            (with_acl, &[("x-amz-acl", &b"\xff"[..])], &["x-amz-acl"]),
            (listed("host;x-amz-date"), &[], &["x-amz-content-sha256"]),
            (listed("host"), &[], &["x-amz-date", "x-amz-content-sha256"]),
            (listed("x-amz-content-sha256;x-amz-date"), &[], &["host"]),
            (listed(""), &[], &["x-amz-date", "x-amz-content-sha256", "host"]),
        ] {
            let (code, found) = signed(&authorization, more);
            assert_eq!(found, unsigned, "{authorization} {more:?}");
            assert_eq!(code, if unsigned.is_empty() { "" } else { "AccessDenied" });
        }
        assert_eq!(judged("PUT", QUERY, &[acl]), ("AccessDenied", vec!["x-amz-acl".to_owned()]));
        assert_eq!(judged("PUT", &QUERY.replace("=host", "=host%3Bx-amz-acl"), &[acl]).0, "");
        assert_eq!(judged("PUT", &QUERY.replace("=host", "=range"), &[]).1, ["host"]);
        // The older kind is over all of them, but for what is no text.
        assert_eq!(judged("PUT", "AWSAccessKeyId=AK&Expires=1&Signature=x", &[acl]).0, "");
        assert_eq!(judged("PUT", "Signature=x", &[("x-amz-acl", b"\xff")]).1, ["x-amz-acl"]);
    }

    #[test]
    fn an_authorization_header_is_whole_and_of_the_day_and_the_service() {
        for (changed, to, code) in [
            ("", "", ""),
            (", ", ",", ""),
            ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA1 ", "InvalidArgument"),
            (HEADER, "Bearer x", "InvalidArgument"),
            (HEADER, "", "InvalidArgument"),
            (HEADER, "AWS AK:signature", "InvalidRequest"),
            (HEADER, "AWS4-HMAC-SHA256 nonsense", "AuthorizationHeaderMalformed"),
            (", Signature=00", "", "AuthorizationHeaderMalformed"),
            (", Signature=00", ", Signature=00, SignedHeaders=x-amz-acl", "AuthorizationHeaderMalformed"),
            ("AK/", "", "AuthorizationHeaderMalformed"),
            ("aws4_request", "aws5_request", "AuthorizationHeaderMalformed"),
            ("/s3/", "/sts/", "AuthorizationHeaderMalformed"),
            ("/20260102/", "/20260103/", "AuthorizationHeaderMalformed"),
            ("/20260102/", "/2026/", "AuthorizationHeaderMalformed"),
        ] {
            let authorization = HEADER.replacen(changed, to, 1);
            assert_eq!(signed(&authorization, &[]).0, code, "{authorization}");
        }
        for date in ["", "20260102", "Fri, 02 Jan 2026 03:04:05 GMT", "20260102T030405", "20260102T0304055"] {
            let headers = [
                ("authorization", HEADER.as_bytes()),
                ("x-amz-date", date.as_bytes()),
                ("x-amz-content-sha256", b""),
            ];
            assert_eq!(judged("GET", "", &headers).0, "AccessDenied", "{date}");
        }
    }

    #[test]
    fn a_presigned_request_is_whole_and_good_for_a_second_to_a_week() {
        for (expires, is_good) in [
            ("1", true),
            ("604800", true),
            ("0", false),
            ("-1", false),
            ("604801", false),
            ("4294967356", false),
            ("99999999999999999999999999", false),
            ("", false),
            ("+60", false),
            ("60.0", false),
            ("0x3c", false),
            ("%2060", false),
            ("60&X-Amz-Expires=60", false),
            ("60&X-Amz-Expire%73=999999", false),
        ] {
            let query = QUERY.replace("Expires=60", &format!("Expires={expires}"));
            let code = if is_good { "" } else { "AuthorizationQueryParametersError" };
            assert_eq!(judged("GET", &query, &[]).0, code, "{expires}");
        }
        for (changed, to) in [
            ("X-Amz-Algorithm=AWS4-HMAC-SHA256&", ""),
            ("HMAC-SHA256", "ECDSA-P256-SHA256"),
            ("X-Amz-Expires=60&", ""),
            ("&X-Amz-SignedHeaders=host", ""),
            ("X-Amz-Credential", "x-amz-credential"),
            ("20260102T030405Z", "20260102"),
            ("20260102T030405Z", "20260102T030405Z0"),
            ("T030405Z", "T03%3A04Z"),
            ("20260102%2F", "20260101%2F"),
            ("%2Fs3%2F", "%2Fsts%2F"),
        ] {
            let query = QUERY.replacen(changed, to, 1);
            assert_eq!(judged("GET", &query, &[]).0, "AuthorizationQueryParametersError", "{query}");
        }
    }

    #[test]
    fn a_request_is_signed_once() {
        assert_eq!(judged("GET", "", &[]).0, "AccessDenied");
        assert_eq!(judged("GET", "list-type=2&x-amz-signature=00", &[]).0, "AccessDenied");
        let header: (&str, &[u8]) = ("authorization", HEADER.as_bytes());
        for (query, headers) in [
            (QUERY, &[header][..]),
            ("Signature=00", &[header]),
            ("X-Amz-Signatur%65=00", &[header]),
            ("", &[header, header]),
            (&format!("{QUERY}&Signature=00"), &[]),
        ] {
            assert_eq!(judged("GET", query, headers).0, "InvalidArgument", "{query}");
        }
        assert_eq!(judged("GET", QUERY, &[]).0, "");
        assert_eq!(judged("GET", &QUERY.replace("X-Amz-Signature", "X%2DAmz-Signature"), &[]).0, "");
    }

    #[test]
    fn a_form_is_refused_whatever_signs_it() {
        for kind in
            ["multipart/form-data; boundary=x", "Multipart/Form-Data;boundary=x", " multipart/form-data"]
        {
            for query in ["", QUERY] {
                let headers = [("content-type", kind.as_bytes())];
                assert_eq!(judged("POST", query, &headers).0, "NotImplemented", "{kind}");
                let more = [headers[0], ("authorization", HEADER.as_bytes())];
                assert_eq!(judged("POST", "", &more).0, "NotImplemented", "{kind}");
            }
            assert_eq!(judged("PUT", QUERY, &[("content-type", kind.as_bytes())]).0, "", "{kind}");
        }
        assert_eq!(judged("POST", QUERY, &[("content-type", b"multipart/mixed")]).0, "");
    }
}
