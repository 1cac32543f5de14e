//! TLS: a service whose certificate comes from an authority that only `ca_bundle` knows.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use s3dcp_s3::{Client, ErrorKind, Payload, PutOptions, crc32};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::{Act, Responder, pattern, read, response, with};

const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
const KEY: &[u8] = include_bytes!("tls/server.key");

fn authority() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/engine/tls/ca.pem")
}

/// Puts TLS in front of a responder; the URL.
async fn with_tls(plain: &Responder) -> String {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_slice(KEY).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let behind = plain.url().strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                let Ok(mut outer) = acceptor.accept(stream).await else { return };
                let mut inner = TcpStream::connect(behind).await.unwrap();
                tokio::io::copy_bidirectional(&mut outer, &mut inner).await.ok();
            });
        }
    });
    url
}

#[tokio::test]
async fn an_unknown_authority_is_a_config_error_and_a_bundle_makes_it_known() {
    let plain = Responder::start(|_, seen| match seen.method.as_str() {
        "PUT" => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
        _ => Act::Answer(response("200 OK", &[], &pattern(3 << 20))),
    })
    .await;
    let mut config = plain.config();
    config.endpoint_url = Some(with_tls(&plain).await);
    let bytes = pattern(3 << 20);
    let put = |client: Client| {
        let body = Payload::from(bytes.clone());
        async move { client.put_object("bkt", "k", body, &PutOptions::default()).await }
    };
    let error = put(Client::new(config.clone()).unwrap()).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), error.maybe_applied()), (ErrorKind::Config, 1, false));
    assert!(error.message().contains("ca_bundle"), "{error}");
    assert!(plain.seen().is_empty());

    let client = Client::new(with(config.clone(), |config| config.ca_bundle = Some(authority()))).unwrap();
    put(client.clone()).await.unwrap();
    assert_eq!(crc32(&plain.seen()[0].body), crc32(&bytes));
    assert_eq!(client.get_object("bkt", "k").await.unwrap().body, bytes);
    let (job, fed) = read("k", 0..3 << 20);
    client.download("bkt", vec![job]).await.unwrap();
    assert!(fed.lock().unwrap().bytes == bytes);
    // One after the other they came over one connection.
    assert_eq!(plain.connections(), 1);

    let missing = with(config, |config| config.ca_bundle = Some("/no/such/file.pem".into()));
    let error = put(Client::new(missing).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.message().contains("ca_bundle /no/such/file.pem"), "{error}");
}
