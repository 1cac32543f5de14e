//! Connections to a name: over all of its addresses in turn ([`crate::http::addresses`]), and over several network interfaces.
//!
//! A name is looked up when the first connection is made, and now and then later, beside what goes on. An address that has not
//! taken a connection within [`STAGGER`] is not waited for alone: the next is tried too, and whoever is first has it (RFC 8305).

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service as _;

use crate::clock;
use crate::config::resolve::Resolve;
use crate::http::addresses::{Addresses, Asked};
use crate::http::limits::{causes, find};

/// How long an address may take to accept a connection before another is tried beside it.
const STAGGER: Duration = Duration::from_millis(300);

type BoxError = Box<dyn StdError + Send + Sync>;

/// The system's numbers for what is no network interface, and for one that is not to be chosen.
const NO_DEVICE: i32 = 19;
const NOT_PERMITTED: i32 = 1;

/// There is no connection by a network interface that was named.
#[derive(Debug)]
pub(crate) struct InterfaceError {
    interface: String,
    error: BoxError,
}

impl fmt::Display for InterfaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network_interfaces: cannot connect by {:?}: {}", self.interface, causes(&*self.error))
    }
}

impl StdError for InterfaceError {}

/// As the system looks up names.
#[derive(Debug)]
struct System;

impl Resolve for System {
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(
            async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|found| found.ip()).collect()) },
        )
    }
}

/// Opens connections to the addresses of names.
pub(crate) struct Resolver {
    look_up: Arc<dyn Resolve>,
    names: Mutex<HashMap<String, Addresses>>,
    /// Held while a name is looked up for the first time.
    first: tokio::sync::Mutex<()>,
    /// Network interfaces that connections take turns over; the system chooses where there are none.
    interfaces: Vec<String>,
    turn: AtomicUsize,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver::new(None, Vec::new())
    }
}

impl Resolver {
    /// Looks names up by `look_up`, else as the system does, and connects by these network interfaces in turn.
    pub(crate) fn new(look_up: Option<Arc<dyn Resolve>>, interfaces: Vec<String>) -> Resolver {
        Resolver {
            look_up: look_up.unwrap_or_else(|| Arc::new(System)),
            names: Mutex::default(),
            first: tokio::sync::Mutex::default(),
            interfaces,
            turn: AtomicUsize::new(0),
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Addresses>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the addresses of a name that was looked up.
    fn with<R>(&self, host: &str, act: impl FnOnce(&mut Addresses) -> R) -> Option<R> {
        self.names().get_mut(host).map(act)
    }

    /// The addresses for one connection, the one whose turn it is first.
    async fn turns(self: &Arc<Self>, host: &str) -> io::Result<Vec<IpAddr>> {
        let now = clock::now();
        let known = |addresses: &mut Addresses| (addresses.turns(now), addresses.begins_look_up(now));
        if let Some((turns, begins)) = self.with(host, known) {
            if begins {
                let (resolver, host) = (Arc::clone(self), host.to_owned());
                tokio::spawn(async move {
                    if let Err(error) = resolver.look_up(&host).await {
                        tracing::debug!(host, %error, "a name could not be looked up again");
                    }
                });
            }
            return Ok(turns);
        }
        let _first = self.first.lock().await;
        if self.with(host, |_| ()).is_none() {
            self.look_up(host).await?;
        }
        Ok(self.with(host, |addresses| addresses.turns(now)).unwrap_or_default())
    }

    async fn look_up(&self, host: &str) -> io::Result<()> {
        let mut found = self.look_up.resolve(host.to_owned()).await?;
        if found.is_empty() {
            return Err(io::Error::other(format!("no address is known for {host}")));
        }
        // Of many clients that a name server tells the same, each begins elsewhere.
        let first = (clock::random() * found.len() as f64) as usize % found.len();
        found.rotate_left(first);
        self.names().entry(host.to_owned()).or_default().found(&found, clock::now());
        Ok(())
    }

    /// Opens a connection to where a URI points.
    pub(crate) async fn connect(
        self: Arc<Self>,
        mut tcp: HttpConnector,
        uri: Uri,
    ) -> Result<TokioIo<TcpStream>, BoxError> {
        let Some(interface) = self.interface() else { return self.connect_by(tcp, uri).await };
        tcp.set_interface(interface);
        let opened = self.connect_by(tcp, uri).await;
        opened.map_err(|error| match find::<io::Error>(&*error).and_then(io::Error::raw_os_error) {
            Some(NO_DEVICE | NOT_PERMITTED) => {
                Box::new(InterfaceError { interface: interface.to_owned(), error }) as BoxError
            }
            _ => error,
        })
    }

    async fn connect_by(
        self: &Arc<Self>,
        mut tcp: HttpConnector,
        uri: Uri,
    ) -> Result<TokioIo<TcpStream>, BoxError> {
        let host = uri.host().unwrap_or_default();
        if address_of(host).is_some() {
            return Ok(tcp.call(uri).await?);
        }
        let mut turns = self.turns(host).await?.into_iter();
        let first = turns.as_slice().first().copied();
        let mut running = FuturesUnordered::new();
        let mut late: Vec<IpAddr> = Vec::new();
        let mut failed: Option<BoxError> = None;
        loop {
            if let Some(address) = turns.next() {
                let (mut tcp, to) = (tcp.clone(), at(&uri, address)?);
                running.push(async move { (address, tcp.call(to).await) });
                late.push(address);
            }
            let next = (!turns.as_slice().is_empty()).then(|| clock::now() + STAGGER);
            let Some(done) = clock::before(next, running.next()).await else { continue };
            match done {
                None => return Err(failed.unwrap_or_else(|| "there is no address".into())),
                Some((address, Ok(stream))) => {
                    late.pop_if(|newest| *newest != address);
                    late.retain(|other| *other != address);
                    let now = clock::now();
                    self.with(host, |addresses| {
                        if first != Some(address) {
                            addresses.connected(Some(address));
                        }
                        late.iter().for_each(|late| addresses.leave_out(*late, now));
                    });
                    return Ok(stream);
                }
                Some((address, Err(error))) => {
                    late.retain(|other| *other != address);
                    self.with(host, |addresses| addresses.leave_out(address, clock::now()));
                    failed = Some(error.into());
                }
            }
        }
    }

    /// The network interface whose turn it is.
    fn interface(&self) -> Option<&str> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.interfaces.get(turn % self.interfaces.len().max(1)).map(String::as_str)
    }

    /// Whether connections to this address of a host should end.
    pub(crate) fn is_left_out(&self, host: &str, address: IpAddr) -> bool {
        self.with(host, |addresses| addresses.is_left_out(address, clock::now())).unwrap_or_default()
    }

    /// An address of a host has answered.
    pub(crate) fn answered(&self, host: &str, address: IpAddr, asked: Asked, time: Duration) {
        self.with(host, |addresses| addresses.answered(address, asked, time, clock::now()));
    }
}

/// The address that a URI's host is.
fn address_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The same URI with the address for its host.
fn at(uri: &Uri, address: IpAddr) -> Result<Uri, BoxError> {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let authority = std::net::SocketAddr::new(address, port).to_string();
    let scheme = uri.scheme_str().unwrap_or("https");
    Ok(Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build()?)
}
