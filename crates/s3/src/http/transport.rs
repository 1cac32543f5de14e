//! One HTTP request and its response, with limits on silence: no retries, no S3.
//!
//! Plain TCP or rustls. Bodies go out as vectored writes of owned slices, and come in where they belong
//! ([`crate::http::connection_pool`]).
//! What this does not do: redirects, HTTP/2 (S3 speaks 1.1).

use std::error::Error as StdError;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::RootCertStore;

use crate::admission::retry::{Class, Failure};
use crate::clock;
use crate::config::ClientConfig;
use crate::error::{Error, ErrorKind};
use crate::http::body::Body;
use crate::http::connection_pool::{Connections, NoResponse};
use crate::http::limits::{Limits, causes, find, host_and_port};
use crate::http::progress::Progress;
use crate::http::proxy::{Connector, Proxies, Proxy, TunnelError};
use crate::http::resolver::{InterfaceError, Resolver};
use crate::http::trust::{Bundle, roots};
use crate::protocol::endpoint::Endpoint;
use crate::transfer::payload::PayloadBody;

/// Idle connections are closed after this time. S3 closes them after about 5 s, and one that it closes while a request is on
/// its way costs an attempt.
pub(crate) const IDLE: Duration = Duration::from_secs(4);

const NO_TLS: &str = "; what answers there does not speak TLS: should the endpoint begin with http://?";

/// The connections to one endpoint.
pub(crate) struct Transport {
    endpoint: Endpoint,
    connect_timeout: Duration,
    connections: Connections,
}

impl Transport {
    /// Connections to one endpoint, made when needed, by these proxies. The bundle is trusted besides the system's certificates.
    pub(crate) fn new(
        config: &ClientConfig,
        endpoint: &Endpoint,
        bundle: Option<&Bundle>,
        proxies: Proxies,
    ) -> Result<Transport, Error> {
        let roots = if endpoint.tls() { roots(bundle)? } else { RootCertStore::empty() };
        let resolver = Resolver::new(config.resolver.clone(), config.network_interfaces.clone());
        let connections =
            connections(roots, config.connect_timeout, &Arc::new(proxies), &Arc::new(resolver))?;
        Ok(Transport { endpoint: endpoint.clone(), connect_timeout: config.connect_timeout, connections })
    }

    /// Sends a request and waits for the head of the response, as long as bytes of the body go out. With `anew` it goes over a
    /// new connection, and so most often to another address.
    pub(crate) async fn send(
        &self,
        request: Request<PayloadBody>,
        progress: &Progress,
        limits: Limits,
        anew: bool,
    ) -> Result<Response<Body>, Failure> {
        let uri = request.uri().clone();
        let response = answered(self.connections.send(request, anew), progress, &limits).await?;
        let response = response.map_err(|error| match error {
            NoResponse::Unconnected(error) => self.unconnected(error, &uri),
            NoResponse::Broken(error) => self.broken(error, &uri),
        })?;
        match self.connections.proxy(&uri) {
            Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(Failure::fatal(Error::new(ErrorKind::Config, unauthorized(&proxy)).with_status(407)))
            }
            _ => Ok(response),
        }
    }

    /// Closes the connections that nobody uses; see [`Connections::drop_idle`].
    pub(crate) fn drop_idle(&self) {
        self.connections.drop_idle();
    }

    /// The proxy that requests to this URI go by.
    pub(crate) fn proxy(&self, uri: &Uri) -> Option<Proxy> {
        self.connections.proxy(uri)
    }

    /// There is no connection, so nothing was sent.
    fn unconnected(&self, error: Box<dyn StdError + Send + Sync>, uri: &Uri) -> Failure {
        let host = host_and_port(uri);
        let tls = find::<rustls::Error>(&*error);
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            let text = format!(
                "the TLS certificate of {host} is not trusted: {why}; see ca_bundle and AWS_CA_BUNDLE"
            );
            return Failure::fatal(Error::new(ErrorKind::Config, text).with_source(error));
        }
        if let Some(interface) = find::<InterfaceError>(&*error) {
            return Failure::fatal(Error::new(ErrorKind::Config, interface.to_string()).with_source(error));
        }
        let proxy = self.connections.proxy(uri);
        let tunnel = find::<TunnelError>(&*error);
        if let (Some(proxy), Some(TunnelError::ProxyAuthRequired)) = (&proxy, tunnel) {
            return Failure::fatal(Error::new(ErrorKind::Config, unauthorized(proxy)).with_source(error));
        }
        let whom = match (&proxy, tunnel) {
            (None, _) => host,
            // It is the proxy that cannot be reached.
            (Some(proxy), Some(TunnelError::ConnectFailed(_))) => format!("the proxy {proxy}"),
            (Some(proxy), None) if !self.endpoint.tls() => format!("the proxy {proxy}"),
            (Some(proxy), _) => format!("{host} by the proxy {proxy}"),
        };
        let mut text = format!("cannot connect to {whom}: {}", causes(&*error));
        if matches!(tls, Some(rustls::Error::InvalidMessage(_))) {
            text.push_str(NO_TLS);
        } else if tls.is_none()
            && let Some(io) = find::<io::Error>(&*error)
        {
            match io.kind() {
                io::ErrorKind::TimedOut => {
                    let limit = self.connect_timeout.as_secs_f64();
                    text = format!("cannot connect to {whom} within {limit:.1} s (connect_timeout)");
                }
                io::ErrorKind::ConnectionRefused => {
                    let what = proxy.as_ref().map_or("the endpoint", Proxy::source);
                    text = format!("{text}; nothing listens there: check {what} and its port");
                }
                io::ErrorKind::UnexpectedEof if self.endpoint.tls() => text.push_str(NO_TLS),
                // The look-up of a name fails with a text and no number of the system's.
                _ if io.raw_os_error().is_none() && proxy.is_none() => {
                    text.push_str(self.advice_on_names(uri));
                }
                _ => {}
            }
        }
        if self.endpoint.is_custom() {
            text = format!("{text}; the endpoint is {}", self.endpoint.told());
        }
        Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text).with_source(error))
    }

    /// What to try when the host's name is not known.
    fn advice_on_names(&self, uri: &Uri) -> &'static str {
        let host = uri.authority().map_or("", |authority| authority.as_str());
        match (self.endpoint.is_custom(), self.endpoint.is_below(host)) {
            (true, true) => {
                "; if the bucket is not to stand in front of the service's name, set force_path_style"
            }
            (true, false) => "; check the endpoint",
            (false, _) => "; check the region, or set the endpoint if the bucket is not at AWS",
        }
    }

    /// The connection ended before the response; the request may have arrived.
    fn broken(&self, error: hyper::Error, uri: &Uri) -> Failure {
        let mut text = format!("the connection to {} broke: {}", host_and_port(uri), causes(&error));
        if !self.endpoint.tls() && error.is_parse() {
            text.push_str(
                "; what answers there does not speak HTTP: should the endpoint begin with https://?",
            );
        }
        Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text).with_source(error)).ambiguous()
    }
}

/// What to say of a proxy that refuses who asks it.
fn unauthorized(proxy: &Proxy) -> String {
    let source = proxy.source();
    match proxy.authorization() {
        None => {
            format!("the proxy {proxy} wants a user and a password: {source}=http://user:password@host:port")
        }
        Some(_) => format!("the proxy {proxy} refuses the user and the password that {source} has"),
    }
}

/// Connections to whom these certificates vouch for, or without TLS, as the URI says; by these proxies.
pub(crate) fn connections(
    roots: RootCertStore,
    connect_timeout: Duration,
    proxies: &Arc<Proxies>,
    resolver: &Arc<Resolver>,
) -> Result<Connections, Error> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls_config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Config, format!("TLS: {error}")).with_source(error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls_config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector::new(tcp, Arc::clone(proxies), Arc::clone(resolver)));
    Ok(Connections::new(connector, Arc::clone(proxies), Arc::clone(resolver), IDLE))
}

/// The output of `exchange`, unless bytes stop moving or the deadline passes.
async fn answered<F: Future>(
    exchange: F,
    progress: &Progress,
    limits: &Limits,
) -> Result<F::Output, Failure> {
    let when = "while waiting for the answer";
    let exchange = pin!(exchange);
    match clock::before(limits.deadline, progress.until_silent(Some(limits.read_timeout), exchange)).await {
        Some(Some(output)) => Ok(output),
        Some(None) if clock::now() < limits.deadline => Err(limits.silence(when)),
        _ => Err(limits.deadline_passed(when)),
    }
}
