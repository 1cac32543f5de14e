//! One operation: build, sign and send a request, judge the answer, try again.
//!
//! [`Client::attempt`] is one try, [`Client::recover`] what happens between two. Operations whose answer is small use
//! [`Client::execute`]; downloads drive the two themselves, because they go on where a broken answer ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::SignableBody;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use md5::{Digest, Md5};

use crate::address::{check_bucket, check_key};
use crate::answer::{Asked, error_inside, failure};
use crate::body::BodyReader;
use crate::checksum::base64;
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::config::ServerSideEncryption;
use crate::error::{Error, ErrorKind};
use crate::gate::Permit;
use crate::payload::{Payload, PayloadBody};
use crate::progress::Progress;
use crate::retry::{Attempts, Class, Failure, Policy, Remedy, Verdict};
use crate::session::Session;
use crate::sign::sign_request;
use crate::transport::{Limits, deadline_passed, host_and_port};
use crate::turns;

/// Longest error document that is read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Longest answer that is kept in memory: a page of a listing has about 1 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// Bytes whose MD5 is computed in one go, some two milliseconds.
const MD5_STEP: usize = 1 << 20;

/// A request, ready to be sent any number of times.
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    method: Method,
    bucket: String,
    key: Option<String>,
    part: Option<u32>,
    query: String,
    pub(crate) headers: HeaderMap,
    /// Headers of checksums, for services that take them.
    checksums: HeaderMap,
    body: Payload,
    /// The body for services that take no checksums, where it is another one.
    body_without_checksums: Option<Payload>,
    /// A small body that the signature covers.
    signed_body: bool,
    /// The body is an object's.
    object_body: bool,
    writes: bool,
    /// The caller has another way where the service does not know the operation.
    has_alternative: bool,
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
            headers: HeaderMap::new(),
            checksums: HeaderMap::new(),
            body: Payload::default(),
            body_without_checksums: None,
            signed_body: false,
            object_body: false,
            writes,
            has_alternative: false,
        })
    }

    /// Adds `name=value` to the query.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Call {
        self = self.flag(name);
        self.query.push('=');
        self.query.push_str(&crate::address::encode_query(value));
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

    /// Refuses an answer that does not confirm the encryption this request asks for: some services do not know it.
    pub(crate) fn check_encryption(&self, answer: &HeaderMap) -> Result<(), Error> {
        let name = "x-amz-server-side-encryption";
        if !self.headers.contains_key(name) || answer.contains_key(name) {
            return Ok(());
        }
        let text = format!(
            "{}: the service ignores server_side_encryption: what it stores is not encrypted as asked",
            self.operation
        );
        Err(self.locate(Error::new(ErrorKind::Config, text)))
    }

    /// What decides how long it waits for its turn.
    fn turn(&self) -> turns::Request<'_> {
        turns::Request { bucket: &self.bucket, key: self.key.as_deref(), write: self.writes }
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

/// The attempts of one operation.
#[derive(Default)]
pub(crate) struct Operation {
    attempts: Attempts,
    /// The first attempt's admission; waiting for it costs nothing of the deadline.
    started: Option<Instant>,
    /// The latest attempt's departure.
    sent: Option<Instant>,
    ambiguous: bool,
    /// The latest answer that asked for fewer requests.
    slowed_down: Option<Error>,
    credentials: Option<Credentials>,
    /// Whether the latest attempt had headers of checksums.
    with_checksums: bool,
    /// What may have been a refusal of them.
    refusal: Option<Error>,
    /// Attempts go without them since.
    without_checksums: bool,
    /// The Content-MD5 that the service asked for.
    md5: Option<HeaderValue>,
}

impl Operation {
    /// Whether an earlier attempt may have taken effect.
    pub(crate) fn ambiguous(&self) -> bool {
        self.ambiguous
    }
}

/// An answer with a success status, its body still to be read. Holds the permit until dropped.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: BodyReader,
    /// While the body of the answer is read, that of the request may still be on its way.
    _sending: Arc<Progress>,
    _permit: Permit,
}

/// An answer that was read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    /// Does the whole operation and returns the answer.
    pub(crate) async fn execute(&self, call: &Call) -> Result<Reply, Error> {
        self.execute_as(call, &mut Operation::default()).await
    }

    /// The same, with attempts that the caller can look at afterwards.
    pub(crate) async fn execute_as(&self, call: &Call, operation: &mut Operation) -> Result<Reply, Error> {
        loop {
            match self.attempt_whole(call, operation).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => self.recover(call, operation, failure).await?,
            }
        }
    }

    async fn attempt_whole(&self, call: &Call, operation: &mut Operation) -> Result<Reply, Failure> {
        let mut answer = self.attempt(call, operation).await?;
        let body = answer.body.collect(MAX_ANSWER).await?;
        if error_inside(&body).is_some() {
            let session = self.session().await.map_err(Failure::fatal)?;
            return Err(failure(&self.asked(call, session), answer.status, &answer.headers, &body));
        }
        self.understood(call, operation);
        Ok(Reply { headers: answer.headers, body })
    }

    /// Sends the request once. Every status but success is a failure.
    pub(crate) async fn attempt(&self, call: &Call, operation: &mut Operation) -> Result<Answer, Failure> {
        let inner = &*self.inner;
        let permit = self.admitted(call, operation.started.is_some()).await;
        let started = *operation.started.get_or_insert_with(clock::now);
        let deadline = started + inner.config.deadline;
        let prepared = clock::before(deadline, self.prepare(call, operation, deadline)).await;
        let (session, request, progress) = prepared.ok_or_else(deadline_passed)?.map_err(Failure::fatal)?;
        let host = host_and_port(request.uri()).into();
        let limits = Limits { read_timeout: inner.config.read_timeout, deadline, host };
        operation.attempts.count += 1;
        inner.counters.add_request();
        if operation.attempts.count > 1 {
            inner.counters.add_retry();
        }
        let sent = clock::now();
        operation.sent = Some(sent);
        let response = session.transport.send(request, &progress, limits.clone()).await?;
        let time = clock::now().duration_since(sent);
        match call.body.len() {
            0 => inner.link.answered(time),
            bytes => inner.link.carried(bytes, time),
        }
        let (head, body) = response.into_parts();
        let mut body = BodyReader::new(body, limits);
        if head.status.is_success() {
            inner.turns.admitted(call.turn());
            return Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
                _sending: progress,
                _permit: permit,
            });
        }
        // A broken or endless error document leaves the status, which is what counts.
        let document = body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
        let failure = failure(&self.asked(call, session), head.status, &head.headers, &document);
        if failure.class != Class::Throttled {
            inner.turns.admitted(call.turn());
        }
        Err(failure)
    }

    /// Waits for the pace of the call's keys (a call that is sent again has done so) and for a connection.
    async fn admitted(&self, call: &Call, again: bool) -> Permit {
        let inner = &*self.inner;
        let mut waited = again;
        loop {
            if !waited {
                inner.turns.wait(call.turn(), again).await;
            }
            let taken = clock::now();
            let permit = inner.gate.admit().await;
            // Many may have had their turn before the service asked for fewer, and still wait for a connection.
            if inner.turns.hold(call.turn(), taken) {
                return permit;
            }
            waited = false;
        }
    }

    /// Applies a remedy and waits, for its pause and then for its turn; or hands out the final error.
    pub(crate) async fn recover(
        &self,
        call: &Call,
        operation: &mut Operation,
        failure: Failure,
    ) -> Result<(), Error> {
        let inner = &*self.inner;
        operation.ambiguous |= failure.ambiguous && call.writes;
        if failure.class == Class::Throttled
            && let Some(sent) = operation.sent
        {
            inner.counters.add_throttled();
            inner.turns.refused(call.turn(), sent);
            operation.slowed_down = Some(failure.error.clone());
        }
        if lost_connection(&failure.error)
            && let Some(session) = inner.session.get()
        {
            session.transport.drop_idle();
        }
        let elapsed =
            operation.started.map_or(Duration::ZERO, |started| clock::now().duration_since(started));
        let policy = Policy { max_attempts: inner.config.max_attempts, deadline: inner.config.deadline };
        let verdict = if self.adapt(call, operation, &failure).await {
            Verdict::Retry { pause: Duration::ZERO, remedy: None }
        } else {
            let retry_after = failure.retry_after;
            operation.attempts.failed(&policy, failure.class, retry_after, elapsed, clock::random())
        };
        let error = match operation.slowed_down.take_if(|_| failure.class == Class::Final) {
            // The deadline passed because the service kept asking for fewer requests: that is what went wrong.
            Some(slowed_down) if failure.error.kind() == ErrorKind::Timeout => slowed_down,
            _ => failure.error,
        };
        let Verdict::Retry { pause, remedy } = verdict else {
            return Err(finish(call, operation, error, elapsed));
        };
        match remedy {
            Some(Remedy::AdjustClock) => match failure.server_time {
                Some(time) => self.adjust_clock(time),
                None => return Err(finish(call, operation, error, elapsed)),
            },
            Some(Remedy::RefreshCredentials) => {
                let cache = self.inner.session.get().and_then(|session| session.credentials.as_ref());
                let renewed = match (cache, &operation.credentials) {
                    (Some(cache), Some(rejected)) => cache.forget(rejected, self.service_time()),
                    _ => false,
                };
                if !renewed {
                    return Err(finish(call, operation, error, elapsed));
                }
            }
            Some(Remedy::SendAgain) | None => {}
        }
        tracing::debug!(
            operation = call.operation, bucket = call.bucket, key = call.key, part = call.part,
            attempt = operation.attempts.count, ?pause, %error, "trying again"
        );
        clock::sleep(pause).await;
        let deadline = operation.started.unwrap_or_else(clock::now) + policy.deadline;
        let turn = clock::before(deadline, inner.turns.wait(call.turn(), true)).await;
        turn.ok_or_else(|| finish(call, operation, error, policy.deadline))
    }

    /// Whether the same request is worth sending at once in another form. Finding out what a service takes is no failure of a
    /// request, and counts as none.
    async fn adapt(&self, call: &Call, operation: &mut Operation, failure: &Failure) -> bool {
        if call.object_body && operation.md5.is_none() && wants_md5(&failure.error) {
            operation.md5 = Some(md5_of(&call.body).await);
            return true;
        }
        match &operation.refusal {
            None => {
                let refused = operation.with_checksums && may_refuse_checksums(call, failure);
                operation.without_checksums = refused && self.inner.store.may_do_without_checksums();
                operation.refusal = operation.without_checksums.then(|| failure.error.clone());
                operation.without_checksums
            }
            Some(refusal) if operation.without_checksums => {
                let error = &failure.error;
                if (error.status(), error.code()) == (refusal.status(), refusal.code()) {
                    // They were not what was refused.
                    operation.without_checksums = false;
                } else if matches!(error.status(), Some(404 | 409 | 412)) {
                    // The request was understood this time.
                    self.understood(call, operation);
                }
                false
            }
            Some(_) => false,
        }
    }

    /// The service took the request in the form that it has: the next ones have it from the start.
    pub(crate) fn understood(&self, call: &Call, operation: &Operation) {
        if operation.without_checksums {
            self.inner.store.refused_checksums(call.writes);
        }
        if operation.md5.is_some() {
            self.inner.store.bucket(&call.bucket).wants_md5.set();
        }
    }

    pub(crate) async fn session(&self) -> Result<&Session, Error> {
        self.inner.session.get_or_try_init(|| Session::open(&self.inner.config)).await
    }

    async fn prepare(
        &self,
        call: &Call,
        operation: &mut Operation,
        deadline: Instant,
    ) -> Result<(&Session, Request<PayloadBody>, Arc<Progress>), Error> {
        let inner = &*self.inner;
        let session = self.session().await?;
        let address = session.endpoint.address(&call.bucket, call.key.as_deref(), &call.query)?;
        let mut headers = call.headers.clone();
        operation.with_checksums = !call.checksums.is_empty()
            && !operation.without_checksums
            && inner.store.takes_checksums(call.writes);
        let body = match &call.body_without_checksums {
            Some(without) if !operation.with_checksums => without,
            _ => &call.body,
        };
        if operation.with_checksums {
            headers.extend(call.checksums.clone());
        }
        if call.object_body && inner.store.bucket(&call.bucket).wants_md5.is_set() && operation.md5.is_none()
        {
            operation.md5 = Some(md5_of(body).await);
        }
        if let Some(md5) = &operation.md5 {
            headers.insert("content-md5", md5.clone());
        }
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| Error::new(ErrorKind::Config, format!("cannot stand in a header: {text:?}")))
        };
        headers.insert(http::header::HOST, value(&address.host)?);
        if call.writes {
            headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        headers.insert(http::header::USER_AGENT, value(&inner.config.user_agent)?);
        if inner.config.requester_pays {
            headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        if let Some(cache) = &session.credentials {
            let credentials = cache.get(self.service_time(), deadline).await?;
            let now = self.service_time();
            let document = call.signed_body.then(|| body.segments().first()).flatten();
            let signed = match document {
                Some(document) => SignableBody::Bytes(document),
                None if body.is_empty() => SignableBody::empty(),
                None => SignableBody::UnsignedPayload,
            };
            let region = session.region.as_deref().unwrap_or_default();
            sign_request(&credentials, region, now, &call.method, &address.uri, &mut headers, signed)?;
            operation.credentials = Some(credentials);
        }
        let progress = Arc::new(Progress::new(Arc::clone(&inner.counters)));
        let mut request = Request::new(PayloadBody::new(body.clone(), &progress));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = address.uri;
        *request.headers_mut() = headers;
        Ok((session, request, progress))
    }

    fn asked<'a>(&self, call: &'a Call, session: &'a Session) -> Asked<'a> {
        let (region, now) = (session.region.as_deref(), self.service_time());
        Asked { operation: call.operation, bucket: &call.bucket, region, headers: &call.headers, now }
    }

    /// The service's time, as far as it is known.
    fn service_time(&self) -> SystemTime {
        let offset = self.inner.clock_offset_ms.load(Ordering::Relaxed);
        let distance = Duration::from_millis(offset.unsigned_abs());
        let now = clock::wall_now();
        let time = if offset < 0 { now.checked_sub(distance) } else { now.checked_add(distance) };
        time.unwrap_or(now)
    }

    fn adjust_clock(&self, service_time: SystemTime) {
        let now = clock::wall_now();
        let offset = match service_time.duration_since(now) {
            Ok(ahead) => i64::try_from(ahead.as_millis()).unwrap_or_default(),
            Err(behind) => -i64::try_from(behind.duration().as_millis()).unwrap_or_default(),
        };
        tracing::warn!(offset_ms = offset, "this machine's clock differs from the service's");
        self.inner.clock_offset_ms.store(offset, Ordering::Relaxed);
    }

    /// Sets what every written object carries by configuration.
    pub(crate) fn with_storage_headers(&self, mut call: Call) -> Result<Call, Error> {
        let config = &self.inner.config;
        match &config.server_side_encryption {
            None => {}
            Some(ServerSideEncryption::Aes256) => {
                call = call.header("x-amz-server-side-encryption", "AES256")?;
            }
            Some(ServerSideEncryption::AwsKms { key_id }) => {
                call = call.header("x-amz-server-side-encryption", "aws:kms")?;
                if let Some(key_id) = key_id {
                    call = call.header("x-amz-server-side-encryption-aws-kms-key-id", key_id)?;
                }
            }
        }
        match &config.storage_class {
            Some(class) => call.header("x-amz-storage-class", class),
            None => Ok(call),
        }
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(value).ok().filter(|value| value.to_str().is_ok()).ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("{name} must be printable ASCII, not {value:?}"))
    })
}

/// Whether it was the connection that failed, and not the service that answered.
fn lost_connection(error: &Error) -> bool {
    error.status().is_none() && matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Connection)
}

/// Whether the service misses a Content-MD5.
fn wants_md5(error: &Error) -> bool {
    let names = |text: &str| text.to_ascii_lowercase().replace('-', "").contains("contentmd5");
    error.status() == Some(400)
        && error.kind() == ErrorKind::Service
        && (names(error.message()) || error.code().is_some_and(names))
}

/// Whether the answer may mean that the service takes no headers of checksums. Some name them, some say of the whole
/// request that it is not understood, some say nothing.
fn may_refuse_checksums(call: &Call, failure: &Failure) -> bool {
    let message = failure.error.message().to_ascii_lowercase();
    let named = message.contains("checksum") || message.contains("x-amz-sdk");
    // Bytes that were damaged on their way are no refusal.
    let damaged = named && (message.contains("match") || message.contains("is invalid"));
    failure.error.not_understood() && !damaged && (named || !call.has_alternative)
}

/// What Content-MD5 is for this body. In steps, as nothing else goes on meanwhile on this thread.
async fn md5_of(body: &Payload) -> HeaderValue {
    let mut md5 = Md5::new();
    for step in body.segments().iter().flat_map(|segment| segment.chunks(MD5_STEP)) {
        md5.update(step);
        tokio::task::yield_now().await;
    }
    HeaderValue::from_str(&base64(&md5.finalize())).expect("base64 is ASCII")
}

fn finish(call: &Call, operation: &Operation, error: Error, elapsed: Duration) -> Error {
    call.locate(error)
        .with_attempts(operation.attempts.count, elapsed)
        .with_maybe_applied(operation.ambiguous)
}

/// A failure of what was read although the answer was a success: too short, not XML.
pub(crate) fn malformed(operation: &str, what: impl std::fmt::Display) -> Failure {
    let text = format!("{operation}: the service's answer is malformed: {what}");
    Failure::new(Class::Transient, Error::new(ErrorKind::Service, text))
}
