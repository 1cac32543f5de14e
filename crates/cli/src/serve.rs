//! `s3dcp serve`: an S3 endpoint for development.

use std::env;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use s3dcp_server::{Fault, Limits, Partitions, Server, ServerConfig, Storage};

use crate::format::parse_duration;
use crate::report::Failure;

const ACCESS_KEY_VARIABLE: &str = "S3DCP_ACCESS_KEY";
const SECRET_KEY_VARIABLE: &str = "S3DCP_SECRET_KEY";

/// Serve S3 on this machine, for development and tests
///
/// Signatures and checksums are verified and conditional writes hold, but it is a development endpoint: one pair of keys,
/// no fsync. Stop it with Ctrl-C.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp serve --bucket checkpoints\n  s3dcp serve --data /data/s3 --bucket checkpoints --tls authority.pem\n  s3dcp serve --bucket checkpoints --partitions 0.01\n  s3dcp serve --bucket checkpoints --fault 'error:SlowDown on=UploadPart times=3'"
)]
pub(crate) struct Arguments {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    address: SocketAddr,
    /// Keep objects in this directory [default: in memory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Make this bucket if it does not exist; may be given several times
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,
    /// Access key [default: S3DCP_ACCESS_KEY in the environment, else s3dcp]
    #[arg(long, value_name = "KEY")]
    access_key: Option<String>,
    /// Secret key [default: S3DCP_SECRET_KEY in the environment, else s3dcp-secret]
    #[arg(long, value_name = "KEY")]
    secret_key: Option<String>,
    /// Refuse requests signed for any other region [default: accept every region]
    #[arg(long)]
    region: Option<String>,
    /// Also take `<bucket>.<DOMAIN>` for a bucket's host name, besides `<bucket>.localhost`
    #[arg(long)]
    domain: Option<String>,
    /// Make ETags the MD5 of the content, at some 2 CPU-seconds per GiB
    #[arg(long)]
    md5_etags: bool,
    /// How long a session with a directory bucket (<name>--<zone id>--x-s3) lasts, such as 30s
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = parse_duration)]
    session_lifetime: Duration,
    /// Serve HTTPS, with a certificate made on the spot; what clients must trust is written to this file
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Put a model of S3's partitions in front, at this share of S3's request rates: 0.01 fits a laptop
    ///
    /// What is too much for a partition is answered 503 SlowDown; partitions that stay hot split. The page that is announced
    /// draws the key space, its heat and its splits.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    partitions: Option<f64>,
    /// How many times faster than S3 partitions heat up, split and merge
    #[arg(long, default_value_t = 1.0, value_name = "TIMES", value_parser = share, requires = "partitions")]
    partition_speed: f64,
    /// A partition that is there from the start begins at this key; may be given several times
    #[arg(long = "partition-at", value_name = "BUCKET/KEY", requires = "partitions")]
    partitions_at: Vec<String>,
    /// Let something go wrong, say 'error:SlowDown on=UploadPart key=*.distcp skip=2 times=3'; may be given several times
    ///
    /// What: error:<code>, error:<status>/<code>, error-in-200:<code>, drop, reset-request:<bytes>, silence, flip-request, delay:<n>ms before anything
    /// takes effect; late:<n>ms, lose, reset:<bytes>, cut:<bytes>, stall:<bytes>, truncate:<bytes>, flip, etag:<form> afterwards, on the
    /// answer. To which requests: on=<operation>,..., key=<pattern>, part=<n>, header=<pattern>, skip=<n>, times=<n>, chance=<0..1>.
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Fault>,
    /// Seed of what faults leave to chance
    #[arg(long, default_value_t = 0, value_name = "N")]
    fault_seed: u64,
}

impl Arguments {
    fn config(&self) -> ServerConfig {
        let mut config = ServerConfig::default();
        config.address = self.address;
        config.access_key = given(self.access_key.as_ref(), ACCESS_KEY_VARIABLE).unwrap_or(config.access_key);
        config.secret_key = given(self.secret_key.as_ref(), SECRET_KEY_VARIABLE).unwrap_or(config.secret_key);
        config.region.clone_from(&self.region);
        config.storage = self.data.clone().map_or(Storage::Memory, Storage::Disk);
        config.buckets.clone_from(&self.buckets);
        config.domain.clone_from(&self.domain);
        config.md5_etags = self.md5_etags;
        config.session_lifetime = self.session_lifetime;
        config.tls = self.tls.is_some();
        config.partitions = self.partitions.map(|share| {
            let mut partitions = Partitions::default();
            partitions.limits = Limits::default().scaled(share, self.partition_speed);
            partitions.first_keys.clone_from(&self.partitions_at);
            partitions
        });
        config.faults.clone_from(&self.faults);
        config.fault_seed = self.fault_seed;
        config
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&value: &f64| value.is_finite() && value > 0.0)
        .ok_or_else(|| "must be a number above 0".to_owned())
}

fn given(argument: Option<&String>, variable: &str) -> Option<String> {
    argument.cloned().or_else(|| env::var(variable).ok()).filter(|value| !value.is_empty())
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<(), Failure> {
    let server = Server::start(arguments.config()).await.map_err(Failure::failed)?;
    // Listened for before anything is said, so that a stop that follows the output is never missed.
    let stop = told_to_stop()?;
    if let (Some(file), Some(authority)) = (&arguments.tls, server.authority()) {
        std::fs::write(file, authority)
            .map_err(|error| Failure::failed(format!("--tls {}: {error}", file.display())))?;
    }
    if let Some(warning) = warning(server.address()) {
        writeln!(io::stderr(), "{warning}").map_err(Failure::output)?;
    }
    announce(&server, arguments.tls.as_deref()).map_err(Failure::output)?;
    stop.await;
    server.stop().await;
    Ok(())
}

/// What to say of an address that other machines can reach.
fn warning(address: SocketAddr) -> Option<&'static str> {
    let text = "warning: this is a development endpoint, and other machines can reach it";
    (!address.ip().is_loopback()).then_some(text)
}

/// Says where the server is, as lines a shell can run.
fn announce(server: &Server, authority: Option<&Path>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "# s3dcp serves S3 at {}; stop it with Ctrl-C", server.endpoint_url())?;
    if !server.partitions().is_empty() {
        writeln!(out, "# its partitions are drawn at {}/_s3dcp/", server.endpoint_url())?;
    }
    writeln!(out, "export AWS_ENDPOINT_URL={}", server.endpoint_url())?;
    if let Some(file) = authority {
        writeln!(out, "export AWS_CA_BUNDLE='{}'", std::path::absolute(file)?.display())?;
    }
    if let Some(without) = without_proxy(&server.endpoint_url(), |name| std::env::var(name).ok()) {
        writeln!(out, "export NO_PROXY='{without}' no_proxy='{without}'")?;
    }
    writeln!(out, "export AWS_REGION={}", server.region())?;
    writeln!(out, "export AWS_ACCESS_KEY_ID={}", server.access_key())?;
    if server.secret_key() == ServerConfig::default().secret_key {
        writeln!(out, "export AWS_SECRET_ACCESS_KEY={}", server.secret_key())?;
    } else {
        writeln!(out, "# AWS_SECRET_ACCESS_KEY is the secret key you chose")?;
    }
    out.flush()
}

/// What `NO_PROXY` has to be for clients to reach this endpoint, where there is a proxy.
fn without_proxy(endpoint_url: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let value = |name: &str| {
        let of = |name: &str| read(name).filter(|value| !value.trim().is_empty());
        of(name).or_else(|| of(&name.to_uppercase()))
    };
    ["http_proxy", "https_proxy", "all_proxy"].iter().find_map(|name| value(name))?;
    let (_, authority) = endpoint_url.split_once("://")?;
    let (host, _) = authority.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let others = value("no_proxy").filter(|others| !others.contains('\''));
    Some(others.map_or_else(|| host.to_owned(), |others| format!("{others},{host}")))
}

#[cfg(unix)]
fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    Ok(async {
        // Without a handler there is no other way to stop than to end the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_other_machines_can_reach_is_warned_of() {
        for (address, warned) in [
            ("127.0.0.1:9000", false),
            ("127.9.9.9:9000", false),
            ("[::1]:9000", false),
            ("0.0.0.0:9000", true),
            ("[::]:9000", true),
            ("10.0.0.7:9000", true),
        ] {
            assert_eq!(warning(address.parse().unwrap()).is_some(), warned, "{address}");
        }
    }
}
