//! Whether to try again, and after how long: a pure decision table.
//!
//! Exponential backoff with full jitter (a random pause between zero and a doubling bound), so that the ranks of a
//! job do not come back in step. A service that wants fewer requests is no failure of the request: it is repeated
//! until its deadline, at the pace of its keys ([`crate::admission::pacing`]). A pause that a service asks for is kept as far as the
//! deadline allows. Some failures are worth exactly one more attempt, after a remedy.

use std::time::{Duration, SystemTime};

use crate::error::Error;

const SHORTEST_BOUND: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Longest pause that a service may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// A service may ask for this part of the time that is left, so that what it asks for leaves some for the request.
const ASKED_OF_THE_REST: u32 = 4;

/// What must happen before the one more attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The service's clock is another one: sign with its time.
    AdjustClock,
    /// The session token has expired: load credentials again.
    RefreshCredentials,
    /// Bytes were damaged on their way: send them again.
    SendAgain,
}

/// How a failure is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Repeating it cannot help.
    Final,
    /// A broken connection, a server error.
    Transient,
    /// The service wants fewer requests.
    Throttled,
    /// Worth one more attempt after a remedy.
    Once(Remedy),
}

/// One failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) class: Class,
    /// The pause the service asked for.
    pub(crate) retry_after: Option<Duration>,
    /// Whether a request that changes something may have done so.
    pub(crate) ambiguous: bool,
    /// The service's time, where its response had one.
    pub(crate) server_time: Option<SystemTime>,
}

impl Failure {
    pub(crate) fn new(class: Class, error: Error) -> Failure {
        Failure { error, class, retry_after: None, ambiguous: false, server_time: None }
    }

    /// A failure that no further attempt can mend.
    pub(crate) fn fatal(error: Error) -> Failure {
        Failure::new(Class::Final, error)
    }

    /// A failure after which the request may have been carried out.
    pub(crate) fn ambiguous(mut self) -> Failure {
        self.ambiguous = true;
        self
    }
}

/// The bounds of one operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) max_attempts: u32,
    pub(crate) deadline: Duration,
}

/// What to do after a failure.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Wait, apply the remedy, send again.
    Retry { pause: Duration, remedy: Option<Remedy> },
    /// Report the error.
    GiveUp,
}

/// The attempts of one operation so far.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    pub(crate) count: u32,
    /// Of these, those that failed for another reason than too many requests.
    failed: u32,
    remedies: Vec<Remedy>,
}

impl Attempts {
    /// Decides after a failed attempt. `elapsed` counts from the first attempt, `random` is in `0.0..1.0`.
    pub(crate) fn failed(
        &mut self,
        policy: &Policy,
        class: Class,
        retry_after: Option<Duration>,
        elapsed: Duration,
        random: f64,
    ) -> Verdict {
        self.failed += u32::from(class != Class::Throttled);
        let doublings = self.failed.saturating_sub(1).min(16);
        let (bound, remedy) = match class {
            Class::Final => return Verdict::GiveUp,
            Class::Transient => (SHORTEST_BOUND.saturating_mul(1 << doublings).min(LONGEST_PAUSE), None),
            Class::Throttled => (Duration::ZERO, None),
            Class::Once(remedy) if self.remedies.contains(&remedy) => return Verdict::GiveUp,
            Class::Once(remedy) => (Duration::ZERO, Some(remedy)),
        };
        if self.failed >= policy.max_attempts {
            return Verdict::GiveUp;
        }
        let left = policy.deadline.saturating_sub(elapsed);
        let asked = retry_after.unwrap_or_default().min(LONGEST_ASKED).min(left / ASKED_OF_THE_REST);
        let pause = bound.mul_f64(random.clamp(0.0, 1.0)).max(asked);
        if elapsed.saturating_add(pause) >= policy.deadline {
            return Verdict::GiveUp;
        }
        self.remedies.extend(remedy);
        Verdict::Retry { pause, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { max_attempts: 4, deadline: Duration::from_secs(60) };

    /// The verdict on attempt `count`, when all before it failed as well.
    fn after(count: u32, class: Class, elapsed: u64, random: f64) -> Verdict {
        let mut attempts = Attempts { count, failed: count - 1, ..Attempts::default() };
        attempts.failed(&POLICY, class, None, Duration::from_secs(elapsed), random)
    }

    fn pause(milliseconds: u64) -> Verdict {
        Verdict::Retry { pause: Duration::from_millis(milliseconds), remedy: None }
    }

    #[test]
    fn the_pause_is_drawn_from_a_doubling_bound() {
        for (count, class, random, expected) in [
            (1, Class::Transient, 1.0, 100),
            (1, Class::Transient, 0.0, 0),
            (2, Class::Transient, 0.5, 100),
            (3, Class::Transient, 1.0, 400),
            (1, Class::Throttled, 1.0, 0),
            (3, Class::Throttled, 0.5, 0),
        ] {
            assert_eq!(after(count, class, 0, random), pause(expected), "{count} {class:?} {random}");
        }
    }

    #[test]
    fn the_bound_stops_growing() {
        let patient = Policy { max_attempts: 1000, deadline: Duration::from_secs(3600) };
        let mut attempts = Attempts { count: 900, failed: 899, ..Attempts::default() };
        assert_eq!(
            attempts.failed(&patient, Class::Transient, None, Duration::ZERO, 1.0),
            Verdict::Retry { pause: LONGEST_PAUSE, remedy: None }
        );
    }

    #[test]
    fn the_last_attempt_and_the_deadline_end_it() {
        assert_eq!(after(4, Class::Transient, 0, 0.0), Verdict::GiveUp);
        assert_eq!(after(1, Class::Final, 0, 0.0), Verdict::GiveUp);
        assert_eq!(after(1, Class::Throttled, 60, 0.0), Verdict::GiveUp);
        // 59.8 s have passed and the pause is drawn longer than what is left.
        let mut attempts = Attempts { count: 3, failed: 2, ..Attempts::default() };
        let elapsed = Duration::from_millis(59_800);
        assert_eq!(attempts.failed(&POLICY, Class::Transient, None, elapsed, 0.9), Verdict::GiveUp);
    }

    #[test]
    fn a_service_that_wants_fewer_requests_is_asked_until_the_deadline() {
        let mut attempts = Attempts::default();
        for count in 1..=1000 {
            attempts.count = count;
            let verdict = attempts.failed(&POLICY, Class::Throttled, None, Duration::from_secs(59), 1.0);
            assert_eq!(verdict, pause(0));
        }
        assert_eq!(
            attempts.failed(&POLICY, Class::Throttled, None, Duration::from_secs(60), 1.0),
            Verdict::GiveUp
        );
        // The other failures have all their attempts left.
        assert_eq!(attempts.failed(&POLICY, Class::Transient, None, Duration::ZERO, 1.0), pause(100));
    }

    #[test]
    fn the_service_may_ask_for_a_longer_pause_as_far_as_the_deadline_allows() {
        let hour = Policy { deadline: Duration::from_secs(3600), ..POLICY };
        for (policy, class, asked, elapsed, expected) in [
            (POLICY, Class::Throttled, 7, 0, 7_000),
            (POLICY, Class::Transient, 7, 0, 7_000),
            (POLICY, Class::Throttled, 16, 0, 15_000),
            (POLICY, Class::Throttled, 3600, 20, 10_000),
            (POLICY, Class::Transient, u64::MAX, 59, 250),
            (hour, Class::Throttled, 61, 0, 60_000),
            (hour, Class::Transient, u64::MAX, 0, 60_000),
        ] {
            let mut attempts = Attempts { count: 1, ..Attempts::default() };
            let (asked, elapsed) = (Some(Duration::from_secs(asked)), Duration::from_secs(elapsed));
            assert_eq!(
                attempts.failed(&policy, class, asked, elapsed, 0.0),
                pause(expected),
                "{asked:?} {elapsed:?}"
            );
        }
        let mut attempts = Attempts::default();
        let asked = Some(Duration::from_secs(1));
        let verdict = attempts.failed(&POLICY, Class::Throttled, asked, Duration::from_secs(60), 0.0);
        assert_eq!(verdict, Verdict::GiveUp);
    }

    #[test]
    fn a_remedy_is_applied_once() {
        for remedy in [Remedy::AdjustClock, Remedy::RefreshCredentials, Remedy::SendAgain] {
            let mut attempts = Attempts { count: 1, ..Attempts::default() };
            assert_eq!(
                attempts.failed(&POLICY, Class::Once(remedy), None, Duration::ZERO, 1.0),
                Verdict::Retry { pause: Duration::ZERO, remedy: Some(remedy) }
            );
            attempts.count = 2;
            assert_eq!(
                attempts.failed(&POLICY, Class::Once(remedy), None, Duration::ZERO, 1.0),
                Verdict::GiveUp
            );
        }
    }
}
