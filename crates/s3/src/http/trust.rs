//! Which certificates are trusted: the system's, and those of a bundle.

use std::path::Path;
use std::sync::OnceLock;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Error, ErrorKind};

/// Certificates of a PEM file, all of them known to be good.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
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
        let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()).with_source(error))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| refuse(format!("it is not valid PEM: {error}")).with_source(error))?;
        if certificates.is_empty() {
            return Err(refuse("it holds no certificate in PEM".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|error| refuse(format!("a bad certificate: {error}")).with_source(error))?;
        }
        Ok(Bundle { certificates })
    }
}

/// The system's certificates, read once per process (which takes tens of milliseconds), and the given ones.
///
/// Read outside the cell: a process may fork meanwhile, and its child would wait for a cell that is being filled.
pub(crate) fn roots(bundle: Option<&Bundle>) -> Result<RootCertStore, Error> {
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
}
