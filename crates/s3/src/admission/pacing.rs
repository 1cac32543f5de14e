//! Pacing: where requests wait after S3 asked for fewer, each for the rate of its lane.
//!
//! How fast a lane goes is decided in `s3dcp-pacing`; here is who goes next. A request that is sent again goes before those
//! that were not sent yet, as what it belongs to has waited longest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use s3dcp_pacing::{Lane, Lanes, Share, folder};

use crate::clock::{self, Instant};

const LONGEST_REST: Duration = Duration::from_millis(500);

/// The keys that a request is about, by which its lane is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Bucket and key.
    path: String,
    write: bool,
}

impl Keys {
    /// Of a request on one object, or on a bucket.
    pub(crate) fn new(bucket: &str, key: Option<&str>, write: bool) -> Keys {
        Keys { path: format!("{bucket}/{}", key.unwrap_or_default()), write }
    }

    fn folder(&self) -> &str {
        folder(&self.path)
    }

    /// Whether both have one lane.
    pub(crate) fn share_a_lane(&self, other: &Keys) -> bool {
        self.write == other.write && self.folder() == other.folder()
    }
}

/// The lanes of one client.
pub(crate) struct Pacing {
    state: Mutex<State>,
}

struct State {
    began: Instant,
    writes: Kind,
    reads: Kind,
}

/// Requests of one kind.
#[derive(Default)]
struct Kind {
    lanes: Lanes,
    /// Of the lanes for which somebody waits, by folder.
    queues: HashMap<String, Weak<Queue>>,
}

/// Whoever waits for one lane.
#[derive(Default)]
struct Queue {
    /// Held by the one request among the new ones that waits beside those sent again.
    new: tokio::sync::Mutex<()>,
    /// Held by the request that is next.
    next: tokio::sync::Mutex<()>,
}

impl Pacing {
    pub(crate) fn new() -> Pacing {
        let state = State { began: clock::now(), writes: Kind::default(), reads: Kind::default() };
        Pacing { state: Mutex::new(state) }
    }

    /// Waits until the request may be sent; `again`: it was sent before.
    ///
    /// Whoever waits for something else afterwards asks [`Pacing::hold`] whether the turn still holds.
    pub(crate) async fn wait(&self, keys: &Keys, again: bool) {
        let Some(queue) = self.take_or_queue(keys) else { return };
        let _new = if again { None } else { Some(queue.new.lock().await) };
        let _next = queue.next.lock().await;
        while let Err(rest) = self.take(keys) {
            // A pace that clients agree on may bring the turn forward.
            clock::sleep(rest.min(LONGEST_REST)).await;
        }
    }

    fn take(&self, keys: &Keys) -> Result<(), Duration> {
        self.state().take(keys)
    }

    /// Whether a turn taken at `taken` is still good; the request is sent then.
    pub(crate) fn hold(&self, keys: &Keys, taken: Instant) -> bool {
        self.state().with_lane(keys, taken, |lane, now, taken| {
            let holds = lane.holds(taken);
            if holds {
                lane.sent(now);
            }
            holds
        })
    }

    /// A client's part, from now on, in the pace of what goes to folders (`bucket/key/`) that begin with `within`, which it shares with
    /// so many, itself included; `found` is what they found before.
    pub(crate) fn share(&self, write: bool, within: &str, clients: u32, found: Option<f64>) -> Share {
        let mut state = self.state();
        let now = state.now();
        state.of(write).lanes.begin(now, within, clients, found, clock::random);
        Share::new(now, within)
    }

    /// Requests per second that those who share their pace have found together.
    pub(crate) fn found(&self, write: bool, share: &Share) -> Option<f64> {
        let mut state = self.state();
        let now = state.now();
        share.found(now, &state.of(write).lanes)
    }

    /// What `share` adds to its counter.
    pub(crate) fn change(&self, write: bool, share: &mut Share) -> Option<i64> {
        let mut state = self.state();
        let now = state.now();
        share.change(now, &state.of(write).lanes)
    }

    /// The pace is what the counter of `share` says.
    pub(crate) fn agree(&self, write: bool, share: &mut Share, counter: i64) {
        let mut state = self.state();
        let now = state.now();
        share.agree(now, &mut state.of(write).lanes, counter);
    }

    /// Requests per second at which requests about these keys are held back.
    pub(crate) fn rate(&self, keys: &Keys) -> Option<f64> {
        let mut state = self.state();
        let now = state.now();
        state.kind(keys).lanes.rate(now, &keys.path)
    }

    /// The service let the request in.
    pub(crate) fn admitted(&self, keys: &Keys) {
        self.state().with_lane(keys, clock::now(), |lane, _, _| lane.admitted());
    }

    /// The service asked for fewer requests than this one, which was sent at `sent`.
    pub(crate) fn refused(&self, keys: &Keys, sent: Instant) {
        self.state().with_lane(keys, sent, |lane, now, sent| lane.refused(now, sent, clock::random()));
    }

    /// Takes the turn if nobody waits and it has come; else the queue.
    fn take_or_queue(&self, keys: &Keys) -> Option<Arc<Queue>> {
        let mut state = self.state();
        let queues = &state.kind(keys).queues;
        let folder = keys.folder();
        if let Some(queue) = queues.get(folder).and_then(Weak::upgrade) {
            return Some(queue);
        }
        if state.take(keys).is_ok() {
            return None;
        }
        let queue = Arc::<Queue>::default();
        let queues = &mut state.kind(keys).queues;
        queues.retain(|_, queue| queue.strong_count() > 0);
        queues.insert(folder.to_owned(), Arc::downgrade(&queue));
        Some(queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&self) -> Duration {
        clock::now().duration_since(self.began)
    }

    fn kind(&mut self, keys: &Keys) -> &mut Kind {
        self.of(keys.write)
    }

    fn of(&mut self, write: bool) -> &mut Kind {
        if write { &mut self.writes } else { &mut self.reads }
    }

    /// Takes the turn, or says how long until it is worth asking again.
    fn take(&mut self, keys: &Keys) -> Result<(), Duration> {
        let now = clock::now();
        self.with_lane(keys, now, |lane, now, _| lane.take(now).map_err(|turn| turn - now))
    }

    /// Hands out the request's lane, with the time and with `sent`, both as lanes count time.
    fn with_lane<T>(
        &mut self,
        keys: &Keys,
        sent: Instant,
        f: impl FnOnce(&mut Lane, Duration, Duration) -> T,
    ) -> T {
        let since = |time: Instant| time.duration_since(self.began);
        let (now, sent) = (since(clock::now()), since(sent));
        f(self.kind(keys).lanes.lane(now, &keys.path, clock::random()), now, sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("b", Some("run/a0/__0_0.distcp"), true)
    }

    /// Pacing of which one was refused, at four requests per second.
    fn refused() -> Pacing {
        let pacing = Pacing::new();
        pacing.refused(&keys(), clock::now());
        pacing
    }

    #[tokio::test]
    async fn before_a_refusal_nobody_waits_and_after_it_those_of_its_folder_do() {
        let began = clock::now();
        let pacing = refused();
        for other in [
            Keys::new("other", Some("run/b0/__1_0.distcp"), true),
            Keys::new("b", Some("run/a0/__0_0.distcp"), false),
            Keys::new("b", None, false),
        ] {
            pacing.wait(&other, false).await;
        }
        let unpaced = clock::now() - began;
        assert!(unpaced < Duration::from_millis(500), "{unpaced:?}");
        for _ in 0..4 {
            pacing.wait(&keys(), false).await;
        }
        let waited = (clock::now() - began).as_secs_f64();
        assert!(waited >= 0.75, "{waited}");
    }

    #[tokio::test]
    async fn what_is_sent_again_goes_first() {
        let pacing = refused();
        pacing.wait(&keys(), false).await;
        let order = Mutex::new(Vec::new());
        let take = async |name: &'static str, again: bool| {
            pacing.wait(&keys(), again).await;
            order.lock().unwrap().push(name);
        };
        tokio::join!(
            take("new 1", false),
            take("new 2", false),
            take("again 1", true),
            take("again 2", true)
        );
        assert_eq!(*order.lock().unwrap(), ["new 1", "again 1", "again 2", "new 2"]);
        assert_eq!(pacing.state().writes.queues.values().filter(|queue| queue.strong_count() > 0).count(), 0);
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_leaves_the_turn_to_the_next() {
        let pacing = refused();
        pacing.wait(&keys(), false).await;
        for _ in 0..3 {
            let soon = clock::now() + Duration::from_millis(10);
            clock::before(soon, pacing.wait(&keys(), false)).await;
        }
        pacing.wait(&keys(), false).await;
    }
}
