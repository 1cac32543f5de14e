//! A client's connection, and how it ends: with a close, with a reset, or after a last look at what still comes.
//!
//! A socket that is closed with unread data resets its connection, and the reset can overtake the response that was sent
//! before. Where a request is answered although nobody reads its body, the connection *lingers*: it says that nothing more
//! will come, reads a little of what does, and is closed when the client has closed it or its time is up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a connection lingers.
const LINGER: Duration = Duration::from_secs(1);

/// How much is read meanwhile; the rest waits in the client's buffers and the system's.
const LINGER_BYTES: usize = 1 << 20;

/// What tells a [`ConnectionStream`] how to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    reset: AtomicBool,
    linger: AtomicBool,
}

impl Connection {
    /// The connection ends with a reset, whenever it ends.
    pub(crate) fn reset(&self) {
        self.0.reset.store(true, Ordering::Relaxed);
    }

    /// The connection ends with its response, and lingers.
    pub(crate) fn linger(&self) {
        self.0.linger.store(true, Ordering::Relaxed);
    }

    pub(crate) fn lingers(&self) -> bool {
        self.0.linger.load(Ordering::Relaxed)
    }

    pub(crate) fn stream(&self, stream: TcpStream) -> ConnectionStream {
        ConnectionStream { stream, connection: self.clone(), lingering: None }
    }

    fn is_reset(&self) -> bool {
        self.0.reset.load(Ordering::Relaxed)
    }
}

pub(crate) struct ConnectionStream {
    stream: TcpStream,
    connection: Connection,
    lingering: Option<Lingering>,
}

/// What is left of lingering.
struct Lingering {
    time: Pin<Box<Sleep>>,
    bytes: usize,
}

impl ConnectionStream {
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, lingering, .. } = self;
        let lingering = lingering.get_or_insert_with(|| Lingering {
            time: Box::pin(tokio::time::sleep(LINGER)),
            bytes: LINGER_BYTES,
        });
        while lingering.bytes > 0 && lingering.time.as_mut().poll(cx).is_pending() {
            let mut buffer = [0; 4096];
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    lingering.bytes = lingering.bytes.saturating_sub(buffer.filled().len());
                }
                _ => return Poll::Ready(()),
            }
        }
        lingering.time.as_mut().poll(cx)
    }
}

impl AsyncRead for ConnectionStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ConnectionStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_reset() {
            return Poll::Ready(Ok(()));
        }
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.connection.lingers() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ConnectionStream {
    fn drop(&mut self) {
        if self.connection.is_reset() {
            // Without it the connection closes in order, which a client takes for a cut response.
            let _best_effort = self.stream.set_zero_linger();
        }
    }
}
