//! Reading the body of a response, with limits on silence.
//!
//! A body of known length that answers a request without one is read from the socket into memory that the receiver offers;
//! where it offers none, through one buffer per thread, which stays in the processor's cache because it is emptied
//! before anything else happens on that thread. All other bodies come in the HTTP library's buffers.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest};

use crate::admission::retry::{Class, Failure};
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::http::idle_streams::{Origin, Stream, poll_read};
use crate::http::limits::{Limits, causes};
use crate::transfer::payload::PayloadBody;

/// Most bytes of one read. Much of what a read from a full socket costs is per call, so that few large ones are cheaper,
/// even though their bytes have left the processor's nearer caches when the checksum is computed.
const READ_BYTES: usize = 4 << 20;

/// Bytes of the buffer for receivers without memory of their own.
const COPY_BYTES: usize = 1 << 20;

thread_local! {
    static COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One read from a connection into this memory; the number of bytes, 0 at the end.
pub(crate) type ReadInto<'a> = &'a mut dyn FnMut(&mut [u8]) -> Poll<io::Result<usize>>;

/// What a receiver did with an offer to read.
pub(crate) enum Received {
    /// It had memory, and this came of it.
    Read(Poll<io::Result<usize>>),
    /// It has none for the next bytes: at most so many shall come through `write`.
    Copy(usize),
}

/// Where the bytes of a body go.
pub(crate) trait Receiver: Send {
    /// Calls `read` once with the memory of the next bytes, if there is any.
    fn receive(&mut self, _read: ReadInto<'_>) -> Result<Received, Error> {
        Ok(Received::Copy(usize::MAX))
    }

    /// The next bytes, in order.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;
}

/// The body of a response.
pub(crate) enum Body {
    /// Of a known length, with nothing else to do on its stream.
    Plain(Box<Plain>),
    /// Any other, on a stream that the library reads.
    Framed(Box<Framed>),
}

/// A body of known length.
pub(crate) struct Plain {
    /// Came with the head.
    early: Bytes,
    /// Bytes that are still on the wire.
    left: u64,
    /// How the connection broke after the early bytes.
    broken: Option<hyper::Error>,
    /// The stream and where it belongs; `None` once it is back or closed.
    stream: Option<(Stream, Origin)>,
    /// Whether the stream can be used again.
    keep: bool,
}

impl Plain {
    pub(crate) fn new(
        length: u64,
        mut early: Bytes,
        broken: Option<hyper::Error>,
        stream: Stream,
        origin: Origin,
        keep: bool,
    ) -> Plain {
        let fits = early.len() as u64 <= length;
        if !fits {
            early.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        }
        let left = length - early.len() as u64;
        let keep = keep && fits && broken.is_none();
        let mut body = Plain { early, left, broken, stream: Some((stream, origin)), keep };
        body.release_if_read();
        body
    }

    /// Gives the stream back when nothing of this body is on it.
    fn release_if_read(&mut self) {
        if self.left == 0
            && let Some((stream, origin)) = self.stream.take()
            && self.keep
        {
            origin.take_back(stream);
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        to: &mut dyn Receiver,
    ) -> Poll<Result<Option<usize>, Failure>> {
        if !self.early.is_empty() {
            let bytes = std::mem::take(&mut self.early);
            to.write(&bytes).map_err(Failure::fatal)?;
            return Poll::Ready(Ok(Some(bytes.len())));
        }
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(broken(error)));
        }
        let Some((stream, _)) = self.stream.as_mut().filter(|_| self.left > 0) else {
            return Poll::Ready(Ok(None));
        };
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(READ_BYTES);
        let received = to.receive(&mut |memory| {
            let most = most.min(memory.len());
            poll_read(stream, context, &mut memory[..most])
        });
        let count = match received.map_err(Failure::fatal)? {
            Received::Read(count) => ready!(count),
            Received::Copy(wanted) => ready!(COPY.with_borrow_mut(|buffer| {
                buffer.resize(COPY_BYTES, 0);
                let most = most.min(wanted.clamp(1, COPY_BYTES));
                let count = ready!(poll_read(stream, context, &mut buffer[..most]));
                if let Ok(count) = count {
                    to.write(&buffer[..count]).map_err(Failure::fatal)?;
                }
                Poll::Ready(Ok::<_, Failure>(count))
            }))?,
        };
        let count = match count {
            Ok(0) => {
                return Poll::Ready(Err(broken(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it was closed before the end",
                ))));
            }
            Ok(count) => count,
            Err(error) => return Poll::Ready(Err(broken(error))),
        };
        self.left -= count as u64;
        self.release_if_read();
        Poll::Ready(Ok(Some(count)))
    }
}

/// A body that the HTTP library takes out of its frames.
pub(crate) struct Framed {
    incoming: Incoming,
    connection: Option<Connection<Stream, PayloadBody>>,
    sender: SendRequest<PayloadBody>,
    origin: Origin,
    keep: bool,
}

impl Framed {
    pub(crate) fn new(
        incoming: Incoming,
        connection: Option<Connection<Stream, PayloadBody>>,
        sender: SendRequest<PayloadBody>,
        origin: Origin,
        keep: bool,
    ) -> Framed {
        Framed { incoming, connection, sender, origin, keep }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            self.drive(context);
            match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Poll::Ready(Some(Ok(bytes))),
                    _ => {}
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.drive(context);
                    if let Some(connection) =
                        self.connection.take().filter(|_| self.keep && self.sender.is_ready())
                    {
                        let parts = connection.into_parts();
                        if parts.read_buf.is_empty() {
                            self.origin.clone().take_back(parts.io);
                        }
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Lets the library read, and drops the connection when it has ended.
    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && connection.poll_without_shutdown(context).is_ready()
        {
            self.connection = None;
        }
    }
}

/// Reads a response's body.
pub(crate) struct BodyReader {
    body: Body,
    timer: Pin<Box<tokio::time::Sleep>>,
    limits: Limits,
}

impl BodyReader {
    pub(crate) fn new(body: Body, limits: Limits) -> BodyReader {
        BodyReader { body, timer: Box::pin(clock::timer(limits.deadline)), limits }
    }

    /// Hands the next bytes, at most `most`, to the receiver; how many, or `None` at the end.
    pub(crate) async fn read(&mut self, to: &mut dyn Receiver, most: u64) -> Result<Option<usize>, Failure> {
        let BodyReader { body, timer, limits } = self;
        let mut armed = false;
        poll_fn(|context| {
            match poll_body(body, context, to, most) {
                // Of a body that never pauses the timer sees nothing.
                Poll::Ready(Ok(Some(_))) if clock::now() >= limits.deadline => {
                    return Poll::Ready(Err(limits.deadline_passed("while reading the answer")));
                }
                Poll::Ready(result) => return Poll::Ready(result),
                Poll::Pending => {}
            }
            if !armed {
                armed = true;
                timer.as_mut().reset((clock::now() + limits.read_timeout).min(limits.deadline));
            }
            ready!(timer.as_mut().poll(context));
            Poll::Ready(Err(if clock::now() >= limits.deadline {
                limits.deadline_passed("while reading the answer")
            } else {
                limits.silence("while reading the answer")
            }))
        })
        .await
    }

    /// The whole body, at most `limit` bytes.
    pub(crate) async fn collect(&mut self, limit: usize) -> Result<Bytes, Failure> {
        struct Whole(BytesMut, usize);
        impl Receiver for Whole {
            fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
                if self.0.len() + bytes.len() > self.1 {
                    let text = format!("the service's answer is longer than {} bytes", self.1);
                    return Err(Error::new(ErrorKind::Service, text));
                }
                self.0.extend_from_slice(bytes);
                Ok(())
            }
        }
        let mut whole = Whole(BytesMut::new(), limit);
        while self.read(&mut whole, u64::MAX).await?.is_some() {}
        Ok(whole.0.freeze())
    }
}

fn poll_body(
    body: &mut Body,
    context: &mut Context<'_>,
    to: &mut dyn Receiver,
    most: u64,
) -> Poll<Result<Option<usize>, Failure>> {
    let bytes = match body {
        Body::Plain(plain) => return plain.poll(context, to),
        Body::Framed(framed) => ready!(framed.poll(context)),
    };
    Poll::Ready(match bytes {
        None => Ok(None),
        Some(Err(error)) => Err(broken(error)),
        Some(Ok(bytes)) if bytes.len() as u64 > most => {
            let text = "the service's answer is malformed: more bytes than its length";
            Err(Failure::new(Class::Transient, Error::new(ErrorKind::Service, text)))
        }
        Some(Ok(bytes)) => to.write(&bytes).map(|()| Some(bytes.len())).map_err(Failure::fatal),
    })
}

fn broken(error: impl StdError + Send + Sync + 'static) -> Failure {
    let text = format!("the connection broke while reading the answer: {}", causes(&error));
    Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text).with_source(error)).ambiguous()
}
