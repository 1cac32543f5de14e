//! The settings of a client, as Python has them.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use s3dcp_s3::{ClientConfig, ServerSideEncryption};

/// An `S3ClientConfig` of Python, which has checked its fields; it says what each is.
#[derive(FromPyObject)]
pub(crate) struct Settings {
    throughput_target_gbps: f64,
    part_size: Option<u64>,
    unsigned: bool,
    force_path_style: bool,
    max_attempts: u32,
    profile: Option<String>,
    requester_pays: bool,
    server_side_encryption: Option<String>,
    sse_kms_key_id: Option<String>,
    storage_class: Option<String>,
    checksum_headers: Option<bool>,
    ca_bundle: Option<PathBuf>,
    deadline: f64,
    connect_timeout: f64,
    read_timeout: f64,
    max_connections: Option<usize>,
    use_fips_endpoint: Option<bool>,
    use_dualstack_endpoint: Option<bool>,
    use_accelerate_endpoint: Option<bool>,
    network_interfaces: Vec<String>,
}

impl Settings {
    /// The engine's settings.
    pub(crate) fn config(self, region: Option<String>, endpoint_url: Option<String>) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.region = region;
        config.endpoint_url = endpoint_url;
        config.force_path_style = self.force_path_style;
        config.use_fips_endpoint = self.use_fips_endpoint;
        config.use_dualstack_endpoint = self.use_dualstack_endpoint;
        config.use_accelerate_endpoint = self.use_accelerate_endpoint;
        config.unsigned = self.unsigned;
        config.profile = self.profile;
        config.requester_pays = self.requester_pays;
        config.server_side_encryption = match self.server_side_encryption.as_deref() {
            None => None,
            Some("AES256") => Some(ServerSideEncryption::Aes256),
            Some(_) => Some(ServerSideEncryption::AwsKms { key_id: self.sse_kms_key_id }),
        };
        config.storage_class = self.storage_class;
        config.checksum_headers = self.checksum_headers;
        config.ca_bundle = self.ca_bundle;
        config.max_attempts = self.max_attempts;
        config.deadline = seconds(self.deadline);
        config.connect_timeout = seconds(self.connect_timeout);
        config.read_timeout = seconds(self.read_timeout);
        config.max_connections = self.max_connections;
        config.throughput_target_gbps = self.throughput_target_gbps;
        config.part_size = self.part_size;
        config.network_interfaces = self.network_interfaces;
        config
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}
