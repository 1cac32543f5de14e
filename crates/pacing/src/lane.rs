//! The rate of one lane.

use std::time::Duration;

/// Slowest rate, in requests per second: even an outage is asked about from time to time.
pub(crate) const SLOWEST: f64 = 0.2;
/// Fastest rate that is told from none, in requests per second.
pub(crate) const FASTEST: f64 = 1e5;
/// Time over which requests before the first refusal are counted.
const MEMORY_BEFORE: Duration = Duration::from_secs(1);
/// The rate after the first refusal, as a share of the rate before it; and the least it is, for a refusal that is the only
/// one should not cost much.
const FIRST_SHARE: f64 = 0.5;
const FIRST_LEAST: f64 = 4.0;
/// Refusals of which the last may be the first to cut the rate below that: a few say that something was refused, not that the
/// budget is smaller.
const FEW: u32 = 5;

/// How many refusals an admitted request lets expect at one request per second: more while steps are large, for refusals are what
/// the rate is found by. And the power of the rate with which that falls: with a power of 1 all clients would come to the same
/// number of refusals in a second, and so to the same rate soonest, but slow ones would be refused all the time; with 0 they
/// would not come to the same rate at all.
const EXPECTED: f64 = 0.13;
const EXPECTED_PER_STEP: f64 = 0.2;
const EXPECTED_POWER: f64 = 0.7;

/// The step, which is the logarithm of what a refusal divides the rate by: at first, and its bounds.
const FIRST_STEP: f64 = 0.35;
const SMALLEST_STEP: f64 = 0.03;
const LARGEST_STEP: f64 = 0.5;
/// Steps grow with a refusal that comes when so little of one was expected, for then the rate is far too high, and shrink with
/// every other one.
const EARLY: f64 = 0.15;
const STEP_GROWTH: f64 = 1.3;
const STEP_SHRINKAGE: f64 = 0.9;
/// Refusals that were expected and did not come, after which the rate grows at twice the usual pace; it goes on with their
/// square, for then there is more to have than there was.
const OVERDUE: f64 = 2.0;
/// Most growth with one request.
const LARGEST_GROWTH: f64 = 0.2;
/// After an outage: admitted requests in a row that end it, and the growth with each further one, until half of the rate that
/// was good before is reached.
const BACK: u32 = 3;
const GROWTH_BACK: f64 = 0.5;

/// Requests to keys that are taken to share one budget.
///
/// A refusal divides the rate by a step, and admitted requests multiply it by as much between two refusals that come as often as
/// they are expected to. All clients of a budget have the same share of their requests refused, so that those come to
/// where their refusals are as many as expected at the same rate.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    /// Requests per second; `None` before the first refusal.
    rate: Option<f64>,
    /// When the first refusal was.
    paced_at: Option<Duration>,
    /// From when on the next request may go.
    next: Duration,
    /// Whether requests wait for their turn, so that the rate is what limits them.
    limiting: bool,
    /// Refusals so far, and the rate after the first.
    refusals: u32,
    first: f64,
    /// The logarithm of what the last refusal divided the rate by.
    step: f64,
    /// Refusals expected since the last one.
    expected: f64,
    /// Requests admitted since the last refusal.
    admitted: u32,
    /// The latest rate that was not a mere outage's.
    good: f64,
    /// Since when it goes at a rate that a refusal set.
    cut_at: Duration,
    /// Requests before the first refusal, the older ones faded, as of a time.
    before: (f64, Duration),
}

impl Lane {
    /// Takes the right to send one request now; else says from when on to ask again.
    ///
    /// # Errors
    /// The time of the next turn.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        if now < self.next {
            self.limiting = true;
            return Err(self.next);
        }
        let gap = Duration::from_secs_f64(1.0 / rate);
        // What was late by less than a gap is made up for; a turn that nobody wanted is lost.
        if now > self.next + gap {
            self.limiting = false;
            self.next = now;
        }
        self.next += gap;
        Ok(())
    }

    /// A request is sent, some time after its turn was taken.
    pub fn sent(&mut self, now: Duration) {
        if self.rate.is_none() {
            self.before = (self.rate_before(now) + 1.0, now);
        }
    }

    /// A request was admitted.
    pub fn admitted(&mut self) {
        self.admitted = self.admitted.saturating_add(1);
        let Some(rate) = self.rate.filter(|_| self.limiting) else { return };
        let growth = if rate >= self.good / 2.0 {
            let expected = (EXPECTED + EXPECTED_PER_STEP * self.step) * rate.powf(-EXPECTED_POWER);
            self.expected += expected;
            let overdue = 1.0 + (self.expected / OVERDUE).powi(2);
            (self.step * expected * overdue).min(LARGEST_GROWTH)
        } else if self.admitted >= BACK {
            GROWTH_BACK
        } else {
            0.0
        };
        self.rate = Some((rate * (1.0 + growth)).min(FASTEST));
    }

    /// A request that was sent at `sent` was refused. `random`, from 0 to 1, keeps clients out of step.
    pub fn refused(&mut self, now: Duration, sent: Duration, random: f64) {
        let admitted = std::mem::take(&mut self.admitted);
        let rate = match self.rate {
            None => {
                let rate = (FIRST_SHARE * self.rate_before(now)).max(FIRST_LEAST);
                self.next = now + Duration::from_secs_f64(random / rate);
                self.paced_at = Some(now);
                self.step = FIRST_STEP;
                self.first = rate;
                rate
            }
            // It went under the rate before the last cut, and says nothing of this one.
            Some(_) if sent < self.cut_at => return,
            Some(rate) => {
                if admitted >= BACK {
                    // It was no outage: more than this is too much now.
                    self.good = rate;
                }
                let early = std::mem::take(&mut self.expected) < EARLY;
                let step = self.step * if early { STEP_GROWTH } else { STEP_SHRINKAGE };
                self.step = step.clamp(SMALLEST_STEP, LARGEST_STEP);
                let least = if self.refusals + 1 < FEW { self.first.min(rate) } else { SLOWEST };
                (rate * (-self.step).exp()).max(least)
            }
        };
        self.refusals = self.refusals.saturating_add(1);
        self.rate = Some(rate.clamp(SLOWEST, FASTEST));
        self.cut_at = now;
    }

    /// Requests in the second before.
    fn rate_before(&self, now: Duration) -> f64 {
        let (count, at) = self.before;
        count * (-now.saturating_sub(at).div_duration_f64(MEMORY_BEFORE)).exp()
    }

    /// A lane that begins with the rate of this one.
    pub(crate) fn follower(&self, now: Duration, random: f64) -> Lane {
        let next = self.rate.map_or(now, |rate| now + Duration::from_secs_f64(random / rate));
        Lane {
            rate: self.rate,
            next,
            cut_at: now,
            refusals: self.refusals,
            first: self.first,
            step: self.step,
            ..Lane::default()
        }
    }

    /// Goes at this rate from now on, as others do on the same budget. Nothing happens before a refusal.
    pub(crate) fn agree(&mut self, now: Duration, rate: f64) {
        if self.rate.is_some() {
            let rate = rate.clamp(SLOWEST, FASTEST);
            self.rate = Some(rate);
            self.good = self.good.min(rate);
            self.next = self.next.min(now + Duration::from_secs_f64(1.0 / rate));
        }
    }

    /// Whether a turn taken at `taken` is still good: one from before the first refusal is not after it.
    pub fn holds(&self, taken: Duration) -> bool {
        self.paced_at.is_none_or(|paced_at| taken > paced_at)
    }

    /// Requests per second; `None` while nothing is held back.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}
