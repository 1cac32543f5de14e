//! Who signs: credentials behind a cache that loads once for all tasks and refreshes before expiry. Those of a session with a
//! directory bucket are kept in one as well.
//!
//! A load that fails for a reason that may pass is repeated until the deadline of the request that waits for
//! it: whoever hands out credentials has bad moments as any service. Errors and `Debug` never hold a secret.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use futures_util::future::BoxFuture;

#[cfg(feature = "credential-chain")]
use crate::auth::chain::chain;
#[cfg(not(feature = "credential-chain"))]
use crate::auth::provider::environment as chain;
use crate::auth::provider::{Load, LoadFailure, Place, given};
use crate::clock::{self, Instant};
use crate::config::ClientConfig;
use crate::error::{Error, ErrorKind};

/// Credentials are replaced when they expire within this time, or within half the time they were given for.
const REFRESH_BEFORE_EXPIRY: Duration = Duration::from_secs(300);
/// While credentials still work, they are not asked for again before this time, whether the last load failed or not.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);
/// The pause after a failed load is drawn from a bound that begins here, doubles, and ends there.
const RETRY_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

type Sleep = dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync;

/// Time as the cache lives in it; that of the tests passes by itself.
struct Time {
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    sleep: Box<Sleep>,
}

impl Time {
    fn real() -> Time {
        Time { now: Box::new(clock::now), sleep: Box::new(|pause| Box::pin(clock::sleep(pause))) }
    }
}

/// Credentials shared by all requests of a client.
pub(crate) struct CredentialCache {
    /// What the credentials are, for errors.
    name: &'static str,
    load: Load,
    time: Time,
    refreshable: bool,
    state: Mutex<State>,
    loading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<Loaded>,
    /// Loads finished so far.
    loads: u64,
    /// The last load, if it failed.
    failed: Option<Failed>,
    /// Whether a load has ever succeeded.
    known: bool,
    no_refresh_before: Option<SystemTime>,
    /// What the service called expired.
    rejected: Option<Credentials>,
}

/// Loads that failed, up to the last one.
struct Failed {
    last: LoadFailure,
    /// How many in a row.
    count: u32,
    /// When to load again, where that is worth it.
    retry_at: Instant,
}

impl State {
    /// When to load again after a failure, if that is worth it.
    fn retry_at(&self) -> Option<Instant> {
        let failed = self.failed.as_ref()?;
        failed.last.outlook.is_worth_a_retry(failed.count, self.known).then_some(failed.retry_at)
    }
}

#[derive(Clone)]
struct Loaded {
    credentials: Credentials,
    at: SystemTime,
}

impl Loaded {
    fn freshness(&self, now: SystemTime, no_refresh_before: Option<SystemTime>) -> Freshness {
        let credentials = self.credentials.clone();
        let Some(expiry) = credentials.expiry() else { return Freshness::Fresh(credentials) };
        let given_for = expiry.duration_since(self.at).unwrap_or_default();
        let left = expiry.duration_since(now).unwrap_or_default();
        // Expired when they came: it is this machine's clock that is wrong, or the service will say so.
        if given_for.is_zero() && now < self.at + REFRESH_PAUSE {
            return Freshness::Fresh(credentials);
        }
        if left.is_zero() {
            return Freshness::Missing;
        }
        let early = left > REFRESH_BEFORE_EXPIRY.min(given_for / 2);
        match early || no_refresh_before.is_some_and(|time| now < time) {
            true => Freshness::Fresh(credentials),
            false => Freshness::Stale(credentials),
        }
    }

    fn are(&self, other: &Credentials) -> bool {
        self.credentials.access_key_id() == other.access_key_id()
            && self.credentials.session_token() == other.session_token()
    }
}

enum Freshness {
    Fresh(Credentials),
    /// Usable, but about to expire.
    Stale(Credentials),
    Missing,
}

impl CredentialCache {
    /// The cache that the configuration asks for; `None` for unsigned requests.
    pub(crate) fn new(config: &ClientConfig, place: Place) -> Option<CredentialCache> {
        if config.unsigned {
            return None;
        }
        const NAME: &str = "AWS credentials";
        Some(match &config.credentials {
            Some(keys) => CredentialCache::with(NAME, given(keys), Time::real(), false),
            None => CredentialCache::with(NAME, chain(config.profile.clone(), place), Time::real(), true),
        })
    }

    /// A cache of credentials that `load` gets, which errors call by `name`.
    pub(crate) fn of(name: &'static str, load: Load) -> CredentialCache {
        CredentialCache::with(name, load, Time::real(), true)
    }

    fn with(name: &'static str, load: Load, time: Time, refreshable: bool) -> CredentialCache {
        CredentialCache {
            name,
            load,
            time,
            refreshable,
            state: Mutex::new(State::default()),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    /// Credentials valid at `now`, for a request that waits for them until `deadline` at most.
    pub(crate) async fn get(&self, now: SystemTime, deadline: Instant) -> Result<Credentials, Error> {
        match clock::before(deadline, self.valid(now, deadline)).await {
            Some(result) => result,
            None => Err(self.state().failed.as_ref().map_or_else(
                || {
                    let text = format!("no {} came before the deadline of the operation", self.name);
                    Error::new(ErrorKind::Timeout, text)
                },
                |failed| failed.last.error.clone(),
            )),
        }
    }

    async fn valid(&self, now: SystemTime, deadline: Instant) -> Result<Credentials, Error> {
        let began = (self.time.now)();
        loop {
            let now = now + (self.time.now)().duration_since(began);
            let seen = self.state().loads;
            match self.freshness(now) {
                Freshness::Fresh(credentials) => return Ok(credentials),
                Freshness::Stale(credentials) => {
                    // One task refreshes; the others go on with what still works, and so does this one if it fails.
                    let Ok(_loading) = self.loading.try_lock() else { return Ok(credentials) };
                    return Ok(self.refresh(now).await.unwrap_or(credentials));
                }
                Freshness::Missing => {}
            }
            if let Some(credentials) = self.load_or_join(now, seen).await {
                return Ok(credentials);
            }
            let (error, retry_at) = {
                let state = self.state();
                let Some(failed) = &state.failed else { continue };
                (failed.last.error.clone(), state.retry_at())
            };
            let Some(retry_at) = retry_at.filter(|at| *at < deadline) else { return Err(error) };
            let pause = retry_at.saturating_duration_since((self.time.now)());
            tracing::debug!(%error, ?pause, "asking for {} again", self.name);
            (self.time.sleep)(pause).await;
        }
    }

    /// Loads, unless a load has ended since `seen` or it is too early after one that failed: whoever waited for it does
    /// not walk the chain again.
    async fn load_or_join(&self, now: SystemTime, seen: u64) -> Option<Credentials> {
        let _loading = self.loading.lock().await;
        if let Freshness::Fresh(credentials) | Freshness::Stale(credentials) = self.freshness(now) {
            return Some(credentials);
        }
        let joined = {
            let state = self.state();
            let early = state.retry_at().is_some_and(|at| (self.time.now)() < at);
            state.failed.is_some() && (state.loads > seen || early)
        };
        if joined { None } else { self.refresh(now).await }
    }

    /// Forgets credentials that the service called expired. Returns whether to try once more: with others, or with those
    /// that were loaded again meanwhile.
    pub(crate) fn invalidate(&self, rejected: &Credentials, now: SystemTime) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let Some(current) =
            state.current.as_ref().filter(|current| self.refreshable && current.are(rejected))
        else {
            return self.refreshable;
        };
        let again = state.rejected.as_ref().is_some_and(|known| current.are(known));
        if again && now < current.at + REFRESH_PAUSE {
            return true; // they were loaded again just now, and whoever hands them out has no others yet
        }
        state.rejected = state.current.take().map(|current| current.credentials);
        true
    }

    async fn refresh(&self, now: SystemTime) -> Option<Credentials> {
        let loaded = (self.load)().await;
        let mut state = self.state();
        state.loads += 1;
        state.no_refresh_before = Some(now + REFRESH_PAUSE);
        match loaded {
            Ok(credentials) => {
                state.current = Some(Loaded { credentials: credentials.clone(), at: now });
                state.known = true;
                state.failed = None;
                Some(credentials)
            }
            Err(mut failure) => {
                tracing::debug!(error = %failure.error, "no {}", self.name);
                let before =
                    state.failed.as_ref().filter(|failed| !failed.last.outlook.is_used_up(failed.count));
                let count = before.map_or(0, |failed| failed.count) + 1;
                let attempts =
                    before.map_or(0, |failed| failed.last.error.attempts()) + failure.error.attempts();
                failure.error = failure.error.with_attempts(attempts, Duration::ZERO);
                let (first, longest) = RETRY_BOUNDS;
                let bound = first.saturating_mul(1 << (count - 1).min(16)).min(longest);
                // Half of it at least, so that the number of loads is bounded, and the rest by chance.
                let pause = bound.mul_f64(0.5 + clock::random() / 2.0);
                let retry_at = (self.time.now)() + pause;
                state.failed = Some(Failed { last: failure, count, retry_at });
                None
            }
        }
    }

    fn freshness(&self, now: SystemTime) -> Freshness {
        let state = self.state();
        let current = state.current.as_ref();
        current.map_or(Freshness::Missing, |current| current.freshness(now, state.no_refresh_before))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::auth::provider::{DOUBTFUL_LOADS, Outlook};

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    /// What the next loads come to, the last one for ever: `None` for credentials.
    type Script = Arc<Mutex<Vec<Option<Outlook>>>>;

    /// Hands out `key-<n>`, each good for the same time from its load on, or fails as its script says.
    struct Source {
        cache: CredentialCache,
        begun: Instant,
        passed: Arc<Mutex<Duration>>,
        loads: Arc<AtomicU32>,
        script: Script,
    }

    /// Time that stands still unless somebody sleeps, and then is at the end of the longest sleep.
    fn virtual_time(begun: Instant, passed: &Arc<Mutex<Duration>>) -> Time {
        let (now, slept) = (Arc::clone(passed), Arc::clone(passed));
        Time {
            now: Box::new(move || begun + *now.lock().unwrap()),
            sleep: Box::new(move |pause| {
                let end = *slept.lock().unwrap() + pause;
                let slept = Arc::clone(&slept);
                Box::pin(async move {
                    tokio::task::yield_now().await;
                    let mut passed = slept.lock().unwrap();
                    *passed = end.max(*passed);
                })
            }),
        }
    }

    fn source_of(lifetime: Duration) -> Source {
        let begun = clock::now();
        let passed = Arc::<Mutex<Duration>>::default();
        let (loads, script) = (Arc::<AtomicU32>::default(), Script::default());
        let (counted, followed, elapsed) = (Arc::clone(&loads), Arc::clone(&script), Arc::clone(&passed));
        let load: Load = Box::new(move || {
            let (loads, script, elapsed) =
                (Arc::clone(&counted), Arc::clone(&followed), Arc::clone(&elapsed));
            Box::pin(async move {
                let number = loads.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                let mut script = script.lock().unwrap();
                let next =
                    if script.len() > 1 { script.remove(0) } else { script.first().copied().flatten() };
                if let Some(outlook) = next {
                    return Err(LoadFailure { error: Error::new(ErrorKind::Denied, "none"), outlook });
                }
                let expiry = START + *elapsed.lock().unwrap() + lifetime;
                Ok(Credentials::new(format!("key-{number}"), "secret", None, Some(expiry), "test"))
            })
        });
        let cache = CredentialCache::with("credentials", load, virtual_time(begun, &passed), true);
        Source { cache, begun, passed, loads, script }
    }

    impl Source {
        fn says(&self, script: &[Option<Outlook>]) {
            *self.script.lock().unwrap() = script.to_vec();
        }

        fn loads(&self) -> u32 {
            self.loads.load(Ordering::SeqCst)
        }

        fn passed(&self) -> Duration {
            *self.passed.lock().unwrap()
        }

        fn wait(&self, seconds: u64) {
            *self.passed.lock().unwrap() += Duration::from_secs(seconds);
        }

        /// Asks as a request with a deadline of a minute.
        async fn key(&self) -> Result<String, Error> {
            let deadline = self.begun + self.passed() + Duration::from_secs(60);
            let credentials = self.cache.get(START + self.passed(), deadline).await?;
            Ok(credentials.access_key_id().to_owned())
        }

        /// As many requests at once.
        async fn keys(&self, count: usize) -> Vec<Result<String, Error>> {
            futures_util::future::join_all((0..count).map(|_| self.key())).await
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const FAILING: [Option<Outlook>; 1] = [Some(Outlook::Passing)];

    #[tokio::test]
    async fn many_tasks_load_once_also_when_it_fails() {
        let source = source_of(HOUR);
        source.says(&[Some(Outlook::Absent)]);
        assert!(source.keys(20).await.iter().all(Result::is_err));
        assert_eq!(source.loads(), 1);
        source.says(&[]);
        assert!(source.keys(20).await.iter().all(|key| key.as_deref().ok() == Some("key-1")));
        assert_eq!(source.loads(), 2);
    }

    #[tokio::test]
    async fn what_passes_is_waited_for_until_the_deadline_by_one_task_for_all() {
        let source = source_of(HOUR);
        source.says(&[FAILING[0]; 8].iter().copied().chain([None]).collect::<Vec<_>>());
        let keys = source.keys(120).await;
        assert!(keys.iter().all(|key| key.as_deref().ok() == Some("key-8")), "{keys:?}");
        assert_eq!(source.loads(), 9);
    }

    #[tokio::test]
    async fn what_does_not_pass_before_the_deadline_is_the_error() {
        let source = source_of(HOUR);
        source.says(&FAILING);
        let errors = source.keys(50).await;
        assert!(errors.iter().all(|error| error.as_ref().is_err_and(|error| error.message() == "none")));
        assert!(source.passed() <= Duration::from_secs(60));
        assert!((6..20).contains(&source.loads()), "{}", source.loads());
    }

    #[tokio::test]
    async fn a_load_that_hangs_ends_with_the_deadline() {
        let load: Load = Box::new(|| Box::pin(std::future::pending()));
        let cache = CredentialCache::with("credentials", load, Time::real(), true);
        let error = cache.get(START, clock::now() + Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.message().contains("credentials"), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_a_doubt_is_given_a_few_loads() {
        for (outlook, loads) in
            [(Outlook::Refused, 1), (Outlook::Absent, 1), (Outlook::Doubtful, DOUBTFUL_LOADS)]
        {
            let source = source_of(HOUR);
            source.says(&[Some(outlook)]);
            assert!(source.key().await.is_err());
            assert_eq!(source.loads(), loads, "{outlook:?}");
        }
    }

    #[tokio::test]
    async fn each_request_has_the_attempts_that_there_are() {
        let source = source_of(HOUR);
        source.says(&[Some(Outlook::Attempts(3))]);
        for requests in 1..=3 {
            assert!(source.key().await.is_err());
            assert_eq!(source.loads(), 3 * requests);
        }
        source.says(&[Some(Outlook::Attempts(3)), Some(Outlook::Attempts(3)), None]);
        assert_eq!(source.key().await.unwrap(), "key-11");
    }

    #[tokio::test]
    async fn who_has_given_credentials_before_is_asked_until_the_deadline() {
        for outlook in [Outlook::Absent, Outlook::Doubtful, Outlook::Passing] {
            let source = source_of(HOUR);
            source.key().await.unwrap();
            source.wait(3600);
            source.says(&[[Some(outlook); 8].as_slice(), &[None]].concat());
            assert_eq!(source.key().await.unwrap(), "key-9", "{outlook:?}");
        }
    }

    #[tokio::test]
    async fn credentials_are_replaced_before_they_expire() {
        let source = source_of(Duration::from_secs(1000));
        for (pause, key) in [(0, "key-0"), (699, "key-0"), (2, "key-1"), (699, "key-1"), (5000, "key-2")] {
            source.wait(pause);
            assert_eq!(source.key().await.unwrap(), key);
        }
    }

    #[tokio::test]
    async fn short_lived_credentials_are_not_loaded_for_every_request() {
        for (lifetime, most) in [(180, 8), (60, 21), (15, 61), (1, 601)] {
            let source = source_of(Duration::from_secs(lifetime));
            for _ in 0..600 {
                assert!(source.keys(4).await.iter().all(Result::is_ok));
                source.wait(1);
            }
            assert!(source.loads() <= most, "{} loads of {lifetime} s", source.loads());
        }
    }

    #[tokio::test]
    async fn credentials_that_came_expired_are_used_and_not_loaded_for_every_request() {
        let source = source_of(Duration::ZERO);
        for _ in 0..30 {
            assert!(source.keys(4).await.iter().all(Result::is_ok));
            source.wait(1);
        }
        assert_eq!(source.loads(), 3);
    }

    #[tokio::test]
    async fn a_failed_refresh_leaves_what_still_works_and_pauses() {
        let source = source_of(Duration::from_secs(1000));
        source.key().await.unwrap();
        source.says(&FAILING);
        for pause in [800, 1, 8] {
            source.wait(pause);
            assert_eq!(source.key().await.unwrap(), "key-0");
        }
        assert_eq!(source.loads(), 2);
        source.wait(200);
        assert!(source.key().await.is_err());
    }

    #[tokio::test]
    async fn while_one_task_refreshes_the_others_go_on_with_what_still_works() {
        let release = Arc::<tokio::sync::Notify>::default();
        let loads = Arc::<AtomicU32>::default();
        let (released, counted) = (Arc::clone(&release), Arc::clone(&loads));
        let load: Load = Box::new(move || {
            let (number, released) = (counted.fetch_add(1, Ordering::SeqCst), Arc::clone(&released));
            Box::pin(async move {
                if number > 0 {
                    released.notified().await;
                }
                let expiry = START + Duration::from_secs(300) * (number + 1);
                Ok(Credentials::new(format!("key-{number}"), "secret", None, Some(expiry), "test"))
            })
        });
        let cache = CredentialCache::of("session", load);
        let deadline = clock::now() + HOUR;
        let key = async |seconds| {
            let credentials = cache.get(START + Duration::from_secs(seconds), deadline).await.unwrap();
            credentials.access_key_id().to_owned()
        };
        assert_eq!(key(0).await, "key-0");
        let renewal = async { (key(200).await, loads.load(Ordering::SeqCst)) };
        let others = async {
            for _ in 0..64 {
                assert_eq!(key(201).await, "key-0");
            }
            release.notify_one();
        };
        let (renewed, ()) = tokio::join!(renewal, others);
        assert_eq!(renewed, ("key-1".to_owned(), 2));
        assert_eq!(key(202).await, "key-1");
    }

    #[tokio::test]
    async fn what_the_service_called_expired_is_loaded_again_once() {
        let source = source_of(HOUR);
        let deadline = source.begun + HOUR;
        let old = source.cache.get(START, deadline).await.unwrap();
        assert!(source.cache.invalidate(&old, START));
        assert_eq!(source.key().await.unwrap(), "key-1");
        // A second task that was told the same about the old ones does not throw the new ones away.
        assert!(source.cache.invalidate(&old, START));
        assert_eq!(source.key().await.unwrap(), "key-1");
    }

    #[tokio::test]
    async fn a_source_that_has_no_others_is_not_asked_for_every_request() {
        let loads = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&loads);
        let load: Load = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(Credentials::new("same", "secret", None, Some(START + HOUR), "test")) })
        });
        let cache = CredentialCache::with("credentials", load, Time::real(), true);
        for _ in 0..100 {
            let credentials = cache.get(START, clock::now() + HOUR).await.unwrap();
            assert!(cache.invalidate(&credentials, START));
        }
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }
}
