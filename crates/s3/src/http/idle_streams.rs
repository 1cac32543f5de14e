//! Connected streams that wait for their next request.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Authority;
use hyper::rt::{Read, ReadBuf};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::clock::{self, Instant};

/// A connected stream, with TLS where the service wants it.
pub(crate) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

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

/// The idle streams of one client.
pub(crate) struct IdleStreams {
    /// How long a stream is kept.
    longest: Duration,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    /// Whose, since when; the newest last.
    kept: Vec<(Option<Authority>, Instant, Stream)>,
    /// Whether [`IdleStreams::sweep`] runs.
    swept: bool,
}

impl IdleStreams {
    /// Streams that are each kept so long when nobody uses them.
    pub(crate) fn new(longest: Duration) -> IdleStreams {
        IdleStreams { longest, streams: Mutex::default() }
    }

    /// Closes all of them.
    pub(crate) fn clear(&self) {
        self.streams().kept.clear();
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes streams that have been idle too long, until none is left.
    async fn sweep(idle: Weak<IdleStreams>, longest: Duration) {
        loop {
            clock::sleep(longest).await;
            let Some(idle) = idle.upgrade() else { return };
            let now = clock::now();
            let mut streams = idle.streams();
            streams.kept.retain(|(_, since, _)| now.duration_since(*since) < longest);
            if streams.kept.is_empty() {
                streams.swept = false;
                return;
            }
        }
    }
}

/// A service, and its idle streams.
#[derive(Clone)]
pub(crate) struct Origin {
    authority: Option<Authority>,
    idle: Arc<IdleStreams>,
}

impl Origin {
    /// The service of this name.
    pub(crate) fn new(authority: Option<Authority>, idle: &Arc<IdleStreams>) -> Origin {
        Origin { authority, idle: Arc::clone(idle) }
    }

    /// The newest idle stream that is still open and silent, as it should be between two responses.
    pub(crate) async fn stream(&self) -> Option<Stream> {
        loop {
            let (since, mut stream) = {
                let kept = &mut self.idle.streams().kept;
                let at = kept.iter().rposition(|(authority, ..)| *authority == self.authority)?;
                let (_, since, stream) = kept.remove(at);
                (since, stream)
            };
            let young = clock::now().duration_since(since) < self.idle.longest;
            let silent =
                poll_fn(|context| Poll::Ready(poll_read(&mut stream, context, &mut [0]).is_pending()));
            if young && silent.await {
                return Some(stream);
            }
        }
    }

    /// Takes a stream whose last response was read to its end.
    pub(crate) fn take_back(self, stream: Stream) {
        let mut streams = self.idle.streams();
        streams.kept.push((self.authority, clock::now(), stream));
        if !std::mem::replace(&mut streams.swept, true) {
            tokio::spawn(IdleStreams::sweep(Arc::downgrade(&self.idle), self.idle.longest));
        }
    }
}
