//! Starting, serving and stopping.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3dcp_partition::PartitionView;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Error, S3ErrorCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::access::{Gate, Keys};
use crate::backend::Backend;
use crate::config::{ServerConfig, Storage};
use crate::connection::Connection;
use crate::disk::Disk;
use crate::faults::{Fault, Faults};
use crate::host::Domains;
use crate::http_service::HttpService;
use crate::memory::Memory;
use crate::partitions::PartitionGate;
use crate::service::Service;
use crate::sessions::Sessions;
use crate::stats::{Counters, ServerStats};
use crate::store::Store;
use crate::tls::Tls;

/// How long [`Server::stop`] lets requests under way finish.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The largest head of a request. S3 takes 8 KiB.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// How long a client may take to send a head, and so how long a connection may be idle.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

const MAX_SESSION_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The region that is reported where none is configured.
const DEFAULT_REGION: &str = "us-east-1";

/// A running S3 endpoint. Dropping it stops it at once; [`stop`](Self::stop) lets requests under way finish first.
pub struct Server {
    address: SocketAddr,
    access_key: String,
    secret_key: String,
    region: String,
    store: Arc<Store>,
    counters: Arc<Counters>,
    faults: Arc<Faults>,
    partitions: Option<Arc<PartitionGate>>,
    authority: Option<String>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Binds the address, opens the storage, makes the buckets and serves on the current tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound; the directory cannot be used, is in use by another server, or holds something else or
    /// something damaged; a bucket's name or the lifetime of sessions is not valid (`InvalidInput`).
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub async fn start(config: ServerConfig) -> io::Result<Self> {
        Self::start_boxed(config).await
    }

    /// Boxed, so that the server is compiled here once, rather than in every crate that starts one.
    fn start_boxed(config: ServerConfig) -> BoxFuture<'static, io::Result<Self>> {
        Self::open(config).boxed()
    }

    async fn open(config: ServerConfig) -> io::Result<Self> {
        let backend: Box<dyn Backend> = match &config.storage {
            Storage::Memory => Box::new(Memory),
            Storage::Disk(directory) => {
                let directory = directory.clone();
                let opened = tokio::task::spawn_blocking(move || Disk::open(&directory)).await;
                Box::new(opened.map_err(io::Error::other)??)
            }
        };
        let store =
            tokio::task::spawn_blocking(move || Store::open(backend)).await.map_err(io::Error::other)??;
        let store = Arc::new(store);
        for name in &config.buckets {
            make_bucket(&store, name)?;
        }

        let region = config.region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let counters = Arc::new(Counters::default());
        let lifetime = config.session_lifetime;
        if lifetime.is_zero() || lifetime > MAX_SESSION_LIFETIME {
            let why = format!(
                "session_lifetime must be more than 0 s and at most {MAX_SESSION_LIFETIME:?}, not {lifetime:?}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let sessions = Arc::new(Sessions::new(lifetime));
        let service = Service::new(
            Arc::clone(&store),
            Arc::clone(&counters),
            region.clone(),
            config.md5_etags,
            Arc::clone(&sessions),
        );
        let mut builder = S3ServiceBuilder::new(service);
        let keys =
            Keys { access_key: config.access_key.clone(), secret_key: config.secret_key.clone(), sessions };
        builder.set_auth(keys.clone());
        let partitions = config.partitions.as_ref().map(PartitionGate::new).transpose();
        let partitions = partitions
            .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, format!("partitions: {reason}")))?
            .map(Arc::new);
        builder.set_access(Gate { counters: Arc::clone(&counters), partitions: partitions.clone() });
        let domains = Domains::new(config.domain.as_deref());
        builder.set_host(domains.clone());
        let faults = Arc::new(Faults::new(&config.faults, config.fault_seed));
        let service = HttpService::new(
            builder.build(),
            keys,
            config.region.clone(),
            domains,
            Arc::clone(&faults),
            partitions.clone(),
            Arc::clone(&counters),
        );
        let tls = config.tls.then(|| Tls::new(config.address.ip(), config.domain.as_deref())).transpose()?;

        let listener = TcpListener::bind(config.address).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", config.address))
        })?;
        let address = listener.local_addr()?;
        let (stop, stopping) = watch::channel(false);
        let authority = tls.as_ref().map(|tls| tls.authority.clone());
        let accepting = tokio::spawn(accept(listener, service, tls, stopping));
        let ServerConfig { access_key, secret_key, .. } = config;
        Ok(Self {
            address,
            access_key,
            secret_key,
            region,
            store,
            counters,
            faults,
            partitions,
            authority,
            stop,
            accepting,
        })
    }

    /// The address that is listened on, with the port that was found.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client takes as its endpoint: `http://<address>:<port>`, or `https://`.
    pub fn endpoint_url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate, as PEM, of the authority that clients must trust to reach the server; `None` without TLS.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The partitions in front, in the order of their keys, and what each was asked for; none without
    /// [`ServerConfig::partitions`].
    pub fn partitions(&self) -> Vec<PartitionView> {
        self.partitions.as_ref().map(|gate| gate.views()).unwrap_or_default()
    }

    /// Adds a fault behind those that are there.
    pub fn inject(&self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.faults.clear();
    }

    /// The faults in force, and to how many requests each was applied.
    pub fn faults(&self) -> Vec<(Fault, u64)> {
        self.faults.applied()
    }

    /// The access key that the server knows.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The secret of that access key.
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// The region to sign for: the configured one, else `us-east-1` (and any other will do).
    pub fn region(&self) -> &str {
        &self.region
    }

    /// What the server has done so far.
    pub fn stats(&self) -> ServerStats {
        self.counters.snapshot()
    }

    /// Makes a bucket; one that exists is left as it is.
    ///
    /// # Errors
    /// The name is not valid (`InvalidInput`), or the directory cannot be written.
    pub fn create_bucket(&self, name: &str) -> io::Result<()> {
        make_bucket(&self.store, name)
    }

    /// Deletes a bucket with all objects and uploads in it.
    ///
    /// # Errors
    /// There is no such bucket (`NotFound`), or the directory cannot be written.
    pub fn delete_bucket(&self, name: &str) -> io::Result<()> {
        self.store.empty_and_delete_bucket(name).map_err(|error| bucket_error(name, &error))
    }

    /// Takes no more connections, lets requests under way finish for up to two seconds, then ends them.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // An error here is a panic of the accept loop, which has ended then as well.
        let _ended = (&mut self.accepting).await;
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("endpoint_url", &self.endpoint_url()).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn make_bucket(store: &Store, name: &str) -> io::Result<()> {
    if !s3s::path::check_bucket_name(name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "bucket name {name:?} is not valid: 3 to 63 lower-case letters, digits, dots and hyphens"
            ),
        ));
    }
    if store.check_bucket(name).is_ok() {
        return Ok(());
    }
    store.create_bucket(name).map_err(|error| bucket_error(name, &error))
}

fn bucket_error(name: &str, error: &S3Error) -> io::Error {
    let kind = match error.code() {
        S3ErrorCode::NoSuchBucket => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    let what = error.message().map_or_else(|| error.to_string(), str::to_owned);
    io::Error::new(kind, format!("bucket {name:?}: {what}"))
}

async fn accept(
    listener: TcpListener,
    service: HttpService,
    tls: Option<Tls>,
    stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut told = pin!(told_to_stop(stopping.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, service.clone(), tls.clone(), stopping.clone()));
                }
                // Out of file descriptors, say: the connections that are open will give some back.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            () = &mut told => break,
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_PATIENCE, finished).await.is_err() {
        connections.shutdown().await;
    }
}

/// Ends when the server is told to stop, or is dropped.
async fn told_to_stop(mut stopping: watch::Receiver<bool>) {
    let _dropped = stopping.wait_for(|stopping| *stopping).await;
}

async fn serve(stream: TcpStream, service: HttpService, tls: Option<Tls>, stopping: watch::Receiver<bool>) {
    // Without it small responses would wait for acknowledgements; a failure costs only that.
    let _best_effort = stream.set_nodelay(true);
    let connection = Connection::default();
    let stream = connection.stream(stream);
    match tls {
        None => speak_http(stream, service, connection, stopping).await,
        Some(tls) => {
            // A client that does not get through the handshake learns why itself.
            if let Some(stream) = tls.accept(stream).await {
                speak_http(stream, service, connection, stopping).await;
            }
        }
    }
}

async fn speak_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: HttpService,
    connection: Connection,
    stopping: watch::Receiver<bool>,
) {
    let answer = service_fn(move |request| {
        let (service, connection) = (service.clone(), connection.clone());
        async move { service.call(request, &connection).await }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_header_size(MAX_HEAD_BYTES)
            .writev(true)
            .serve_connection(TokioIo::new(stream), answer)
    );
    // How a connection ends is its client's affair.
    let finish = tokio::select! {
        _ended = connection.as_mut() => false,
        () = told_to_stop(stopping) => true,
    };
    if finish {
        connection.as_mut().graceful_shutdown();
        let _ended = connection.await;
    }
}
