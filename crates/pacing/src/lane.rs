//! The rate of one lane.

use std::collections::VecDeque;
use std::time::Duration;

use s3dcp_partition::Limits;

/// Slowest rate, in requests per second: even an outage is asked about from time to time.
pub(crate) const SLOWEST: f64 = 0.2;
/// The slowest rate of one of the clients of a job, where that is faster: so much divided by their number, and not more than two
/// requests per second. Budgets are taken to be no smaller: further refusals are an outage's, or come by chance.
const SLOWEST_OF_JOB: f64 = 4.0;
const SLOWEST_OF_ITS_CLIENTS: f64 = 2.0;
/// Fastest rate that is told from none, in requests per second.
pub(crate) const FASTEST: f64 = 1e5;
/// Requests that one of several clients sends at once on keys of which it knows nothing, and the time in which that doubles: with
/// many clients what is under way before the first refusal comes back would be far more than a budget. An answer lets two more go
/// then; the answer to a large part comes late, so without it the doubling only takes longer.
const FIRST_AT_ONCE: u64 = 2;
const FIRST_DOUBLING: Duration = Duration::from_millis(50);
const FIRST_DOUBLING_UNANSWERED: Duration = Duration::from_millis(75);
/// Time over which requests before the first refusal are counted. A budget has saved up about as much, so their number is the rate
/// that it takes.
const MEMORY_BEFORE: Duration = Duration::from_secs(1);
/// The rate after the first refusal, as a share of that number, of a client that shares its pace with none: there may be others of
/// whom it knows nothing.
const FIRST_SHARE: f64 = 0.5;
/// The least that rate is, for a refusal that is the only one should not cost much.
const FIRST_LEAST: f64 = 4.0;
/// The power of their number with which that falls where clients share their pace: they have the refusals of all.
const FIRST_LEAST_POWER: f64 = 1.0 / 3.0;
/// Refusals of which the last may be the first to cut the rate below that: a few say that something was refused, not that the
/// budget is smaller.
const FEW: u32 = 3;

/// How long clients that share their pace take to tell each other what the first refusals say.
const SETTLING: Duration = Duration::from_secs(1);

/// How many refusals an admitted request lets expect at one request per second: more while steps are large, for refusals are what
/// the rate is found by. And the power of the rate with which that falls: with a power of 1 all clients would come to the same
/// number of refusals in a second, and so to the same rate soonest, but slow ones would be refused all the time; with 0 they
/// would not come to the same rate at all.
const EXPECTED: f64 = 0.13;
const EXPECTED_PER_STEP: f64 = 0.2;
const EXPECTED_POWER: f64 = 0.7;
/// The power of their number with which a rate counts for more where clients share their pace, and need not come to the same rate by
/// refusals.
const EXPECTED_CLIENTS_POWER: f64 = 0.7;
/// More clients than these count no more: the rate would rise too slowly where there is much to have.
const MOST_CLIENTS: f64 = 8.0;

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

/// With what share of a rate that was found before a lane begins, the time in which it would then be e times as fast if it is not
/// refused, and the longest such time: it doubles whenever that rate turns out to hold.
const KNOWN_SHARE: f64 = 0.93;
const KNOWN_RISE: Duration = Duration::from_secs(8);
const LONGEST_RISE: Duration = Duration::from_secs(32);
/// With how much of what a budget has saved up since the job before a lane begins at once.
const SAVED_UP: f64 = 0.5;
/// How many times that rate, or the requests that were really sent, a lane must have reached for a refusal to say nothing of it.
const FAR_ABOVE: f64 = 2.0;
/// The logarithm of what the first refusal below that rate divides it by, and how that grows with each further one.
const KNOWN_STEP: f64 = 0.1;
const KNOWN_STEP_GROWTH: f64 = 1.5;
/// That others were refused is told by a mean of all so much below the lane's own rate a moment ago: what they tell may be as old.
const OTHERS_REFUSED: f64 = 0.98;
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// A rate that was found before, from which a lane rises with the square of the time.
#[derive(Debug, Clone, Copy)]
struct Known {
    rate: f64,
    rise: Duration,
    step: f64,
    /// The slowest that it goes.
    slowest: f64,
    /// Since when it rises; `None` before its first request.
    since: Option<Duration>,
    /// How many times as fast it goes because others are done.
    left: f64,
    /// Requests that may go before their turn: what the budget saved up while nothing was asked of it.
    saved_up: f64,
}

impl Known {
    fn rate_at(&mut self, now: Duration) -> f64 {
        self.since.get_or_insert(now);
        self.rate_then(now)
    }

    fn rate_then(&self, then: Duration) -> f64 {
        let since = self.since.unwrap_or(then);
        let time = then.saturating_sub(since).div_duration_f64(self.rise);
        // Bounded first, so that no square is infinite.
        (self.left * KNOWN_SHARE * self.rate * time.min(10.0).powi(2).exp()).clamp(self.slowest, FASTEST)
    }
}

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
    /// When the latest requests before the first refusal were sent.
    before: VecDeque<Duration>,
    /// What was found before, as long as the lane goes by that.
    known: Option<Known>,
    /// Clients of the job that it belongs to, which share their pace; 0 where it belongs to none.
    clients: u32,
    /// The first requests: since when, and how many.
    begun: Option<(Duration, u32)>,
    /// Requests admitted since the job began.
    served: u64,
}

impl Lane {
    /// Takes the right to send one request now; else says from when on to ask again.
    ///
    /// # Errors
    /// The time of the next turn.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        self.rise(now);
        if self.rate.is_none() || self.known.is_some() {
            self.first_turn(now)?;
        }
        if let Some(rate) = self.rate {
            self.turn(now, rate)?;
        }
        if let Some((_, taken)) = &mut self.begun {
            *taken = taken.saturating_add(1);
        }
        Ok(())
    }

    fn turn(&mut self, now: Duration, rate: f64) -> Result<(), Duration> {
        if now < self.next {
            if let Some(known) = self.known.as_mut().filter(|known| known.saved_up >= 1.0) {
                known.saved_up -= 1.0;
                return Ok(());
            }
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

    /// By what was found before, the lane is faster by now.
    fn rise(&mut self, now: Duration) {
        if let Some(known) = &mut self.known {
            let rate = known.rate_at(now);
            self.rate = Some(rate);
            self.next = self.next.min(now + Duration::from_secs_f64(1.0 / rate));
        }
    }

    /// The turn of one of the first requests, before a refusal has told anything of the budget.
    fn first_turn(&mut self, now: Duration) -> Result<(), Duration> {
        if self.clients < 2 {
            return Ok(());
        }
        let (since, taken) = *self.begun.get_or_insert((now, 0));
        let answered = u64::from(taken) < FIRST_AT_ONCE + 2 * self.served;
        let doubling = if answered { FIRST_DOUBLING } else { FIRST_DOUBLING_UNANSWERED };
        let doublings = (f64::from(taken + 1) / FIRST_AT_ONCE as f64).log2().max(0.0);
        let next = since + doubling.mul_f64(doublings);
        if now < next { Err(next) } else { Ok(()) }
    }

    /// A request is sent, some time after its turn was taken.
    pub fn sent(&mut self, now: Duration) {
        if self.rate.is_none() || self.known.is_some() {
            self.before.push_back(now);
            while self.before.front().is_some_and(|sent| now.saturating_sub(*sent) > 5 * MEMORY_BEFORE) {
                self.before.pop_front();
            }
        }
    }

    /// A request was admitted.
    pub fn admitted(&mut self) {
        self.admitted = self.admitted.saturating_add(1);
        self.served += 1;
        let Some(rate) = self.rate.filter(|_| self.limiting && self.known.is_none()) else { return };
        let growth = if rate >= self.good / 2.0 {
            let expected = (EXPECTED + EXPECTED_PER_STEP * self.step)
                * (rate * self.counted_clients().powf(EXPECTED_CLIENTS_POWER)).powf(-EXPECTED_POWER);
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
        if self.known.is_some() && sent < self.cut_at || self.goes_on_from_known(now, sent) {
            return;
        }
        let admitted = std::mem::take(&mut self.admitted);
        let rate = match self.rate {
            None => {
                let rate = self.first_rate(self.rate_before(sent));
                self.before = VecDeque::new();
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
                let least = if self.refusals + 1 < FEW { self.first.min(rate) } else { self.slowest() };
                (rate * (-self.step).exp()).max(least)
            }
        };
        self.refusals = self.refusals.saturating_add(1);
        self.rate = Some(rate.clamp(self.slowest(), FASTEST));
        self.cut_at = now;
    }

    /// Shares its pace with so many clients from `began` on, itself included.
    pub(crate) fn join(&mut self, began: Duration, clients: u32) {
        self.clients = clients.max(1);
        let slowest = self.slowest();
        if let Some(known) = &mut self.known {
            known.slowest = slowest;
        }
        // What an earlier job began with is no reason to send all at once now.
        self.begun = self.begun.filter(|(since, _)| *since >= began);
        self.served = 0;
    }

    /// Requests admitted since it joined.
    pub(crate) fn served(&self) -> u64 {
        self.served
    }

    /// They count for so many.
    fn counted_clients(&self) -> f64 {
        f64::from(self.clients.max(1)).min(MOST_CLIENTS)
    }

    fn slowest(&self) -> f64 {
        match self.clients {
            0 => SLOWEST,
            clients => (SLOWEST_OF_JOB / f64::from(clients)).clamp(SLOWEST, SLOWEST_OF_ITS_CLIENTS),
        }
    }

    /// The rate after the first refusal, by that of the requests before it.
    fn first_rate(&self, before: f64) -> f64 {
        let share = if self.clients > 1 { 1.0 } else { FIRST_SHARE };
        (share * before).max(self.first_least())
    }

    fn first_least(&self) -> f64 {
        FIRST_LEAST * self.counted_clients().powf(-FIRST_LEAST_POWER)
    }

    /// Goes by this rate from now on, which was found before: begins a little below, and rises until it is refused.
    pub(crate) fn resume(&mut self, now: Duration, rate: f64, random: f64) {
        let slowest = self.slowest();
        let mut known = Known {
            rate: rate.clamp(slowest, FASTEST),
            rise: KNOWN_RISE,
            step: KNOWN_STEP,
            slowest,
            since: None,
            left: 1.0,
            saved_up: 0.0,
        };
        let rate = known.rate_at(now);
        known.since = None;
        known.saved_up = rate * SAVED_UP * Limits::default().burst.as_secs_f64();
        let next = now + Duration::from_secs_f64(random / rate);
        *self = Lane {
            rate: Some(rate),
            known: Some(known),
            next,
            paced_at: Some(now),
            clients: self.clients,
            refusals: FEW,
            step: SMALLEST_STEP,
            cut_at: now,
            ..Lane::default()
        };
    }

    /// After a refusal: whether what was found before still holds, or holds when it is corrected.
    fn goes_on_from_known(&mut self, now: Duration, sent: Duration) -> bool {
        let Some(mut known) = self.known else { return false };
        let reached = known.rate_at(now) / known.left;
        let (above, least, most) =
            (reached > FAR_ABOVE * known.rate, known.left * known.rate, known.left * reached);
        let before = self.rate_before(sent);
        if above || most > FAR_ABOVE * before.max(self.first_least()) {
            // There is more than there was, or more than is asked for: as if nothing had been known, but no slower where there is more.
            self.known = None;
            self.before = VecDeque::new();
            let least = if above { least } else { 0.0 };
            let first = self.first_rate(before).max(least).min(most);
            (self.rate, self.first, self.step, self.cut_at) = (Some(first), first, FIRST_STEP, now);
            return true;
        }
        if reached < known.rate {
            known.rate = (known.rate * (-known.step).exp()).max(known.slowest);
            known.step = (known.step * KNOWN_STEP_GROWTH).min(LARGEST_STEP);
        } else {
            known.rise = (2 * known.rise).min(LONGEST_RISE);
        }
        self.known = Some(known);
        self.begin_known_again(now);
        true
    }

    fn begin_known_again(&mut self, now: Duration) {
        if let Some(known) = &mut self.known {
            known.since = Some(now);
            known.saved_up = 0.0;
            self.rate = Some(known.rate_at(now));
            self.cut_at = now;
        }
    }

    /// Requests in the second before the one that was sent `then`.
    fn rate_before(&self, then: Duration) -> f64 {
        let earlier = self.before.iter().rev().skip_while(|sent| **sent > then).skip(1);
        earlier.map(|sent| (-(then - *sent).div_duration_f64(MEMORY_BEFORE)).exp()).sum()
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
            known: self.known,
            clients: self.clients,
            begun: self.begun,
            ..Lane::default()
        }
    }

    /// Goes at this rate from now on, as others do on the same budget: `left` times as fast as if none of them were done. Nothing
    /// happens before a refusal.
    pub(crate) fn agree(&mut self, now: Duration, rate: f64, left: f64) {
        if let Some(known) = &mut self.known {
            // It rises by itself, as the others do, until one of them is refused.
            let before = known.rate_then(now.saturating_sub(TOLD_WITHIN));
            if known.left != left {
                known.left = left;
            } else if rate < OTHERS_REFUSED * before {
                if before > FAR_ABOVE * known.left * known.rate {
                    self.known = None;
                    (self.first, self.step, self.cut_at) = (rate, FIRST_STEP, now);
                } else {
                    self.begin_known_again(now);
                }
            }
            self.rise(now);
        }
        if self.known.is_none() && self.rate.is_some() {
            let rate = rate.clamp(self.slowest(), FASTEST);
            self.rate = Some(rate);
            self.good = self.good.min(rate);
            self.next = self.next.min(now + Duration::from_secs_f64(1.0 / rate));
        }
    }

    /// The rate that was found before, or what it has risen to; `None` where the lane does not go by one.
    pub(crate) fn known(&self) -> Option<f64> {
        let known = self.known?;
        Some(self.rate.map_or(known.rate, |rate| known.rate.max(rate / known.left)))
    }

    /// Whether a turn taken at `taken` is still good: one from before the first refusal is not after it.
    pub fn holds(&self, taken: Duration) -> bool {
        self.paced_at.is_none_or(|paced_at| taken > paced_at)
    }

    /// The same, but `None` too for as long as clients that share their pace have not told each other what they found.
    pub(crate) fn settled_rate(&self, now: Duration) -> Option<f64> {
        let settling = self.clients > 1 && self.known.is_none();
        let settled = |since: Duration| now.saturating_sub(since) >= SETTLING;
        self.rate.filter(|_| !settling || self.paced_at.is_none_or(settled))
    }

    /// Requests per second; `None` while nothing is held back.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}
