//! Which S3 service a subcommand talks to, and as whom.

use std::path::Path;

use clap::Args;
use s3dcp_checkpoint::{Storage, nearby_checkpoints};
use s3dcp_s3::{Client, ClientConfig, Error, ErrorKind};
use tokio::runtime::{Builder, Runtime};

use crate::report::Failure;

#[derive(Debug, Args)]
pub(crate) struct Service {
    /// Endpoint to ask [default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile, else AWS]
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    /// Region of the bucket [default: AWS_REGION, AWS_DEFAULT_REGION, else the profile's]
    #[arg(long)]
    region: Option<String>,
    /// Profile to take credentials from
    #[arg(long)]
    profile: Option<String>,
    /// Put the bucket into the path, not into the host name
    #[arg(long)]
    force_path_style: bool,
}

impl Service {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let mut config = ClientConfig::default();
        config.region.clone_from(&self.region);
        config.endpoint_url.clone_from(&self.endpoint_url);
        config.profile.clone_from(&self.profile);
        config.force_path_style = self.force_path_style;
        Ok(Client::new(config)?)
    }

    /// The place that a URI or a local path names, and the key of its path. A local one is there already.
    pub(crate) fn source(&self, uri: &str) -> Result<(Storage, String), Failure> {
        let (storage, key) = self.destination(uri)?;
        if matches!(storage, Storage::Disk(_)) && !Path::new(&storage.uri(&key)).exists() {
            let path = storage.uri(&key);
            return Err(Failure::usage(format!(
                "there is no {path}; a bucket is s3://bucket or s3://bucket/path"
            )));
        }
        Ok((storage, key))
    }

    /// The same for a place that need not be there yet.
    pub(crate) fn destination(&self, uri: &str) -> Result<(Storage, String), Failure> {
        Storage::parse(uri, || self.client())
    }
}

/// What runs one client.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)
}

/// What is wrong with a path, and which checkpoints are nearby.
pub(crate) fn not_there(runtime: &Runtime, storage: &Storage, path_key: &str, what: &str) -> Failure {
    let nearby = runtime.block_on(nearby_checkpoints(storage, path_key)).to_string();
    let nearby = if nearby.is_empty() { nearby } else { format!("; {nearby}") };
    Failure::failed(format!("{what}{nearby}"))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.kind() {
            ErrorKind::Config => Failure::usage(error),
            _ => Failure::failed(error),
        }
    }
}
