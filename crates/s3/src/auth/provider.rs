//! Where credentials come from, one load at a time: keys that were given, or those of the environment. The rest of AWS's chain
//! is [`crate::auth::chain`], where this crate is built with it.

use aws_credential_types::Credentials;
use futures_util::future::BoxFuture;

use crate::config::StaticCredentials;
use crate::config::environment::{Environment, check_key};
#[cfg(not(feature = "credential-chain"))]
use crate::config::profile::Profile;
use crate::error::{Error, ErrorKind};
use crate::http::trust::Bundle;

/// Loads in a row that may fail for a reason of which nobody knows whether it passes.
pub(crate) const DOUBTFUL_LOADS: u32 = 6;

/// Loads credentials once.
pub(crate) type Load = Box<dyn Fn() -> BoxFuture<'static, Result<Credentials, LoadFailure>> + Send + Sync>;

/// Where those are asked that hand out credentials, and whom to trust there.
#[derive(Debug, Clone, Default)]
#[cfg_attr(not(feature = "credential-chain"), allow(dead_code, reason = "only the chain asks somebody"))]
pub(crate) struct Place {
    pub(crate) region: Option<String>,
    pub(crate) bundle: Option<Bundle>,
    pub(crate) fips: bool,
    pub(crate) dual_stack: bool,
}

/// A load that failed, and what that says of the next one.
#[derive(Debug, Clone)]
pub(crate) struct LoadFailure {
    pub(crate) error: Error,
    pub(crate) outlook: Outlook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "credential-chain"), allow(dead_code, reason = "only the chain asks somebody"))]
pub(crate) enum Outlook {
    /// Who was asked said no.
    Refused,
    /// There is nobody to ask, or a setting cannot work.
    Absent,
    /// It may pass or not.
    Doubtful,
    /// It passes: a time-out, a server's error, no connection.
    Passing,
    /// It may pass, and so many loads in a row are worth it.
    Attempts(u32),
}

impl Outlook {
    /// Whether whoever asks next begins to count anew.
    pub(crate) fn is_used_up(self, failures: u32) -> bool {
        matches!(self, Outlook::Attempts(most) if failures >= most)
    }

    /// Whether to load again, after this many failures in a row. `known`: there have been credentials before, so what
    /// is missing or broken now is being replaced.
    pub(crate) fn is_worth_a_retry(self, failures: u32, known: bool) -> bool {
        match self {
            Outlook::Refused => false,
            Outlook::Absent => known,
            Outlook::Doubtful => known || failures < DOUBTFUL_LOADS,
            Outlook::Passing => true,
            Outlook::Attempts(most) => failures < most,
        }
    }
}

/// Hands out what was given.
pub(crate) fn given(keys: &StaticCredentials) -> Load {
    let mut builder = Credentials::builder()
        .access_key_id(&keys.access_key_id)
        .secret_access_key(&keys.secret_access_key)
        .provider_name("static");
    builder.set_session_token(keys.session_token.clone());
    let credentials = builder.build();
    Box::new(move || {
        let credentials = credentials.clone();
        Box::pin(async move { Ok(credentials) })
    })
}

/// The keys in the environment, if there are any.
///
/// # Errors
/// `Config`, naming the variable, when there is half of them, or one cannot be a key.
pub(crate) fn keys_of(environment: &Environment) -> Result<Option<Credentials>, Error> {
    let [id, secret, token] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
    let Some(access_key_id) = environment.get(id)? else { return Ok(None) };
    let Some(secret_access_key) = environment.get(secret)? else {
        return Err(Error::new(ErrorKind::Config, format!("{id} is set, but {secret} is not")));
    };
    let session_token = environment.get(token)?;
    check_key(id, &access_key_id)?;
    check_key(secret, &secret_access_key)?;
    session_token.as_ref().map_or(Ok(()), |value| check_key(token, value))?;
    Ok(Some(Credentials::new(access_key_id, secret_access_key, session_token, None, "environment")))
}

/// The keys of the environment, and nothing else of the chain: there is no profile, and nobody to ask over the network.
#[cfg(not(feature = "credential-chain"))]
pub(crate) fn environment(profile: Option<String>, _: Place) -> Load {
    const NONE: &str = "no AWS credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and this program \
                        was built without the rest of the chain (feature credential-chain). Set unsigned for a public bucket";
    Box::new(move || {
        let profile = profile.clone();
        Box::pin(async move {
            let environment = Environment::of_process();
            let found =
                Profile::load(profile.as_deref(), &environment).await.and_then(|_| keys_of(&environment));
            found
                .and_then(|keys| keys.ok_or_else(|| Error::new(ErrorKind::Denied, NONE)))
                .map_err(|error| LoadFailure { error, outlook: Outlook::Absent })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_environment_lose_the_white_space_around_them() {
        let pairs = [
            ("AWS_ACCESS_KEY_ID", "id\n"),
            ("AWS_SECRET_ACCESS_KEY", " secret\r\n"),
            ("AWS_SESSION_TOKEN", "\n"),
        ];
        let keys = keys_of(&Environment::of(&pairs)).unwrap().unwrap();
        assert_eq!(
            (keys.access_key_id(), keys.secret_access_key(), keys.session_token()),
            ("id", "secret", None)
        );
        assert!(keys_of(&Environment::of(&[("AWS_ACCESS_KEY_ID", " ")])).unwrap().is_none());
        assert!(keys_of(&Environment::of(&pairs[1..])).unwrap().is_none());
        let half = keys_of(&Environment::of(&pairs[..1])).unwrap_err();
        assert!(half.message().contains("AWS_SECRET_ACCESS_KEY is not"), "{half}");
        for at in 0..3 {
            let mut broken = pairs;
            broken[at].1 = "hunter 2";
            let error = keys_of(&Environment::of(&broken)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(broken[at].0) && !error.message().contains("hunter"), "{error}");
        }
    }
}
