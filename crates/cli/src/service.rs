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
    /// Profile to take credentials and settings from
    #[arg(long)]
    profile: Option<String>,
    /// Put the bucket into the path, not into the host name
    #[arg(long)]
    force_path_style: bool,
}

impl Service {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.config())?)
    }

    /// A client of so many connections.
    pub(crate) fn client_of(&self, connections: usize) -> Result<Client, Failure> {
        let mut config = self.config();
        config.max_connections = Some(connections);
        Ok(Client::new(config)?)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.region.clone_from(&self.region);
        config.endpoint_url.clone_from(&self.endpoint_url);
        config.profile.clone_from(&self.profile);
        config.force_path_style = self.force_path_style;
        config
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

    /// The place that a copy of what `source` holds goes to. One client reaches both unless `other` says otherwise, so that
    /// the service can copy by itself.
    pub(crate) fn other(
        &self,
        other: &Other,
        source: &Storage,
        uri: &str,
    ) -> Result<(Storage, String), Failure> {
        Storage::parse(uri, || match source {
            Storage::Bucket { client, .. } if other.is_empty() => Ok(client.clone()),
            _ => other.service(self).client(),
        })
    }

    /// The same for a place that need not be there yet.
    pub(crate) fn destination(&self, uri: &str) -> Result<(Storage, String), Failure> {
        Storage::parse(uri, || self.client())
    }
}

/// The service on the other side of a copy, where it is another one.
#[derive(Debug, Args)]
pub(crate) struct Other {
    /// Endpoint of the destination [default: that of the source]
    #[arg(long, value_name = "URL")]
    to_endpoint_url: Option<String>,
    /// Region of the destination [default: that of the source]
    #[arg(long, value_name = "REGION")]
    to_region: Option<String>,
    /// Profile to take credentials for the destination from
    #[arg(long, value_name = "PROFILE")]
    to_profile: Option<String>,
}

impl Other {
    fn is_empty(&self) -> bool {
        self.to_endpoint_url.is_none() && self.to_region.is_none() && self.to_profile.is_none()
    }

    /// The settings of the destination. A profile brings endpoint and region of its own.
    fn service(&self, source: &Service) -> Service {
        let inherited = |own: &Option<String>| own.clone().filter(|_| self.to_profile.is_none());
        Service {
            endpoint_url: self.to_endpoint_url.clone().or_else(|| inherited(&source.endpoint_url)),
            region: self.to_region.clone().or_else(|| inherited(&source.region)),
            profile: self.to_profile.clone().or_else(|| source.profile.clone()),
            force_path_style: source.force_path_style,
        }
    }
}

/// Runs one piece of work, unless Ctrl-C comes first.
pub(crate) fn run_until_stopped<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => result.map_err(Failure::from),
            stopped = tokio::signal::ctrl_c() => {
                stopped.map_err(Failure::failed)?;
                Err(Failure::failed("stopped; the same command goes on where it ended"))
            }
        }
    });
    if result.is_err() {
        // Uploads that were given up are aborted in the background.
        runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(300)).await });
    }
    result
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
