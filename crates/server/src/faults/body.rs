//! Bodies that do not arrive as they were sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use s3s::{Body, StdError};
use tokio::time::Sleep;

use crate::connection::Connection;

/// The connection is to close without a response.
#[derive(Debug)]
pub(crate) struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a scripted fault closes the connection")
    }
}

impl std::error::Error for Dropped {}

/// How long the connection has to send what came before it ends.
const FLUSH: Duration = Duration::from_millis(20);

/// How a body ends before its end.
pub(super) enum Ending {
    /// As if nothing more were to come.
    Proper,
    /// With its connection closed.
    Cut,
    /// With its connection reset.
    Reset(Connection),
    /// Never.
    Stall,
}

/// The first bytes of a body.
pub(super) struct Shortened {
    inner: Body,
    remaining: u64,
    ending: Ending,
    flush: Option<Pin<Box<Sleep>>>,
}

impl Shortened {
    pub(super) fn new(inner: Body, bytes: u64, ending: Ending) -> Self {
        Self { inner, remaining: bytes, ending, flush: None }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        match &self.ending {
            Ending::Proper => return Poll::Ready(None),
            Ending::Stall => return Poll::Pending,
            Ending::Cut | Ending::Reset(_) => {}
        }
        let flush = self.flush.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH)));
        ready!(flush.as_mut().poll(cx));
        if let Ending::Reset(connection) = &self.ending {
            connection.reset();
        }
        Poll::Ready(Some(Err(Dropped.into())))
    }
}

impl http_body::Body for Shortened {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if self.remaining == 0 {
            return self.poll_end(cx);
        }
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame.map_data(|mut data| {
                data.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
                self.remaining -= data.len() as u64;
                data
            })))),
            end => Poll::Ready(end),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.ending {
            Ending::Proper => SizeHint::with_exact(self.remaining.min(self.inner.size_hint().lower())),
            _ => self.inner.size_hint(),
        }
    }
}

/// A body with one bit changed.
pub(super) struct Flipped {
    inner: Body,
    /// The byte of the change, counted from here; `None` once it passed.
    byte: Option<u64>,
    mask: u8,
}

impl Flipped {
    pub(super) fn new(inner: Body, bit: u64) -> Self {
        Self { inner, byte: Some(bit / 8), mask: 1 << (bit % 8) }
    }
}

impl http_body::Body for Flipped {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(Some(Ok(frame.map_data(|data| {
            let Some(byte) = self.byte else { return data };
            match usize::try_from(byte).ok().filter(|&byte| byte < data.len()) {
                None => {
                    self.byte = Some(byte - data.len() as u64);
                    data
                }
                Some(byte) => {
                    self.byte = None;
                    let mut changed = BytesMut::from(&data[..]);
                    changed[byte] ^= self.mask;
                    changed.freeze()
                }
            }
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
