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

use crate::address::{check_bucket, check_key};
use crate::answer::{Asked, error_inside, failure};
use crate::body::BodyReader;
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
use crate::transport::{Limits, deadline_passed};
use crate::turns;

/// Longest error document that is read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Longest answer that is kept in memory: a page of a listing has about 1 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// A request, ready to be sent any number of times.
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    method: Method,
    bucket: String,
    key: Option<String>,
    part: Option<u32>,
    query: String,
    pub(crate) headers: HeaderMap,
    body: Payload,
    /// A small body that the signature covers.
    signed_body: bool,
    writes: bool,
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
            body: Payload::default(),
            signed_body: false,
            writes,
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
        let text =
            HeaderValue::from_str(value).ok().filter(|value| value.to_str().is_ok()).ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("{name} must be printable ASCII, not {value:?}"))
            })?;
        self.headers.insert(HeaderName::from_static(name), text);
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
        self
    }

    /// A small document as the body, covered by the signature.
    pub(crate) fn document(mut self, document: String) -> Result<Call, Error> {
        self.body = Payload::from(Bytes::from(document));
        self.signed_body = true;
        self.header("content-type", "application/xml")
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
            return Err(failure(&asked(call, session), answer.status, &answer.headers, &body));
        }
        Ok(Reply { headers: answer.headers, body })
    }

    /// Sends the request once. Every status but success is a failure.
    pub(crate) async fn attempt(&self, call: &Call, operation: &mut Operation) -> Result<Answer, Failure> {
        let inner = &*self.inner;
        let permit = self.admitted(call, operation.started.is_some()).await;
        let started = *operation.started.get_or_insert_with(clock::now);
        let limits =
            Limits { read_timeout: inner.config.read_timeout, deadline: started + inner.config.deadline };
        let prepared = clock::before(limits.deadline, self.prepare(call, operation)).await;
        let (session, request, progress) = prepared.ok_or_else(deadline_passed)?.map_err(Failure::fatal)?;
        operation.attempts.count += 1;
        inner.counters.add_request();
        if operation.attempts.count > 1 {
            inner.counters.add_retry();
        }
        let sent = clock::now();
        operation.sent = Some(sent);
        let response = session.transport.send(request, &progress, limits).await?;
        let time = clock::now().duration_since(sent);
        match call.body.len() {
            0 => inner.link.answered(time),
            bytes => inner.link.carried(bytes, time),
        }
        let (head, body) = response.into_parts();
        let mut body = BodyReader::new(body, limits);
        if head.status.is_success() {
            inner.turns.admitted(call.turn());
            return Ok(Answer { status: head.status, headers: head.headers, body, _permit: permit });
        }
        // A broken or endless error document leaves the status, which is what counts.
        let document = body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
        let failure = failure(&asked(call, session), head.status, &head.headers, &document);
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
        let elapsed =
            operation.started.map_or(Duration::ZERO, |started| clock::now().duration_since(started));
        let policy = Policy { max_attempts: inner.config.max_attempts, deadline: inner.config.deadline };
        let verdict =
            operation.attempts.failed(&policy, failure.class, failure.retry_after, elapsed, clock::random());
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
                    (Some(cache), Some(rejected)) => cache.forget(rejected),
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

    pub(crate) async fn session(&self) -> Result<&Session, Error> {
        self.inner.session.get_or_try_init(|| Session::open(&self.inner.config)).await
    }

    async fn prepare(
        &self,
        call: &Call,
        operation: &mut Operation,
    ) -> Result<(&Session, Request<PayloadBody>, Arc<Progress>), Error> {
        let inner = &*self.inner;
        let session = self.session().await?;
        let address = session.endpoint.address(&call.bucket, call.key.as_deref(), &call.query)?;
        let mut headers = call.headers.clone();
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| Error::new(ErrorKind::Config, format!("cannot stand in a header: {text:?}")))
        };
        headers.insert(http::header::HOST, value(&address.host)?);
        if call.writes {
            headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        headers.insert(http::header::USER_AGENT, value(&inner.config.user_agent)?);
        if inner.config.requester_pays {
            headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        if let Some(cache) = &session.credentials {
            let now = self.service_time();
            let credentials = cache.get(now).await?;
            let document = call.signed_body.then(|| call.body.segments().first()).flatten();
            let body = match document {
                Some(document) => SignableBody::Bytes(document),
                None if call.body.is_empty() => SignableBody::empty(),
                None => SignableBody::UnsignedPayload,
            };
            let region = session.region.as_deref().unwrap_or_default();
            sign_request(&credentials, region, now, &call.method, &address.uri, &mut headers, body)?;
            operation.credentials = Some(credentials);
        }
        let progress = Arc::new(Progress::new(Arc::clone(&inner.counters)));
        let mut request = Request::new(PayloadBody::new(call.body.clone(), Arc::clone(&progress)));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = address.uri;
        *request.headers_mut() = headers;
        Ok((session, request, progress))
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

fn asked<'a>(call: &'a Call, session: &'a Session) -> Asked<'a> {
    let region = session.region.as_deref();
    Asked { operation: call.operation, bucket: &call.bucket, region, headers: &call.headers }
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
