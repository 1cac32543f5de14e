//! What surrounds the S3 protocol on every request: request ids, the region check, polite refusals, scripted faults.
//!
//! A request without a valid signature costs its head and no more: it is answered, nothing of its body is read, and its
//! connection ends ([`Connection::linger`]).
//!
//! One that has a valid signature and is answered before its body was read (its bucket does not exist, say) keeps its
//! connection: [`DrainedBody`] reads the body to its end, up to a bound.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, EXPECT, HeaderValue, SERVER};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use s3s::Body;
use s3s::service::S3Service;

use crate::access::{Admission, InSession, Keys};
use crate::connection::Connection;
use crate::directory::is_directory;
use crate::express_signature;
use crate::faults::{Dropped, Faults, InjectedError, Target};
use crate::host::{Domains, bucket_and_key};
use crate::ids::Ids;
use crate::metrics;
use crate::partitions::{self, PartitionGate};
use crate::signature::{self, Refusal, credential_of};
use crate::stats::Counters;

/// Carries an object's size from an operation to [`invalid_range`]; never sent.
pub(crate) const OBJECT_SIZE_HEADER: &str = "x-s3dcp-object-size";

/// How much of an unwanted body is read, so that its connection can go on.
const COURTESY_BYTES: u64 = 64 << 20;

#[derive(Clone)]
pub(crate) struct HttpService {
    inner: Arc<Inner>,
}

struct Inner {
    s3: S3Service,
    keys: Keys,
    region: Option<String>,
    domains: Domains,
    faults: Arc<Faults>,
    partitions: Option<Arc<PartitionGate>>,
    counters: Arc<Counters>,
    ids: Ids,
}

impl HttpService {
    pub(crate) fn new(
        s3: S3Service,
        keys: Keys,
        region: Option<String>,
        domains: Domains,
        faults: Arc<Faults>,
        partitions: Option<Arc<PartitionGate>>,
        counters: Arc<Counters>,
    ) -> Self {
        let inner = Inner { s3, keys, region, domains, faults, partitions, counters, ids: Ids::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The response to a request that came over `connection`.
    pub(crate) async fn call(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Body>, Dropped> {
        let partitions = self.inner.partitions.as_deref();
        let figures =
            || (self.inner.counters.snapshot(), partitions.map(PartitionGate::views).unwrap_or_default());
        if let Some(page) = metrics::page(request.uri().path(), figures) {
            return Ok(page);
        }
        if let Some(gate) = partitions
            && let Some(page) = partitions::page(gate, request.uri().path())
        {
            return Ok(page);
        }
        let request_id = self.inner.ids.next();
        let request = drained(request, connection);
        let mut response = self.answer_or_fail(request, connection, &request_id).await?;
        if let Ok(value) = HeaderValue::try_from(request_id) {
            response.headers_mut().insert("x-amz-request-id", value);
        }
        response.headers_mut().insert(SERVER, HeaderValue::from_static("s3dcp"));
        if connection.lingers() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.inner.counters.response(response.status().as_u16());
        Ok(response)
    }

    /// The response, unless a scripted fault strikes.
    async fn answer_or_fail(
        &self,
        request: Request<Body>,
        connection: &Connection,
        request_id: &str,
    ) -> Result<Response<Body>, Dropped> {
        let Some(fault) = self.inner.faults.select(|| Target::of(&request, &self.inner.domains)) else {
            return Ok(self.answer(request, request_id).await);
        };
        if let Some(admission) = request.extensions().get::<Admission>() {
            // The fault plays a service that lets the request in.
            admission.grant();
        }
        let is_head = request.method() == Method::HEAD;
        match fault.before(request, connection).await? {
            ControlFlow::Break(InjectedError { status, code }) => {
                Ok(error(status, &code, "A scripted fault.", "", request_id))
            }
            ControlFlow::Continue(request) => {
                let response = self.answer(request, request_id).await;
                fault.after(response, connection, is_head).await
            }
        }
    }

    async fn answer(&self, mut request: Request<Body>, request_id: &str) -> Response<Body> {
        if let Err(refusal) = self.check_signature(&mut request) {
            return refuse(refusal, request_id);
        }
        if let Some((given, expected)) = self.wrong_region(&request) {
            return refuse_region(&given, expected, request_id);
        }
        match self.inner.s3.call(request).await {
            Ok(mut response) => match response.headers_mut().remove(OBJECT_SIZE_HEADER) {
                Some(size) => invalid_range(&size, request_id),
                None => response,
            },
            Err(error) => internal_error(&format!("{error:?}"), request_id),
        }
    }

    /// Judges the head of a request, and the whole signature of one about a directory bucket, which goes on as any other.
    fn check_signature(&self, request: &mut Request<Body>) -> Result<(), Refusal> {
        let Inner { keys, domains, .. } = &*self.inner;
        let bucket = bucket_and_key(request, domains).0.into_owned();
        let is_directory = is_directory(&bucket);
        let service = if is_directory { "s3express" } else { "s3" };
        signature::check(service, request.method(), request.uri(), request.headers())?;
        if is_directory {
            if let Some(mode) = express_signature::translate(request, &bucket, keys)? {
                request.extensions_mut().insert(InSession(mode));
            }
            return Ok(());
        }
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let access_key = authorization.and_then(|header| credential_of(header).split('/').next());
        // A session is good for its own bucket.
        match access_key.and_then(|key| keys.sessions.of(key)) {
            Some(_) => Err(express_signature::unknown_key()),
            None => Ok(()),
        }
    }

    /// The region a request is signed for and the region of this server, if they differ.
    fn wrong_region<B>(&self, request: &Request<B>) -> Option<(String, &str)> {
        let expected = self.inner.region.as_deref()?;
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = region_of(header, request.uri().query())?;
        (given != expected).then_some((given, expected))
    }
}

/// The region in the credential scope `<access key>/<date>/<region>/s3/aws4_request`, in a header or in a presigned query.
fn region_of(authorization: Option<&str>, query: Option<&str>) -> Option<String> {
    let scope = match authorization.and_then(|value| value.split_once("Credential=")) {
        Some((_, rest)) => rest.split(',').next()?.to_owned(),
        None => {
            let (_, rest) = query?.split_once("X-Amz-Credential=")?;
            percent_decode_str(rest.split('&').next()?).decode_utf8().ok()?.into_owned()
        }
    };
    scope.trim().rsplit('/').nth(2).map(str::to_owned)
}

fn refuse(refusal: Refusal, request_id: &str) -> Response<Body> {
    let Refusal { status, code, message, unsigned } = refusal;
    let more = match &unsigned[..] {
        [] => String::new(),
        names => format!("<HeadersNotSigned>{}</HeadersNotSigned>", names.join(", ")),
    };
    error(status, code, &message, &more, request_id)
}

fn refuse_region(given: &str, expected: &str, request_id: &str) -> Response<Body> {
    let message = format!(
        "The authorization header is malformed; the region '{given}' is wrong; expecting '{expected}'"
    );
    let region = format!("<Region>{expected}</Region>");
    let mut response =
        error(StatusCode::BAD_REQUEST, "AuthorizationHeaderMalformed", &message, &region, request_id);
    if let Ok(value) = HeaderValue::try_from(expected) {
        response.headers_mut().insert("x-amz-bucket-region", value);
    }
    response
}

/// The protocol crate has no field for the size, which S3 puts into this one error.
fn invalid_range(size: &HeaderValue, request_id: &str) -> Response<Body> {
    let size = size.to_str().unwrap_or_default();
    let message = "The requested range is not satisfiable";
    let more = format!("<ActualObjectSize>{size}</ActualObjectSize>");
    let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", message, &more, request_id);
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

fn internal_error(message: &str, request_id: &str) -> Response<Body> {
    error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message, "", request_id)
}

fn error(status: StatusCode, code: &str, message: &str, more: &str, request_id: &str) -> Response<Body> {
    let message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{message}</Message>{more}<RequestId>{request_id}</RequestId></Error>"
    );
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

fn drained(mut request: Request<Incoming>, connection: &Connection) -> Request<Body> {
    let admission = Admission::default();
    request.extensions_mut().insert(admission.clone());
    if request.body().is_end_stream() {
        return request.map(|_| Body::empty());
    }
    let expects_continue = request.headers().contains_key(EXPECT);
    let connection = connection.clone();
    request.map(|body| {
        Body::http_body(DrainedBody {
            body: Some(body),
            started: false,
            expects_continue,
            admission,
            connection,
        })
    })
}

/// A request body that is read to its end even if nobody wants it, once its request has come in.
struct DrainedBody {
    body: Option<Incoming>,
    started: bool,
    /// The client waits for `100 Continue` before it sends: without it there is nothing to read.
    expects_continue: bool,
    admission: Admission,
    connection: Connection,
}

impl http_body::Body for DrainedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.started = true;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        if body.is_end_stream() {
            return;
        }
        let may_never_come = self.expects_continue && !self.started;
        if may_never_come || !self.admission.is_granted() {
            self.connection.linger();
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let connection = self.connection.clone();
            runtime.spawn(async move {
                let mut read = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    read += frame.data_ref().map_or(0, |data| data.len() as u64);
                    if read > COURTESY_BYTES {
                        connection.linger();
                        break;
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_from_header_or_query() {
        let header = "AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        assert_eq!(region_of(Some(header), None).as_deref(), Some("eu-west-1"));
        let query =
            "X-Amz-Algorithm=a&X-Amz-Credential=AK%2F20260101%2Fus-west-2%2Fs3%2Faws4_request&X-Amz-Date=d";
        assert_eq!(region_of(None, Some(query)).as_deref(), Some("us-west-2"));
        assert_eq!(region_of(None, Some("list-type=2")), None);
        assert_eq!(region_of(Some("Basic abc"), None), None);
    }
}
