//! One HTTP request and its answer, with limits on silence: no retries, no S3.
//!
//! Plain TCP or rustls. Bodies go out as vectored writes of owned slices, and come in where they belong
//! ([`crate::connections`]).
//! What this does not do: HTTP proxies, redirects, HTTP/2 (S3 speaks 1.1).

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use http::{Request, Response};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::body::Body;
use crate::clock::{self, Instant};
use crate::config::ClientConfig;
use crate::connections::{Connections, NoAnswer};
use crate::error::{Error, ErrorKind};
use crate::payload::PayloadBody;
use crate::progress::Progress;
use crate::retry::{Class, Failure};

/// Idle connections are closed after this time; S3 closes them after about 20 s.
const IDLE: Duration = Duration::from_secs(15);

/// The bounds of one attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) read_timeout: Duration,
    pub(crate) deadline: Instant,
}

/// The connections to one endpoint.
pub(crate) struct Transport {
    connections: Connections,
}

impl Transport {
    /// Connections to one endpoint, made when needed. `ca_pem` is trusted besides the system's certificates.
    pub(crate) fn new(config: &ClientConfig, tls: bool, ca_pem: Option<&[u8]>) -> Result<Transport, Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(config.connect_timeout));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let roots = if tls { roots(ca_pem)? } else { RootCertStore::empty() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls_config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(ErrorKind::Config, format!("TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Transport { connections: Connections::new(connector, IDLE) })
    }

    /// Sends a request and waits for the head of the answer, as long as bytes of the body go out.
    pub(crate) async fn send(
        &self,
        request: Request<PayloadBody>,
        progress: &Progress,
        limits: Limits,
    ) -> Result<Response<Body>, Failure> {
        let answer = answered(self.connections.send(request), progress, limits).await?;
        answer.map_err(|error| match error {
            NoAnswer::Unconnected(error) => connection_failure(&*error, false),
            NoAnswer::Broken(error) => connection_failure(&error, true),
        })
    }

    /// Closes the connections that nobody uses; see [`Connections::drop_idle`].
    pub(crate) fn drop_idle(&self) {
        self.connections.drop_idle();
    }
}

/// The output of `exchange`, unless bytes stop moving or the deadline passes.
async fn answered<F: Future>(exchange: F, progress: &Progress, limits: Limits) -> Result<F::Output, Failure> {
    let mut exchange = std::pin::pin!(exchange);
    loop {
        let silent_at = progress.last() + limits.read_timeout;
        match clock::before(silent_at.min(limits.deadline), exchange.as_mut()).await {
            Some(output) => return Ok(output),
            None if clock::now() >= limits.deadline => return Err(deadline_passed().ambiguous()),
            None if clock::now() >= progress.last() + limits.read_timeout => {
                return Err(silence(limits.read_timeout, "while waiting for the answer").ambiguous());
            }
            None => {}
        }
    }
}

pub(crate) fn silence(limit: Duration, when: &str) -> Failure {
    let text = format!("no byte moved for {:.1} s {when} (read_timeout)", limit.as_secs_f64());
    Failure::new(Class::Transient, Error::new(ErrorKind::Timeout, text))
}

/// The operation's total time is over.
pub(crate) fn deadline_passed() -> Failure {
    Failure::fatal(Error::new(ErrorKind::Timeout, "the deadline of the operation passed"))
}

/// A failure of the connection; `connected`: the request may have arrived.
fn connection_failure(error: &(dyn StdError + 'static), connected: bool) -> Failure {
    let text = causes(error);
    if let Some(tls) = find_tls_error(error)
        && matches!(tls, rustls::Error::InvalidCertificate(_))
    {
        let text =
            format!("the service's TLS certificate is not trusted: {tls}; see ca_bundle and AWS_CA_BUNDLE");
        return Failure::fatal(Error::new(ErrorKind::Config, text));
    }
    if !connected {
        let text = format!("cannot connect: {text}");
        return Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text));
    }
    let text = format!("the connection broke: {text}");
    Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text)).ambiguous()
}

/// An error with all its causes, each once.
pub(crate) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.join(": ")
}

fn find_tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(tls) = find_tls_error(inner)
        {
            return Some(tls);
        }
        cause = error.source();
    }
    None
}

/// The system's certificates, read once per process (which takes tens of milliseconds), and the given ones.
///
/// Read outside the cell: a process may fork meanwhile, and its child would wait for a cell that is being filled.
fn roots(ca_pem: Option<&[u8]>) -> Result<RootCertStore, Error> {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    let system = SYSTEM.get().cloned().unwrap_or_else(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "system certificates");
        }
        roots.add_parsable_certificates(found.certs);
        SYSTEM.get_or_init(|| roots).clone()
    });
    let mut roots = system;
    if let Some(pem) = ca_pem {
        let mut given = 0;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| {
                Error::new(ErrorKind::Config, format!("ca_bundle is not valid PEM: {error:?}"))
            })?;
            roots.add(certificate).map_err(|error| {
                Error::new(ErrorKind::Config, format!("ca_bundle has a bad certificate: {error}"))
            })?;
            given += 1;
        }
        if given == 0 {
            return Err(Error::new(ErrorKind::Config, "ca_bundle holds no certificate"));
        }
    }
    if roots.is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            "no trusted certificates on this system; set ca_bundle or AWS_CA_BUNDLE",
        ));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_certificates_is_refused_by_name() {
        for pem in [&b""[..], b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = roots(Some(pem)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains("ca_bundle"), "{error}");
        }
    }

    #[test]
    fn a_tls_error_is_found_below_its_wrappers() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        assert!(matches!(find_tls_error(&wrapped), Some(rustls::Error::InvalidCertificate(_))));
    }
}
