//! Reading an object or a range of it to where the bytes belong.
//!
//! Trust nothing that can be checked: status, `Content-Range`, lengths. When the connection breaks, only the rest is
//! asked for, from the same version of the object (`If-Match`).

use std::ops::Range;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::admission::Outcome;
use crate::admission::retry::{Class, Failure};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::http::body::{ReadInto, Received, Receiver};
use crate::operation::attempt::{Operation, Response, malformed};
use crate::operation::call::Call;
use crate::protocol::checksum::{CRC32_HEADER, crc32, crc32_combine, parse_crc32};
use crate::protocol::error_response::header;

/// Most memory set aside on a service's word, in bytes; the rest comes as the bytes do.
const MAX_RESERVED: u64 = 256 << 20;

/// Where the bytes of a read go.
pub(crate) trait ObjectReceiver: Receiver {
    /// The first response came: its headers, and the bytes to expect where known. An error ends the read.
    fn begin(&mut self, headers: &HeaderMap, length: Option<u64>) -> Result<(), Error>;
    /// Everything will come again from the first byte.
    fn restart(&mut self);
    /// All bytes were written. `Corrupt` makes the engine read once more.
    fn finish(&mut self) -> Result<(), Error>;
}

impl Client {
    /// Reads an object (or a range) into `receiver`; returns the headers of the first response (none for an empty range).
    pub(crate) async fn fetch(
        &self,
        bucket: &str,
        key: &str,
        range: Option<Range<u64>>,
        receiver: &mut dyn ObjectReceiver,
    ) -> Result<HeaderMap, Error> {
        let whole = Call::new("GetObject", Method::GET, bucket, Some(key))?;
        if let Some(range) = &range
            && range.is_empty()
        {
            if range.start > range.end {
                let text = format!("a range must not end before it starts, not {range:?}");
                return Err(whole.locate(Error::new(ErrorKind::Config, text)));
            }
            return receiver.finish().map(|()| HeaderMap::new()).map_err(|error| whole.locate(error));
        }
        let mut operation = Operation::default();
        let mut state = ReadState { wanted: range, position: 0, headers: None };
        let mut read_again = false;
        loop {
            let call = state.call(bucket, key)?;
            let failure = match self.fetch_rest(&call, &mut operation, &mut state, receiver).await {
                Ok(()) => match receiver.finish() {
                    Ok(()) => return Ok(state.headers.unwrap_or_default()),
                    Err(error) if error.kind() == ErrorKind::Corrupt && !read_again => {
                        read_again = true;
                        state.restart(receiver);
                        Failure::new(Class::Transient, error)
                    }
                    Err(error) => Failure::fatal(error),
                },
                // The object was replaced while it was read: begin again with the new one. Or there is no telling.
                Err(failure) if state.position > 0 && refuses_the_rest(&failure.error) => {
                    state.restart(receiver);
                    Failure { class: Class::Transient, ..failure }
                }
                Err(failure) => failure,
            };
            self.recover(&call, &mut operation, failure).await?;
        }
    }

    async fn fetch_rest(
        &self,
        call: &Call,
        operation: &mut Operation,
        state: &mut ReadState,
        receiver: &mut dyn ObjectReceiver,
    ) -> Result<(), Failure> {
        let mut response = self.attempt(call, operation).await?;
        response.permit.answered(Outcome::Admitted);
        let expected = state.check(call, &response)?;
        self.understood(call, operation);
        if state.headers.is_none() {
            let length = state.wanted.as_ref().map(|range| range.end - range.start).or(expected);
            receiver.begin(&response.headers, length).map_err(Failure::fatal)?;
            state.headers = Some(std::mem::take(&mut response.headers));
            if state.wanted.is_none() {
                state.wanted = expected.map(|length| 0..length);
            }
        }
        let mut received = 0u64;
        while let Some(count) =
            response.body.read(receiver, expected.map_or(u64::MAX, |expected| expected - received)).await?
        {
            received += count as u64;
            self.inner.counters.add_received(count as u64);
            state.position += count as u64;
        }
        let complete = match &state.wanted {
            Some(range) => state.position == range.end - range.start,
            None => true,
        };
        if complete {
            return Ok(());
        }
        let text = format!("GetObject: the answer ended after {received} bytes, too early");
        Err(Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text)))
    }
}

/// Whether the service refuses to go on with the same object, or does not know how to be asked for that.
fn refuses_the_rest(error: &Error) -> bool {
    error.kind() == ErrorKind::PreconditionFailed || error.not_understood()
}

/// How far one read has come.
struct ReadState {
    /// The range, of the whole object once its length is known.
    wanted: Option<Range<u64>>,
    /// Bytes delivered, from the range's start.
    position: u64,
    /// Of the first response.
    headers: Option<HeaderMap>,
}

impl ReadState {
    fn restart(&mut self, receiver: &mut dyn ObjectReceiver) {
        if let Some(headers) = self.headers.take()
            && !headers.contains_key("content-range")
        {
            // A whole object: the next response's length counts.
            self.wanted = None;
        }
        self.position = 0;
        receiver.restart();
    }

    /// The request for what is missing.
    fn call(&self, bucket: &str, key: &str) -> Result<Call, Error> {
        let call = Call::new("GetObject", Method::GET, bucket, Some(key))?;
        let whole_object = match &self.headers {
            Some(headers) => !headers.contains_key("content-range"),
            None => self.wanted.is_none(),
        };
        let range = match &self.wanted {
            Some(range) if !(whole_object && self.position == 0) => range.start + self.position..range.end,
            _ => return call.checksum("x-amz-checksum-mode", "ENABLED"),
        };
        let call = call.header("range", &format!("bytes={}-{}", range.start, range.end - 1))?;
        match self.headers.as_ref().and_then(|headers| header(headers, "etag")) {
            Some(etag) if self.position > 0 => call.header("if-match", etag),
            _ => Ok(call),
        }
    }

    /// Checks the head of a response; the length of its body, where known.
    fn check(&self, call: &Call, response: &Response) -> Result<Option<u64>, Failure> {
        let length = match header(&response.headers, "content-length").map(str::parse::<u64>) {
            None => None,
            Some(Ok(length)) => Some(length),
            Some(Err(_)) => return Err(malformed(call.operation, "its length is no number")),
        };
        let asked_for_range = call.headers.contains_key("range");
        let wanted = match &self.wanted {
            Some(range) if asked_for_range => range.start + self.position..range.end,
            _ if response.status == StatusCode::OK => return Ok(length),
            _ => {
                let text = format!("status {} for a whole object", response.status.as_u16());
                return Err(malformed(call.operation, text));
            }
        };
        if response.status == StatusCode::OK && wanted.start == 0 && length == Some(wanted.end) {
            // The range is the whole object, and the service says so in its own way.
            return Ok(length);
        }
        if response.status != StatusCode::PARTIAL_CONTENT {
            let text =
                format!("GetObject: the service ignored the range and answered {}", response.status.as_u16());
            return Err(Failure::fatal(Error::new(ErrorKind::Service, text)));
        }
        let (given, total) = header(&response.headers, "content-range")
            .and_then(parse_content_range)
            .ok_or_else(|| malformed(call.operation, "no valid Content-Range"))?;
        if let Some(total) = total.filter(|total| *total < wanted.end) {
            let text = format!(
                "the object has {total} bytes, but bytes up to {} are needed: it is truncated",
                wanted.end
            );
            return Err(Failure::fatal(Error::new(ErrorKind::Corrupt, text)));
        }
        if given.start != wanted.start || given.end > wanted.end {
            let text = format!("bytes {given:?} instead of {wanted:?}");
            return Err(malformed(call.operation, text));
        }
        let given = given.end - given.start;
        if length.is_some_and(|length| length != given) {
            return Err(malformed(call.operation, "Content-Length and Content-Range disagree"));
        }
        Ok(Some(given))
    }
}

/// `bytes 0-9/20` as `(0..10, Some(20))`.
fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let end = last.checked_add(1)?;
    (first < end && total.is_none_or(|total| end <= total)).then_some((first..end, total))
}

/// New memory, checked against the CRC-32 of the whole object where the service sends one.
pub(crate) struct Buffer {
    /// What has come, and zeros for what is expected to come.
    bytes: Vec<u8>,
    filled: usize,
    crc32: u32,
    expected: Option<u32>,
    limit: u64,
}

impl Buffer {
    /// Takes at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Buffer {
        Buffer { bytes: Vec::new(), filled: 0, crc32: 0, expected: None, limit }
    }

    fn check_length(&self, length: u64) -> Result<(), Error> {
        if length <= self.limit {
            return Ok(());
        }
        let text = format!("the object has {length} bytes or more, and at most {} are read", self.limit);
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    pub(crate) fn into_bytes(mut self) -> Bytes {
        self.bytes.truncate(self.filled);
        Bytes::from(self.bytes)
    }

    /// Counts so many bytes in, which are in place.
    fn add(&mut self, count: usize) {
        let bytes = &self.bytes[self.filled..self.filled + count];
        if self.expected.is_some() {
            self.crc32 = crc32_combine(self.crc32, crc32(bytes), count as u64);
        }
        self.filled += count;
    }
}

impl Receiver for Buffer {
    fn receive(&mut self, read: ReadInto<'_>) -> Result<Received, Error> {
        let space = &mut self.bytes[self.filled..];
        if space.is_empty() {
            return Ok(Received::Copy(usize::MAX));
        }
        let count = read(space);
        if let Poll::Ready(Ok(count)) = count {
            self.add(count);
        }
        Ok(Received::Read(count))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let end = self.filled + bytes.len();
        self.check_length(end as u64)?;
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[self.filled..end].copy_from_slice(bytes);
        self.add(bytes.len());
        Ok(())
    }
}

impl ObjectReceiver for Buffer {
    fn begin(&mut self, headers: &HeaderMap, length: Option<u64>) -> Result<(), Error> {
        self.check_length(length.unwrap_or(0))?;
        let reserved = length.unwrap_or(0).min(MAX_RESERVED);
        // Zeros by the page, when a page is first touched.
        self.bytes = vec![0; usize::try_from(reserved).unwrap_or(0)];
        self.filled = 0;
        // A range has the checksum of the whole object, if any.
        let whole = !headers.contains_key("content-range");
        self.expected = header(headers, CRC32_HEADER).filter(|_| whole).and_then(parse_crc32);
        Ok(())
    }

    fn restart(&mut self) {
        self.filled = 0;
        self.crc32 = 0;
    }

    fn finish(&mut self) -> Result<(), Error> {
        match self.expected {
            Some(expected) if expected != self.crc32 => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the object's CRC-32 is {:08x}, but the service keeps {expected:08x}", self.crc32),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-9/20"), Some((0..10, Some(20))));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in [
            "",
            "bytes */20",
            "bytes 9-5/20",
            "bytes 0-20/20",
            "bits 0-1/2",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_broken_read_asks_for_the_rest_of_the_same_object() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", "\"e1\"".parse().unwrap());
        headers.insert("content-range", "bytes 100-199/1000".parse().unwrap());
        let mut progress = ReadState { wanted: Some(100..200), position: 0, headers: None };
        let call = progress.call("b", "k").unwrap();
        assert_eq!(call.headers["range"], "bytes=100-199");
        assert!(!call.headers.contains_key("if-match"));
        progress.headers = Some(headers);
        progress.position = 30;
        let call = progress.call("b", "k").unwrap();
        assert_eq!(
            (&call.headers["range"], &call.headers["if-match"]),
            (&"bytes=130-199".parse().unwrap(), &"\"e1\"".parse().unwrap())
        );
    }

    #[test]
    fn a_whole_object_is_asked_for_without_a_range_until_it_breaks() {
        let mut progress = ReadState { wanted: None, position: 0, headers: None };
        assert!(!progress.call("b", "k").unwrap().headers.contains_key("range"));
        progress.headers = Some(HeaderMap::new());
        progress.wanted = Some(0..50);
        assert!(!progress.call("b", "k").unwrap().headers.contains_key("range"));
        progress.position = 20;
        assert_eq!(progress.call("b", "k").unwrap().headers["range"], "bytes=20-49");
        let mut buffer = Buffer::new(u64::MAX);
        progress.restart(&mut buffer);
        assert_eq!((progress.position, &progress.wanted), (0, &None));
    }
}
