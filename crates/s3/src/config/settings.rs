//! What a client goes by, and where each setting stands: an argument, a variable or the profile, in the order of AWS's tools.

use std::path::PathBuf;

use crate::auth::provider::Place;
use crate::config::ClientConfig;
use crate::config::environment::{Environment, flag};
use crate::config::profile::Profile;
use crate::config::sourced::Sourced;
use crate::error::{Error, invalid};
use crate::http::trust::Bundle;
use crate::protocol::endpoint::{Addressing, Endpoint, Region, Style};

/// What nobody has set.
const DEFAULT: &str = "default";
/// Checksums with requests and with responses: the variables, and what they are called in a profile.
const CHECKSUMS: [(&str, &str); 2] = [
    ("AWS_REQUEST_CHECKSUM_CALCULATION", "request_checksum_calculation"),
    ("AWS_RESPONSE_CHECKSUM_VALIDATION", "response_checksum_validation"),
];

/// A setting that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// What it is called.
    pub name: &'static str,
    /// Its value, in words.
    pub value: String,
    /// Where it stands: the name of an argument or of a variable, a key of a profile, or `default`.
    pub source: String,
}

/// The settings that a client may find outside of its configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    profile: Sourced<String>,
    region: Option<Sourced<Region>>,
    endpoint_url: Option<Sourced<String>>,
    style: Sourced<Style>,
    fips: Sourced<bool>,
    dual_stack: Sourced<bool>,
    accelerate: Sourced<bool>,
    use_arn_region: Sourced<bool>,
    pub(crate) ca_bundle: Option<Sourced<PathBuf>>,
    checksums: [Sourced<bool>; 2],
}

impl Settings {
    /// Reads the environment and the configuration files.
    ///
    /// # Errors
    /// `Config`, naming where a value stands that cannot be, or a file that cannot be parsed.
    pub(crate) async fn read(config: &ClientConfig, environment: &Environment) -> Result<Settings, Error> {
        let profile = Profile::load(config.profile.as_deref(), environment).await?;
        let places = Places { environment, profile: &profile };
        let given = |text: &Option<String>, name: &str| text.clone().map(|text| Sourced::new(text, name));
        let region = match given(&config.region, "region") {
            Some(region) => Some(region),
            None => match places.variable(&["AWS_REGION", "AWS_DEFAULT_REGION"])? {
                Some(region) => Some(region),
                None => profile.region().await,
            },
        };
        let endpoint_url = match given(&config.endpoint_url, "endpoint_url") {
            Some(url) => Some(url),
            None => places.endpoint_url()?,
        };
        let ca_bundle = match &config.ca_bundle {
            Some(path) => Some(Sourced::new(path.clone(), "ca_bundle")),
            None => places
                .text(&["AWS_CA_BUNDLE"], &["ca_bundle"])?
                .map(|path| Sourced::new(PathBuf::from(path.value), path.source)),
        };
        let [requests, responses] =
            CHECKSUMS.map(|(variable, key)| places.checksums(config.checksum_headers, variable, key));
        Ok(Settings {
            profile: profile.named(),
            region: region
                .map(|found| found.try_map(|name, source| Region::parse(&name, source)))
                .transpose()?,
            endpoint_url,
            style: places.style(config.force_path_style)?,
            fips: places.flag(
                config.use_fips_endpoint.map(|on| Sourced::new(on, "use_fips_endpoint")),
                &["AWS_USE_FIPS_ENDPOINT"],
                &["use_fips_endpoint"],
                false,
            )?,
            dual_stack: places.dual_stack(config.use_dualstack_endpoint)?,
            accelerate: places.flag(
                config.use_accelerate_endpoint.map(|on| Sourced::new(on, "use_accelerate_endpoint")),
                &[],
                &["s3.use_accelerate_endpoint"],
                false,
            )?,
            use_arn_region: places.flag(
                None,
                &["AWS_S3_USE_ARN_REGION"],
                &["s3_use_arn_region", "s3.use_arn_region"],
                true,
            )?,
            ca_bundle,
            checksums: [requests?, responses?],
        })
    }

    /// The region that requests are signed for.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_ref().map(|region| &region.value)
    }

    /// Where those are asked that hand out credentials.
    pub(crate) fn place(&self, region: Option<String>, bundle: Option<Bundle>) -> Place {
        // What stands below `s3 =` is for S3 alone.
        let dual_stack = self.dual_stack.value && !self.dual_stack.source.starts_with("s3.");
        Place { region, bundle, fips: self.fips.value, dual_stack }
    }

    /// Whether checksums go with what is written, and are asked for with what is read.
    pub(crate) fn checksums(&self) -> [bool; 2] {
        [self.checksums[0].value, self.checksums[1].value]
    }

    /// Where requests go.
    ///
    /// # Errors
    /// `Config`, when nothing says where, or settings exclude each other.
    pub(crate) fn endpoint(&self, unsigned: bool) -> Result<Endpoint, Error> {
        let addressing = Addressing {
            style: self.style.value,
            fips: self.fips.value,
            dual_stack: self.dual_stack.value,
            accelerate: self.accelerate.value,
            use_arn_region: self.use_arn_region.value,
        };
        match (&self.endpoint_url, self.region()) {
            (Some(url), region) if region.is_some() || unsigned => {
                Endpoint::custom(&url.value, &url.source, region, addressing)
            }
            (None, Some(region)) => Endpoint::aws(region, addressing),
            (_, None | Some(_)) => Err(invalid(
                "no region: set region, AWS_REGION, AWS_DEFAULT_REGION or a region in the AWS profile"
                    .to_owned(),
            )),
        }
        .map_err(|error| self.with_sources(error))
    }

    /// Says where the variants of AWS's endpoints were asked for that an error names.
    fn with_sources(&self, error: Error) -> Error {
        let asked: Vec<String> = self
            .list(None)
            .into_iter()
            .filter(|setting| setting.name.starts_with("use_") && error.message().contains(setting.name))
            .filter(|setting| setting.name != setting.source && setting.source != DEFAULT)
            .map(|setting| format!("{} is set by {}", setting.name, setting.source))
            .collect();
        if asked.is_empty() {
            return error;
        }
        let message = format!("{} ({})", error.message(), asked.join(", "));
        error.with_message(message)
    }

    /// All of them, in the order in which a person asks; `endpoint` is what they come to.
    pub(crate) fn list(&self, endpoint: Option<&Endpoint>) -> Vec<Setting> {
        let setting = |name, value: String, source: &str| Setting { name, value, source: source.to_owned() };
        let flag = |name, on: &Sourced<bool>| setting(name, on.value.to_string(), &on.source);
        let checksum = |name, on: &Sourced<bool>| {
            let value = if on.value { "when_supported" } else { "when_required" };
            setting(name, value.to_owned(), &on.source)
        };
        let none = || setting("", "none".to_owned(), DEFAULT);
        let region = self.region.as_ref();
        let url = endpoint.map(Endpoint::url).or(self.endpoint_url.as_ref().map(|url| url.value.clone()));
        let url_source = self.endpoint_url.as_ref().map_or(DEFAULT, |url| &url.source);
        let style = match self.style.value {
            Style::Auto => "auto",
            Style::Path => "path",
            Style::Virtual => "virtual",
        };
        let bundle = self.ca_bundle.as_ref();
        vec![
            setting("profile", self.profile.value.clone(), &self.profile.source),
            region.map_or_else(
                || Setting { name: "region", ..none() },
                |region| setting("region", region.value.signed().to_owned(), &region.source),
            ),
            url.map_or_else(
                || Setting { name: "endpoint_url", ..none() },
                |url| setting("endpoint_url", url, url_source),
            ),
            setting("addressing_style", style.to_owned(), &self.style.source),
            flag("use_fips_endpoint", &self.fips),
            flag("use_dualstack_endpoint", &self.dual_stack),
            flag("use_accelerate_endpoint", &self.accelerate),
            flag("use_arn_region", &self.use_arn_region),
            bundle.map_or_else(
                || Setting { name: "ca_bundle", ..none() },
                |path| setting("ca_bundle", path.value.display().to_string(), &path.source),
            ),
            checksum(CHECKSUMS[0].1, &self.checksums[0]),
            checksum(CHECKSUMS[1].1, &self.checksums[1]),
        ]
    }
}

/// Where settings are looked for, when no argument has them.
struct Places<'a> {
    environment: &'a Environment,
    profile: &'a Profile,
}

impl Places<'_> {
    /// The first of these variables that is set.
    fn variable(&self, names: &[&str]) -> Result<Option<Sourced<String>>, Error> {
        Ok(self.environment.first(names)?.map(|(name, value)| Sourced::new(value, name)))
    }

    /// The first of these variables, else of these keys of the profile, that is set.
    fn text(&self, variables: &[&str], keys: &[&str]) -> Result<Option<Sourced<String>>, Error> {
        Ok(self.variable(variables)?.or_else(|| keys.iter().find_map(|key| self.profile.get(key))))
    }

    fn flag(
        &self,
        given: Option<Sourced<bool>>,
        variables: &[&str],
        keys: &[&str],
        default: bool,
    ) -> Result<Sourced<bool>, Error> {
        if let Some(given) = given {
            return Ok(given);
        }
        let found = self.text(variables, keys)?;
        let found = found.map(|text| text.try_map(|value, source| flag(&value, source))).transpose()?;
        Ok(found.unwrap_or_else(|| Sourced::new(default, DEFAULT)))
    }

    /// The endpoint of the environment or the profile, unless such endpoints are not to count.
    fn endpoint_url(&self) -> Result<Option<Sourced<String>>, Error> {
        let ignored = self.flag(
            None,
            &["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"],
            &["ignore_configured_endpoint_urls"],
            false,
        )?;
        if ignored.value {
            return Ok(None);
        }
        match self.variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])? {
            Some(url) => Ok(Some(url)),
            None => self.profile.endpoint_url(),
        }
    }

    fn style(&self, force_path_style: bool) -> Result<Sourced<Style>, Error> {
        if force_path_style {
            return Ok(Sourced::new(Style::Path, "force_path_style"));
        }
        let Some(found) = self.profile.get("s3.addressing_style") else {
            return Ok(Sourced::new(Style::Auto, DEFAULT));
        };
        found.try_map(|value, source| match value.to_ascii_lowercase().as_str() {
            "auto" => Ok(Style::Auto),
            "path" => Ok(Style::Path),
            "virtual" => Ok(Style::Virtual),
            _ => Err(invalid(format!("{source} must be auto, path or virtual, not {value:?}"))),
        })
    }

    /// botocore's own place for it, which can only turn it on, comes before those that all SDKs know.
    fn dual_stack(&self, given: Option<bool>) -> Result<Sourced<bool>, Error> {
        let own = self.flag(None, &[], &["s3.use_dualstack_endpoint"], false)?;
        let given = given.map(|on| Sourced::new(on, "use_dualstack_endpoint")).or(own.value.then_some(own));
        self.flag(given, &["AWS_USE_DUALSTACK_ENDPOINT"], &["use_dualstack_endpoint"], false)
    }

    fn checksums(&self, given: Option<bool>, variable: &str, key: &str) -> Result<Sourced<bool>, Error> {
        if let Some(on) = given {
            return Ok(Sourced::new(on, "checksum_headers"));
        }
        let Some(found) = self.text(&[variable], &[key])? else {
            return Ok(Sourced::new(true, DEFAULT));
        };
        found.try_map(|value, source| match value.to_ascii_lowercase().as_str() {
            "when_supported" => Ok(true),
            "when_required" => Ok(false),
            _ => Err(invalid(format!("{source} must be when_supported or when_required, not {value:?}"))),
        })
    }
}

#[cfg(test)]
#[cfg(feature = "credential-chain")]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

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
        let settings = Settings::read(config, &Environment::of(&all)).await?;
        Ok((settings.endpoint(config.unsigned)?.url(), settings.region().cloned()))
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
    async fn what_excludes_each_other_is_told_with_where_it_stands() {
        let fips = ("AWS_USE_FIPS_ENDPOINT", "true");
        let error = settled(&ClientConfig::default(), &[fips]).await.unwrap_err();
        for word in ["use_fips_endpoint", "AWS_USE_FIPS_ENDPOINT", "http://profile:4", "profile \"default\""]
        {
            assert!(error.message().contains(word), "{error}");
        }
        let config = ClientConfig { use_accelerate_endpoint: Some(true), ..ClientConfig::default() };
        let error = settled(&config, &[fips, ("AWS_PROFILE", "aws")]).await.unwrap_err();
        assert!(error.message().contains("set by AWS_USE_FIPS_ENDPOINT"), "{error}");
    }

    #[tokio::test]
    async fn a_client_tells_what_it_goes_by_and_where_that_stands() {
        let environment = Environment::of(&[("AWS_CONFIG_FILE", "/dev/null"), ("AWS_CA_BUNDLE", "/a.pem")]);
        let config = ClientConfig {
            region: Some("eu-west-1".to_owned()),
            force_path_style: true,
            ..ClientConfig::default()
        };
        let settings = Settings::read(&config, &environment).await.unwrap();
        let endpoint = settings.endpoint(false).unwrap();
        let told = settings.list(Some(&endpoint));
        let of = |name: &str| {
            let setting = told.iter().find(|setting| setting.name == name).unwrap();
            (setting.value.as_str(), setting.source.as_str())
        };
        assert_eq!(of("profile"), ("default", "default"));
        assert_eq!(of("region"), ("eu-west-1", "region"));
        assert_eq!(of("endpoint_url"), ("https://s3.eu-west-1.amazonaws.com", "default"));
        assert_eq!(of("addressing_style"), ("path", "force_path_style"));
        assert_eq!(of("ca_bundle"), ("/a.pem", "AWS_CA_BUNDLE"));
        assert_eq!(of("use_fips_endpoint"), ("false", "default"));
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
