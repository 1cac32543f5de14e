//! Waiting until nothing uses the caller's memory any more.
//!
//! Whatever reads or writes memory that Python gets back (a download's task, the body of a request) holds a [`Use`].
//! Giving it up is quick but not instant: a task ends where it next waits, a connection drops a body when it sees that
//! nobody wants the answer. The wait is a plain blocking one, so it works in `Drop`, without a runtime and without
//! the GIL, which no thread that uses memory ever takes.

use std::convert::Infallible;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A use of memory, until it is dropped.
#[derive(Clone)]
pub(crate) struct Use {
    _sender: Sender<Infallible>,
}

/// All uses of some memory.
pub(crate) struct Uses {
    /// None once no use may begin any more.
    sender: Mutex<Option<Sender<Infallible>>>,
    /// Hangs up when the last use ends.
    receiver: Mutex<Receiver<Infallible>>,
}

impl Uses {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender: Mutex::new(Some(sender)), receiver: Mutex::new(receiver) }
    }

    /// Begins a use; None after [`Uses::end`].
    pub(crate) fn begin(&self) -> Option<Use> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sender.map(|sender| Use { _sender: sender })
    }

    /// Lets no use begin any more and waits until all have ended.
    pub(crate) fn end(&self) {
        self.closed().recv().ok();
    }

    /// The same, but for so long at most.
    pub(crate) fn end_within(&self, limit: Duration) {
        self.closed().recv_timeout(limit).ok();
    }

    fn closed(&self) -> MutexGuard<'_, Receiver<Infallible>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
