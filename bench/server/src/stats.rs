//! What the server saw since it was last asked: `GET /_stats` answers with it and starts anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Counts of requests, bytes and connections.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counts {
    /// By S3's name of the operation.
    pub(crate) requests: BTreeMap<&'static str, u64>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Connections that sent a request, at most at once.
    pub(crate) connections: u64,
    #[serde(skip)]
    open: u64,
}

/// The counts, shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<Counts>);

impl Stats {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opened(&self) {
        let mut counts = self.counts();
        counts.open += 1;
        counts.connections = counts.connections.max(counts.open);
    }

    pub(crate) fn closed(&self) {
        self.counts().open -= 1;
    }

    pub(crate) fn request(&self, operation: &'static str, bytes_in: u64, bytes_out: u64) {
        let mut counts = self.counts();
        *counts.requests.entry(operation).or_default() += 1;
        counts.bytes_in += bytes_in;
        counts.bytes_out += bytes_out;
    }

    /// The counts up to now; counting starts anew.
    pub(crate) fn take(&self) -> Counts {
        let mut counts = self.counts();
        let open = counts.open;
        std::mem::replace(&mut *counts, Counts { open, connections: 0, ..Counts::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_the_most_open_at_once_since_the_last_look() {
        let stats = Stats::default();
        stats.opened();
        stats.opened();
        stats.closed();
        stats.request("GetObject", 0, 7);
        let counts = stats.take();
        assert_eq!((counts.connections, counts.bytes_out), (2, 7));
        assert_eq!(counts.requests["GetObject"], 1);
        assert_eq!(stats.take().connections, 0);
        stats.opened();
        assert_eq!(stats.take().connections, 2);
    }
}
