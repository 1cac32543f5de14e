//! One operation: sign and send a request, judge the response, try again.
//!
//! [`Client::attempt`] is one try, [`Client::recover`] what happens between two. Operations whose response is small use
//! [`Client::execute`]; downloads drive the two themselves, because they go on where a broken response ended.
//!
//! What tries once or recovers is boxed: it is compiled here once, rather than in every crate that awaits an operation.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_types::base64;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Either, select};
use http::{HeaderMap, HeaderValue, Method, Request, Response as HttpResponse, StatusCode};
use md5::{Digest, Md5};

use crate::admission::retry::{Attempts, Class, Failure, Policy, Remedy, Verdict};
use crate::admission::{Outcome, Permit};
use crate::auth::session::Session;
use crate::auth::sign::{Scope, Service, sign_request};
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::config::ServerSideEncryption;
use crate::error::{Error, ErrorKind, invalid};
use crate::http::body::{Body, BodyReader};
use crate::http::limits::{Limits, deadline_passed, host_and_port};
use crate::http::progress::Progress;
use crate::operation::call::{Call, WhenLate};
use crate::protocol::bucket::AccessPoint;
use crate::protocol::checksum::{CRC32_HEADER, parse_crc32, size_and_crc32};
use crate::protocol::error_response::{Context, error_inside, failure, header};
use crate::transfer::payload::{Payload, PayloadBody};

/// Longest error document that is read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Longest response that is kept in memory: a page of a listing has about 1 MiB.
const MAX_RESPONSE: usize = 64 << 20;

/// The storage classes of directory buckets: in availability zones, and in dedicated local zones.
const DIRECTORY_CLASSES: [&str; 2] = ["EXPRESS_ONEZONE", "ONEZONE_IA"];

/// Bytes whose MD5 is computed in one go, some two milliseconds.
const MD5_STEP: usize = 1 << 20;

/// The attempts of one operation.
#[derive(Default)]
pub(crate) struct Operation {
    attempts: Attempts,
    /// The first attempt's admission; waiting for it costs nothing of the deadline.
    started: Option<Instant>,
    ambiguous: bool,
    /// The latest response that asked for fewer requests.
    slowed_down: Option<Error>,
    /// Why the latest attempt failed.
    failed: Option<Error>,
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
    /// Attempts so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.count
    }

    /// Whether an earlier attempt may have taken effect.
    pub(crate) fn ambiguous(&self) -> bool {
        self.ambiguous
    }
}

/// A response with a success status, its body still to be read. Holds the permit until dropped.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: BodyReader,
    pub(crate) permit: Permit,
}

/// A response that was read whole. What it says of the load is still to be told to its permit.
pub(crate) struct WholeResponse {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) permit: Permit,
}

impl Client {
    /// Does the whole operation and returns the response.
    pub(crate) async fn execute(&self, call: &Call) -> Result<WholeResponse, Error> {
        self.execute_as(call, &mut Operation::default()).await
    }

    /// The same, with attempts that the caller can look at afterwards.
    pub(crate) async fn execute_as(
        &self,
        call: &Call,
        operation: &mut Operation,
    ) -> Result<WholeResponse, Error> {
        loop {
            match self.attempt_whole(call, operation).await {
                Ok(response) => {
                    response.permit.answered(Outcome::Admitted);
                    return Ok(response);
                }
                Err(failure) => self.recover(call, operation, failure).await?,
            }
        }
    }

    /// Sends the request once and reads the response whole, in which there may be an error in spite of its status.
    pub(crate) fn attempt_whole<'a>(
        &'a self,
        call: &'a Call,
        operation: &'a mut Operation,
    ) -> BoxFuture<'a, Result<WholeResponse, Failure>> {
        self.try_once_whole(call, operation).boxed()
    }

    async fn try_once_whole(&self, call: &Call, operation: &mut Operation) -> Result<WholeResponse, Failure> {
        let Response { status, headers, mut body, permit } = self.try_once(call, operation).await?;
        let body = body.collect(MAX_RESPONSE).await?;
        if error_inside(&body).is_some() {
            let session = self.session().await.map_err(Failure::fatal)?;
            let failure = failure(&self.asked(call, session), status, &headers, &body);
            permit.answered(outcome(&failure));
            return Err(failure);
        }
        self.understood(call, operation);
        Ok(WholeResponse { headers, body, permit })
    }

    /// Sends the request once. Every status but success is a failure; what a success says of the load is still to be told to
    /// its permit.
    pub(crate) fn attempt<'a>(
        &'a self,
        call: &'a Call,
        operation: &'a mut Operation,
    ) -> BoxFuture<'a, Result<Response, Failure>> {
        self.try_once(call, operation).boxed()
    }

    async fn try_once(&self, call: &Call, operation: &mut Operation) -> Result<Response, Failure> {
        let inner = &*self.inner;
        let attempt = operation.attempts.count + 1;
        let deadline = operation.started.map(|started| started + inner.config.deadline);
        let permit = match call.is_waited_for {
            true => Some(inner.admission.pass(&call.keys, attempt)),
            false => inner.admission.enter(&call.keys, attempt, deadline).await,
        };
        let Some(mut permit) = permit else {
            return Err(operation.failed.take().map_or_else(deadline_passed, Failure::fatal));
        };
        let started = *operation.started.get_or_insert_with(clock::now);
        let deadline = started + inner.config.deadline;
        let prepared = clock::before(deadline, self.prepare(call, operation, deadline)).await;
        let (session, request, progress) = prepared.ok_or_else(deadline_passed)?.map_err(Failure::fatal)?;
        let host = host_and_port(request.uri()).into();
        let limits = Limits { read_timeout: inner.config.read_timeout, deadline, host };
        operation.attempts.count = attempt;
        permit.leave();
        let sent = clock::now();
        let ambiguous = &mut operation.ambiguous;
        let response = self
            .answer(call, session, request, (&progress, limits.clone(), false), &permit, ambiguous)
            .await?;
        let time = clock::now().duration_since(sent);
        inner.counters.add_latency(time);
        match call.body.len() {
            0 => inner.network.answered(time),
            bytes => inner.network.carried(bytes, time),
        }
        let (head, body) = response.into_parts();
        let mut body = BodyReader::new(body, limits);
        if head.status.is_success() {
            return Ok(Response { status: head.status, headers: head.headers, body, permit });
        }
        // A broken or endless error document leaves the status, which is what counts.
        let document = body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
        let failure = failure(&self.asked(call, session), head.status, &head.headers, &document);
        permit.answered(outcome(&failure));
        Err(failure)
    }

    /// Sends a request, and does what the call says where its answer is late: sent again it goes over another connection (`anew`), as
    /// often as it is late. Of a read the first answer counts. What writes is given up before; it may have taken effect.
    async fn answer(
        &self,
        call: &Call,
        session: &Session,
        request: Request<PayloadBody>,
        (progress, limits, anew): (&Progress, Limits, bool),
        permit: &Permit,
        ambiguous: &mut bool,
    ) -> Result<HttpResponse<Body>, Failure> {
        let (transport, hedging) = (&session.transport, permit.hedging());
        let started = clock::now();
        let late_after = match call.when_late {
            WhenLate::Wait => None,
            // What an earlier attempt has written says nothing of this one, which may yet be carried out.
            WhenLate::Look if *ambiguous => None,
            _ if call.is_waited_for => None,
            _ => hedging.late_after(call.operation, started),
        };
        let copy = late_after.filter(|_| call.when_late == WhenLate::SendAgain).map(|_| request.clone());
        let mut first = Box::pin(transport.send(request, progress, limits.clone(), anew));
        let mut silence = None;
        let late = || {
            tracing::debug!(operation = call.operation, key = call.key, "an answer is late: asking again");
            permit.leave_again();
        };
        let mut after = late_after;
        let answered = loop {
            match progress.until_silent(after, first.as_mut()).await {
                // others have used up what may be sent again by now; later there is more
                None if !hedging.take(clock::now()) => {
                    after = after.zip(late_after).map(|(after, more)| after + more);
                }
                answered => break answered,
            }
        };
        let answer = match (answered, copy) {
            (Some(answer), _) => {
                silence = Some(progress.longest_silence());
                answer
            }
            (None, None) => {
                late();
                match select(first, pin!(self.look(call, limits))).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right((Some(found), _)) => Ok(found),
                    Either::Right((None, first)) => first.await,
                }
            }
            (None, Some(copy)) => {
                late();
                let progress = Arc::new(Progress::new(Arc::clone(&self.inner.counters)));
                let copy = copy.map(|body| body.again(Arc::clone(&progress)));
                *ambiguous |= call.writes;
                let second = (&*progress, limits, true);
                let second = Box::pin(self.answer(call, session, copy, second, permit, ambiguous));
                if call.writes {
                    drop(first);
                    hedging.answered(call.operation, clock::now().duration_since(started));
                    return second.await;
                }
                match select(first, second).await {
                    Either::Left((Ok(answer), _)) | Either::Right((Ok(answer), _)) => Ok(answer),
                    Either::Left((Err(_), second)) => second.await,
                    Either::Right((Err(_), first)) => first.await,
                }
            }
        };
        if answer.is_ok() {
            let silence = silence.unwrap_or_else(|| clock::now().duration_since(started));
            hedging.answered(call.operation, silence);
        }
        answer
    }

    /// The answer to a HEAD, if the object has the length and the CRC-32 of the call's body.
    async fn look(&self, call: &Call, limits: Limits) -> Option<HttpResponse<Body>> {
        let crc32 = header(&call.checksums, CRC32_HEADER).and_then(parse_crc32)?;
        let look = Call::new("HeadObject", Method::HEAD, &call.bucket, call.key.as_deref()).ok()?;
        let look = look.checksum("x-amz-checksum-mode", "ENABLED").ok()?;
        let prepared = self.prepare(&look, &mut Operation::default(), limits.deadline).await;
        let (session, request, progress) = prepared.ok()?;
        let found = session.transport.send(request, &progress, limits, true).await.ok()?;
        let is_written = size_and_crc32(found.headers()) == (Some(call.body.len()), Some(crc32));
        (found.status().is_success() && is_written).then_some(found)
    }

    /// Applies a remedy and waits for its pause; or hands out the final error.
    pub(crate) fn recover<'a>(
        &'a self,
        call: &'a Call,
        operation: &'a mut Operation,
        failure: Failure,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.adapt_or_wait(call, operation, failure).boxed()
    }

    async fn adapt_or_wait(
        &self,
        call: &Call,
        operation: &mut Operation,
        failure: Failure,
    ) -> Result<(), Error> {
        let inner = &*self.inner;
        operation.ambiguous |= failure.ambiguous && call.writes;
        if failure.class == Class::Throttled {
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
                let renewed = |rejected| {
                    if call.service() == Service::ExpressSession {
                        return self.express_session(&call.bucket).invalidate(rejected, self.service_time());
                    }
                    let own = inner.session.get().and_then(|session| session.credentials.as_ref());
                    own.is_some_and(|own| own.invalidate(rejected, self.service_time()))
                };
                if !operation.credentials.as_ref().is_some_and(renewed) {
                    return Err(finish(call, operation, error, elapsed));
                }
            }
            Some(Remedy::SendAgain) | None => {}
        }
        tracing::debug!(
            operation = call.operation, bucket = call.bucket, key = call.key, part = call.part,
            attempt = operation.attempts.count, ?pause, %error, "trying again"
        );
        operation.failed = Some(error);
        clock::sleep(pause).await;
        Ok(())
    }

    /// Whether the same request is worth sending at once in another form. Finding out what a service takes is no failure of a
    /// request, and counts as none.
    async fn adapt(&self, call: &Call, operation: &mut Operation, failure: &Failure) -> bool {
        // Directory buckets know no MD5.
        let is_express = call.service() != Service::S3;
        if call.object_body && operation.md5.is_none() && !is_express && wants_md5(&failure.error) {
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
        let open = async || {
            let session = Session::open(&self.inner.config).await?;
            self.inner.store.begin(session.checksums());
            Ok(session)
        };
        self.inner.session.get_or_try_init(open).await
    }

    async fn prepare(
        &self,
        call: &Call,
        operation: &mut Operation,
        deadline: Instant,
    ) -> Result<(&Session, Request<PayloadBody>, Arc<Progress>), Error> {
        let inner = &*self.inner;
        let session = self.session().await?;
        let service = call.service();
        if service != Service::S3 {
            self.check_for_directory_bucket()?;
        }
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
        if let Some(own) = &session.credentials {
            let credentials = match service {
                Service::S3 | Service::Express => own.get(self.service_time(), deadline).await?,
                Service::ExpressSession => {
                    self.express_session(&call.bucket).get(self.service_time(), deadline).await?
                }
            };
            let document = call.signed_body.then(|| body.segments().first()).flatten();
            let signed = match document {
                Some(document) => SignableBody::Bytes(document),
                None if body.is_empty() => SignableBody::empty(),
                None => SignableBody::UnsignedPayload,
            };
            let region = address.region.as_deref().or(session.region.as_deref()).unwrap_or_default();
            let scope = Scope { region, service, time: self.service_time() };
            sign_request(&credentials, scope, &call.method, &address.uri, &mut headers, signed)?;
            operation.credentials = Some(credentials);
        }
        let progress = Arc::new(Progress::new(Arc::clone(&inner.counters)));
        let mut request = Request::new(PayloadBody::new(body.clone(), Arc::clone(&progress)));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = address.uri;
        *request.headers_mut() = headers;
        Ok((session, request, progress))
    }

    fn asked<'a>(&self, call: &'a Call, session: &'a Session) -> Context<'a> {
        let access_point = AccessPoint::of(&call.bucket).ok().flatten();
        let region = access_point.map(|point| point.region).or(session.region.as_deref());
        Context {
            operation: call.operation,
            bucket: &call.bucket,
            region,
            endpoint: &session.endpoint,
            headers: &call.headers,
            in_session: call.service() == Service::ExpressSession,
            now: self.service_time(),
        }
    }

    /// The service's time, as far as it is known.
    pub(crate) fn service_time(&self) -> SystemTime {
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
    pub(crate) fn with_storage_headers(&self, call: Call) -> Result<Call, Error> {
        let call = self.with_encryption(call)?;
        let Some(class) = &self.inner.config.storage_class else { return Ok(call) };
        if call.service() != Service::S3 && !DIRECTORY_CLASSES.contains(&&**class) {
            return Err(call.locate(invalid(format!(
                "storage_class must be {} in a directory bucket, not {class:?}",
                DIRECTORY_CLASSES.join(" or ")
            ))));
        }
        call.header("x-amz-storage-class", class)
    }

    /// Sets the encryption that objects get by configuration.
    pub(crate) fn with_encryption(&self, call: Call) -> Result<Call, Error> {
        match &self.inner.config.server_side_encryption {
            None => Ok(call),
            Some(ServerSideEncryption::Aes256) => call.header("x-amz-server-side-encryption", "AES256"),
            Some(ServerSideEncryption::AwsKms { key_id }) => {
                let call = call.header("x-amz-server-side-encryption", "aws:kms")?;
                match key_id {
                    Some(key_id) => call.header("x-amz-server-side-encryption-aws-kms-key-id", key_id),
                    None => Ok(call),
                }
            }
        }
    }

    /// Refuses settings that directory buckets do not have.
    fn check_for_directory_bucket(&self) -> Result<(), Error> {
        let config = &self.inner.config;
        let set = [("unsigned", config.unsigned), ("requester_pays", config.requester_pays)];
        match set.iter().find(|(_, on)| *on) {
            Some((setting, _)) => Err(invalid(format!("{setting} cannot be used with a directory bucket"))),
            None => Ok(()),
        }
    }
}

/// What a failed attempt's response says of the load.
fn outcome(failure: &Failure) -> Outcome {
    if failure.class == Class::Throttled { Outcome::Refused } else { Outcome::Admitted }
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

/// Whether the response may mean that the service takes no headers of checksums. Some name them, some say of the whole
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
    HeaderValue::from_str(&base64::encode(md5.finalize())).expect("base64 is ASCII")
}

fn finish(call: &Call, operation: &Operation, error: Error, elapsed: Duration) -> Error {
    // Where it is the error of what the request waited for, the attempts are those at that.
    let attempts = operation.attempts.count.max(error.attempts());
    call.locate(error).with_attempts(attempts, elapsed).with_maybe_applied(operation.ambiguous)
}

/// A failure of what was read although the response was a success: too short, not XML.
pub(crate) fn malformed(operation: &str, what: impl std::fmt::Display) -> Failure {
    let text = format!("{operation}: the service's answer is malformed: {what}");
    Failure::new(Class::Transient, Error::new(ErrorKind::Service, text))
}
