//! The AWS credential chain: environment, profile with SSO and `credential_process`, web identity, container, instance
//! metadata. The links are AWS's own. The chain is built anew for each load, so that changed files are seen.

use std::error::Error as StdError;
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;

use crate::auth::http::{ChainHttp, Exchange};
use crate::auth::provider::{Load, LoadFailure, Outlook, Place, keys_of};
use crate::clock;
use crate::config::environment::{Environment, check_key, trimmed};
use crate::config::profile::Profile;
use crate::error::{Error, ErrorKind};
use crate::http::proxy::Proxies;

/// Longest time for one walk along the chain; `credential_process` may ask a person.
const LOAD_TIMEOUT: Duration = Duration::from_secs(90);
/// What the links of the chain read by themselves, and take as it is.
const READ_BY_THE_CHAIN: [&str; 11] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_ENDPOINT_URL_STS",
];

/// Walks along the chain.
pub(crate) fn chain(profile: Option<String>, place: Place) -> Load {
    Box::new(move || Box::pin(walk(profile.clone(), place.clone())))
}

async fn walk(profile: Option<String>, place: Place) -> Result<Credentials, LoadFailure> {
    let Place { region, bundle, fips, dual_stack } = place;
    let settings = |error| LoadFailure { error, outlook: Outlook::Absent };
    let environment = Environment::of_process();
    if profile.is_none()
        && let Some(credentials) = keys_of(&environment).map_err(settings)?
    {
        return Ok(credentials);
    }
    READ_BY_THE_CHAIN.iter().try_for_each(|name| environment.check_plain(name)).map_err(settings)?;
    let found = Profile::load(profile.as_deref(), &environment).await.map_err(settings)?;
    let http =
        ChainHttp::new(bundle.as_ref(), Proxies::read(&environment).map_err(settings)?.with_tls_only());
    let config = ProviderConfig::without_region()
        .with_http_client(http.clone())
        .with_region(region.map(aws_config::Region::new))
        .with_use_fips(Some(fips))
        .with_use_dual_stack(Some(dual_stack));
    let of_profile = ProfileFileCredentialsProvider::builder()
        .configure(&config)
        .profile_name(found.encoded_name())
        .profile_files(found.files())
        .build();
    let load = async {
        // A profile that was asked for by name wins over everything else.
        if profile.is_some() {
            return of_profile.provide_credentials().await;
        }
        CredentialsProviderChain::first_try("Profile", of_profile)
            .or_else("WebIdentity", WebIdentityTokenCredentialsProvider::builder().configure(&config).build())
            .or_else("Container", EcsCredentialsProvider::builder().configure(&config).build())
            .or_else("InstanceMetadata", ImdsCredentialsProvider::builder().configure(&config).build())
            .provide_credentials()
            .await
    };
    let profile = profile.as_deref();
    match clock::before(clock::now() + LOAD_TIMEOUT, load).await {
        Some(Ok(credentials)) => checked(&credentials, profile).map_err(settings),
        Some(Err(error)) => {
            let blind = ignores_sigchld();
            if blind && http.last().is_none() {
                handle_sigchld(); // for the next load
            }
            Err(describe(&error, profile, http.last(), blind))
        }
        None => {
            let seconds = LOAD_TIMEOUT.as_secs();
            let text = format!("no AWS credentials within {seconds} s; looked in {}", places(profile));
            Err(LoadFailure { error: Error::new(ErrorKind::Timeout, text), outlook: Outlook::Passing })
        }
    }
}

/// Credentials of the chain without white space around them, which files and processes leave.
fn checked(found: &Credentials, profile: Option<&str>) -> Result<Credentials, Error> {
    let clean = |what: &str, value: &str| {
        let value = trimmed(value).to_owned();
        check_key(what, &value).map(|()| value).map_err(|error| {
            error.clone().with_message(format!("{}; it came from {}", error.message(), places(profile)))
        })
    };
    Ok(Credentials::new(
        clean("the access key id", found.access_key_id())?,
        clean("the secret access key", found.secret_access_key())?,
        found
            .session_token()
            .filter(|token| !trimmed(token).is_empty())
            .map(|token| clean("the session token", token))
            .transpose()?,
        found.expiry(),
        "chain",
    ))
}

/// Whether this process ignores the end of its children, so that nobody can wait for one.
fn ignores_sigchld() -> bool {
    const CHILD_ENDED: u32 = 17; // SIGCHLD on Linux, but for MIPS and SPARC
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask & (1 << (CHILD_ENDED - 1)) != 0
}

/// Takes note of children that end from now on, which also ends ignoring them. It does so once per process.
fn handle_sigchld() {
    if let Err(error) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) {
        tracing::debug!(%error, "cannot take note of children that end");
    }
}

fn places(profile: Option<&str>) -> String {
    match profile {
        Some(name) => format!("profile {name:?} of ~/.aws/config and ~/.aws/credentials"),
        None => "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), the profile \
                 (AWS_PROFILE, AWS_DEFAULT_PROFILE or \"default\" of ~/.aws/config and ~/.aws/credentials), web identity \
                 (AWS_WEB_IDENTITY_TOKEN_FILE), the container (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI) and the instance metadata of EC2"
            .to_owned(),
    }
}

/// What a failed walk along the chain comes to. `last`: how its last request ended, if it sent any.
fn describe(
    error: &CredentialsError,
    profile: Option<&str>,
    last: Option<Exchange>,
    ignores_sigchld: bool,
) -> LoadFailure {
    let mut reasons = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        reasons.push(error.to_string());
        cause = error.source();
    }
    let reason = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(": ")) };
    let places = places(profile);
    let (kind, text, outlook) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (
            ErrorKind::Denied,
            format!("no AWS credentials found; looked in {places}{reason}. Set unsigned for a public bucket"),
            Outlook::Absent,
        ),
        CredentialsError::ProviderTimedOut(_) => (
            ErrorKind::Timeout,
            format!("AWS credentials did not arrive in time; looked in {places}{reason}"),
            Outlook::Passing,
        ),
        CredentialsError::InvalidConfiguration(_) => (
            ErrorKind::Config,
            format!("the AWS configuration is not valid; looked in {places}{reason}"),
            Outlook::Absent,
        ),
        _ if last.is_none() && ignores_sigchld => (
            ErrorKind::Config,
            format!(
                "the end of credential_process cannot be seen, because this process ignores SIGCHLD; in Python, \
                 signal.signal(signal.SIGCHLD, signal.SIG_DFL) mends it{reason}"
            ),
            Outlook::Doubtful,
        ),
        _ => (
            ErrorKind::Denied,
            format!("AWS credentials could not be had; looked in {places}{reason}"),
            match last {
                Some(Exchange::Failed | Exchange::Answered(408 | 429 | 500..)) => Outlook::Passing,
                // 400 is also what STS says of a token that is about to be replaced, and of too many requests.
                Some(Exchange::Answered(401..500)) => Outlook::Refused,
                Some(Exchange::Answered(_)) | None => Outlook::Doubtful,
            },
        ),
    };
    let retryable = matches!(outlook, Outlook::Doubtful | Outlook::Passing) && kind != ErrorKind::Config;
    let told = Error::new(kind, text).with_retryable(retryable);
    let cause = error.source().map(|cause| texts_of(cause, kind));
    LoadFailure { error: cause.into_iter().fold(told, Error::with_source), outlook }
}

/// An error of AWS's code and its causes, by their texts alone: the values may hold a response with keys in it.
fn texts_of(error: &(dyn StdError + 'static), kind: ErrorKind) -> Error {
    let told = Error::new(kind, error.to_string());
    error.source().map(|cause| texts_of(cause, kind)).into_iter().fold(told, Error::with_source)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn keys_of_the_chain_lose_the_white_space_around_them() {
        let found = Credentials::new("id\r", "secret\n", Some(" token\n".to_owned()), Some(START), "test");
        let clean = checked(&found, None).unwrap();
        assert_eq!((clean.access_key_id(), clean.secret_access_key()), ("id", "secret"));
        assert_eq!((clean.session_token(), clean.expiry()), (Some("token"), Some(START)));
        let broken = Credentials::new("id", "hunter\n2", None, None, "test");
        let error = checked(&broken, Some("work")).unwrap_err();
        assert!(error.message().contains("secret access key") && error.message().contains("work"), "{error}");
        assert!(!error.message().contains("hunter"), "{error}");
    }

    #[test]
    fn missing_credentials_say_where_they_were_looked_for() {
        let failure = describe(&CredentialsError::not_loaded_no_source(), None, None, false);
        assert_eq!((failure.error.kind(), failure.outlook), (ErrorKind::Denied, Outlook::Absent));
        for place in
            ["AWS_ACCESS_KEY_ID", "~/.aws/credentials", "AWS_WEB_IDENTITY_TOKEN_FILE", "metadata", "unsigned"]
        {
            assert!(failure.error.message().contains(place), "{}", failure.error);
        }
        let error =
            describe(&CredentialsError::not_loaded("no such profile"), Some("work"), None, false).error;
        assert!(error.message().contains("profile \"work\"") && error.message().contains("no such profile"));
    }

    #[test]
    fn a_failure_is_judged_by_what_the_service_last_answered() {
        let outlook = |last| describe(&CredentialsError::provider_error("x"), None, last, false).outlook;
        for (status, expected) in [
            (500, Outlook::Passing),
            (503, Outlook::Passing),
            (429, Outlook::Passing),
            (408, Outlook::Passing),
            (403, Outlook::Refused),
            (401, Outlook::Refused),
            (404, Outlook::Refused),
            (400, Outlook::Doubtful),
            (200, Outlook::Doubtful),
        ] {
            assert_eq!(outlook(Some(Exchange::Answered(status))), expected, "{status}");
        }
        assert_eq!(outlook(Some(Exchange::Failed)), Outlook::Passing);
        assert_eq!(outlook(None), Outlook::Doubtful);
    }

    #[test]
    fn a_process_that_ignores_its_children_is_told_so() {
        let failure = describe(&CredentialsError::provider_error("No child processes"), None, None, true);
        assert_eq!((failure.error.kind(), failure.outlook), (ErrorKind::Config, Outlook::Doubtful));
        assert!(failure.error.message().contains("SIGCHLD"), "{}", failure.error);
    }
}
