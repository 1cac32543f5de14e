//! Signatures for `s3express`, the service of directory buckets, which the protocol crate does not know.
//!
//! They are verified here, and the request goes on with one for `s3` in their place, of the same keys over the same request:
//! what is signed is all the same but for the service's name.

use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use s3s::crypto::{Checksum as _, Sha256};

use crate::access::Keys;
use crate::query::Query;
use crate::sessions::Mode;
use crate::signature::{Refusal, credential_of};

/// Characters that the canonical form of a request leaves as they are.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_IN_PATH: &AsciiSet = &UNRESERVED.remove(b'/');

const TOKEN: &str = "x-amz-s3session-token";

const BLOCK: usize = 64;

/// Verifies a request about a directory bucket, which has passed [`crate::signature::check`]. Gives the mode of the session that
/// it is made in, if any.
pub(crate) fn translate<B>(
    request: &mut Request<B>,
    bucket: &str,
    keys: &Keys,
) -> Result<Option<Mode>, Refusal> {
    let headers = request.headers();
    let Some(authorization) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        let message = "Presigned requests to directory buckets are not implemented here";
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message));
    };
    let hash = text(headers, "x-amz-content-sha256");
    if hash.starts_with("STREAMING-AWS4-") {
        let message = "Signed chunks are not implemented here for directory buckets";
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message));
    }
    let scope = credential_of(authorization);
    let (access_key, scope) = scope.split_once('/').unwrap_or((scope, ""));
    let token = headers.get(TOKEN).map(|token| token.as_bytes());
    let (secret_key, mode) = match (keys.sessions.of(access_key), token) {
        (None, None) if access_key == keys.access_key => (keys.secret_key.clone(), None),
        (None, None) => return Err(unknown_key()),
        // Whoever has a token may have had it of another server, or before this one was started.
        (None, Some(_)) => return Err(invalid_token()),
        (Some(session), Some(token)) if session.token.as_bytes() == token && session.bucket == bucket => {
            if session.expiration <= std::time::SystemTime::now() {
                let message = "The provided token has expired.";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "ExpiredToken", message));
            }
            (session.secret_key, Some(session.mode))
        }
        (Some(_), _) => return Err(invalid_token()),
    };
    let canonical = hex(&Sha256::checksum(canonical_request(request, authorization, hash).as_bytes()));
    let date = text(headers, "x-amz-date");
    let signature = |scope: &str| {
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        let key = scope
            .split('/')
            .fold(format!("AWS4{secret_key}").into_bytes(), |key, part| hmac(&key, part.as_bytes()).to_vec());
        hex(&hmac(&key, to_sign.as_bytes()))
    };
    let given = field(authorization, "Signature");
    if signature(scope) != given {
        let message = "The request signature we calculated does not match the signature you provided. Check your key and \
                       signing method.";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "SignatureDoesNotMatch", message));
    }
    let as_s3 = scope.replace("/s3express/", "/s3/");
    let translated = authorization.replace(scope, &as_s3).replace(given, &signature(&as_s3));
    let value = HeaderValue::try_from(translated);
    let value = value.map_err(|_| Refusal::malformed_header("it is not text"))?;
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(mode)
}

pub(crate) fn unknown_key() -> Refusal {
    let message = "The AWS access key Id you provided does not exist in our records.";
    Refusal::new(StatusCode::FORBIDDEN, "InvalidAccessKeyId", message)
}

fn invalid_token() -> Refusal {
    let message = "The provided token is malformed or otherwise invalid.";
    Refusal::new(StatusCode::BAD_REQUEST, "InvalidToken", message)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A field of the header Authorization, of which it is known that it is there.
fn field<'a>(authorization: &'a str, name: &str) -> &'a str {
    let start = authorization.find(&format!("{name}=")).map_or(authorization.len(), |at| at + name.len() + 1);
    let rest = &authorization[start..];
    rest.split(',').next().unwrap_or_default().trim()
}

/// The request in the one form that signatures are over.
fn canonical_request<B>(request: &Request<B>, authorization: &str, hash: &str) -> String {
    let encoded = |text: &str, set: &'static AsciiSet| {
        percent_encode(&percent_decode_str(text).collect::<Vec<u8>>(), set).to_string()
    };
    let mut pairs: Vec<(String, String)> = Query::of(request.uri())
        .pairs()
        .filter(|(name, value)| !name.is_empty() || !value.is_empty())
        .map(|(name, value)| (encoded(name, UNRESERVED), encoded(value, UNRESERVED)))
        .collect();
    pairs.sort();
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut names: Vec<&str> = field(authorization, "SignedHeaders").split(';').collect();
    names.sort_unstable();
    let mut canonical = format!(
        "{}\n{}\n{}\n",
        request.method(),
        encoded(request.uri().path(), UNRESERVED_IN_PATH),
        query.join("&")
    );
    for name in &names {
        let values = request.headers().get_all(*name).iter().filter_map(|value| value.to_str().ok());
        let values: Vec<String> =
            values.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        canonical.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    canonical.push_str(&format!("\n{}\n{hash}", names.join(";")));
    canonical
}

/// HMAC with SHA-256, as RFC 2104 has it.
fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(Sha256::checksum(key).as_ref());
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let hash = |pad: u8, data: &[u8]| {
        let mut hasher = Sha256::new();
        hasher.update(&block.map(|byte| byte ^ pad));
        hasher.update(data);
        hasher.finalize()
    };
    hash(0x5c, &hash(0x36, data))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::sessions::Sessions;

    fn keys() -> Keys {
        Keys {
            access_key: "AK".to_owned(),
            secret_key: "secret".to_owned(),
            sessions: Arc::new(Sessions::new(Duration::from_secs(300))),
        }
    }

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test cases 2 and 6: a short key, and one that is longer than a block.
        assert_eq!(
            hex(&hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn the_canonical_form_is_that_of_the_published_example() {
        // "GET Bucket (List Objects)" of the Amazon S3 API reference, "Signature calculations for the authorization header".
        let authorization =
            "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=y";
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let request = Request::get("/?prefix=J&max-keys=2")
            .header("host", "examplebucket.s3.amazonaws.com")
            .header("x-amz-content-sha256", empty)
            .header("x-amz-date", "20130524T000000Z")
            .body(())
            .unwrap();
        let canonical = canonical_request(&request, authorization, empty);
        assert_eq!(
            hex(&Sha256::checksum(canonical.as_bytes())),
            "df57d21db20da04d7fa30298dd4488ba3a2b47ca3a489c74750e0f1e7df1b9b7"
        );
    }

    #[test]
    fn keys_and_tokens_that_do_not_belong_together_are_refused() {
        let keys = keys();
        let one = keys.sessions.create("one--z--x-s3", Mode::ReadWrite);
        let other = keys.sessions.create("other--z--x-s3", Mode::ReadWrite);
        for (key, token, code) in [
            ("AK", None, "SignatureDoesNotMatch"),
            ("XX", None, "InvalidAccessKeyId"),
            ("AK", Some(&one.token), "InvalidToken"),
            (&one.access_key, None, "InvalidToken"),
            (&one.access_key, Some(&other.token), "InvalidToken"),
            (&other.access_key, Some(&other.token), "InvalidToken"),
            (&one.access_key, Some(&one.token), "SignatureDoesNotMatch"),
        ] {
            let authorization = format!(
                "AWS4-HMAC-SHA256 Credential={key}/20260102/r/s3express/aws4_request, SignedHeaders=host, Signature=00"
            );
            let mut request = Request::get("/k").header("host", "h").header(AUTHORIZATION, authorization);
            if let Some(token) = token {
                request = request.header(TOKEN, token);
            }
            let mut request = request.body(()).unwrap();
            let refusal = translate(&mut request, "one--z--x-s3", &keys).unwrap_err();
            assert_eq!(refusal.code, code, "{key} {token:?}");
        }
    }

    #[test]
    fn a_session_that_has_ended_is_told_from_one_that_never_was() {
        let keys = Keys { sessions: Arc::new(Sessions::new(Duration::ZERO)), ..keys() };
        let session = keys.sessions.create("one--z--x-s3", Mode::ReadWrite);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/20260102/r/s3express/aws4_request, SignedHeaders=host, Signature=00",
            session.access_key
        );
        let request = Request::get("/k").header(AUTHORIZATION, authorization).header(TOKEN, session.token);
        let refusal = translate(&mut request.body(()).unwrap(), "one--z--x-s3", &keys).unwrap_err();
        assert_eq!((refusal.code, refusal.status), ("ExpiredToken", StatusCode::BAD_REQUEST));
    }
}
