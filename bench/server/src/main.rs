//! An S3-shaped HTTP/1.1 server that costs next to nothing, so that a benchmark measures the client.
//!
//! One thread per connection, blocking sockets. In `discard` mode the kernel drops the bytes of a body without copying them
//! (`MSG_TRUNC`); in `store` mode they are kept in memory files and go out with `sendfile`. A slow network can be emulated:
//! `--latency-ms` to the first byte of every answer, `--connection-rate` bytes per second on every connection, both ways.
//!
//! **For measuring only**: it checks no signature, no checksum and no bucket name, keeps everything in memory, and answers a
//! list in one page. What clients build on holds: conditional writes, ranges, multipart uploads, copies, lists, deletes.
//!
//! It prints its URL as its first line and ends when its standard input does, so that it never outlives a benchmark.

mod answer;
mod connection;
mod pace;
mod request;
mod service;
mod stats;
mod store;
mod stream;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::service::Service;

/// What becomes of the bytes of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Dropped in the kernel; reading them gives zeros. `.metadata` objects are kept all the same.
    Discard,
    /// Kept in memory.
    Store,
}

/// An S3-shaped server for measuring clients; it checks no signature.
#[derive(Parser, Debug)]
struct Options {
    /// What becomes of the bytes that are written.
    mode: Mode,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Milliseconds from the end of a request to the first byte of its answer.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Bytes per second on each connection, in each direction.
    #[arg(long)]
    connection_rate: Option<u64>,
    /// Serve HTTPS with this certificate chain and this key (PEM files).
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
}

fn tls_config(files: &[PathBuf]) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    let [certificate, key] = files else { return Err("--tls needs a certificate and a key".into()) };
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(Arc::new(config))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let tls = options.tls.as_deref().map(tls_config).transpose()?;
    let service =
        Arc::new(Service::new(options.mode == Mode::Discard, Duration::from_millis(options.latency_ms))?);
    let listener = TcpListener::bind(options.address)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    writeln!(std::io::stdout(), "{scheme}://{}", listener.local_addr()?)?;

    std::thread::spawn(|| {
        // An error means that nobody is there any more, just like the end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    for stream in listener.incoming() {
        let (stream, service, tls) = (stream?, Arc::clone(&service), tls.clone());
        let rate = options.connection_rate;
        std::thread::spawn(move || {
            // A client that leaves is no news here.
            let _ = connection::serve(stream, tls, rate, &service);
        });
    }
    Ok(())
}
