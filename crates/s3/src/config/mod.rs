//! What a client is told: where, who, how much at once and for how long.
//!
//! Checking is pure; nothing here reads files or the network. Environment variables that AWS tools share
//! (`AWS_ENDPOINT_URL_S3`, `AWS_CA_BUNDLE`, …) are read where the value is needed and only if the field is unset.

pub(crate) mod environment;
#[cfg_attr(not(feature = "credential-chain"), path = "no_profile.rs")]
pub(crate) mod profile;
pub(crate) mod resolve;
pub(crate) mod settings;
pub(crate) mod sourced;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::environment::{check_key, trimmed};
use crate::config::resolve::Resolve;
use crate::error::{Error, invalid};
use crate::protocol::endpoint::{Addressing, Endpoint, Region, without_user_info};

/// Smallest part that S3 takes (except the last of an upload), in bytes.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Largest part that S3 takes, in bytes.
pub const MAX_PART_SIZE: u64 = 5 << 30;
/// Part size where none is given and the object is not large, in bytes.
pub const DEFAULT_PART_SIZE: u64 = 16 << 20;

/// Gbit/s counted on from one connection to S3: a quarter of what it carries at its best, for much of a save of a few
/// seconds is over before the search for the number of connections has learned anything.
const GBPS_PER_CONNECTION: f64 = 0.15625;
/// Longest name of a network interface, in bytes.
const MAX_INTERFACE_NAME: usize = 15;
/// How far beyond the throughput target's the number of connections may go.
const CONNECTIONS_AT_MOST: usize = 2;

/// Explicit keys, as from an IAM user or `sts:AssumeRole`. `Debug` shows the access key id only.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StaticCredentials {
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: String,
    /// The session token of temporary credentials.
    pub session_token: Option<String>,
}

impl StaticCredentials {
    /// Long-lived keys, without a session token.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> StaticCredentials {
        StaticCredentials {
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
            session_token: None,
        }
    }
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticCredentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Encryption at rest that is asked for with every object written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerSideEncryption {
    /// SSE-S3: keys that S3 keeps.
    Aes256,
    /// SSE-KMS.
    AwsKms {
        /// Id or ARN of the key; `None` for the account's default S3 key.
        key_id: Option<String>,
    },
}

/// Settings of a [`Client`](crate::Client).
///
/// ```
/// let mut config = s3dcp_s3::ClientConfig::default();
/// config.region = Some("eu-central-1".to_owned());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// AWS region. `None`: `AWS_REGION`, `AWS_DEFAULT_REGION`, then the profile; with none of these the first
    /// request fails with a `Config` error.
    pub region: Option<String>,
    /// `http://` or `https://` URL of the service. `None`: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `endpoint_url` of
    /// `s3` in the profile's services section, the profile's `endpoint_url`, else AWS. With
    /// `AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true` none of these counts.
    pub endpoint_url: Option<String>,
    /// Put the bucket into the path, not into the host name. Automatic for IP addresses, `localhost` and buckets
    /// that cannot be a host name (or that hold a dot, over TLS).
    pub force_path_style: bool,
    /// AWS's endpoints with validated cryptography. `None`: `AWS_USE_FIPS_ENDPOINT`, then the profile.
    pub use_fips_endpoint: Option<bool>,
    /// AWS's endpoints that IPv6 reaches too. `None`: `AWS_USE_DUALSTACK_ENDPOINT`, then the profile.
    pub use_dualstack_endpoint: Option<bool>,
    /// AWS's endpoints near the client (S3 Transfer Acceleration). `None`: as the profile says.
    pub use_accelerate_endpoint: Option<bool>,
    /// Send unsigned requests, for public buckets.
    pub unsigned: bool,
    /// Profile of the AWS configuration files (with the feature `credential-chain`); its credentials then win over the environment's. `None`: `AWS_PROFILE`,
    /// `AWS_DEFAULT_PROFILE`, then `default`.
    pub profile: Option<String>,
    /// Agree to pay for requests to a requester-pays bucket.
    pub requester_pays: bool,
    /// Explicit keys. `None`: the AWS credential chain; without the feature `credential-chain` that is `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    pub credentials: Option<StaticCredentials>,
    /// Encryption at rest for every object written. `None`: the bucket's default.
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// Storage class for every object written (`"STANDARD_IA"`). `None`: the bucket's default.
    pub storage_class: Option<String>,
    /// Whether CRC-32 goes with what is written, for the service to check, and is asked for with what is read.
    /// `Some(false)`: never. `Some(true)`: always, and a service that refuses it fails the request. `None`: as
    /// `AWS_REQUEST_CHECKSUM_CALCULATION` and `AWS_RESPONSE_CHECKSUM_VALIDATION` say, then the profile; unless they do, until
    /// the service refuses it.
    pub checksum_headers: Option<bool>,
    /// PEM file of certificates trusted besides the system's. `None`: `AWS_CA_BUNDLE`, then the profile.
    pub ca_bundle: Option<PathBuf>,
    /// Most requests sent for one operation, at least 1. Two kinds do not count: those that the service refuses because there
    /// are too many (503 SlowDown), which are sent again until the deadline, and one each that finds out what the service
    /// takes: whether it takes checksum headers, and whether it wants a Content-MD5.
    pub max_attempts: u32,
    /// Longest time for one operation, retries included, counted from its first attempt. An operation is one S3
    /// request: a part of an upload and a range of a download have a deadline each.
    pub deadline: Duration,
    /// Longest time to open a connection.
    pub connect_timeout: Duration,
    /// Longest time in which no byte moves before an attempt is given up (and retried).
    pub read_timeout: Duration,
    /// Most requests at once, 1 to 65,536. `None`: the client begins with what `throughput_target_gbps` asks for and goes up
    /// to twice that as long as it moves more bytes.
    pub max_connections: Option<usize>,
    /// Most bytes of copies that uploads have handed to the network and not had acknowledged. What they read where it lies
    /// ([`Segment::borrowed`](crate::Segment::borrowed)) costs no memory and is not counted. `None`: one part for every
    /// connection, of `part_size` where that is given, else of [`DEFAULT_PART_SIZE`].
    pub max_in_flight_bytes: Option<u64>,
    /// What the machine's network can do, in Gbit/s: where the search for the number of connections begins.
    pub throughput_target_gbps: f64,
    /// Part size in bytes, 5 MiB to 5 GiB. `None`: follows the object's size.
    pub part_size: Option<u64>,
    /// `User-Agent` of every request.
    pub user_agent: String,
    /// Network interfaces (`"eth0"`) that connections take turns over. Empty: the system chooses.
    pub network_interfaces: Vec<String>,
    /// Who looks up the addresses of the service's name. `None`: the system.
    pub resolver: Option<Arc<dyn Resolve>>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            region: None,
            endpoint_url: None,
            force_path_style: false,
            use_fips_endpoint: None,
            use_dualstack_endpoint: None,
            use_accelerate_endpoint: None,
            unsigned: false,
            profile: None,
            requester_pays: false,
            credentials: None,
            server_side_encryption: None,
            storage_class: None,
            checksum_headers: None,
            ca_bundle: None,
            max_attempts: 10,
            deadline: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
            max_connections: None,
            max_in_flight_bytes: None,
            throughput_target_gbps: 10.0,
            part_size: None,
            user_agent: concat!("s3dcp/", env!("CARGO_PKG_VERSION")).to_owned(),
            network_interfaces: Vec::new(),
            resolver: None,
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("region", &self.region)
            .field("endpoint_url", &self.endpoint_url.as_deref().map(without_user_info))
            .field("force_path_style", &self.force_path_style)
            .field("use_fips_endpoint", &self.use_fips_endpoint)
            .field("use_dualstack_endpoint", &self.use_dualstack_endpoint)
            .field("use_accelerate_endpoint", &self.use_accelerate_endpoint)
            .field("unsigned", &self.unsigned)
            .field("profile", &self.profile)
            .field("requester_pays", &self.requester_pays)
            .field("credentials", &self.credentials)
            .field("server_side_encryption", &self.server_side_encryption)
            .field("storage_class", &self.storage_class)
            .field("checksum_headers", &self.checksum_headers)
            .field("ca_bundle", &self.ca_bundle)
            .field("max_attempts", &self.max_attempts)
            .field("deadline", &self.deadline)
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("max_connections", &self.max_connections)
            .field("max_in_flight_bytes", &self.max_in_flight_bytes)
            .field("throughput_target_gbps", &self.throughput_target_gbps)
            .field("part_size", &self.part_size)
            .field("user_agent", &self.user_agent)
            .field("network_interfaces", &self.network_interfaces)
            .field("resolver", &self.resolver)
            .finish()
    }
}

impl ClientConfig {
    /// Checks every field, drops white space around texts, and fills in those that follow from others
    /// (`max_connections`, `max_in_flight_bytes`).
    ///
    /// # Errors
    /// `Config`, naming the field, its value (never a key) and the limit.
    pub(crate) fn resolved(mut self) -> Result<ClientConfig, Error> {
        for text in [&mut self.region, &mut self.endpoint_url, &mut self.profile, &mut self.storage_class]
            .into_iter()
            .flatten()
        {
            *text = trimmed(text).to_owned();
        }
        if self.max_attempts == 0 {
            return Err(invalid("max_attempts must be at least 1, not 0"));
        }
        for (name, value) in [
            ("deadline", self.deadline),
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
        ] {
            if value.is_zero() || value > Duration::from_secs(7 * 24 * 3600) {
                return Err(invalid(format!(
                    "{name} must be more than 0 s and at most 7 days, not {value:?}"
                )));
            }
        }
        if !(self.throughput_target_gbps.is_finite() && self.throughput_target_gbps > 0.0) {
            return Err(invalid(format!(
                "throughput_target_gbps must be a number above 0, not {}",
                self.throughput_target_gbps
            )));
        }
        if let Some(size) = self.part_size {
            check_part_size(size)?;
        }
        if let Some(class) = &self.storage_class
            && (class.is_empty() || !class.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(invalid(format!(
                "storage_class must be a name in ASCII without spaces, not {class:?}"
            )));
        }
        if let Some(profile) = &self.profile
            && (profile.is_empty() || profile.chars().any(char::is_control))
        {
            return Err(invalid(format!("profile must be the name of a profile, not {profile:?}")));
        }
        if let Some(region) = &self.region {
            Region::parse(region, "region")?;
        }
        if let Some(url) = &self.endpoint_url {
            Endpoint::custom(url, "endpoint_url", None, Addressing::default())?;
        }
        if self.unsigned && self.credentials.is_some() {
            return Err(invalid("unsigned and credentials exclude each other"));
        }
        if self.unsigned && self.requester_pays {
            let why = "S3 bills whoever signed a request";
            return Err(invalid(format!("requester_pays and unsigned exclude each other: {why}")));
        }
        if let Some(keys) = &mut self.credentials {
            let token = keys.session_token.as_mut().map(|token| ("credentials.session_token", token));
            let always = [
                ("credentials.access_key_id", &mut keys.access_key_id),
                ("credentials.secret_access_key", &mut keys.secret_access_key),
            ];
            for (name, value) in always.into_iter().chain(token) {
                *value = trimmed(value).to_owned();
                check_key(name, value)?;
            }
        }
        let is_interface = |name: &&String| {
            (1..=MAX_INTERFACE_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        };
        if let Some(name) = self.network_interfaces.iter().find(|name| !is_interface(name)) {
            return Err(invalid(format!("network_interfaces must be names such as eth0, not {name:?}")));
        }
        if http::HeaderValue::from_str(&self.user_agent).is_err() {
            return Err(invalid(format!("user_agent must be printable ASCII, not {:?}", self.user_agent)));
        }
        if !(1..=65_536).contains(&self.connections()) {
            return Err(invalid(format!(
                "max_connections must be at least 1 and at most 65536, not {}",
                self.connections()
            )));
        }
        if self.max_in_flight_bytes == Some(0) {
            return Err(invalid("max_in_flight_bytes must be at least 1, not 0"));
        }
        self.max_connections = Some(self.connections());
        self.max_in_flight_bytes = Some(self.in_flight_bytes());
        Ok(self)
    }
}

impl ClientConfig {
    /// Requests at once, at most.
    pub(crate) fn connections(&self) -> usize {
        self.max_connections.unwrap_or_else(|| CONNECTIONS_AT_MOST * self.target_connections())
    }

    /// Requests at once, at first.
    #[must_use]
    pub fn first_connections(&self) -> usize {
        self.max_connections.unwrap_or_else(|| self.target_connections())
    }

    /// Bytes of copies in flight, at most.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        let for_all = || self.connections() as u64 * self.part_size.unwrap_or(DEFAULT_PART_SIZE);
        self.max_in_flight_bytes.unwrap_or_else(for_all)
    }

    /// What the machine's network is told to do.
    #[must_use]
    pub fn network_bytes_per_second(&self) -> f64 {
        self.throughput_target_gbps * 1e9 / 8.0
    }

    /// Connections that the throughput target asks for.
    pub(crate) fn target_connections(&self) -> usize {
        (self.throughput_target_gbps / GBPS_PER_CONNECTION).ceil().clamp(8.0, 512.0) as usize
    }
}

/// Checks a part size against S3's limits.
pub(crate) fn check_part_size(size: u64) -> Result<(), Error> {
    if (MIN_PART_SIZE..=MAX_PART_SIZE).contains(&size) {
        return Ok(());
    }
    Err(invalid(format!(
        "part_size must be 5 MiB to 5 GiB ({MIN_PART_SIZE} to {MAX_PART_SIZE} bytes), not {size}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_defaults_are_valid_and_sized_by_the_throughput_target() {
        let config = ClientConfig::default().resolved().unwrap();
        assert_eq!(
            (config.target_connections(), config.max_connections, config.max_in_flight_bytes),
            (64, Some(128), Some(2 << 30))
        );
        let config =
            ClientConfig { throughput_target_gbps: 100.0, ..ClientConfig::default() }.resolved().unwrap();
        assert_eq!(config.target_connections(), 512);
    }

    #[test]
    fn white_space_around_texts_is_dropped_and_within_keys_refused() {
        let padded = |text: &str| Some(format!(" {text}\r\n"));
        let config = ClientConfig {
            region: padded("us-east-1"),
            endpoint_url: padded("http://host"),
            profile: padded("my store"),
            credentials: Some(StaticCredentials {
                session_token: padded("token"),
                ..StaticCredentials::new("id\n", "\tsecret")
            }),
            ..ClientConfig::default()
        };
        let config = config.resolved().unwrap();
        assert_eq!(config.region.as_deref(), Some("us-east-1"));
        assert_eq!(config.endpoint_url.as_deref(), Some("http://host"));
        assert_eq!(config.profile.as_deref(), Some("my store"));
        let keys = config.credentials.unwrap();
        assert_eq!(
            keys,
            StaticCredentials {
                session_token: Some("token".to_owned()),
                ..StaticCredentials::new("id", "secret")
            }
        );
        let broken = StaticCredentials::new("id", "hunter\n2");
        let config = ClientConfig { credentials: Some(broken), ..ClientConfig::default() };
        let error = config.resolved().unwrap_err();
        assert!(error.message().contains("credentials.secret_access_key"), "{error}");
        assert!(!error.message().contains("hunter"), "{error}");
    }

    #[test]
    fn secrets_are_absent_from_debug() {
        let config = ClientConfig {
            endpoint_url: Some("https://me:hunter2@host:9000/x".to_owned()),
            credentials: Some(StaticCredentials {
                session_token: Some("TOKEN-SECRET".to_owned()),
                ..StaticCredentials::new("AKIDEXAMPLE", "KEY-SECRET")
            }),
            ..ClientConfig::default()
        };
        let text = format!("{config:?} {config:#?}");
        assert!(text.contains("AKIDEXAMPLE") && text.contains("https://host:9000/x"), "{text}");
        for secret in ["KEY-SECRET", "TOKEN-SECRET", "hunter2"] {
            assert!(!text.contains(secret), "{text}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_name_value_and_limit() {
        let default = ClientConfig::default;
        let cases: [(ClientConfig, &[&str]); 12] = [
            (ClientConfig { part_size: Some(4 << 20), ..default() }, &["part_size", "4194304", "5 MiB"]),
            (
                ClientConfig { part_size: Some((5 << 30) + 1), ..default() },
                &["part_size", "5368709121", "5 GiB"],
            ),
            (ClientConfig { max_attempts: 0, ..default() }, &["max_attempts", "0", "1"]),
            (ClientConfig { read_timeout: Duration::ZERO, ..default() }, &["read_timeout", "0ns"]),
            (
                ClientConfig { throughput_target_gbps: f64::NAN, ..default() },
                &["throughput_target_gbps", "NaN"],
            ),
            (ClientConfig { region: Some("us east".to_owned()), ..default() }, &["region", "us east"]),
            (ClientConfig { region: Some("evil.com/x".to_owned()), ..default() }, &["region", "evil.com/x"]),
            (
                ClientConfig { unsigned: true, requester_pays: true, ..default() },
                &["requester_pays", "unsigned"],
            ),
            (ClientConfig { max_connections: Some(0), ..default() }, &["max_connections", "0", "1"]),
            (
                ClientConfig { max_connections: Some(70_000), ..default() },
                &["max_connections", "70000", "65536"],
            ),
            (ClientConfig { max_in_flight_bytes: Some(0), ..default() }, &["max_in_flight_bytes", "0", "1"]),
            (
                ClientConfig {
                    unsigned: true,
                    credentials: Some(StaticCredentials::new("a", "b")),
                    ..default()
                },
                &["unsigned", "credentials"],
            ),
        ];
        for (config, words) in cases {
            let error = config.resolved().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            for word in words {
                assert!(error.to_string().contains(word), "{error} lacks {word}");
            }
        }
    }
}
