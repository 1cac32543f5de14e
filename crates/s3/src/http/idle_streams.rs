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
            if !idle.expire(clock::now()) {
                return;
            }
        }
    }

    /// Closes what has been idle too long by now. Whether any are left, and the sweep has to go on.
    fn expire(&self, now: Instant) -> bool {
        let mut streams = self.streams();
        streams.kept.retain(|(_, since, _)| now.duration_since(*since) < self.longest);
        streams.swept = !streams.kept.is_empty();
        streams.swept
    }

    /// Keeps a stream from now on. Whether the sweep has to begin.
    fn keep(&self, authority: Option<Authority>, stream: Stream, now: Instant) -> bool {
        let mut streams = self.streams();
        streams.kept.push((authority, now, stream));
        !std::mem::replace(&mut streams.swept, true)
    }

    /// The newest stream of this service that has not been idle too long by now.
    fn newest(&self, authority: &Option<Authority>, now: Instant) -> Option<Stream> {
        let kept = &mut self.streams().kept;
        let at = kept.iter().rposition(|(whose, ..)| whose == authority)?;
        let (_, since, stream) = kept.remove(at);
        // Those before it are older.
        (now.duration_since(since) < self.longest).then_some(stream)
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
            let mut stream = self.idle.newest(&self.authority, clock::now())?;
            let silent =
                poll_fn(|context| Poll::Ready(poll_read(&mut stream, context, &mut [0]).is_pending()));
            if silent.await {
                return Some(stream);
            }
        }
    }

    /// Takes a stream whose last response was read to its end.
    pub(crate) fn take_back(self, stream: Stream) {
        if self.idle.keep(self.authority, stream, clock::now()) {
            tokio::spawn(IdleStreams::sweep(Arc::downgrade(&self.idle), self.idle.longest));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::transport::IDLE;

    /// A stream, and its other end.
    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (MaybeHttpsStream::Http(TokioIo::new(stream)), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_stream_is_used_again_only_before_s3_would_have_closed_it() {
        const S3_KEEPS_IT: Duration = Duration::from_secs(5);
        let start = clock::now();
        for (idle, expected) in [
            (Duration::ZERO, true),
            (IDLE - Duration::from_millis(1), true),
            (IDLE, false),
            (S3_KEEPS_IT, false),
        ] {
            let streams = IdleStreams::new(IDLE);
            let (stream, _other) = pair().await;
            assert!(streams.keep(None, stream, start), "the sweep begins with the first");
            assert_eq!(streams.newest(&None, start + idle).is_some(), expected, "{idle:?}");
            assert!(streams.newest(&None, start).is_none(), "taken or closed");
        }
    }

    #[tokio::test]
    async fn the_sweep_closes_what_was_idle_too_long_and_ends_with_the_last() {
        let (start, half) = (clock::now(), IDLE / 2);
        let streams = IdleStreams::new(IDLE);
        let ((first, _one), (second, _two)) = (pair().await, pair().await);
        assert!(streams.keep(None, first, start));
        assert!(!streams.keep(None, second, start + half));
        assert!(streams.expire(start + IDLE));
        assert_eq!(streams.streams().kept.len(), 1);
        assert!(!streams.expire(start + IDLE + half));
        assert!(streams.keep(None, pair().await.0, start), "it has to begin anew");
    }
}
