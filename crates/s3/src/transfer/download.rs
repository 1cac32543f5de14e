//! Many ranges at once, each into a sink of its own.
//!
//! Ranges are read by as many tasks as there may be connections, so that copying and checking use all cores. A sink
//! is reached through a slot that the download can empty: when it ends, for whatever reason, no sink is written to
//! any more, which is what lets sinks point into memory that the caller owns. The slot is locked for one read from
//! a socket that does not wait, or for one write.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::HeaderMap;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::http::body::{ReadInto, Received, Receiver};
use crate::transfer::begun::interrupted;
use crate::transfer::fetch::ObjectReceiver;

/// Where the next bytes of a range go.
#[derive(Debug)]
pub enum Space<'a> {
    /// Into this memory (not empty), from its start on: the engine reads from the socket into it, and calls
    /// [`RangeSink::filled`].
    Memory(&'a mut [u8]),
    /// Through [`RangeSink::write`]. After so many bytes (at least 1) the engine asks again.
    Write(usize),
}

/// Takes the bytes of a range, in order and each once; after a broken connection the engine asks for the rest only.
/// Called from the runtime's threads, one call at a time.
pub trait RangeSink: Send {
    /// Where the next bytes go. Those that came along with a response's head, or in frames, are written all the same.
    fn space(&mut self) -> Space<'_> {
        Space::Write(usize::MAX)
    }

    /// The first `count` bytes of the memory that [`RangeSink::space`] gave are now the next bytes of the range.
    ///
    /// # Errors
    /// An error ends the whole download.
    fn filled(&mut self, count: usize) -> Result<(), Error> {
        let _ = count;
        Ok(())
    }

    /// The next bytes.
    ///
    /// # Errors
    /// An error ends the whole download.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// The range will be fed again from its first byte.
    fn restart(&mut self);

    /// All bytes were written.
    ///
    /// # Errors
    /// After `Corrupt` the engine restarts the range and reads it once more; any error then ends the download.
    fn finish(&mut self) -> Result<(), Error>;
}

/// One range to read.
pub struct RangeRead {
    /// Key of the object.
    pub key: String,
    /// Bytes of the object.
    pub range: Range<u64>,
    /// Where they go.
    pub sink: Box<dyn RangeSink>,
}

impl std::fmt::Debug for RangeRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeRead")
            .field("key", &self.key)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

type Slot = Arc<Mutex<Option<Box<dyn RangeSink>>>>;

struct Job {
    key: String,
    range: Range<u64>,
    slot: Slot,
}

/// Empties all slots when the download ends, also when its future is dropped. Waits for at most one read or write per slot.
struct Revoke(Vec<Slot>);

impl Drop for Revoke {
    fn drop(&mut self) {
        for slot in &self.0 {
            slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

struct SlotReceiver(Slot);

impl SlotReceiver {
    fn with<T>(&self, use_sink: impl FnOnce(&mut dyn RangeSink) -> Result<T, Error>) -> Result<T, Error> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(sink) => use_sink(sink.as_mut()),
            None => Err(Error::new(ErrorKind::Interrupted, "the download was stopped")),
        }
    }
}

impl Receiver for SlotReceiver {
    fn receive(&mut self, read: ReadInto<'_>) -> Result<Received, Error> {
        // The slot is held during the read, which waits for nothing.
        self.with(|sink| {
            let count = match sink.space() {
                Space::Memory(memory) => read(memory),
                Space::Write(most) => return Ok(Received::Copy(most)),
            };
            if let Poll::Ready(Ok(count)) = count {
                sink.filled(count)?;
            }
            Ok(Received::Read(count))
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.with(|sink| sink.write(bytes))
    }
}

impl ObjectReceiver for SlotReceiver {
    fn begin(&mut self, _headers: &HeaderMap, _length: Option<u64>) -> Result<(), Error> {
        Ok(())
    }

    fn restart(&mut self) {
        // A slot that was emptied fails at the next write.
        self.with(|sink| {
            sink.restart();
            Ok(())
        })
        .ok();
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.with(|sink| sink.finish())
    }
}

impl Client {
    /// Reads all ranges, in the given order as far as connections allow, and feeds each to its sink.
    ///
    /// When this returns, or when its future is dropped, no sink is written to any more.
    ///
    /// # Errors
    /// The first failure of any range; the others are stopped.
    pub async fn download(&self, bucket: &str, reads: Vec<RangeRead>) -> Result<(), Error> {
        let jobs: Vec<Job> = reads
            .into_iter()
            .map(|read| Job { key: read.key, range: read.range, slot: Arc::new(Mutex::new(Some(read.sink))) })
            .collect();
        let _revoke = Revoke(jobs.iter().map(|job| Arc::clone(&job.slot)).collect());
        let count = jobs.len().min(self.config().connections());
        let queue = Arc::new(Mutex::new(jobs.into_iter()));
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (client, bucket, queue) = (self.clone(), bucket.to_owned(), Arc::clone(&queue));
            tasks.spawn(async move {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(job) = job else { return Ok(()) };
                    let mut receiver = SlotReceiver(job.slot);
                    client.fetch(&bucket, &job.key, Some(job.range), &mut receiver).await?;
                    // Its memory is done with: let go of it now, not at the end.
                    receiver.0.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
            });
        }
        let mut result = Ok(());
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|error| Err(interrupted(error)))
                && result.is_ok()
            {
                result = Err(error);
                tasks.abort_all();
            }
        }
        result
    }
}
