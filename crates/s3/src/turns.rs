//! Turns: where requests wait after S3 asked for fewer, each for the pace of its lane.
//!
//! How fast a lane goes is decided in `s3dcp-pacing`; here is who goes next. A request that is sent again goes before those
//! that were not sent yet, as what it belongs to has waited longest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use s3dcp_pacing::{Lane, Lanes, Share, folder};

use crate::clock::{self, Instant};

const LONGEST_REST: Duration = Duration::from_millis(500);

/// What is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) write: bool,
}

impl Request<'_> {
    /// What its lane is found by.
    fn path(&self) -> String {
        format!("{}/{}", self.bucket, self.key.unwrap_or_default())
    }

    /// What its queue is found by.
    fn folder(&self) -> String {
        folder(&self.path()).to_owned()
    }
}

/// The lanes of one client.
pub(crate) struct Turns {
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

impl Turns {
    pub(crate) fn new() -> Turns {
        let state = State { began: clock::now(), writes: Kind::default(), reads: Kind::default() };
        Turns { state: Mutex::new(state) }
    }

    /// Waits until the request may be sent; `again`: it was sent before.
    ///
    /// Whoever waits for something else afterwards asks [`Turns::hold`] whether the turn still holds.
    pub(crate) async fn wait(&self, request: Request<'_>, again: bool) {
        let Some(queue) = self.take_or_queue(request) else { return };
        let _new = if again { None } else { Some(queue.new.lock().await) };
        let _next = queue.next.lock().await;
        while let Err(rest) = self.take(request) {
            // A pace that clients agree on may bring the turn forward.
            clock::sleep(rest.min(LONGEST_REST)).await;
        }
    }

    fn take(&self, request: Request<'_>) -> Result<(), Duration> {
        self.state().take(request)
    }

    /// Whether a turn taken at `taken` is still good; the request is sent then.
    pub(crate) fn hold(&self, request: Request<'_>, taken: Instant) -> bool {
        self.state().with_lane(request, taken, |lane, now, taken| {
            let holds = lane.holds(taken);
            if holds {
                lane.sent(now);
            }
            holds
        })
    }

    /// A client's part, from now on, in the pace of what goes to folders (`bucket/key/`) that begin with `within`.
    pub(crate) fn share(&self, within: &str) -> Share {
        Share::new(self.state().now(), within)
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

    /// Requests per second at which requests such as this one are held back.
    pub(crate) fn rate(&self, request: Request<'_>) -> Option<f64> {
        let mut state = self.state();
        let now = state.now();
        state.kind(request).lanes.rate(now, &request.path())
    }

    /// The service let the request in.
    pub(crate) fn admitted(&self, request: Request<'_>) {
        self.state().with_lane(request, clock::now(), |lane, _, _| lane.admitted());
    }

    /// The service asked for fewer requests than this one, which was sent at `sent`.
    pub(crate) fn refused(&self, request: Request<'_>, sent: Instant) {
        self.state().with_lane(request, sent, |lane, now, sent| lane.refused(now, sent, clock::random()));
    }

    /// Takes the turn if nobody waits and it has come; else the queue.
    fn take_or_queue(&self, request: Request<'_>) -> Option<Arc<Queue>> {
        let mut state = self.state();
        let queues = &state.kind(request).queues;
        let folder = request.folder();
        if let Some(queue) = queues.get(&folder).and_then(Weak::upgrade) {
            return Some(queue);
        }
        if state.take(request).is_ok() {
            return None;
        }
        let queue = Arc::<Queue>::default();
        let queues = &mut state.kind(request).queues;
        queues.retain(|_, queue| queue.strong_count() > 0);
        queues.insert(folder, Arc::downgrade(&queue));
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

    fn kind(&mut self, request: Request<'_>) -> &mut Kind {
        self.of(request.write)
    }

    fn of(&mut self, write: bool) -> &mut Kind {
        if write { &mut self.writes } else { &mut self.reads }
    }

    /// Takes the turn, or says how long until it is worth asking again.
    fn take(&mut self, request: Request<'_>) -> Result<(), Duration> {
        let now = clock::now();
        self.with_lane(request, now, |lane, now, _| lane.take(now).map_err(|turn| turn - now))
    }

    /// Hands out the request's lane, with the time and with `sent`, both as lanes count time.
    fn with_lane<T>(
        &mut self,
        request: Request<'_>,
        sent: Instant,
        f: impl FnOnce(&mut Lane, Duration, Duration) -> T,
    ) -> T {
        let since = |time: Instant| time.duration_since(self.began);
        let (now, sent) = (since(clock::now()), since(sent));
        f(self.kind(request).lanes.lane(now, &request.path(), clock::random()), now, sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request<'static> = Request { bucket: "b", key: Some("run/a0/__0_0.distcp"), write: true };

    /// Turns of which one was refused, at four requests per second.
    fn refused() -> Turns {
        let turns = Turns::new();
        turns.refused(REQUEST, clock::now());
        turns
    }

    #[tokio::test]
    async fn before_a_refusal_nobody_waits_and_after_it_those_of_its_folder_do() {
        let began = clock::now();
        let turns = refused();
        for other in [
            Request { key: Some("run/b0/__1_0.distcp"), bucket: "other", ..REQUEST },
            Request { write: false, ..REQUEST },
            Request { key: None, write: false, ..REQUEST },
        ] {
            turns.wait(other, false).await;
        }
        let unpaced = clock::now() - began;
        assert!(unpaced < Duration::from_millis(500), "{unpaced:?}");
        for _ in 0..4 {
            turns.wait(REQUEST, false).await;
        }
        let waited = (clock::now() - began).as_secs_f64();
        assert!(waited >= 0.75, "{waited}");
    }

    #[tokio::test]
    async fn what_is_sent_again_goes_first() {
        let turns = refused();
        turns.wait(REQUEST, false).await;
        let order = Mutex::new(Vec::new());
        let take = async |name: &'static str, again: bool| {
            turns.wait(REQUEST, again).await;
            order.lock().unwrap().push(name);
        };
        tokio::join!(
            take("new 1", false),
            take("new 2", false),
            take("again 1", true),
            take("again 2", true)
        );
        assert_eq!(*order.lock().unwrap(), ["new 1", "again 1", "again 2", "new 2"]);
        assert_eq!(turns.state().writes.queues.values().filter(|queue| queue.strong_count() > 0).count(), 0);
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_leaves_the_turn_to_the_next() {
        let turns = refused();
        turns.wait(REQUEST, false).await;
        for _ in 0..3 {
            let soon = clock::now() + Duration::from_millis(10);
            clock::before(soon, turns.wait(REQUEST, false)).await;
        }
        turns.wait(REQUEST, false).await;
    }
}
