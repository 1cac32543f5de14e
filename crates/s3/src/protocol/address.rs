//! What names an object: S3 URIs, keys, and their percent-encoding as SigV4 wants it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, invalid};
use crate::protocol::bucket::{check_bucket, split_bucket};

/// Everything but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path, where `/` separates.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');
/// S3's limit on a key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// Splits `s3://bucket/key` into bucket and key; the key may be empty. The ARN of an access point stands where a bucket does.
///
/// ```
/// let (bucket, key) = s3dcp_s3::parse_s3_uri("s3://models/run 7/step+1")?;
/// assert_eq!((bucket.as_str(), key.as_str()), ("models", "run 7/step+1"));
/// let arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/models";
/// assert_eq!(s3dcp_s3::parse_s3_uri(&format!("s3://{arn}/step"))?, (arn.to_owned(), "step".to_owned()));
/// # Ok::<(), s3dcp_s3::Error>(())
/// ```
///
/// # Errors
/// `Config`, naming the value, when it does not start with `s3://` or names no bucket.
pub fn parse_s3_uri(uri: &str) -> Result<(String, String), Error> {
    let Some(rest) = uri.strip_prefix("s3://") else {
        return Err(invalid(format!("an S3 path must start with s3://, not {uri:?}")));
    };
    let (bucket, key) = split_bucket(rest);
    if bucket.is_empty() {
        return Err(invalid(format!("an S3 path must name a bucket (s3://bucket/key), not {uri:?}")));
    }
    check_bucket(bucket)?;
    Ok((bucket.to_owned(), key.to_owned()))
}

/// The key of `name` in a folder. A folder ends with a slash, which need not be given; "" is the bucket itself. A slash
/// more is an empty segment, which S3 keeps like any other.
///
/// ```
/// use s3dcp_s3::join_key;
/// assert_eq!(join_key("run", "x"), "run/x");
/// assert_eq!(join_key("run/", "x"), "run/x");
/// assert_eq!(join_key("run//", "x"), "run//x");
/// assert_eq!((join_key("", "x"), join_key("/", "x")), ("x".to_owned(), "/x".to_owned()));
/// ```
pub fn join_key(folder: &str, name: &str) -> String {
    let slash = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
    format!("{folder}{slash}{name}")
}

/// Refuses a key that S3 would refuse.
pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(invalid(format!(
            "a key has 1 to {MAX_KEY_BYTES} bytes, not {}: {:?}",
            key.len(),
            key.chars().take(80).collect::<String>()
        )));
    }
    Ok(())
}

/// Percent-encodes a key for the path of a URL.
pub(crate) fn encode_key(key: &str) -> String {
    utf8_percent_encode(key, ENCODED_IN_PATH).to_string()
}

/// Percent-encodes one value of a query.
pub(crate) fn encode_query(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_s3_uri_splits_at_the_first_slash() {
        for (uri, bucket, key) in [
            ("s3://b", "b", ""),
            ("s3://b/", "b", ""),
            ("s3://b/a/b c", "b", "a/b c"),
            ("s3://b//a", "b", "/a"),
            ("s3://b/a/", "b", "a/"),
        ] {
            assert_eq!(parse_s3_uri(uri).unwrap(), (bucket.to_owned(), key.to_owned()));
        }
    }

    #[test]
    fn what_is_no_s3_uri_is_named_in_the_error() {
        for uri in [
            "",
            "b/k",
            "/tmp/x",
            "S3://b/k",
            "gs://b/k",
            "s3:/b/k",
            "s3://",
            "s3:///k",
            "s3://a b/k",
            "s3://../k",
        ] {
            let error = parse_s3_uri(uri).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!uri.starts_with("s3:///") || error.message().contains(uri), "{error}");
        }
        assert!(parse_s3_uri("/tmp/x").unwrap_err().message().contains("\"/tmp/x\""));
    }

    #[test]
    fn a_key_is_bounded_in_bytes() {
        assert!(check_key(&"ä".repeat(512)).is_ok());
        assert!(check_key(&"ä".repeat(513)).unwrap_err().message().contains("1026"));
        assert!(check_key("").is_err());
    }
}
