//! What a client settles at its first request: region, endpoint, credentials, connections.
//!
//! Kept apart from the configuration because it reads the environment and files, and because its connections belong
//! to the runtime of that first request.

use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::auth::credentials::CredentialCache;
use crate::config::ClientConfig;
use crate::config::environment::Environment;
use crate::config::profile::Profile;
use crate::error::{Error, ErrorKind};
use crate::http::transport::Transport;
use crate::http::trust::Bundle;
use crate::protocol::address::{Endpoint, Region};

/// Settled facts and live parts.
pub(crate) struct Session {
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
        let (endpoint, region) = settle(config, &environment).await?;
        let bundle = bundle(config, &environment)?;
        let transport = Transport::new(config, &endpoint, bundle.as_ref())?;
        let region = region.map(|region| region.signed().to_owned());
        let credentials = CredentialCache::new(config, region.clone(), bundle);
        tracing::debug!(endpoint = endpoint.url(), region, "session");
        Ok(Session { region, endpoint, credentials, transport })
    }
}

/// Where requests go, and the region if it is known.
///
/// The profile is asked wherever it has a say: not where the endpoint is an argument and the region is given or, as for
/// requests without a signature, not needed.
async fn settle(
    config: &ClientConfig,
    environment: &Environment,
) -> Result<(Endpoint, Option<Region>), Error> {
    let mut custom = endpoint_given(config)?;
    let mut region = region_given(config, environment)?;
    if custom.is_none() || (region.is_none() && !config.unsigned) {
        let profile = Profile::load(config.profile.as_deref(), environment).await?;
        if custom.is_none()
            && let Some((url, source)) = configured_endpoint(&profile, environment)?
        {
            custom = Some(Endpoint::custom(&url, &source, config.force_path_style)?);
        }
        if region.is_none() {
            let found = profile.region().await;
            region = found.map(|(name, source)| Region::parse(&name, &source)).transpose()?;
        }
    }
    match (custom, region) {
        (Some(endpoint), region) if region.is_some() || config.unsigned => Ok((endpoint, region)),
        (None, Some(region)) => Ok((Endpoint::aws(&region, config.force_path_style), Some(region))),
        (_, None | Some(_)) => Err(Error::new(
            ErrorKind::Config,
            "no region: set region, AWS_REGION, AWS_DEFAULT_REGION or a region in the AWS profile",
        )),
    }
}

/// The endpoint of the configuration, if it has one.
pub(crate) fn endpoint_given(config: &ClientConfig) -> Result<Option<Endpoint>, Error> {
    let endpoint = config
        .endpoint_url
        .as_ref()
        .map(|url| Endpoint::custom(url, "endpoint_url", config.force_path_style));
    endpoint.transpose()
}

/// The endpoint of the environment or the profile, and where it stands; `None` when such endpoints are not to count.
fn configured_endpoint(
    profile: &Profile,
    environment: &Environment,
) -> Result<Option<(String, String)>, Error> {
    let ignored = match environment.flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")? {
        Some(ignored) => ignored,
        None => profile.ignores_endpoints()?,
    };
    if ignored {
        return Ok(None);
    }
    match environment.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])? {
        Some((name, url)) => Ok(Some((url, name.to_owned()))),
        None => profile.endpoint_url(),
    }
}

fn region_given(config: &ClientConfig, environment: &Environment) -> Result<Option<Region>, Error> {
    if let Some(name) = &config.region {
        return Region::parse(name, "region").map(Some);
    }
    let found = environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"])?;
    found.map(|(source, name)| Region::parse(&name, source)).transpose()
}

/// The certificates that are trusted besides the system's: for the service, and for those that hand out credentials.
fn bundle(config: &ClientConfig, environment: &Environment) -> Result<Option<Bundle>, Error> {
    if let Some(path) = &config.ca_bundle {
        return Bundle::read(path, "ca_bundle").map(Some);
    }
    let path = environment.get("AWS_CA_BUNDLE")?;
    path.map(|path| Bundle::read(Path::new(&path), "AWS_CA_BUNDLE")).transpose()
}

#[cfg(test)]
#[cfg(feature = "credential-chain")]
mod tests {
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-west-3\nendpoint_url = http://profile:4\n\
                          [profile aws]\nregion = eu-west-3\nignore_configured_endpoint_urls = true\n\
                          endpoint_url = http://profile:5\n";

    /// What is settled with these variables and a file of two profiles.
    async fn settled(
        config: &ClientConfig,
        pairs: &[(&str, &str)],
    ) -> Result<(String, Option<Region>), Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, CONFIG).unwrap();
        let mut all =
            vec![("AWS_CONFIG_FILE", path.to_str().unwrap()), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")];
        all.splice(0..0, pairs.iter().copied());
        let (endpoint, region) = settle(config, &Environment::of(&all)).await?;
        Ok((endpoint.url(), region))
    }

    async fn url(config: &ClientConfig, pairs: &[(&str, &str)]) -> String {
        settled(config, pairs).await.unwrap().0
    }

    #[tokio::test]
    async fn the_endpoint_is_the_argument_then_the_s3_variable_the_common_one_and_the_profiles() {
        let both = [("AWS_ENDPOINT_URL", "http://common:1 "), ("AWS_ENDPOINT_URL_S3", "http://special:2\n")];
        let given =
            ClientConfig { endpoint_url: Some("http://given:3".to_owned()), ..ClientConfig::default() };
        assert_eq!(url(&given, &both).await, "http://given:3");
        let config = ClientConfig::default();
        assert_eq!(url(&config, &both).await, "http://special:2");
        assert_eq!(url(&config, &both[..1]).await, "http://common:1");
        assert_eq!(url(&config, &[("AWS_ENDPOINT_URL", "")]).await, "http://profile:4");
        // As in every AWS tool, also a profile that was asked for by name comes after the environment here.
        let named = ClientConfig { profile: Some("default".to_owned()), ..ClientConfig::default() };
        assert_eq!(url(&named, &both[..1]).await, "http://common:1");
    }

    #[tokio::test]
    async fn configured_endpoints_can_be_set_aside_but_not_the_argument() {
        let common = ("AWS_ENDPOINT_URL", "http://common:1");
        let ignore = |value| ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", value);
        let aws = "https://s3.eu-west-3.amazonaws.com";
        let config = ClientConfig::default();
        assert_eq!(url(&config, &[common, ignore("true")]).await, aws);
        assert_eq!(url(&config, &[ignore("TRUE ")]).await, aws);
        assert_eq!(url(&config, &[common, ignore("false")]).await, "http://common:1");
        assert_eq!(url(&config, &[common, ("AWS_PROFILE", "aws")]).await, aws);
        assert_eq!(url(&config, &[common, ("AWS_PROFILE", "aws"), ignore("false")]).await, "http://common:1");
        let given =
            ClientConfig { endpoint_url: Some("http://given:3".to_owned()), ..ClientConfig::default() };
        assert_eq!(url(&given, &[ignore("true")]).await, "http://given:3");
        let error = settled(&config, &[common, ignore("maybe")]).await.unwrap_err();
        assert!(error.message().contains("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"), "{error}");
    }

    #[tokio::test]
    async fn the_region_is_the_argument_then_the_environments_then_the_profiles() {
        let given = ClientConfig { region: Some("us-east-2".to_owned()), ..ClientConfig::default() };
        let config = ClientConfig::default();
        let (first, second) = (("AWS_REGION", " eu-west-1"), ("AWS_DEFAULT_REGION", "eu-west-2\n"));
        for (config, pairs, expected) in [
            (&given, vec![second, first], "us-east-2"),
            (&config, vec![second, first], "eu-west-1"),
            (&config, vec![second], "eu-west-2"),
            (&config, vec![("AWS_REGION", " ")], "eu-west-3"),
        ] {
            let (_, region) = settled(config, &pairs).await.unwrap();
            assert_eq!(region.unwrap().signed(), expected);
        }
        let error = settled(&ClientConfig::default(), &[("AWS_REGION", "us east")]).await.unwrap_err();
        assert!(error.message().contains("AWS_REGION"), "{error}");
    }

    #[tokio::test]
    async fn a_profile_that_is_not_there_sends_nothing_to_aws() {
        let config = ClientConfig::default();
        let region = ("AWS_REGION", "eu-west-1");
        for pairs in [[region, ("AWS_PROFILE", "nobody")], [region, ("AWS_DEFAULT_PROFILE", "nobody")]] {
            let error = settled(&config, &pairs).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(pairs[1].0) && error.message().contains("nobody"), "{error}");
        }
    }
}
