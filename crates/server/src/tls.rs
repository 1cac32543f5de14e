//! HTTPS with a certificate made when the server starts, signed by an authority made for it alone.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// How long a client may take for the handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    /// The authority's certificate as PEM.
    pub(crate) authority: String,
}

impl Tls {
    /// Good for `localhost`, the loopback addresses, `address`, and `domain` with all buckets in it.
    pub(crate) fn new(address: IpAddr, domain: Option<&str>) -> io::Result<Self> {
        let mut names: Vec<String> =
            ["localhost", "*.localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        names.push(address.to_string());
        names.extend(domain.into_iter().flat_map(|domain| [domain.to_owned(), format!("*.{domain}")]));

        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "s3dcp development server");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(authority, new_key()?).map_err(io::Error::other)?;

        let key = new_key()?;
        let mut certificate = CertificateParams::new(names).map_err(io::Error::other)?;
        certificate.use_authority_key_identifier_extension = true;
        let certificate = certificate.signed_by(&key, &authority).map_err(io::Error::other)?;

        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?,
            )
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), authority: authority.pem() })
    }

    /// The encrypted connection, if the client gets through the handshake.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Option<TlsStream<S>> {
        tokio::time::timeout(HANDSHAKE_PATIENCE, self.acceptor.accept(stream)).await.ok()?.ok()
    }
}

fn new_key() -> io::Result<KeyPair> {
    KeyPair::generate().map_err(io::Error::other)
}
