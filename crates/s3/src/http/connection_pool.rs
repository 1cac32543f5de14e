//! Connections, each of which carries one request after the other.
//!
//! The HTTP library speaks for one exchange: it writes the request, parses the response's head and settles how its body is
//! framed. The body of known length that answers a request without one is then taken off its hands ([`crate::http::body`]), to be
//! read straight from the socket to where it belongs; the stream comes back here when its last byte was read. Any other
//! body stays with the library. Making a library connection of an idle stream costs no I/O, so each exchange gets a new one,
//! which lives in the request's own future: dropping that closes the stream and lets go of the body at once.
//!
//! A stream that died while idle is replaced within the same attempt where the request was not sent or changes nothing.
//! Where one is lost in another way, silence included, [`Connections::drop_idle`] lets no other of its time cost an
//! attempt too. An idle stream to an address that is left out ([`crate::http::addresses`]) is closed. What this does not do: limit how
//! many connections there are (admission does).

use std::error::Error as StdError;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use tower_service::Service;

use crate::clock;
use crate::http::addresses::Asked;
use crate::http::body::{Body, Framed, Plain};
use crate::http::idle_streams::{IdleStreams, Origin, Stream};
use crate::http::proxy::{Connector, Proxies, Proxy};
use crate::http::resolver::Resolver;
use crate::transfer::payload::PayloadBody;

/// Why there is no response.
pub(crate) enum NoResponse {
    /// Nothing was sent.
    Unconnected(Box<dyn StdError + Send + Sync>),
    /// The connection broke.
    Broken(hyper::Error),
}

/// Makes connections and keeps idle ones.
pub(crate) struct Connections {
    connector: HttpsConnector<Connector>,
    proxies: Arc<Proxies>,
    resolver: Arc<Resolver>,
    idle: Arc<IdleStreams>,
}

impl Connections {
    /// Connections that this connector makes with these proxies and this resolver, each kept so long when nobody uses it.
    pub(crate) fn new(
        connector: HttpsConnector<Connector>,
        proxies: Arc<Proxies>,
        resolver: Arc<Resolver>,
        idle: Duration,
    ) -> Connections {
        Connections { connector, proxies, resolver, idle: Arc::new(IdleStreams::new(idle)) }
    }

    /// The proxy that requests to this URI go by.
    pub(crate) fn proxy(&self, uri: &Uri) -> Option<Proxy> {
        self.proxies.of(uri)
    }

    /// Sends a request and reads the head of the response. The URI is absolute. With `anew` it goes over a new connection.
    pub(crate) async fn send(
        &self,
        mut request: Request<PayloadBody>,
        anew: bool,
    ) -> Result<Response<Body>, NoResponse> {
        let uri = std::mem::take(request.uri_mut());
        let asked = self.proxies.of(&uri).filter(|_| uri.scheme() == Some(&Scheme::HTTP));
        *request.uri_mut() = match &asked {
            None => uri.path_and_query().cloned().map(Uri::from).unwrap_or_default(),
            // Without TLS it is the proxy that is asked, for the whole URL.
            Some(proxy) => {
                let authorization = proxy.authorization().cloned();
                request.headers_mut().extend(authorization.map(|value| (header::PROXY_AUTHORIZATION, value)));
                uri.clone()
            }
        };
        let origin = Origin::new(uri.authority().cloned(), &self.idle);
        let host = uri.host().unwrap_or_default().to_owned();
        let idle = if anew { None } else { self.idle_stream(&origin, &host).await };
        if let Some(stream) = idle {
            let changes_nothing = matches!(*request.method(), Method::GET | Method::HEAD);
            let copy = changes_nothing.then(|| request.clone());
            match self.timed_exchange(stream, request, origin.clone(), &host).await {
                Ok(response) => return Ok(response),
                Err(Unanswered { error, unsent }) => match unsent.or(copy) {
                    Some(again) => {
                        tracing::debug!(%error, "an idle connection was dead");
                        request = again;
                    }
                    None => return Err(NoResponse::Broken(error)),
                },
            }
        }
        let stream = self.connector.clone().call(uri).await.map_err(NoResponse::Unconnected)?;
        let answered = self.timed_exchange(stream, request, origin, &host).await;
        answered.map_err(|unanswered| NoResponse::Broken(unanswered.error))
    }

    /// An idle stream to an address that is not left out.
    async fn idle_stream(&self, origin: &Origin, host: &str) -> Option<Stream> {
        loop {
            let stream = origin.stream().await?;
            if !address(&stream).is_some_and(|address| self.resolver.is_left_out(host, address)) {
                return Some(stream);
            }
        }
    }

    /// One exchange, of whose time the resolver hears.
    async fn timed_exchange(
        &self,
        stream: Stream,
        request: Request<PayloadBody>,
        origin: Origin,
        host: &str,
    ) -> Result<Response<Body>, Unanswered> {
        let (address, asked) = (address(&stream), Asked::of(request.body().size_hint().exact().unwrap_or(0)));
        let started = clock::now();
        let response = exchange(stream, request, origin).await?;
        if let Some(address) = address {
            self.resolver.answered(host, address, asked, clock::now().duration_since(started));
        }
        Ok(response)
    }

    /// Closes all idle connections. What took one away (a network's equipment that forgets connections, a service that
    /// restarts) took its neighbours too, mostly without a word, and each of them would cost an attempt. Those in use show for
    /// themselves whether they are alive, before they come back.
    pub(crate) fn drop_idle(&self) {
        self.idle.clear();
    }
}

/// The address at the other end.
fn address(stream: &Stream) -> Option<IpAddr> {
    let tcp = match stream {
        MaybeHttpsStream::Http(tcp) => tcp.inner(),
        MaybeHttpsStream::Https(tls) => tls.inner().get_ref().0.inner().inner(),
    };
    tcp.peer_addr().ok().map(|address| address.ip())
}

/// A request that was not answered.
struct Unanswered {
    error: hyper::Error,
    /// The request, where not a byte of it was sent.
    unsent: Option<Request<PayloadBody>>,
}

/// One request and the head of its response.
async fn exchange(
    stream: Stream,
    request: Request<PayloadBody>,
    origin: Origin,
) -> Result<Response<Body>, Unanswered> {
    let broken = |error| Unanswered { error, unsent: None };
    let (mut sender, connection) =
        http1::Builder::new().writev(true).handshake(stream).await.map_err(broken)?;
    let mut connection = Some(connection);
    let mut ended = false;
    // A response may come before the request's body was sent: then the library has more to write.
    let sent_whole = request.body().is_end_stream();
    let mut response = std::pin::pin!(sender.try_send_request(request));
    let response = poll_fn(|context| {
        if !ended && let Some(connection) = &mut connection {
            ended = connection.poll_without_shutdown(context).is_ready();
        }
        match response.as_mut().poll(context) {
            Poll::Pending if ended => {
                connection = None; // which answers, with an error
                response.as_mut().poll(context)
            }
            response => response,
        }
    })
    .await
    .map_err(|mut failed| {
        let unsent = failed.take_message();
        Unanswered { error: failed.into_error(), unsent }
    })?;
    let (head, incoming) = response.into_parts();
    let keep = !ended && keeps_alive(head.version, &head.headers);
    let body = match incoming.size_hint().exact().filter(|_| sent_whole) {
        Some(length) => {
            let (early, broken) = drained(incoming).await;
            let parts = connection.expect("it answered, so it was not given up").into_parts();
            let early = joined(early, parts.read_buf);
            Body::Plain(Box::new(Plain::new(length, early, broken, parts.io, origin, keep)))
        }
        None => {
            let connection = connection.filter(|_| !ended);
            Body::Framed(Box::new(Framed::new(incoming, connection, sender, origin, keep)))
        }
    };
    Ok(Response::from_parts(head, body))
}

/// What the library has read of a body already, and how the connection broke if it did. Waits for nothing.
async fn drained(mut incoming: Incoming) -> (Bytes, Option<hyper::Error>) {
    let mut early = Bytes::new();
    let broken = poll_fn(|context| {
        while let Poll::Ready(Some(frame)) = Pin::new(&mut incoming).poll_frame(context) {
            match frame.map(|frame| frame.into_data().unwrap_or_default()) {
                Ok(bytes) => early = joined(std::mem::take(&mut early), bytes),
                Err(error) => return Poll::Ready(Some(error)),
            }
        }
        Poll::Ready(None)
    })
    .await;
    (early, broken)
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, _) => second,
        _ => {
            let mut both = BytesMut::from(first);
            both.extend_from_slice(&second);
            both.freeze()
        }
    }
}

/// Whether the service will take another request on this connection.
fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let closes = |value: &http::HeaderValue| {
        value
            .to_str()
            .map_or(true, |text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("close")))
    };
    version == Version::HTTP_11 && !headers.get_all(header::CONNECTION).iter().any(closes)
}
