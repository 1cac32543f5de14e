//! The profile of AWS's configuration files: where its bucket is, and who signs.
//!
//! The files are read here and parsed by AWS's own code, which is given their text and not their paths: it takes a file
//! that is not UTF-8 for an empty one, and passes over names with spaces. What such a file says may be the difference
//! between two stores, so whatever cannot be understood is an error here and never the absence of a setting.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileRegionProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_runtime::env_config::property::PropertiesKey;
use aws_types::os_shim_internal::{Env, Fs};

use crate::config::environment::{Environment, trimmed};
use crate::config::sourced::Sourced;
use crate::error::{Error, invalid};

/// The name of the profile that is taken where none is named.
const DEFAULT: &str = "default";
/// The values that are names of sections.
const NAMES_OF_SECTIONS: [&str; 3] = ["source_profile", "sso_session", "services"];

/// One profile, with the files it stands in.
#[derive(Debug)]
pub(crate) struct Profile {
    name: String,
    /// What names it.
    source: &'static str,
    files: EnvConfigFiles,
    sections: ProfileSet,
    /// The names of the `[services …]` sections, as the parser knows them.
    services: HashSet<String>,
}

impl Profile {
    /// The profile of this name, or that of `AWS_PROFILE` or `AWS_DEFAULT_PROFILE`, or the default one, which may be
    /// absent.
    ///
    /// # Errors
    /// `Config`, when a file cannot be read or parsed, or does not have the profile that was named.
    pub(crate) async fn load(name: Option<&str>, environment: &Environment) -> Result<Profile, Error> {
        let (source, name) = match name {
            Some(name) => ("profile", name.to_owned()),
            None => environment
                .first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])?
                .unwrap_or_else(|| ("default", DEFAULT.to_owned())),
        };
        let config = File::read(EnvConfigFileKind::Config, environment)?;
        let credentials = File::read(EnvConfigFileKind::Credentials, environment)?;
        let sections = parse(&config, &credentials, encoded(&name)).await?;
        let profile = Profile {
            files: EnvConfigFiles::builder()
                .with_contents(EnvConfigFileKind::Config, &config.text)
                .with_contents(EnvConfigFileKind::Credentials, &credentials.text)
                .build(),
            sections,
            services: config.services,
            name,
            source,
        };
        if profile.name != DEFAULT && profile.sections.get_profile(&profile.encoded_name()).is_none() {
            return Err(invalid(format!(
                "{source} {name:?}: there is no such profile, neither [profile {name}] in {config} nor [{name}] in \
                 {credentials}",
                name = profile.name,
                config = config.path,
                credentials = credentials.path
            )));
        }
        Ok(profile)
    }

    /// The name under which the parser knows the profile.
    pub(crate) fn encoded_name(&self) -> String {
        encoded(&self.name)
    }

    /// The files, for code that reads more of them.
    pub(crate) fn files(&self) -> EnvConfigFiles {
        self.files.clone()
    }

    /// The region, of this profile or of those it takes its role from, and where it stands.
    pub(crate) async fn region(&self) -> Option<Sourced<String>> {
        let region = ProfileFileRegionProvider::builder()
            .configure(&ProviderConfig::without_region())
            .profile_name(self.encoded_name())
            .profile_files(self.files())
            .build()
            .region()
            .await?;
        let region = trimmed(region.as_ref());
        (!region.is_empty()).then(|| Sourced::new(region, self.describe("region")))
    }

    /// S3's endpoint, and where it stands: in the services section of the profile, else in the profile itself.
    ///
    /// # Errors
    /// `Config`, when the profile names a services section that is not there.
    pub(crate) fn endpoint_url(&self) -> Result<Option<Sourced<String>>, Error> {
        if let Some(Sourced { value: name, source }) = self.get("services") {
            if !self.services.contains(&name) {
                return Err(invalid(format!("{source} is {name:?}, and there is no [services {name}]")));
            }
            let key = PropertiesKey::builder()
                .section_key("services")
                .section_name(&name)
                .property_name("s3")
                .sub_property_name("endpoint_url")
                .build()
                .map_err(invalid)?;
            let url = self.sections.other_sections().get(&key).map_or("", |url| trimmed(url));
            if !url.is_empty() {
                return Ok(Some(Sourced::new(url, format!("s3.endpoint_url of services {name:?}"))));
            }
        }
        Ok(self.get("endpoint_url"))
    }

    /// What a key of the profile says; `group.key` is one of the lines below `group =`.
    pub(crate) fn get(&self, key: &str) -> Option<Sourced<String>> {
        let profile = self.sections.get_profile(&self.encoded_name())?;
        let value = match key.split_once('.') {
            None => profile.get(key),
            Some((group, key)) => profile.get(group)?.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                name.trim().eq_ignore_ascii_case(key).then_some(value)
            }),
        };
        let value = value.map(trimmed).filter(|value| !value.is_empty())?;
        Some(Sourced::new(value, self.describe(key)))
    }

    /// Which profile it is, and what names it.
    pub(crate) fn named(&self) -> Sourced<String> {
        Sourced::new(&self.name, self.source)
    }

    fn describe(&self, key: &str) -> String {
        format!("{key} of profile {:?}", self.name)
    }
}

/// One of the two files, as the parser takes it.
struct File {
    path: String,
    text: String,
    services: HashSet<String>,
}

impl File {
    fn read(kind: EnvConfigFileKind, environment: &Environment) -> Result<File, Error> {
        let (variable, name) = match kind {
            EnvConfigFileKind::Config => ("AWS_CONFIG_FILE", "config"),
            EnvConfigFileKind::Credentials => ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        };
        let home = match environment.get("HOME")? {
            Some(home) => Some(PathBuf::from(home)),
            None => std::env::home_dir(),
        };
        let given = environment.get(variable)?;
        let path = match (&given, &home) {
            (Some(given), Some(home)) if given == "~" || given.starts_with("~/") => {
                home.join(given.trim_start_matches('~').trim_start_matches('/'))
            }
            (Some(given), _) => PathBuf::from(given),
            (None, Some(home)) => home.join(".aws").join(name),
            (None, None) => return Ok(File::of("", kind, format!("~/.aws/{name}"))),
        };
        let label = path.to_string_lossy().into_owned();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if is_absent(&error, given.is_none()) => Vec::new(),
            Err(error) => return Err(invalid(format!("{variable} {label}: {error}")).with_source(error)),
        };
        let text = String::from_utf8(bytes)
            .map_err(|_| invalid(format!("the AWS configuration in {label} is not valid UTF-8")))?;
        Ok(File::of(&text, kind, label))
    }

    fn of(text: &str, kind: EnvConfigFileKind, path: String) -> File {
        let mut services = HashSet::new();
        let mut lines = String::with_capacity(text.len());
        for line in text.trim_start_matches('\u{feff}').lines() {
            if let Some((prefix, name)) = section(line, kind) {
                let name = encoded(name);
                let _ = match prefix {
                    "" => writeln!(lines, "[{name}]"),
                    prefix => writeln!(lines, "[{prefix} {name}]"),
                };
                if prefix == "services" {
                    services.insert(name);
                }
            } else if let Some((key, name)) = reference(line) {
                let _ = writeln!(lines, "{key} = {}", encoded(name));
            } else {
                lines.push_str(line);
                lines.push('\n');
            }
        }
        File { path, text: lines, services }
    }
}

/// Whether a file that cannot be read counts as none. A home of another user has nothing to say to this one.
fn is_absent(error: &io::Error, default_path: bool) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || (default_path && error.kind() == io::ErrorKind::PermissionDenied)
}

/// The two files, parsed together; errors name the file and its line.
async fn parse(config: &File, credentials: &File, name: String) -> Result<ProfileSet, Error> {
    let (first, mut second) = (config.path.clone(), credentials.path.clone());
    if first == second {
        second.push_str(" (as credentials)");
    }
    let paths = Env::from_slice(&[("AWS_CONFIG_FILE", &first), ("AWS_SHARED_CREDENTIALS_FILE", &second)]);
    let texts = Fs::from_map(HashMap::from([(first, &*config.text), (second, &*credentials.text)]));
    let files = EnvConfigFiles::default();
    aws_config::profile::load(&texts, &paths, &files, Some(name.into())).await.map_err(|error| {
        let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        invalid(format!("the AWS configuration is not valid: {why}")).with_source(error)
    })
}

/// The kind and the name of the section that a line begins, where the name may need other characters.
fn section(line: &str, kind: EnvConfigFileKind) -> Option<(&str, &str)> {
    let inner = line.strip_prefix('[')?;
    let (prefix, rest) = match kind {
        EnvConfigFileKind::Credentials => ("", inner),
        EnvConfigFileKind::Config => {
            let (prefix, rest) = inner.trim_start().split_once([' ', '\t'])?;
            ["profile", "sso-session", "services"].contains(&prefix).then_some((prefix, rest.trim_start()))?
        }
    };
    let quoted = ['"', '\''].into_iter().find_map(|quote| {
        let (name, after) = rest.strip_prefix(quote)?.split_once(quote)?;
        after.trim_start().starts_with(']').then_some(name)
    });
    let name = quoted.or_else(|| rest.split_once(']').map(|(name, _)| name.trim()))?;
    (!name.is_empty()).then_some((prefix, name))
}

/// The key and the value of a line that names another section.
fn reference(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim_end();
    let comment = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
    let name = value[..comment.unwrap_or(value.len())].trim();
    let known = NAMES_OF_SECTIONS.iter().any(|known| known.eq_ignore_ascii_case(key));
    (known && !name.is_empty()).then_some((key, name))
}

/// A name in the characters that the parser takes in names.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-/.%@:+".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// The profile that these files and variables come to.
    async fn profile(
        config: &str,
        credentials: &str,
        name: Option<&str>,
        more: &[(&str, &str)],
    ) -> Result<Profile, Error> {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("config"), folder.path().join("credentials"));
        std::fs::write(&first, config).unwrap();
        std::fs::write(&second, credentials).unwrap();
        let mut pairs = vec![
            ("AWS_CONFIG_FILE", first.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", second.to_str().unwrap()),
        ];
        pairs.extend(more);
        Profile::load(name, &Environment::of(&pairs)).await
    }

    async fn url(config: &str, name: Option<&str>, more: &[(&str, &str)]) -> Option<String> {
        profile(config, "", name, more).await.unwrap().endpoint_url().unwrap().map(|url| url.value)
    }

    #[tokio::test]
    async fn the_endpoint_is_that_of_the_services_section_then_the_profiles_own() {
        let services = "services = mine\n[services other]\ns3 =\n  endpoint_url = http://o\n[services mine]\ns3 = \n  \
                        endpoint_url = http://s\nsts =\n  endpoint_url = http://t\n";
        for (config, expected) in [
            ("[default]\nendpoint_url = http://d\n".to_owned(), Some("http://d")),
            ("[profile default]\nendpoint_url=http://d\r\n".to_owned(), Some("http://d")),
            ("[default]\nENDPOINT_URL = http://d # there\n".to_owned(), Some("http://d")),
            (format!("[default]\nendpoint_url = http://d\n{services}"), Some("http://s")),
            (format!("[default]\n{services}"), Some("http://s")),
            (
                "[default]\nendpoint_url = http://d\nservices = x\n[services x]\nec2 =\n endpoint_url = u\n"
                    .to_owned(),
                Some("http://d"),
            ),
            ("[default]\nendpoint_url =\n".to_owned(), None),
            ("[profile other]\nendpoint_url = http://o\n".to_owned(), None),
            ("\u{feff}[default]\nendpoint_url = http://d\n".to_owned(), Some("http://d")),
        ] {
            assert_eq!(url(&config, None, &[]).await.as_deref(), expected, "{config}");
        }
    }

    #[tokio::test]
    async fn a_profile_is_that_of_the_argument_then_of_the_environment() {
        let config =
            "[default]\nendpoint_url = d\n[profile a]\nendpoint_url = a\n[profile b]\nendpoint_url = b\n";
        let (first, second) = (("AWS_PROFILE", " a\n"), ("AWS_DEFAULT_PROFILE", "b"));
        for (name, more, expected) in [
            (None, vec![], "d"),
            (None, vec![first], "a"),
            (None, vec![second], "b"),
            (None, vec![second, first], "a"),
            (Some("b"), vec![first], "b"),
            (None, vec![("AWS_PROFILE", "")], "d"),
        ] {
            assert_eq!(url(config, name, &more).await.as_deref(), Some(expected), "{name:?} {more:?}");
        }
    }

    #[tokio::test]
    async fn the_credentials_file_counts_too_and_wins() {
        let config = "[default]\nendpoint_url = http://c\nregion = eu-west-1\n";
        let found = profile(config, "[default]\nendpoint_url = http://k\n", None, &[]).await.unwrap();
        assert_eq!(found.endpoint_url().unwrap().unwrap().value, "http://k");
        assert_eq!(found.region().await.unwrap().value, "eu-west-1");
    }

    #[tokio::test]
    async fn names_may_have_spaces_and_other_characters() {
        for header in ["[profile my store]", "[profile \"my store\"]", "[profile 'my store']  # mine"] {
            let config = format!("{header}\nendpoint_url = http://m\nservices = a b\n[services \"a b\"]\n");
            assert_eq!(url(&config, Some("my store"), &[]).await.as_deref(), Some("http://m"), "{header}");
        }
        for name in ["größe", "a(b)", "a~b!", "x y z", "100%"] {
            let config = format!(
                "[profile {name}]\nsource_profile = s {name}\n[profile s {name}]\nregion = eu-west-1\n"
            );
            let found = profile(&config, "", Some(name), &[]).await.unwrap();
            assert_eq!(found.region().await.unwrap().value, "eu-west-1", "{name}");
            let keys = format!("[{name}]\nendpoint_url = http://k\n");
            let found = profile("", &keys, Some(name), &[]).await.unwrap();
            assert_eq!(found.endpoint_url().unwrap().unwrap().value, "http://k", "{name}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_an_error_and_not_the_absence_of_a_setting() {
        for (config, word) in [
            ("endpoint_url = http://x\n", "line 1"),
            ("[default]\nendpoint_url http://x\n", "line 2"),
            ("[default\nendpoint_url = http://x\n", "line 1"),
            ("[profile x]\nregion = r\n", "[profile nobody]"),
            ("[nobody]\nendpoint_url = http://x\n", "[profile nobody]"),
        ] {
            let name = word.contains("nobody").then_some("nobody");
            let error = profile(config, "", name, &[]).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{config}");
            assert!(error.message().contains(word) && error.message().contains("config"), "{error}");
        }
        let lost = profile("[default]\nservices = lost\nendpoint_url = u\n", "", None, &[]).await.unwrap();
        assert!(lost.endpoint_url().unwrap_err().message().contains("[services lost]"));
        let named = profile("", "", None, &[("AWS_PROFILE", "nobody")]).await.map(|_| ()).unwrap_err();
        assert!(named.message().starts_with("AWS_PROFILE \"nobody\""), "{named}");
        let broken =
            profile("", "[a]\naws_secret_access_key hunter2\n", None, &[]).await.map(|_| ()).unwrap_err();
        assert!(broken.message().contains("credentials on line 2"), "{broken}");
        assert!(!broken.message().contains("hunter2"), "{broken}");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_an_error_and_one_that_is_absent_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let load = |path: &str| {
            let environment =
                Environment::of(&[("AWS_CONFIG_FILE", path), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")]);
            async move { Profile::load(None, &environment).await.map(|_| ()) }
        };
        let here = folder.path().to_str().unwrap();
        assert!(load(here).await.unwrap_err().message().contains("AWS_CONFIG_FILE"));
        std::fs::write(folder.path().join("latin"), b"[default]\nendpoint_url = http://\xe4\n").unwrap();
        assert!(load(&format!("{here}/latin")).await.unwrap_err().message().contains("UTF-8"));
        load(&format!("{here}/nothing")).await.unwrap();
        load(&format!("{here}/latin/below")).await.unwrap();
        load("/dev/null").await.unwrap();
    }

    #[tokio::test]
    async fn a_group_of_settings_is_indented_below_its_name() {
        let text = "[default]\ns3 =\n  max_concurrent_requests = 20\r\n\tAddressing_Style=path \n  use_arn_region =\n\
                    region = eu-west-1\n";
        let found = profile(text, "", None, &[]).await.unwrap();
        let style = found.get("s3.addressing_style").unwrap();
        assert_eq!(style, Sourced::new("path", "s3.addressing_style of profile \"default\""));
        assert_eq!(found.get("region").unwrap().value, "eu-west-1");
        for absent in
            ["s3.use_arn_region", "s3.region", "s3.payload_signing_enabled", "sts.region", "addressing_style"]
        {
            assert_eq!(found.get(absent), None, "{absent}");
        }
    }
}
