//! The client handle: settings checked, counters, and what all operations share.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use s3dcp_pacing::Share;
use tokio::sync::OnceCell;

use crate::admission::Admission;
use crate::auth::express_sessions::ExpressSessions;
use crate::auth::session::Session;
use crate::config::ClientConfig;
use crate::config::settings::Setting;
use crate::error::Error;
use crate::protocol::address::join_key;
use crate::stats::{Counters, Stats};
use crate::store::Store;
use crate::transfer::network_estimate::NetworkEstimate;
use crate::transfer::part_size::Capacity;

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
    pub(crate) express_sessions: ExpressSessions,
    pub(crate) store: Store,
    pub(crate) admission: Admission,
    pub(crate) counters: Arc<Counters>,
    pub(crate) network: NetworkEstimate,
    /// The service's clock minus ours, in milliseconds.
    pub(crate) clock_offset_ms: AtomicI64,
}

impl Client {
    /// A client with these settings. Does no I/O and needs no runtime.
    ///
    /// # Errors
    /// `Config`, naming the setting or the environment variable, its value and the limit.
    pub fn new(config: ClientConfig) -> Result<Client, Error> {
        let first = config.first_connections();
        let config = config.resolved()?;
        let counters = Arc::<Counters>::default();
        let inner = Inner {
            session: OnceCell::new(),
            express_sessions: ExpressSessions::default(),
            store: Store::new(config.checksum_headers == Some(true)),
            admission: Admission::new(first, config.connections(), config.in_flight_bytes(), &counters),
            counters,
            network: NetworkEstimate::default(),
            clock_offset_ms: AtomicI64::new(0),
            config,
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The settings, with derived ones filled in.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Bytes that one range should have when `total` bytes are to be read, in whole MiB of at least `smallest`:
    /// enough that waiting for responses does not show, and that not more than `requests_per_second` are sent.
    pub fn range_size(&self, total: u64, smallest: u64, requests_per_second: Option<f64>) -> u64 {
        self.capacity(requests_per_second).request_size(Some(total), smallest)
    }

    pub(crate) fn capacity(&self, requests_per_second: Option<f64>) -> Capacity {
        let inner = &*self.inner;
        Capacity {
            connections: inner.admission.connections(),
            latency: inner.network.latency(),
            rate: inner.network.rate(),
            network: inner.config.network_bytes_per_second(),
            requests_per_second: requests_per_second.filter(|budget| *budget > 0.0),
            in_flight: inner.config.in_flight_bytes(),
        }
    }

    /// This client's part in the pace that the clients of a job agree on, for writes or else reads of keys below
    /// `path_key` from now on. There are so many of them, this one included. What they `found` for all together before, in requests
    /// per second, is what they begin at.
    pub fn share_pace(
        &self,
        write: bool,
        bucket: &str,
        path_key: &str,
        clients: u32,
        found: Option<f64>,
    ) -> PaceShare {
        let within = format!("{bucket}/{}", join_key(path_key, ""));
        PaceShare {
            share: self.inner.admission.share(write, &within, clients, found),
            client: self.clone(),
            write,
        }
    }

    /// Whether these share connections and credentials: whether one is a clone of the other.
    #[must_use]
    pub fn is_same(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether both ask one service, be it in other regions or with other credentials: AWS, or the same endpoint. Whether it lets
    /// one of them copy what the other reads is for the service to say.
    ///
    /// # Errors
    /// `Config` where region or endpoint are missing or cannot work; those of reading a profile.
    pub async fn is_of_same_service(&self, other: &Client) -> Result<bool, Error> {
        Ok(self.session().await?.endpoint.is_of_same_service(&other.session().await?.endpoint))
    }

    /// The settings that the client goes by, and where each of them stands; with a bucket, also what they come to for it.
    /// Sends nothing.
    ///
    /// # Errors
    /// `Config`, for the first of them that cannot be.
    pub async fn settings(&self, bucket: Option<&str>) -> Result<Vec<Setting>, Error> {
        self.session().await?.told(bucket)
    }

    /// What the client has done so far.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }
}

/// A client's part in a pace that the clients of a job agree on: see [`s3dcp_pacing::Share`].
#[derive(Debug)]
pub struct PaceShare {
    client: Client,
    write: bool,
    share: Share,
}

impl PaceShare {
    /// How often to exchange, with so many clients.
    pub fn period(clients: u32) -> Duration {
        Share::period(clients)
    }

    /// What to add to the counter that all share; `None` while the service has not asked this client for fewer requests.
    pub fn change(&mut self) -> Option<i64> {
        self.client.inner.admission.change(self.write, &mut self.share)
    }

    /// Takes over the pace that the counter stands for, which is at this now.
    pub fn agree(&mut self, counter: i64) {
        self.client.inner.admission.agree(self.write, &mut self.share, counter);
    }

    /// Requests per second that all clients have found together, while they are at it; `None` while nothing is held back.
    pub fn found(&self) -> Option<f64> {
        self.client.inner.admission.found(self.write, &self.share)
    }

    /// What to add to the counter at the end; `None` when nothing was added before.
    pub fn leave(&mut self) -> Option<i64> {
        self.share.leave()
    }

    /// What to add after that, if nobody is left; the counter is at this then.
    pub fn remainder(counter: i64) -> Option<i64> {
        Share::remainder(counter)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}
