//! A request, before it is signed.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::admission::pacing::Keys;
use crate::auth::sign::Service;
use crate::error::{Error, ErrorKind};
use crate::protocol::address::{check_key, encode_query};
use crate::protocol::bucket::{check_bucket, is_directory_bucket};
use crate::transfer::payload::Payload;

/// What is done where the answer to a request takes much longer than nearly all the latest did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenLate {
    /// It is waited for.
    #[default]
    Wait,
    /// The request is sent again: sent twice it does no more than once, however late each is carried out. Of an object's write that
    /// holds if no other object has its key or will have it.
    SendAgain,
    /// The object is looked at: if it has the length and the CRC-32 of the body, it was written. For bodies that the key never had
    /// before. What writes no object is waited for.
    Look,
}

/// A request, ready to be sent any number of times.
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) bucket: String,
    pub(crate) key: Option<String>,
    pub(crate) part: Option<u32>,
    pub(crate) query: String,
    /// What decides how long it waits.
    pub(crate) keys: Arc<Keys>,
    pub(crate) headers: HeaderMap,
    /// Headers of checksums, for services that take them.
    pub(crate) checksums: HeaderMap,
    pub(crate) body: Payload,
    /// The body for services that take no checksums, where it is another one.
    pub(crate) body_without_checksums: Option<Payload>,
    /// A small body that the signature covers.
    pub(crate) signed_body: bool,
    /// The body is an object's.
    pub(crate) object_body: bool,
    pub(crate) writes: bool,
    pub(crate) when_late: WhenLate,
    /// The caller has another way where the service does not know the operation.
    pub(crate) has_alternative: bool,
    /// It is signed with the client's own credentials even where others are signed within a session.
    pub(crate) outside_sessions: bool,
    /// Requests that have a connection each wait for it.
    pub(crate) is_waited_for: bool,
}

impl Call {
    /// A request on an object (or on the bucket, without a key). GET and HEAD change nothing.
    pub(crate) fn new(
        operation: &'static str,
        method: Method,
        bucket: &str,
        key: Option<&str>,
    ) -> Result<Call, Error> {
        check_bucket(bucket)?;
        if let Some(key) = key {
            check_key(key).map_err(|error| error.with_bucket(bucket))?;
        }
        let writes = method != Method::GET && method != Method::HEAD;
        Ok(Call {
            operation,
            method,
            bucket: bucket.to_owned(),
            key: key.map(str::to_owned),
            part: None,
            query: String::new(),
            keys: Arc::new(Keys::new(bucket, key, writes)),
            headers: HeaderMap::new(),
            checksums: HeaderMap::new(),
            body: Payload::default(),
            body_without_checksums: None,
            signed_body: false,
            object_body: false,
            writes,
            when_late: if writes { WhenLate::Wait } else { WhenLate::SendAgain },
            has_alternative: false,
            outside_sessions: false,
            is_waited_for: false,
        })
    }

    /// Adds `name=value` to the query.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Call {
        self = self.flag(name);
        self.query.push('=');
        self.query.push_str(&encode_query(value));
        self
    }

    /// Adds a name without a value to the query.
    pub(crate) fn flag(mut self, name: &str) -> Call {
        if !self.query.is_empty() {
            self.query.push('&');
        }
        self.query.push_str(name);
        self
    }

    /// Sets a header.
    ///
    /// # Errors
    /// `Config`, when the value cannot stand in a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Result<Call, Error> {
        self.headers.insert(HeaderName::from_static(name), header_value(name, value)?);
        Ok(self)
    }

    /// Sets a header of a checksum, which is left out where the service takes none.
    ///
    /// # Errors
    /// As for [`Call::header`].
    pub(crate) fn checksum(mut self, name: &'static str, value: &str) -> Result<Call, Error> {
        self.checksums.insert(HeaderName::from_static(name), header_value(name, value)?);
        Ok(self)
    }

    /// This key is one that the request is about, where none is in its address.
    pub(crate) fn about(mut self, key: &str) -> Call {
        self.keys = Arc::new(Keys::new(&self.bucket, Some(key), self.writes));
        self
    }

    /// The part that this request sends, for errors.
    pub(crate) fn part(mut self, part: u32) -> Call {
        self.part = Some(part);
        self
    }

    /// An object's bytes as the body.
    pub(crate) fn body(mut self, body: Payload) -> Call {
        self.body = body;
        self.object_body = true;
        self
    }

    /// A small document as the body, covered by the signature.
    pub(crate) fn document(mut self, document: String) -> Result<Call, Error> {
        self.body = Payload::from(Bytes::from(document));
        self.signed_body = true;
        self.header("content-type", "application/xml")
    }

    /// What the document is where the service takes no checksums.
    pub(crate) fn document_without_checksums(mut self, document: String) -> Call {
        self.body_without_checksums = Some(Payload::from(Bytes::from(document)));
        self
    }

    /// The caller has another way where the service does not know the operation.
    pub(crate) fn with_alternative(mut self) -> Call {
        self.has_alternative = true;
        self
    }

    pub(crate) fn when_late(mut self, when_late: WhenLate) -> Call {
        self.when_late = when_late;
        self
    }

    /// Signs it with the client's own credentials, about whatever bucket it is.
    pub(crate) fn outside_sessions(mut self) -> Call {
        self.outside_sessions = true;
        self
    }

    /// As what the service takes it, which decides how it is signed.
    pub(crate) fn service(&self) -> Service {
        match (is_directory_bucket(&self.bucket), self.outside_sessions) {
            (false, _) => Service::S3,
            (true, true) => Service::Express,
            (true, false) => Service::ExpressSession,
        }
    }

    /// Refuses a response that does not confirm the encryption this request asks for: some services do not know it.
    pub(crate) fn check_encryption(&self, response: &HeaderMap) -> Result<(), Error> {
        let name = "x-amz-server-side-encryption";
        if !self.headers.contains_key(name) || response.contains_key(name) {
            return Ok(());
        }
        let text = format!(
            "{}: the service ignores server_side_encryption: what it stores is not encrypted as asked",
            self.operation
        );
        Err(self.locate(Error::new(ErrorKind::Config, text)))
    }

    /// The error for a response that makes no sense, though it is no failure.
    pub(crate) fn malformed(&self, what: &str) -> Error {
        let text = format!("{}: the service's answer is malformed: {what}", self.operation);
        self.locate(Error::new(ErrorKind::Service, text))
    }

    /// Names the request in an error.
    pub(crate) fn locate(&self, error: Error) -> Error {
        let mut error = error.with_bucket(&self.bucket);
        if let Some(key) = &self.key {
            error = error.with_key(key);
        }
        match self.part {
            Some(part) => error.with_part(part),
            None => error,
        }
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(value).ok().filter(|value| value.to_str().is_ok()).ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("{name} must be printable ASCII, not {value:?}"))
    })
}
