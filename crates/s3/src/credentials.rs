//! Who signs: the AWS credential chain behind a cache that loads once for all tasks and refreshes before expiry.
//!
//! The chain itself is AWS's own (environment, profile with SSO and `credential_process`, web identity, container,
//! instance metadata). It is built anew for each load, so that changed files are seen. Errors and `Debug` never
//! hold a secret.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use futures_util::future::BoxFuture;

use crate::clock;
use crate::config::ClientConfig;
use crate::error::{Error, ErrorKind};

/// Credentials are replaced when they expire within this time.
const REFRESH_BEFORE_EXPIRY: Duration = Duration::from_secs(300);
/// While old credentials still work, a failed refresh is tried again only after this time.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);
/// Longest time for one walk along the chain; `credential_process` may ask a person.
const LOAD_TIMEOUT: Duration = Duration::from_secs(90);

type Load = Box<dyn Fn() -> BoxFuture<'static, Result<Credentials, Error>> + Send + Sync>;

/// Credentials shared by all requests of a client.
pub(crate) struct CredentialCache {
    load: Load,
    refreshable: bool,
    state: Mutex<State>,
    loading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<Credentials>,
    /// Loads finished so far, and the error of the last one.
    loads: u64,
    error: Option<Error>,
    no_refresh_before: Option<SystemTime>,
}

enum Freshness {
    Fresh(Credentials),
    /// Usable, but about to expire.
    Stale(Credentials),
    Missing,
}

impl CredentialCache {
    /// The cache that the configuration asks for; `None` for unsigned requests.
    pub(crate) fn new(
        config: &ClientConfig,
        region: Option<String>,
        ca_pem: Option<Vec<u8>>,
    ) -> Option<CredentialCache> {
        if config.unsigned {
            return None;
        }
        if let Some(keys) = &config.credentials {
            let mut builder = Credentials::builder()
                .access_key_id(&keys.access_key_id)
                .secret_access_key(&keys.secret_access_key)
                .provider_name("static");
            builder.set_session_token(keys.session_token.clone());
            let credentials = builder.build();
            let load: Load = Box::new(move || {
                let credentials = credentials.clone();
                Box::pin(async move { Ok(credentials) })
            });
            return Some(CredentialCache::with(load, false));
        }
        let profile = config.profile.clone();
        let load: Load =
            Box::new(move || Box::pin(load_from_chain(profile.clone(), region.clone(), ca_pem.clone())));
        Some(CredentialCache::with(load, true))
    }

    fn with(load: Load, refreshable: bool) -> CredentialCache {
        CredentialCache {
            load,
            refreshable,
            state: Mutex::new(State::default()),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    /// Credentials valid at `now`.
    pub(crate) async fn get(&self, now: SystemTime) -> Result<Credentials, Error> {
        let loads_before = self.state().loads;
        match self.freshness(now) {
            Freshness::Fresh(credentials) => return Ok(credentials),
            Freshness::Stale(credentials) => {
                // One task refreshes; the others go on with what still works, and so does this one if it fails.
                let Ok(_loading) = self.loading.try_lock() else { return Ok(credentials) };
                return Ok(self.refresh(now).await.unwrap_or(credentials));
            }
            Freshness::Missing => {}
        }
        let _loading = self.loading.lock().await;
        if let Freshness::Fresh(credentials) | Freshness::Stale(credentials) = self.freshness(now) {
            return Ok(credentials);
        }
        {
            // Whoever waited for a load that failed takes its error instead of walking the chain again.
            let state = self.state();
            if let Some(error) = state.error.as_ref().filter(|_| state.loads > loads_before) {
                return Err(error.clone());
            }
        }
        self.refresh(now).await
    }

    /// Forgets credentials that the service called expired. Returns whether loading again can give others.
    pub(crate) fn forget(&self, rejected: &Credentials) -> bool {
        let mut state = self.state();
        let same = |current: &Credentials| {
            current.access_key_id() == rejected.access_key_id()
                && current.session_token() == rejected.session_token()
        };
        if self.refreshable && state.current.as_ref().is_some_and(same) {
            state.current = None;
        }
        self.refreshable
    }

    async fn refresh(&self, now: SystemTime) -> Result<Credentials, Error> {
        let loaded = (self.load)().await;
        let mut state = self.state();
        state.loads += 1;
        match loaded {
            Ok(credentials) => {
                state.current = Some(credentials.clone());
                state.error = None;
                state.no_refresh_before = None;
                Ok(credentials)
            }
            Err(error) => {
                tracing::debug!(%error, "no credentials");
                state.error = Some(error.clone());
                state.no_refresh_before = Some(now + REFRESH_PAUSE);
                Err(error)
            }
        }
    }

    fn freshness(&self, now: SystemTime) -> Freshness {
        let state = self.state();
        let Some(current) = state.current.clone() else { return Freshness::Missing };
        let Some(expiry) = current.expiry() else { return Freshness::Fresh(current) };
        match expiry.duration_since(now) {
            Err(_) => Freshness::Missing,
            Ok(left) if left.is_zero() => Freshness::Missing,
            Ok(left) if left > REFRESH_BEFORE_EXPIRY => Freshness::Fresh(current),
            Ok(_) if state.no_refresh_before.is_some_and(|time| now < time) => Freshness::Fresh(current),
            Ok(_) => Freshness::Stale(current),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The region of the profile files, for a client without one.
pub(crate) async fn region_of_profile(profile: Option<&str>) -> Option<String> {
    let mut builder = ProfileFileRegionProvider::builder().configure(&ProviderConfig::without_region());
    if let Some(profile) = profile {
        builder = builder.profile_name(profile);
    }
    builder.build().region().await.map(|region| region.to_string())
}

async fn load_from_chain(
    profile: Option<String>,
    region: Option<String>,
    ca_pem: Option<Vec<u8>>,
) -> Result<Credentials, Error> {
    let mut roots = TrustStore::default();
    if let Some(pem) = ca_pem {
        roots = roots.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder()
        .with_trust_store(roots)
        .build()
        .map_err(|error| Error::new(ErrorKind::Config, format!("TLS for credentials: {error}")))?;
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    let config = ProviderConfig::without_region()
        .with_http_client(http)
        .with_region(region.map(aws_config::Region::new));
    let load = async {
        match &profile {
            // A profile that was asked for by name wins over the environment.
            Some(name) => {
                let provider =
                    ProfileFileCredentialsProvider::builder().configure(&config).profile_name(name).build();
                provider.provide_credentials().await
            }
            None => {
                let chain = DefaultCredentialsChain::builder().configure(config.clone()).build().await;
                chain.provide_credentials().await
            }
        }
    };
    match clock::before(clock::now() + LOAD_TIMEOUT, load).await {
        Some(Ok(credentials)) => Ok(credentials),
        Some(Err(error)) => Err(describe(&error, profile.as_deref())),
        None => Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "no AWS credentials within {} s; looked in {}",
                LOAD_TIMEOUT.as_secs(),
                places(profile.as_deref())
            ),
        )),
    }
}

fn places(profile: Option<&str>) -> String {
    match profile {
        Some(name) => format!("profile {name:?} of ~/.aws/config and ~/.aws/credentials"),
        None => "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), the profile \
                 (AWS_PROFILE or \"default\" of ~/.aws/config and ~/.aws/credentials), web identity \
                 (AWS_WEB_IDENTITY_TOKEN_FILE), the container (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI) and the instance metadata of EC2"
            .to_owned(),
    }
}

fn describe(error: &CredentialsError, profile: Option<&str>) -> Error {
    let mut reasons = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        reasons.push(error.to_string());
        cause = error.source();
    }
    let reason = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(": ")) };
    let places = places(profile);
    match error {
        CredentialsError::CredentialsNotLoaded(_) => Error::new(
            ErrorKind::Denied,
            format!("no AWS credentials found; looked in {places}{reason}. Set unsigned for a public bucket"),
        ),
        CredentialsError::ProviderTimedOut(_) => Error::new(
            ErrorKind::Timeout,
            format!("AWS credentials did not arrive in time; looked in {places}{reason}"),
        ),
        CredentialsError::InvalidConfiguration(_) => Error::new(
            ErrorKind::Config,
            format!("the AWS configuration is not valid; looked in {places}{reason}"),
        ),
        _ => Error::new(
            ErrorKind::Denied,
            format!("AWS credentials could not be had; looked in {places}{reason}"),
        )
        .with_retryable(true),
    }
}

/// Reads a PEM file of certificates that are trusted besides the system's.
pub(crate) fn read_ca_bundle(path: &Path, source: &str) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::new(ErrorKind::Config, format!("{source} {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    /// Hands out credentials that expire 1,000 s after the load; fails while `broken` is not 0.
    fn cache(loads: &Arc<AtomicU32>, broken: &Arc<AtomicU32>) -> Arc<CredentialCache> {
        let (loads, broken) = (Arc::clone(loads), Arc::clone(broken));
        let load: Load = Box::new(move || {
            let (loads, broken) = (Arc::clone(&loads), Arc::clone(&broken));
            Box::pin(async move {
                let number = loads.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if broken.load(Ordering::SeqCst) != 0 {
                    return Err(Error::new(ErrorKind::Config, "none"));
                }
                let expiry = START + Duration::from_secs(1000 * u64::from(number + 1));
                Ok(Credentials::new(format!("key-{number}"), "secret", None, Some(expiry), "test"))
            })
        });
        Arc::new(CredentialCache::with(load, true))
    }

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn many_tasks_load_once_also_when_it_fails() {
        let (loads, broken) = (Arc::default(), Arc::default());
        let cache = cache(&loads, &broken);
        let ask = |count: usize| {
            let cache = Arc::clone(&cache);
            async move {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..count {
                    let cache = Arc::clone(&cache);
                    tasks.spawn(async move { cache.get(at(0)).await.map(|c| c.access_key_id().to_owned()) });
                }
                tasks.join_all().await
            }
        };
        broken.store(1, Ordering::SeqCst);
        assert!(ask(20).await.iter().all(|answer| answer.is_err()));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        broken.store(0, Ordering::SeqCst);
        assert!(ask(20).await.iter().all(|answer| matches!(answer.as_deref(), Ok("key-1"))));
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn credentials_are_replaced_before_they_expire() {
        let (loads, broken) = (Arc::default(), Arc::default());
        let cache = cache(&loads, &broken);
        for (now, key) in [(0, "key-0"), (699, "key-0"), (701, "key-1"), (1699, "key-1"), (5000, "key-2")] {
            assert_eq!(cache.get(at(now)).await.unwrap().access_key_id(), key, "{now}");
        }
    }

    #[tokio::test]
    async fn a_failed_refresh_leaves_what_still_works_and_pauses() {
        let (loads, broken) = (Arc::default(), Arc::default());
        let cache = cache(&loads, &broken);
        cache.get(at(0)).await.unwrap();
        broken.store(1, Ordering::SeqCst);
        for now in [800, 801, 809] {
            assert_eq!(cache.get(at(now)).await.unwrap().access_key_id(), "key-0");
        }
        assert_eq!(loads.load(Ordering::SeqCst), 2);
        assert_eq!(cache.get(at(1000)).await.unwrap_err().kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn what_the_service_called_expired_is_loaded_again_once() {
        let (loads, broken) = (Arc::default(), Arc::default());
        let cache = cache(&loads, &broken);
        let old = cache.get(at(0)).await.unwrap();
        assert!(cache.forget(&old));
        let new = cache.get(at(0)).await.unwrap();
        assert_eq!(new.access_key_id(), "key-1");
        // A second task that was told the same about the old ones does not throw the new ones away.
        assert!(cache.forget(&old));
        assert_eq!(cache.get(at(0)).await.unwrap().access_key_id(), "key-1");
    }

    #[test]
    fn missing_credentials_say_where_they_were_looked_for() {
        let error = describe(&CredentialsError::not_loaded_no_source(), None);
        assert_eq!(error.kind(), ErrorKind::Denied);
        for place in
            ["AWS_ACCESS_KEY_ID", "~/.aws/credentials", "AWS_WEB_IDENTITY_TOKEN_FILE", "metadata", "unsigned"]
        {
            assert!(error.message().contains(place), "{error}");
        }
        let error = describe(&CredentialsError::not_loaded("no such profile"), Some("work"));
        assert!(error.message().contains("profile \"work\"") && error.message().contains("no such profile"));
    }
}
