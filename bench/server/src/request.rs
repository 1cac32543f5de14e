//! The head of a request, taken apart.

use std::collections::BTreeMap;
use std::io;

use percent_encoding::percent_decode_str;

/// Header fields that a request may have.
const MAX_HEADERS: usize = 64;

/// A request without its body.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Decoded, without the leading slash: `bucket/key`.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
}

impl Request {
    /// The request at the start of `bytes` and the length of its head; None while the head is incomplete.
    pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Request::new(&mut fields);
        let invalid = |error: httparse::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let httparse::Status::Complete(length) = head.parse(bytes).map_err(invalid)? else { return Ok(None) };
        let target = head.path.unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        let fields = head.headers.iter().map(|field| {
            (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim().to_owned())
        });
        let request = Self {
            method: head.method.unwrap_or_default().to_owned(),
            path: decoded(path.trim_start_matches('/')),
            query: pairs.collect(),
            headers: fields.collect(),
        };
        Ok(Some((request, length)))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// A header field or query value as a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }

    /// Whether the body is in `aws-chunked` frames.
    pub(crate) fn is_framed(&self) -> bool {
        self.header("content-encoding").is_some_and(|value| value.contains("aws-chunked"))
    }

    /// Whether the length of the body is not known beforehand, and HTTP's own frames surround it.
    pub(crate) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    /// `bucket` and `key`, the key empty for a request to the bucket.
    pub(crate) fn bucket_and_key(&self) -> (&str, &str) {
        self.path.split_once('/').unwrap_or((&self.path, ""))
    }

    /// The bytes of `length` that the Range field asks for: all without one, None where it asks for none of them.
    pub(crate) fn range(&self, length: u64) -> Option<std::ops::Range<u64>> {
        let Some(text) = self.header("range").and_then(|text| text.strip_prefix("bytes=")) else {
            return Some(0..length);
        };
        let (first, last) = text.split_once('-')?;
        let range = if first.is_empty() {
            length.saturating_sub(last.parse().ok()?)..length
        } else {
            let end = if last.is_empty() {
                length
            } else {
                last.parse::<u64>().ok()?.saturating_add(1).min(length)
            };
            first.parse().ok()?..end
        };
        (range.start < range.end).then_some(range)
    }
}

/// Percent-decoded text.
pub(crate) fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        Request::parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn a_head_is_incomplete_until_its_empty_line() {
        assert!(Request::parse(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
    }

    #[test]
    fn path_and_query_are_decoded() {
        let request =
            request("PUT /b/a%20b/c?partNumber=3&prefix=x%2Fy&uploads HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(request.bucket_and_key(), ("b", "a b/c"));
        assert_eq!(request.query["prefix"], "x/y");
        assert!(request.query.contains_key("uploads"));
        assert_eq!(request.number("content-length"), Some(5));
    }

    #[test]
    fn ranges_are_cut_to_the_object() {
        let range =
            |text: &str| request(&format!("GET /b/k HTTP/1.1\r\nRange: bytes={text}\r\n\r\n")).range(10);
        assert_eq!(range("2-4"), Some(2..5));
        assert_eq!(range("7-99"), Some(7..10));
        assert_eq!(range("8-"), Some(8..10));
        assert_eq!(range("-3"), Some(7..10));
        assert_eq!(range("10-12"), None);
        assert_eq!(request("GET /b/k HTTP/1.1\r\n\r\n").range(10), Some(0..10));
    }
}
