//! Which requests are sent once more because their answer is late. Time is an argument.
//!
//! AWS advises to send the slowest 1 to 5 % of requests again: most of them meet no fault of the service, but one slow server,
//! and their like elsewhere has an answer at once. A request is late when it takes much longer than nearly all of the latest
//! of its operation did. At most one in a hundred is sent again, and none for a while after the service asked for fewer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Instant;

/// Requests that may be sent again, of all.
const SHARE: f64 = 0.01;
/// How many of them may be saved up.
const SAVED_UP: f64 = 4.0;
/// Answers of an operation that are looked at, the latest.
const LOOKED_AT: usize = 200;
/// Answers before anything can be called late.
const ENOUGH: usize = 50;
/// The part of them that is not late.
const USUAL: f64 = 0.98;
/// How many times longer than those a late one takes.
const TIMES: f64 = 1.5;
/// Nothing is late before this time.
const NEVER_LATE: Duration = Duration::from_millis(50);
/// How long nothing is sent again after a request for fewer.
const OFF: Duration = Duration::from_secs(60);

/// Whose answers say when those of this operation are late: a part is written as an object is.
fn like(operation: &'static str) -> &'static str {
    match operation {
        "UploadPart" => "PutObject",
        operation => operation,
    }
}

/// The latest answers of one operation.
#[derive(Debug, Default)]
struct Recent {
    times: Vec<Duration>,
    next: usize,
}

impl Recent {
    fn add(&mut self, time: Duration) {
        if self.times.len() < LOOKED_AT {
            self.times.push(time);
        } else {
            self.times[self.next] = time;
            self.next = (self.next + 1) % LOOKED_AT;
        }
    }

    fn late_after(&self) -> Option<Duration> {
        if self.times.len() < ENOUGH {
            return None;
        }
        let mut times = self.times.clone();
        let place = ((times.len() - 1) as f64 * USUAL) as usize;
        let (_, usual, _) = times.select_nth_unstable(place);
        Some(usual.mul_f64(TIMES).max(NEVER_LATE))
    }
}

#[derive(Debug, Default)]
struct State {
    recent: HashMap<&'static str, Recent>,
    /// Requests that may be sent again now.
    left: f64,
    off_until: Option<Instant>,
}

/// What one client knows of late answers.
#[derive(Debug, Default)]
pub(crate) struct Hedging(Mutex<State>);

impl Hedging {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that could be sent again begins: after what time its answer is late. `None` where nothing is known, or
    /// nothing is sent again now.
    pub(crate) fn late_after(&self, operation: &'static str, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        state.left = (state.left + SHARE).min(SAVED_UP);
        let is_off = state.off_until.is_some_and(|until| now < until);
        if is_off { None } else { state.recent.get(like(operation))?.late_after() }
    }

    /// Whether a late request is sent again now.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut state = self.state();
        let may = state.left >= 1.0 && state.off_until.is_none_or(|until| until <= now);
        if may {
            state.left -= 1.0;
        }
        may
    }

    /// An answer came after this time.
    pub(crate) fn answered(&self, operation: &'static str, time: Duration) {
        self.state().recent.entry(like(operation)).or_default().add(time);
    }

    /// The service asked for fewer requests.
    pub(crate) fn slowed_down(&self, now: Instant) {
        self.state().off_until = Some(now + OFF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const GET: &str = "GetObject";

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// So many requests, one after the other; `time` answers how long the n-th takes. The times until an answer, and how many
    /// were sent again.
    fn run(hedging: &Hedging, count: usize, time: impl Fn(usize) -> Duration) -> (Vec<Duration>, usize) {
        let mut now = clock::now();
        let mut again = 0;
        let times = (0..count).map(|number| {
            let (first, late) = (time(number), hedging.late_after(GET, now));
            let taken = match late.filter(|late| *late < first) {
                Some(late) if hedging.take(now + late) => {
                    again += 1;
                    first.min(late + time(number + 1))
                }
                _ => first,
            };
            hedging.answered(GET, taken);
            now += taken;
            taken
        });
        (times.collect(), again)
    }

    /// 20 to 40 ms, and 3 s for one in 200.
    fn mostly_quick(number: usize) -> Duration {
        if number % 200 == 150 { ms(3000) } else { ms(20 + (number as u64 * 7919) % 20) }
    }

    #[test]
    fn late_answers_do_not_last_and_cost_one_request_in_a_hundred_at_most() {
        let (mut times, again) = run(&Hedging::default(), 10_000, mostly_quick);
        times.sort_unstable();
        assert!(again <= 100, "{again}");
        assert!(times[9_985] <= ms(130), "{:?}", &times[9_980..]);
    }

    #[test]
    fn where_all_answers_are_slow_nothing_is_late() {
        let slow = |number: usize| ms(300 + (number as u64 * 7919) % 300);
        let (_, again) = run(&Hedging::default(), 10_000, slow);
        assert_eq!(again, 0);
    }

    #[test]
    fn a_service_that_becomes_slow_is_not_asked_twice_for_long() {
        let slower = |number: usize| if number < 5_000 { ms(20) } else { ms(500) };
        let (_, again) = run(&Hedging::default(), 10_000, slower);
        assert!(again <= 8, "{again}");
    }

    #[test]
    fn nothing_is_sent_again_for_a_while_after_a_slow_down() {
        let hedging = Hedging::default();
        run(&hedging, 1_000, mostly_quick);
        let now = clock::now();
        hedging.slowed_down(now);
        assert_eq!(hedging.late_after(GET, now), None);
        assert!(!hedging.take(now));
        assert!(hedging.late_after(GET, now + OFF).is_some());
        assert!(hedging.take(now + OFF));
    }

    #[test]
    fn each_operation_is_compared_with_its_like() {
        let hedging = Hedging::default();
        let now = clock::now();
        for _ in 0..ENOUGH {
            hedging.answered(GET, ms(30));
            hedging.answered("ListObjectsV2", ms(400));
        }
        assert_eq!(hedging.late_after(GET, now), Some(ms(50)));
        assert_eq!(hedging.late_after("ListObjectsV2", now), Some(ms(600)));
        assert_eq!(hedging.late_after("HeadObject", now), None);
        for _ in 0..ENOUGH {
            hedging.answered("UploadPart", ms(100));
        }
        assert_eq!(hedging.late_after("PutObject", now), Some(ms(150)));
    }
}
