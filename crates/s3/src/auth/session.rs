//! What a client settles at its first request: region, endpoint, credentials, connections.
//!
//! Kept apart from the configuration because it reads the environment and files, and because its connections belong
//! to the runtime of that first request.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::auth::credentials::CredentialCache;
use crate::config::ClientConfig;
use crate::config::environment::Environment;
use crate::config::settings::{Setting, Settings};
use crate::error::Error;
use crate::http::proxy::Proxies;
use crate::http::transport::Transport;
use crate::http::trust::Bundle;
use crate::protocol::bucket::check_bucket;
use crate::protocol::endpoint::{Endpoint, Region};

/// Settled facts and live parts.
pub(crate) struct Session {
    settings: Settings,
    /// The region to sign for; `None` when unsigned and unknown.
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Endpoint,
    /// `None`: requests are not signed.
    pub(crate) credentials: Option<CredentialCache>,
    pub(crate) transport: Transport,
}

impl Session {
    /// Settles everything. Boxed, so that it is compiled in this crate alone.
    ///
    /// # Errors
    /// `Config`, naming the setting.
    pub(crate) fn open(config: &ClientConfig) -> BoxFuture<'_, Result<Session, Error>> {
        Session::settled(config).boxed()
    }

    async fn settled(config: &ClientConfig) -> Result<Session, Error> {
        let environment = Environment::of_process();
        let settings = Settings::read(config, &environment).await?;
        let endpoint = settings.endpoint(config.unsigned)?;
        let bundle = settings.ca_bundle.as_ref();
        let bundle = bundle.map(|path| Bundle::read(&path.value, &path.source)).transpose()?;
        let proxies = Proxies::read(&environment)?;
        let transport = Transport::new(config, &endpoint, bundle.as_ref(), proxies)?;
        let region = settings.region().map(Region::signed).map(str::to_owned);
        let credentials = CredentialCache::new(config, settings.place(region.clone(), bundle));
        tracing::debug!(endpoint = endpoint.told(), region, "session");
        Ok(Session { settings, region, endpoint, credentials, transport })
    }

    /// Whether the settings ask for checksums with writes, and with reads.
    pub(crate) fn checksums(&self) -> [bool; 2] {
        self.settings.checksums()
    }

    /// The settings, for people, and what they come to for a bucket.
    ///
    /// # Errors
    /// `Config`, for a bucket that cannot be reached with them.
    pub(crate) fn told(&self, bucket: Option<&str>) -> Result<Vec<Setting>, Error> {
        let mut told = self.settings.list(Some(&self.endpoint));
        let address = match bucket {
            Some(bucket) => {
                check_bucket(bucket)?;
                Some(self.endpoint.address(bucket, None, "")?)
            }
            None => None,
        };
        let uri = address.as_ref().map(|address| Ok(address.uri.clone()));
        let uri = uri.unwrap_or_else(|| self.endpoint.uri())?;
        let (value, source) = match self.transport.proxy(&uri) {
            Some(proxy) => (proxy.url(), proxy.source()),
            None => ("none".to_owned(), "default"),
        };
        told.push(Setting { name: "proxy", value, source: source.to_owned() });
        if let (Some(bucket), Some(address)) = (bucket, address) {
            let region = address.region.or(self.region.clone()).unwrap_or_else(|| "none".to_owned());
            for (name, value) in [("bucket_url", address.uri.to_string()), ("signing_region", region)] {
                told.push(Setting { name, value, source: format!("bucket {bucket:?}") });
            }
        }
        Ok(told)
    }
}
