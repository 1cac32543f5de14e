//! The client handle: settings checked, counters, and what all operations share.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use tokio::sync::OnceCell;

use crate::config::ClientConfig;
use crate::error::Error;
use crate::gate::{Budget, Gate};
use crate::session::{Session, custom_endpoint};
use crate::stats::{Counters, Stats};

/// A client of one S3 service. Cloning is cheap, and clones share connections, credentials and limits.
///
/// All asynchronous methods must be called within a tokio runtime with time and I/O enabled; the connections belong
/// to the runtime of the first request. A process that forks must make a new client in the child.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) session: OnceCell<Session>,
    pub(crate) gate: Gate,
    pub(crate) budget: Budget,
    pub(crate) counters: Arc<Counters>,
    /// The service's clock minus ours, in milliseconds.
    pub(crate) clock_offset_ms: AtomicI64,
}

impl Client {
    /// A client with these settings. Does no I/O and needs no runtime.
    ///
    /// # Errors
    /// `Config`, naming the setting, its value and the limit.
    pub fn new(config: ClientConfig) -> Result<Client, Error> {
        let config = config.resolved()?;
        if config.endpoint_url.is_some() {
            custom_endpoint(&config, &|_| None)?;
        }
        let inner = Inner {
            session: OnceCell::new(),
            gate: Gate::new(config.max_connections),
            budget: Budget::new(config.max_in_flight_bytes),
            counters: Arc::default(),
            clock_offset_ms: AtomicI64::new(0),
            config,
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The settings, with derived ones filled in.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// What the client has done so far.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}
