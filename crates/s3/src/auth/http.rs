//! HTTP for the links of AWS's chain, over this crate's own connections: small requests, and answers read whole.
//!
//! Those with TLS go by the environment's proxy. Instance metadata and containers are asked without, and directly: they answer
//! whoever is on this machine, which a proxy is not.
//!
//! It remembers how the last request ended. The chain's errors are texts, and do not tell a refusal from a bad moment.

use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::{HeaderValue, header};
use rustls::RootCertStore;

use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::http::body::BodyReader;
use crate::http::connection_pool::{Connections, NoResponse};
use crate::http::limits::find;
use crate::http::limits::{Limits, host_and_port};
use crate::http::progress::Progress;
use crate::http::proxy::Proxies;
use crate::http::transport::connections;
use crate::http::trust::{Bundle, roots};
use crate::transfer::payload::{Payload, PayloadBody};

/// Longest time for one request of a link that sets no limit of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer.
const MAX_ANSWER: usize = 1 << 20;

/// How the last request to a service that hands out credentials ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    Answered(u16),
    Failed,
}

type Last = Arc<Mutex<Option<Exchange>>>;

/// The chain's HTTP client.
#[derive(Debug, Clone)]
pub(crate) struct ChainHttp {
    /// Whom to trust; instance metadata and containers are asked without TLS, and so need nobody.
    roots: Result<RootCertStore, Error>,
    proxies: Arc<Proxies>,
    last: Last,
}

impl ChainHttp {
    pub(crate) fn new(bundle: Option<&Bundle>, proxies: Proxies) -> ChainHttp {
        ChainHttp { roots: roots(bundle), proxies: Arc::new(proxies), last: Last::default() }
    }

    /// How the last request ended, if there was one.
    pub(crate) fn last(&self) -> Option<Exchange> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpClient for ChainHttp {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let read_timeout = settings.read_timeout().unwrap_or(REQUEST_TIMEOUT);
        let connect_timeout = settings.connect_timeout().unwrap_or(read_timeout);
        let trusted = self.roots.clone().unwrap_or_else(|_| RootCertStore::empty());
        let connector = Connector {
            connections: connections(trusted, connect_timeout, &self.proxies, &Arc::default()).map(Arc::new),
            without_tls: self.roots.as_ref().err().cloned(),
            read_timeout,
            last: Arc::clone(&self.last),
        };
        SharedHttpConnector::new(connector)
    }
}

#[derive(Clone)]
struct Connector {
    connections: Result<Arc<Connections>, Error>,
    /// Why nobody is trusted.
    without_tls: Option<Error>,
    read_timeout: Duration,
    last: Last,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("read_timeout", &self.read_timeout).finish_non_exhaustive()
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = self.clone();
        HttpConnectorFuture::new(async move {
            connector.ended(Exchange::Failed);
            let response = connector.exchange(request).await?;
            connector.ended(Exchange::Answered(response.status().as_u16()));
            Ok(response)
        })
    }
}

impl Connector {
    fn ended(&self, how: Exchange) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let user = |error: Error| ConnectorError::user(error.into());
        let (mut head, body) =
            request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?.into_parts();
        let host: Arc<str> = host_and_port(&head.uri).into();
        if let Some(error) = self.without_tls.as_ref().filter(|_| head.uri.scheme_str() != Some("http")) {
            return Err(user(error.clone()));
        }
        if !head.headers.contains_key(header::HOST)
            && let Some(authority) = head.uri.authority()
        {
            let host = HeaderValue::from_str(authority.as_str());
            head.headers.insert(header::HOST, host.map_err(|error| ConnectorError::user(error.into()))?);
        }
        let body = body.bytes().map(Bytes::copy_from_slice).ok_or_else(|| {
            user(Error::new(ErrorKind::Config, "a request for credentials whose body is a stream"))
        })?;
        let progress = Arc::new(Progress::new(Arc::default()));
        let request = http::Request::from_parts(head, PayloadBody::new(Payload::from(body), progress));
        let connections = self.connections.as_ref().map_err(|error| user(error.clone()))?;
        let deadline = clock::now() + self.read_timeout;
        let limits = Limits { read_timeout: self.read_timeout, deadline, host };
        let failed = |error: Error| match error.kind() {
            ErrorKind::Timeout => ConnectorError::timeout(error.into()),
            _ => ConnectorError::io(error.into()),
        };
        let response = clock::before(deadline, connections.send(request, false)).await;
        let response = response
            .ok_or_else(|| failed(limits.silence("while waiting for the answer").error))?
            .map_err(|error| match error {
                NoResponse::Unconnected(error) if timed_out(&*error) => ConnectorError::timeout(error),
                NoResponse::Unconnected(error) => ConnectorError::io(error).never_connected(),
                NoResponse::Broken(error) => ConnectorError::io(error.into()),
            })?;
        let (head, body) = response.into_parts();
        let body = BodyReader::new(body, limits).collect(MAX_ANSWER).await;
        let body = SdkBody::from(body.map_err(|failure| failed(failure.error))?);
        HttpResponse::try_from(http::Response::from_parts(head, body))
            .map_err(|error| ConnectorError::other(error.into(), None))
    }
}

fn timed_out(error: &(dyn StdError + 'static)) -> bool {
    find::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}
