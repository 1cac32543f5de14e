//! One HTTP request and its answer, with limits on silence: no retries, no S3.
//!
//! Plain TCP or rustls. Bodies go out as vectored writes of owned slices, and come in where they belong
//! ([`crate::connections`]).
//! What this does not do: HTTP proxies, redirects, HTTP/2 (S3 speaks 1.1).

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::address::Endpoint;
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

const NO_TLS: &str = "; what answers there does not speak TLS: should the endpoint begin with http://?";

/// The bounds of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) read_timeout: Duration,
    pub(crate) deadline: Instant,
    /// Whom the attempt waits for, for errors.
    pub(crate) host: Arc<str>,
}

impl Limits {
    /// No byte moved for too long.
    pub(crate) fn silence(&self, when: &str) -> Failure {
        let limit = self.read_timeout.as_secs_f64();
        let text = format!("no byte moved for {limit:.1} s {when} of {} (read_timeout)", self.host);
        Failure::new(Class::Transient, Error::new(ErrorKind::Timeout, text)).ambiguous()
    }

    /// The operation's total time is over.
    pub(crate) fn deadline_passed(&self, when: &str) -> Failure {
        let text = format!("the deadline of the operation passed {when} of {}", self.host);
        Failure::fatal(Error::new(ErrorKind::Timeout, text)).ambiguous()
    }
}

/// The connections to one endpoint.
pub(crate) struct Transport {
    endpoint: Endpoint,
    connect_timeout: Duration,
    connections: Connections,
}

impl Transport {
    /// Connections to one endpoint, made when needed. The bundle is trusted besides the system's certificates.
    pub(crate) fn new(
        config: &ClientConfig,
        endpoint: &Endpoint,
        bundle: Option<&Bundle>,
    ) -> Result<Transport, Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(config.connect_timeout));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let roots = if endpoint.tls() { roots(bundle)? } else { RootCertStore::empty() };
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
        let connections = Connections::new(connector, IDLE);
        Ok(Transport { endpoint: endpoint.clone(), connect_timeout: config.connect_timeout, connections })
    }

    /// Sends a request and waits for the head of the answer, as long as bytes of the body go out.
    pub(crate) async fn send(
        &self,
        request: Request<PayloadBody>,
        progress: &Progress,
        limits: Limits,
    ) -> Result<Response<Body>, Failure> {
        let uri = request.uri().clone();
        let answer = answered(self.connections.send(request), progress, &limits).await?;
        answer.map_err(|error| match error {
            NoAnswer::Unconnected(error) => self.unconnected(&*error, &uri),
            NoAnswer::Broken(error) => self.broken(&error, &uri),
        })
    }

    /// Closes the connections that nobody uses; see [`Connections::drop_idle`].
    pub(crate) fn drop_idle(&self) {
        self.connections.drop_idle();
    }

    /// There is no connection, so nothing was sent.
    fn unconnected(&self, error: &(dyn StdError + 'static), uri: &Uri) -> Failure {
        let host = host_and_port(uri);
        let tls = find::<rustls::Error>(error);
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            let text = format!(
                "the TLS certificate of {host} is not trusted: {why}; see ca_bundle and AWS_CA_BUNDLE"
            );
            return Failure::fatal(Error::new(ErrorKind::Config, text));
        }
        let mut text = format!("cannot connect to {host}: {}", causes(error));
        if matches!(tls, Some(rustls::Error::InvalidMessage(_))) {
            text.push_str(NO_TLS);
        } else if tls.is_none()
            && let Some(io) = find::<io::Error>(error)
        {
            match io.kind() {
                io::ErrorKind::TimedOut => {
                    let limit = self.connect_timeout.as_secs_f64();
                    text = format!("cannot connect to {host} within {limit:.1} s (connect_timeout)");
                }
                io::ErrorKind::ConnectionRefused => {
                    text.push_str("; nothing listens there: check the endpoint and its port");
                }
                io::ErrorKind::UnexpectedEof if self.endpoint.tls() => text.push_str(NO_TLS),
                // The look-up of a name fails with a text and no number of the system's.
                _ if io.raw_os_error().is_none() => text.push_str(self.advice_on_names(uri)),
                _ => {}
            }
        }
        Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text))
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

    /// The connection ended before the answer; the request may have arrived.
    fn broken(&self, error: &(dyn StdError + 'static), uri: &Uri) -> Failure {
        let mut text = format!("the connection to {} broke: {}", host_and_port(uri), causes(error));
        if !self.endpoint.tls() && find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
            text.push_str(
                "; what answers there does not speak HTTP: should the endpoint begin with https://?",
            );
        }
        Failure::new(Class::Transient, Error::new(ErrorKind::Connection, text)).ambiguous()
    }
}

/// Host and port of a request, as errors name them.
pub(crate) fn host_and_port(uri: &Uri) -> String {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// The output of `exchange`, unless bytes stop moving or the deadline passes.
async fn answered<F: Future>(
    exchange: F,
    progress: &Progress,
    limits: &Limits,
) -> Result<F::Output, Failure> {
    let mut exchange = std::pin::pin!(exchange);
    let when = "while waiting for the answer";
    loop {
        let silent_at = progress.last() + limits.read_timeout;
        match clock::before(silent_at.min(limits.deadline), exchange.as_mut()).await {
            Some(output) => return Ok(output),
            None if clock::now() >= limits.deadline => return Err(limits.deadline_passed(when)),
            None if clock::now() >= progress.last() + limits.read_timeout => {
                return Err(limits.silence(when));
            }
            None => {}
        }
    }
}

/// The operation's total time is over, before anything was sent.
pub(crate) fn deadline_passed() -> Failure {
    Failure::fatal(Error::new(ErrorKind::Timeout, "the deadline of the operation passed"))
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

/// The innermost error of this type among an error and its causes.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let below = error.source().and_then(find);
    // What an I/O error wraps is passed over by its `source`, which goes on with that one's own.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    below.or_else(|| wrapped.and_then(|inner| find(inner))).or_else(|| error.downcast_ref())
}

/// Certificates of a PEM file, all of them known to be good.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pem: Vec<u8>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// Reads and checks a file. `source` names the setting in errors.
    ///
    /// # Errors
    /// `Config`, when there is no certificate in it, or a damaged one.
    pub(crate) fn read(path: &Path, source: &str) -> Result<Bundle, Error> {
        let refuse =
            |why: String| Error::new(ErrorKind::Config, format!("{source} {}: {why}", path.display()));
        let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| refuse(format!("it is not valid PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(refuse("it holds no certificate in PEM".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| refuse(format!("a bad certificate: {error}")))?;
        }
        Ok(Bundle { pem, certificates })
    }

    /// The file's bytes.
    pub(crate) fn pem(&self) -> &[u8] {
        &self.pem
    }
}

/// The system's certificates, read once per process (which takes tens of milliseconds), and the given ones.
///
/// Read outside the cell: a process may fork meanwhile, and its child would wait for a cell that is being filled.
fn roots(bundle: Option<&Bundle>) -> Result<RootCertStore, Error> {
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
    let given = bundle.map(|bundle| bundle.certificates.clone()).unwrap_or_default();
    roots.add_parsable_certificates(given);
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

    fn read(pem: &[u8]) -> Result<Bundle, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorities.pem");
        std::fs::write(&path, pem).unwrap();
        Bundle::read(&path, "AWS_CA_BUNDLE")
    }

    #[test]
    fn a_bundle_without_good_certificates_is_refused_by_setting_and_path() {
        let half = "-----BEGIN CERTIFICATE-----\nMIIB";
        for pem in [
            &b""[..],
            b"hello",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            half.as_bytes(),
            &[0, 159, 146, 150],
        ] {
            let error = read(pem).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let named =
                error.message().contains("AWS_CA_BUNDLE") && error.message().contains("authorities.pem");
            assert!(named, "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), &folder.path().join("nothing")] {
            let error = Bundle::read(path, "ca_bundle").unwrap_err();
            assert!(error.message().starts_with("ca_bundle /"), "{error}");
        }
    }

    #[test]
    fn an_error_is_found_below_its_wrappers() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(tls));
        assert!(matches!(find(&wrapped), Some(rustls::Error::InvalidCertificate(_))));
        let refused = io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(find::<io::Error>(&refused).unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
