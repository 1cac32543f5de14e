//! What a server is started with.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::faults::Fault;
use crate::partitions::Partitions;

/// Where objects are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Storage {
    /// In this process's memory; gone when the server stops.
    #[default]
    Memory,
    /// In this directory, which is created when absent and belongs to one server at a time. Objects survive a
    /// restart; multipart uploads in progress do not.
    Disk(PathBuf),
}

/// How to start a [`Server`](crate::Server). The default is an empty in-memory server on a free loopback port.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes a free port. Default `127.0.0.1:0`.
    pub address: SocketAddr,
    /// The one access key that is known. Default `s3dcp`.
    pub access_key: String,
    /// Its secret. Default `s3dcp-secret`.
    pub secret_key: String,
    /// With a region, a request signed for another region is refused with `AuthorizationHeaderMalformed`, as AWS does,
    /// and this is the location of buckets. Without one every region is accepted. Default `None`.
    pub region: Option<String>,
    /// Where objects are kept. Default memory.
    pub storage: Storage,
    /// Buckets that exist from the start; those that exist already are left as they are. Default none.
    pub buckets: Vec<String>,
    /// Base domain of virtual-host requests: `Host: <bucket>.<domain>`. `<bucket>.localhost` always works. Default `None`.
    pub domain: Option<String>,
    /// Whether ETags are the MD5 of the content, as AWS makes them for plain uploads. MD5 costs some 2 CPU-seconds per GiB, so
    /// by default an ETag is merely unique. Default `false`.
    pub md5_etags: bool,
    /// How long a session with a directory bucket lasts. Default five minutes, as at AWS.
    pub session_lifetime: Duration,
    /// Whether to serve HTTPS, with a certificate made for this server alone; what clients must trust is
    /// [`Server::authority`](crate::Server::authority). Default `false`.
    pub tls: bool,
    /// A model of S3's partitions in front, with `503 SlowDown` for what is too much. A page at `/_s3dcp/` draws it, and
    /// `/_s3dcp/partitions` is the same as JSON, both without a signature, as is `/_s3dcp/metrics`. Default `None`.
    pub partitions: Option<Partitions>,
    /// Faults from the start; [`Server::inject`](crate::Server::inject) adds more. Default none.
    pub faults: Vec<Fault>,
    /// Seed of what faults leave to chance. Default 0.
    pub fault_seed: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            access_key: "s3dcp".to_owned(),
            secret_key: "s3dcp-secret".to_owned(),
            region: None,
            storage: Storage::default(),
            buckets: Vec::new(),
            domain: None,
            md5_etags: false,
            session_lifetime: Duration::from_secs(300),
            tls: false,
            partitions: None,
            faults: Vec::new(),
            fault_seed: 0,
        }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("address", &self.address)
            .field("access_key", &self.access_key)
            .field("secret_key", &"(hidden)")
            .field("region", &self.region)
            .field("storage", &self.storage)
            .field("buckets", &self.buckets)
            .field("domain", &self.domain)
            .field("md5_etags", &self.md5_etags)
            .field("session_lifetime", &self.session_lifetime)
            .field("tls", &self.tls)
            .field("partitions", &self.partitions)
            .field("faults", &self.faults)
            .field("fault_seed", &self.fault_seed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_the_secret() {
        let config = ServerConfig { secret_key: "very-secret".to_owned(), ..ServerConfig::default() };
        assert!(!format!("{config:?}").contains("very-secret"));
    }
}
