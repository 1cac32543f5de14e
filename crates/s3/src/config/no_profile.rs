//! Stands in for `profile.rs` where this crate is built without AWS's code, which parses the configuration files: none is read.

use crate::config::environment::Environment;
use crate::config::sourced::Sourced;
use crate::error::{Error, ErrorKind};

/// No profile.
pub(crate) struct Profile;

impl Profile {
    /// # Errors
    /// `Config`, when a profile is named.
    pub(crate) async fn load(name: Option<&str>, environment: &Environment) -> Result<Profile, Error> {
        let named = match name {
            Some(name) => Some(("profile", name.to_owned())),
            None => environment.first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])?,
        };
        match named {
            None => Ok(Profile),
            Some((source, name)) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{source} {name:?}: this program was built without profiles (feature credential-chain)"
                ),
            )),
        }
    }

    pub(crate) async fn region(&self) -> Option<Sourced<String>> {
        None
    }

    pub(crate) fn endpoint_url(&self) -> Result<Option<Sourced<String>>, Error> {
        Ok(None)
    }

    pub(crate) fn get(&self, _: &str) -> Option<Sourced<String>> {
        None
    }

    pub(crate) fn named(&self) -> Sourced<String> {
        Sourced::new("none", "default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_profile_that_is_named_is_refused() {
        let environment = Environment::of(&[("AWS_PROFILE", "work")]);
        for (name, environment) in [(Some("work"), &Environment::of(&[])), (None, &environment)] {
            let error = Profile::load(name, environment).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.message().contains("work") && error.message().contains("credential-chain"),
                "{error}"
            );
        }
        assert!(Profile::load(None, &Environment::of(&[])).await.is_ok());
    }
}
