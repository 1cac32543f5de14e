//! The rate of one lane.

use std::time::Duration;

/// Slowest rate, in requests per second: even an outage is asked about from time to time.
const SLOWEST: f64 = 0.2;
/// Fastest rate that is told from none, in requests per second.
const FASTEST: f64 = 1e5;
/// Time over which requests before the first refusal are counted.
const MEMORY_BEFORE: Duration = Duration::from_secs(1);
/// The rate after the first refusal, as a share of the rate before it; and the least it is, for a refusal that is the only
/// one should not cost much.
const FIRST_SHARE: f64 = 0.5;
const FIRST_LEAST: f64 = 4.0;

/// Answers that are looked at together to find the first rate; so many refusals, half of the answers and more, are enough to
/// halve it, and fewer where nearly all are.
const BATCH: u32 = 32;
const HALVING: u32 = 8;
const HALVING_AT_ONCE: u32 = 6;
/// Growth after so many answers without a refusal: while no rate was too much; and at slow rates also after one was, or a whole
/// batch would take minutes.
const RISE: f64 = 1.25;
const RISING: u32 = 8;
const RISING_AGAIN: u32 = 4;
const SLOW: f64 = 2.0;
/// Share of refused requests at which the search ends.
const CALM: f64 = 0.1;

/// Requests over which the share of refused ones is averaged.
const MEMORY: f64 = 32.0;
/// The cut that comes with a refusal; and by how much it grows with the share of refused requests where that is not calm.
const SMALLEST_CUT: f64 = 0.06;
const CUT_PER_REFUSAL: f64 = 3.0;
const LARGEST_CUT: f64 = 0.5;
/// Growth in a second. As it does not depend on the rate while cuts come with every so many requests, a fast client
/// loses to a slow one, and all come to the same rate.
const GROWTH_PER_SECOND: f64 = 0.02;
/// Most growth with one request, or slow clients would be refused too often; and the least growth in a second all the same, or
/// the slowest would stay so for minutes.
const GROWTH_PER_REQUEST: f64 = 0.002;
const SLOWEST_GROWTH_PER_SECOND: f64 = 0.01;
/// Time and requests without a refusal after which growth has doubled; it goes on with the fourth power of them, for then there
/// is more to have than there was.
const CLEAN_SECONDS: f64 = 15.0;
const CLEAN_REQUESTS: f64 = 110.0;
const LARGEST_GROWTH: f64 = 0.1;
/// After an outage: admitted requests in a row that end it, and the growth with each further one, until half of the rate that
/// was good before is reached.
const BACK: f64 = 3.0;
const GROWTH_BACK: f64 = 0.5;

/// Requests to keys that are taken to share one budget.
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
    /// Share of refused requests, lately.
    waste: f64,
    /// Requests admitted since the last refusal, and when that was.
    clean: f64,
    refused_at: Duration,
    /// While the first rate is looked for.
    search: Option<Search>,
    /// The latest rate at which few were refused.
    good: f64,
    /// Since when it goes at a rate that was set, not grown.
    begun_at: Duration,
    /// Requests before the first refusal, the older ones faded, as of a time.
    before: (f64, Duration),
}

/// Answers to requests under one rate.
#[derive(Debug, Clone, Copy)]
struct Search {
    answers: u32,
    refusals: u32,
    /// Whether no rate so far was too much.
    rising: bool,
}

impl Search {
    fn new(rising: bool) -> Search {
        Search { answers: 0, refusals: 0, rising }
    }
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

    /// A request that was sent at `sent` was admitted.
    pub fn admitted(&mut self, now: Duration, sent: Duration) {
        self.waste -= self.waste / MEMORY;
        self.clean += 1.0;
        let Some(rate) = self.rate else { return };
        if self.search.is_some() {
            self.searched(now, sent, false);
        } else if self.limiting {
            self.rate = Some((rate * (1.0 + self.growth(now, rate))).min(FASTEST));
            if self.waste < CALM {
                self.good = self.good.max(rate);
            }
        }
    }

    fn growth(&self, now: Duration, rate: f64) -> f64 {
        if rate < self.good / 2.0 {
            return if self.clean < BACK { 0.0 } else { GROWTH_BACK };
        }
        let seconds = now.saturating_sub(self.refused_at).as_secs_f64();
        let clean = (seconds / CLEAN_SECONDS).min(self.clean / CLEAN_REQUESTS);
        let usual = (GROWTH_PER_SECOND / rate).min(GROWTH_PER_REQUEST).max(SLOWEST_GROWTH_PER_SECOND / rate);
        let growth = usual * (1.0 + clean.powi(4));
        growth.min(LARGEST_GROWTH)
    }

    /// A request that was sent at `sent` was refused. `random`, from 0 to 1, keeps clients out of step.
    pub fn refused(&mut self, now: Duration, sent: Duration, random: f64) {
        self.waste += (1.0 - self.waste) / MEMORY;
        let clean = std::mem::take(&mut self.clean);
        self.refused_at = now;
        let Some(rate) = self.rate else {
            let rate = (FIRST_SHARE * self.rate_before(now)).max(FIRST_LEAST);
            self.next = now + Duration::from_secs_f64(random / rate);
            self.search = Some(Search::new(true));
            self.paced_at = Some(now);
            return self.begin(now, rate);
        };
        if self.search.is_some() {
            self.searched(now, sent, true);
        } else if sent >= self.begun_at {
            if clean >= BACK {
                // It was no outage: more than this is too much now.
                self.good = rate;
            }
            let cut = (CUT_PER_REFUSAL * (self.waste - CALM)).clamp(SMALLEST_CUT, LARGEST_CUT);
            self.begin(now, rate * (1.0 - cut));
        }
        // Else it went under the rate before the last cut, and says nothing of this one.
    }

    /// Clients that begin together see the same, and so they come to the same rate together.
    fn searched(&mut self, now: Duration, sent: Duration, refused: bool) {
        let (Some(search), Some(rate)) = (&mut self.search, self.rate) else { return };
        if sent < self.begun_at {
            return;
        }
        search.answers += 1;
        search.refusals += u32::from(refused);
        let Search { answers, refusals, rising } = *search;
        let many = refusals >= HALVING && 2 * refusals >= answers;
        if many || refusals >= HALVING_AT_ONCE && 4 * refusals >= 3 * answers {
            self.search = Some(Search::new(false));
            self.begin(now, rate / 2.0);
        } else if refusals == 0
            && self.limiting
            && (rising && answers >= RISING || rate < SLOW && answers >= RISING_AGAIN)
        {
            self.search = Some(Search::new(true));
            self.begin(now, rate * RISE);
        } else if answers >= BATCH {
            let share = f64::from(refusals) / f64::from(answers);
            self.search = (share > CALM).then_some(Search::new(false));
            self.waste = share.min(CALM);
            self.good = rate * (1.0 - share);
            self.begin(now, self.good);
        }
    }

    /// Sets a rate of which only requests sent from now on tell something.
    fn begin(&mut self, now: Duration, rate: f64) {
        self.rate = Some(rate.clamp(SLOWEST, FASTEST));
        self.begun_at = now;
    }

    /// Requests in the second before.
    fn rate_before(&self, now: Duration) -> f64 {
        let (count, at) = self.before;
        count * (-now.saturating_sub(at).div_duration_f64(MEMORY_BEFORE)).exp()
    }

    /// A lane that begins with the rate of this one.
    pub(crate) fn follower(&self, now: Duration, random: f64) -> Lane {
        let next = self.rate.map_or(now, |rate| now + Duration::from_secs_f64(random / rate));
        Lane { rate: self.rate, next, begun_at: now, ..Lane::default() }
    }

    /// Goes at this rate from now on, which others on the same budget go at as well. Nothing happens before a refusal.
    pub fn agree(&mut self, now: Duration, rate: f64) {
        if self.rate.is_some() && rate.is_finite() {
            self.good = rate;
            self.begin(now, rate);
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
