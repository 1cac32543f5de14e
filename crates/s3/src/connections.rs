//! Connections for GETs, whose answers are read straight from the socket to where they belong.
//!
//! The HTTP library speaks for the head of an exchange only: it writes the request, parses the answer's head and
//! settles how its body is framed. A body of known length is then taken off its hands ([`crate::body`]), and the
//! stream comes back here when its last byte was read. Making a library connection of an idle stream costs no I/O, so
//! each exchange gets a new one. Any other body stays with the library.
//!
//! A stream that died while idle is replaced within the same attempt: a GET changes nothing, so it may be sent twice.
//! What this does not do: limit how many connections there are (the gate does), spread over a name's addresses.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Request, Response, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBuf};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::body::{Body, Framed, Plain};
use crate::clock::{self, Instant};

/// A connected stream, with TLS where the service wants it.
pub(crate) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// The body of a request that has none.
pub(crate) type NoBody = String;

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// Nothing was sent.
    Unconnected(Box<dyn StdError + Send + Sync>),
    /// The connection broke.
    Broken(hyper::Error),
}

/// Makes connections and keeps idle ones.
pub(crate) struct Connections {
    connector: HttpsConnector<HttpConnector>,
    shelf: Arc<Shelf>,
}

impl Connections {
    /// Connections that this connector makes, each kept so long when nobody uses it.
    pub(crate) fn new(connector: HttpsConnector<HttpConnector>, idle: Duration) -> Connections {
        Connections { connector, shelf: Arc::new(Shelf { idle, streams: Mutex::default() }) }
    }

    /// Sends a request, without its body, and reads the head of the answer. The URI is absolute.
    pub(crate) async fn get<B>(&self, request: Request<B>) -> Result<Response<Body>, NoAnswer> {
        let (mut head, _) = request.into_parts();
        let uri = std::mem::take(&mut head.uri);
        head.uri = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        let home = Home { authority: uri.authority().cloned(), shelf: Arc::clone(&self.shelf) };
        if let Some(stream) = home.stream().await {
            match exchange(stream, head.clone(), home.clone()).await {
                Err(error) => tracing::debug!(%error, "an idle connection was dead"),
                Ok(answer) => return Ok(answer),
            }
        }
        let stream = self.connector.clone().call(uri).await.map_err(NoAnswer::Unconnected)?;
        exchange(stream, head, home).await.map_err(NoAnswer::Broken)
    }
}

/// One request and the head of its answer.
async fn exchange(stream: Stream, head: Parts, home: Home) -> Result<Response<Body>, hyper::Error> {
    let (mut sender, connection) = http1::Builder::new().handshake::<_, NoBody>(stream).await?;
    let mut connection = Some(connection);
    let mut ended = false;
    let mut answer = std::pin::pin!(sender.send_request(Request::from_parts(head, NoBody::new())));
    let answer = poll_fn(|context| {
        if !ended && let Some(connection) = &mut connection {
            ended = connection.poll_without_shutdown(context).is_ready();
        }
        match answer.as_mut().poll(context) {
            Poll::Pending if ended => {
                connection = None; // which answers, with an error
                answer.as_mut().poll(context)
            }
            answer => answer,
        }
    })
    .await?;
    let (head, incoming) = answer.into_parts();
    let keep = !ended && keeps_alive(head.version, &head.headers);
    let body = match incoming.size_hint().exact() {
        Some(length) => {
            let (early, broken) = drained(incoming).await;
            let parts = connection.expect("it answered, so it was not given up").into_parts();
            let early = joined(early, parts.read_buf);
            Body::Plain(Box::new(Plain::new(length, early, broken, parts.io, home, keep)))
        }
        None => {
            let connection = connection.filter(|_| !ended);
            Body::Framed(Box::new(Framed::new(incoming, connection, sender, home, keep)))
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

/// Reads once, as far as the stream has something. 0: it has ended.
pub(crate) fn poll_read(
    stream: &mut Stream,
    context: &mut Context<'_>,
    memory: &mut [u8],
) -> Poll<std::io::Result<usize>> {
    let mut buffer = ReadBuf::new(memory);
    match Pin::new(stream).poll_read(context, buffer.unfilled()) {
        Poll::Ready(result) => Poll::Ready(result.map(|()| buffer.filled().len())),
        Poll::Pending => Poll::Pending,
    }
}

/// Idle streams.
struct Shelf {
    /// How long a stream is kept.
    idle: Duration,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    /// Whose, since when; the newest last.
    kept: Vec<(Option<Authority>, Instant, Stream)>,
    /// Whether [`Shelf::sweep`] runs.
    swept: bool,
}

impl Shelf {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes streams that have been idle too long, until none is left.
    async fn sweep(shelf: Weak<Shelf>, idle: Duration) {
        loop {
            clock::sleep(idle).await;
            let Some(shelf) = shelf.upgrade() else { return };
            let now = clock::now();
            let mut streams = shelf.streams();
            streams.kept.retain(|(_, since, _)| now.duration_since(*since) < idle);
            if streams.kept.is_empty() {
                streams.swept = false;
                return;
            }
        }
    }
}

/// Where a stream comes from and goes back to: the shelf, and the service's name there.
#[derive(Clone)]
pub(crate) struct Home {
    authority: Option<Authority>,
    shelf: Arc<Shelf>,
}

impl Home {
    /// The newest idle stream that is still open and silent, as it should be between two answers.
    async fn stream(&self) -> Option<Stream> {
        loop {
            let (since, mut stream) = {
                let kept = &mut self.shelf.streams().kept;
                let at = kept.iter().rposition(|(authority, ..)| *authority == self.authority)?;
                let (_, since, stream) = kept.remove(at);
                (since, stream)
            };
            let young = clock::now().duration_since(since) < self.shelf.idle;
            let silent =
                poll_fn(|context| Poll::Ready(poll_read(&mut stream, context, &mut [0]).is_pending()));
            if young && silent.await {
                return Some(stream);
            }
        }
    }

    /// Takes a stream whose last answer was read to its end.
    pub(crate) fn take_back(self, stream: Stream) {
        let mut streams = self.shelf.streams();
        streams.kept.push((self.authority, clock::now(), stream));
        if !std::mem::replace(&mut streams.swept, true) {
            tokio::spawn(Shelf::sweep(Arc::downgrade(&self.shelf), self.shelf.idle));
        }
    }
}
