//! What a client settles at its first request: region, endpoint, credentials, connections.
//!
//! Kept apart from the configuration because it reads the environment and files, and because its connections belong
//! to the runtime of that first request.

use std::path::PathBuf;

use crate::address::Endpoint;
use crate::config::ClientConfig;
use crate::credentials::{CredentialCache, read_ca_bundle, region_of_profile};
use crate::error::{Error, ErrorKind};
use crate::transport::Transport;

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
    /// Settles everything.
    ///
    /// # Errors
    /// `Config`, naming the setting.
    pub(crate) async fn open(config: &ClientConfig) -> Result<Session, Error> {
        let custom = custom_endpoint(config, &variable)?;
        let region = match region_given(config, &variable) {
            Some(region) => Some(region),
            None => region_of_profile(config.profile.as_deref()).await,
        };
        if region.is_none() && (custom.is_none() || !config.unsigned) {
            return Err(Error::new(
                ErrorKind::Config,
                "no region: set region, AWS_REGION, AWS_DEFAULT_REGION or a region in the AWS profile",
            ));
        }
        let endpoint = match (custom, &region) {
            (Some(endpoint), _) => endpoint,
            (None, region) => Endpoint::aws(region.as_deref().unwrap_or_default(), config.force_path_style),
        };
        let ca_pem = match (&config.ca_bundle, variable("AWS_CA_BUNDLE")) {
            (Some(path), _) => Some(read_ca_bundle(path, "ca_bundle")?),
            (None, Some(path)) => Some(read_ca_bundle(&PathBuf::from(path), "AWS_CA_BUNDLE")?),
            (None, None) => None,
        };
        let transport = Transport::new(config, endpoint.tls(), ca_pem.as_deref())?;
        let credentials = CredentialCache::new(config, region.clone(), ca_pem);
        tracing::debug!(endpoint = endpoint.url(), region, "session");
        Ok(Session { region, endpoint, credentials, transport })
    }
}

type Variables<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The endpoint of the configuration or the environment, if any.
pub(crate) fn custom_endpoint(
    config: &ClientConfig,
    variable: Variables<'_>,
) -> Result<Option<Endpoint>, Error> {
    if let Some(url) = &config.endpoint_url {
        return Endpoint::custom(url, "endpoint_url", config.force_path_style).map(Some);
    }
    for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
        if let Some(url) = variable(name) {
            return Endpoint::custom(&url, name, config.force_path_style).map(Some);
        }
    }
    Ok(None)
}

fn region_given(config: &ClientConfig, variable: Variables<'_>) -> Option<String> {
    config.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + Sync + 'a {
        move |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_endpoint_is_the_argument_then_the_s3_variable_then_the_common_one() {
        let both = [("AWS_ENDPOINT_URL", "http://common:1"), ("AWS_ENDPOINT_URL_S3", "http://special:2")];
        let url = |config: &ClientConfig, pairs: &[(&str, &str)]| {
            custom_endpoint(config, &variables(pairs)).unwrap().map(|endpoint| endpoint.url())
        };
        let given =
            ClientConfig { endpoint_url: Some("http://given:3".to_owned()), ..ClientConfig::default() };
        assert_eq!(url(&given, &both).as_deref(), Some("http://given:3"));
        let config = ClientConfig::default();
        assert_eq!(url(&config, &both).as_deref(), Some("http://special:2"));
        assert_eq!(url(&config, &both[..1]).as_deref(), Some("http://common:1"));
        assert_eq!(url(&config, &[]), None);
    }

    #[test]
    fn the_region_is_the_argument_then_the_environment() {
        let pairs = [("AWS_DEFAULT_REGION", "eu-west-2"), ("AWS_REGION", "eu-west-1")];
        let given = ClientConfig { region: Some("us-east-2".to_owned()), ..ClientConfig::default() };
        assert_eq!(region_given(&given, &variables(&pairs)).as_deref(), Some("us-east-2"));
        assert_eq!(region_given(&ClientConfig::default(), &variables(&pairs)).as_deref(), Some("eu-west-1"));
        assert_eq!(
            region_given(&ClientConfig::default(), &variables(&pairs[..1])).as_deref(),
            Some("eu-west-2")
        );
    }
}
