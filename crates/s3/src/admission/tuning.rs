//! How many requests at once: more, as long as more of them move more bytes.
//!
//! One connection to S3 carries some 90 MB/s, so speed is a number of connections, and the right number depends on a
//! network nobody described. It begins at what the throughput target asks for. While requests wait, what all of them
//! move is measured over a window; then the number grows by half, and stays only if at least half of the added
//! connections paid. Where they did not (the network, the disk or the processor is full), the number goes back and is
//! left alone for a while.
//!
//! Pure: the time and the bytes moved so far are arguments. Refusals by the service are not looked at here.

use std::time::Duration;

use crate::clock::Instant;

/// Shortest time over which throughput is measured.
const WINDOW: Duration = Duration::from_millis(250);
/// Requests per connection in a window.
const ROUNDS: usize = 2;
/// How long a number that could not be bettered is kept.
const HOLD: Duration = Duration::from_secs(30);

/// The number of requests at once.
pub(crate) struct Concurrency {
    limit: usize,
    cap: usize,
    window: Option<Window>,
    /// The number before the last step, and the bytes per second that it moved.
    before: Option<(usize, f64)>,
    hold_until: Option<Instant>,
}

struct Window {
    /// Requests still to end before the window opens: they began under another limit.
    settling: usize,
    opened: Instant,
    moved: u64,
    ended: usize,
}

impl Concurrency {
    /// Begins with `first` requests at once, and never allows more than `cap`.
    pub(crate) fn new(first: usize, cap: usize) -> Concurrency {
        let cap = cap.max(1);
        Concurrency { limit: first.clamp(1, cap), cap, window: None, before: None, hold_until: None }
    }

    /// Requests that may be under way at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A request ended at `now`, when `moved` bytes had been moved in all; `waiting` tells whether others wait for
    /// their turn.
    pub(crate) fn request_ended(&mut self, now: Instant, moved: u64, waiting: bool) {
        if !waiting || self.hold_until.is_some_and(|until| now < until) {
            self.window = None;
            return;
        }
        self.hold_until = None;
        let limit = self.limit;
        let window = self.window.get_or_insert(Window { settling: limit, opened: now, moved, ended: 0 });
        if window.settling > 0 {
            window.settling -= 1;
            (window.opened, window.moved) = (now, moved);
            return;
        }
        window.ended += 1;
        let elapsed = now.duration_since(window.opened);
        if elapsed < WINDOW || window.ended < ROUNDS * limit {
            return;
        }
        let throughput = (moved - window.moved) as f64 / elapsed.as_secs_f64();
        self.window = None;
        self.step(now, throughput);
    }

    fn step(&mut self, now: Instant, throughput: f64) {
        if let Some((fewer, before)) = self.before
            && throughput < before * f64::midpoint(1.0, self.limit as f64 / fewer as f64)
        {
            self.limit = fewer;
            self.before = None;
            self.hold_until = Some(now + HOLD);
            return;
        }
        let more = (self.limit + self.limit.div_ceil(2)).min(self.cap);
        if more > self.limit {
            self.before = Some((self.limit, throughput));
            self.limit = more;
        } else {
            self.before = None;
            self.hold_until = Some(now + HOLD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const PART: u64 = 16 << 20;

    /// Runs transfers through a network of `capacity` bytes per second with `per_connection` each, all in virtual
    /// time, and returns the limit after each second.
    fn run(tuner: &mut Concurrency, per_connection: f64, capacity: f64, seconds: usize) -> Vec<usize> {
        let start = clock::now();
        let (mut elapsed, mut moved) = (0.0, 0);
        let mut limits = Vec::new();
        while limits.len() < seconds {
            let rate = capacity.min(per_connection * tuner.limit() as f64);
            elapsed += PART as f64 / rate;
            moved += PART;
            tuner.request_ended(start + Duration::from_secs_f64(elapsed), moved, true);
            while elapsed >= (limits.len() + 1) as f64 {
                limits.push(tuner.limit());
            }
        }
        limits
    }

    #[test]
    fn connections_are_added_while_each_brings_its_share() {
        let mut tuner = Concurrency::new(32, 128);
        let limits = run(&mut tuner, 90e6, 100e9, 12);
        assert_eq!(limits.last(), Some(&128), "{limits:?}");
        assert!(limits.is_sorted(), "{limits:?}");
    }

    #[test]
    fn a_full_network_gets_no_more_connections_for_long() {
        let mut tuner = Concurrency::new(32, 128);
        let limits = run(&mut tuner, 90e6, 1e9, 29);
        assert_eq!(limits[10..].iter().max(), Some(&32), "{limits:?}");
    }

    #[test]
    fn the_climb_ends_where_the_network_is_full() {
        let mut tuner = Concurrency::new(8, 512);
        let limits = run(&mut tuner, 90e6, 4e9, 25);
        let full = 4e9 / 90e6;
        let last = *limits.last().unwrap() as f64;
        assert!(last >= full * 0.6 && last <= full * 1.6, "{limits:?}");
    }

    #[test]
    fn without_waiting_requests_nothing_is_learned() {
        let mut tuner = Concurrency::new(8, 64);
        let start = clock::now();
        for n in 1..10_000u64 {
            tuner.request_ended(start + Duration::from_millis(n), n * PART, false);
        }
        assert_eq!(tuner.limit(), 8);
    }

    #[test]
    fn the_first_number_stays_within_the_cap() {
        assert_eq!(Concurrency::new(32, 4).limit(), 4);
        assert_eq!(Concurrency::new(0, 0).limit(), 1);
    }
}
