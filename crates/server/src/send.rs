//! Handing out an object's bytes.
//!
//! From memory the stored chunks themselves go to the connection. From disk a window is read at a time, and the next one
//! only when the connection asks for it; the first is read before the response begins, while a failure can still be told.

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::task::JoinHandle;

use crate::object::Segment;
use crate::stats::Counters;

const WINDOW_BYTES: u64 = 1 << 20;

/// The bytes of some segments, in order.
pub(crate) struct Sender {
    segments: VecDeque<Segment>,
    remaining: u64,
    open: Option<OpenFile>,
    reading: Option<JoinHandle<io::Result<(OpenFile, Bytes)>>>,
    /// What was read before anyone asked for it.
    first: Option<Bytes>,
    counters: Arc<Counters>,
}

/// The file of the first segment, and how much of the segment is still to come.
struct OpenFile {
    file: File,
    remaining: u64,
}

impl Sender {
    /// Opens the first segment and reads the beginning of it.
    pub(crate) async fn open(segments: Vec<Segment>, counters: Arc<Counters>) -> io::Result<Self> {
        let remaining = segments.iter().map(Segment::size).sum();
        let mut sender =
            Self { segments: segments.into(), remaining, open: None, reading: None, first: None, counters };
        sender.first = poll_fn(|cx| sender.poll_bytes(cx)).await.transpose()?;
        Ok(sender)
    }

    /// The next bytes, as they lie in memory or as they are read.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            if let Some(reading) = &mut self.reading {
                let result = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                return Poll::Ready(Some(result.map_err(io::Error::other).flatten().map(|(file, bytes)| {
                    if file.remaining > 0 {
                        self.open = Some(file);
                    } else {
                        self.segments.pop_front();
                    }
                    bytes
                })));
            }
            match self.segments.front() {
                None => return Poll::Ready(None),
                Some(segment) if segment.size() == 0 => {
                    self.segments.pop_front();
                }
                Some(Segment::Memory(bytes)) => {
                    let bytes = bytes.clone();
                    self.segments.pop_front();
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Segment::File { file, start, size }) => {
                    let (file, start, size) = (Arc::clone(file), *start, *size);
                    let open = self.open.take();
                    self.reading = Some(tokio::task::spawn_blocking(move || {
                        let open = match open {
                            Some(open) => open,
                            None => {
                                let mut opened = File::open(file.path())?;
                                opened.seek(SeekFrom::Start(start))?;
                                OpenFile { file: opened, remaining: size }
                            }
                        };
                        read_window(open)
                    }));
                }
            }
        }
    }
}

impl Stream for Sender {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let bytes = ready!(self.poll_bytes(cx)).transpose()?;
        if let Some(bytes) = &bytes {
            self.remaining -= bytes.len() as u64;
            self.counters.sent(bytes.len());
        }
        Poll::Ready(bytes.map(Ok))
    }
}

fn read_window(mut open: OpenFile) -> io::Result<(OpenFile, Bytes)> {
    let wanted = open.remaining.min(WINDOW_BYTES);
    let mut window = Vec::with_capacity(wanted as usize);
    (&mut open.file).take(wanted).read_to_end(&mut window)?;
    if window.len() as u64 != wanted {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a data file is shorter than its object"));
    }
    open.remaining -= wanted;
    Ok((open, Bytes::from(window)))
}

impl ByteStream for Sender {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.remaining)
            .map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
