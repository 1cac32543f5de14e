//! The addresses of one name: over which of them connections go, and which are left out for a while. Time is an argument.
//!
//! S3 answers a look-up with up to eight of its many front ends, and each has a bandwidth of its own. Connections take turns
//! over all that look-ups have named lately. One that does not answer, or answers much later than the others, is left out
//! until its time is over. Where all are left out, all are tried.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Instant;

/// After this time a name is looked up again.
pub(crate) const FRESH: Duration = Duration::from_secs(5);
/// An address that no look-up has named for so long is forgotten.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long an address is left out.
pub(crate) const LEFT_OUT: Duration = Duration::from_secs(30);

/// Answers of an address, and of others, before it can be called slow.
const ENOUGH: u32 = 4;
/// How many times longer than the typical address's answers those of a slow one take.
const SLOW: f64 = 4.0;
/// Answers within this time are never slow, in seconds.
const QUICK: f64 = 0.05;
/// What the latest answer counts in the average.
const WEIGHT: f64 = 0.25;

/// What was asked of an address: answers are compared with those to the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Little or nothing was sent: the time is that until the answer.
    Little,
    /// So many bytes were sent: the time is taken per MiB.
    Bytes(u64),
}

/// From this size on a request's time is mostly that of its bytes.
const MUCH: u64 = 1 << 20;

impl Asked {
    /// A request with a body of this length.
    pub(crate) fn of(body_bytes: u64) -> Asked {
        if body_bytes < MUCH { Asked::Little } else { Asked::Bytes(body_bytes) }
    }

    /// Which average a time belongs to, and what it counts there in seconds.
    fn counted(self, time: Duration) -> (usize, f64) {
        match self {
            Asked::Little => (0, time.as_secs_f64()),
            Asked::Bytes(bytes) => (1, time.as_secs_f64() * MUCH as f64 / bytes as f64),
        }
    }
}

/// Times of answers.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    answers: u32,
    seconds: f64,
}

impl Average {
    /// One late answer is no slow address: none counts more than [`SLOW`] times the average.
    fn add(&mut self, seconds: f64) {
        self.seconds = match self.answers {
            0 => seconds,
            _ => self.seconds + WEIGHT * (seconds.min(SLOW * self.seconds) - self.seconds),
        };
        self.answers += 1;
    }
}

#[derive(Clone, Debug)]
struct Known {
    address: IpAddr,
    named: Instant,
    /// Connections that went to it, or would have, had it been known from the start.
    connections: u64,
    left_out_until: Option<Instant>,
    /// Of requests with little to send, and with much.
    averages: [Average; 2],
}

/// The addresses of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    known: Vec<Known>,
    looked_up: Option<Instant>,
}

impl Addresses {
    /// Whether the name is to be looked up again; who is told so does it.
    pub(crate) fn begins_look_up(&mut self, now: Instant) -> bool {
        let is_stale = self.looked_up.is_none_or(|then| now.duration_since(then) >= FRESH);
        if is_stale {
            self.looked_up = Some(now);
        }
        is_stale
    }

    /// Takes what a look-up has found.
    pub(crate) fn found(&mut self, addresses: &[IpAddr], now: Instant) {
        self.looked_up = Some(now);
        let connections = self.known.iter().map(|known| known.connections).min().unwrap_or(0);
        for &address in addresses {
            match self.known.iter_mut().find(|known| known.address == address) {
                Some(known) => known.named = now,
                None => self.known.push(Known {
                    address,
                    named: now,
                    connections,
                    left_out_until: None,
                    averages: Default::default(),
                }),
            }
        }
        self.known.retain(|known| now.duration_since(known.named) < REMEMBERED);
    }

    /// The addresses for one connection, the one whose turn it is first.
    pub(crate) fn turns(&mut self, now: Instant) -> Vec<IpAddr> {
        let is_left_out = |known: &Known| known.left_out_until.is_some_and(|until| now < until);
        let mut turns: Vec<&Known> = self.known.iter().collect();
        turns.sort_by_key(|known| (is_left_out(known), known.connections));
        let turns: Vec<IpAddr> = turns.into_iter().map(|known| known.address).collect();
        self.connected(turns.first().copied());
        turns
    }

    /// A connection goes to this address.
    pub(crate) fn connected(&mut self, address: Option<IpAddr>) {
        if let Some(known) = self.known.iter_mut().find(|known| Some(known.address) == address) {
            known.connections += 1;
        }
    }

    /// Leaves an address out for a while.
    pub(crate) fn leave_out(&mut self, address: IpAddr, now: Instant) {
        let Some(place) = self.known.iter().position(|known| known.address == address) else { return };
        // When its time is over it goes on where the others are then, and is judged anew.
        let most = self.known.iter().map(|known| known.connections).max().unwrap_or(0);
        let known = &mut self.known[place];
        known.left_out_until = Some(now + LEFT_OUT);
        known.connections = most;
        known.averages = Default::default();
    }

    /// Whether connections to this address should end.
    pub(crate) fn is_left_out(&self, address: IpAddr, now: Instant) -> bool {
        let left_out = |known: &Known| known.left_out_until.is_some_and(|until| now < until);
        self.known.iter().any(|known| known.address == address && left_out(known))
            && !self.known.iter().all(left_out)
    }

    /// An address has answered: it is left out where it is much slower than the typical one of the others.
    pub(crate) fn answered(&mut self, address: IpAddr, asked: Asked, time: Duration, now: Instant) {
        let (kind, seconds) = asked.counted(time);
        let Some(known) = self.known.iter_mut().find(|known| known.address == address) else { return };
        known.averages[kind].add(seconds);
        let own = known.averages[kind];
        if own.answers < ENOUGH || own.seconds < QUICK {
            return;
        }
        let others = self.known.iter().filter(|known| known.address != address);
        let mut others: Vec<f64> = others
            .map(|known| known.averages[kind])
            .filter(|average| average.answers >= ENOUGH)
            .map(|average| average.seconds)
            .collect();
        others.sort_by(f64::total_cmp);
        if others.len() >= 2 && own.seconds > SLOW * others[others.len() / 2] {
            self.leave_out(address, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn ip(number: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, number])
    }

    /// Eight addresses that were just looked up.
    fn eight() -> (Addresses, Instant) {
        let (mut addresses, now) = (Addresses::default(), clock::now());
        assert!(addresses.begins_look_up(now));
        addresses.found(&(1..=8).map(ip).collect::<Vec<_>>(), now);
        (addresses, now)
    }

    fn shares(addresses: &mut Addresses, connections: usize, now: Instant) -> Vec<usize> {
        let mut shares = vec![0; 8];
        for _ in 0..connections {
            let IpAddr::V4(first) = addresses.turns(now)[0] else { unreachable!() };
            shares[usize::from(first.octets()[3]) - 1] += 1;
        }
        shares
    }

    #[test]
    fn connections_take_turns_and_one_that_fails_is_left_out_for_its_time() {
        let (mut addresses, now) = eight();
        assert_eq!(shares(&mut addresses, 64, now), [8; 8]);
        addresses.leave_out(ip(3), now);
        assert!(addresses.is_left_out(ip(3), now));
        assert_eq!(shares(&mut addresses, 70, now), [10, 10, 0, 10, 10, 10, 10, 10]);
        assert_eq!(addresses.turns(now).last(), Some(&ip(3)), "the last that is tried");
        let later = now + LEFT_OUT;
        assert!(!addresses.is_left_out(ip(3), later));
        let back = shares(&mut addresses, 80, later);
        assert!(back.iter().all(|share| (8..=20).contains(share)), "{back:?}");
    }

    #[test]
    fn where_all_are_left_out_all_are_tried() {
        let (mut addresses, now) = eight();
        (1..=8).for_each(|number| addresses.leave_out(ip(number), now));
        assert_eq!(addresses.turns(now).len(), 8);
        assert!((1..=8).all(|number| !addresses.is_left_out(ip(number), now)));
    }

    #[test]
    fn what_is_much_slower_than_the_others_is_left_out() {
        let (mut addresses, now) = eight();
        let ms = Duration::from_millis;
        for _ in 0..ENOUGH {
            for number in 1..=8 {
                addresses.answered(ip(number), Asked::Little, ms(if number == 5 { 300 } else { 40 }), now);
            }
        }
        let left_out: Vec<u8> = (1..=8).filter(|&number| addresses.is_left_out(ip(number), now)).collect();
        assert_eq!(left_out, [5]);
        // A large request takes long everywhere.
        for _ in 0..ENOUGH {
            for number in 1..=8 {
                let bytes = if number == 6 { 64 << 20 } else { 16 << 20 };
                addresses.answered(ip(number), Asked::of(bytes), ms(bytes / (16 << 10)), now);
            }
        }
        assert!(!addresses.is_left_out(ip(6), now));
    }

    #[test]
    fn a_few_late_answers_and_quick_ones_make_nobody_slow() {
        let (mut addresses, now) = eight();
        let ms = Duration::from_millis;
        for round in 0..100 {
            for number in 1..=8 {
                let late = round == 50 && number == 2;
                let time = ms(if late { 3000 } else { u64::from(number) });
                addresses.answered(ip(number), Asked::Little, time, now);
            }
        }
        assert!((1..=8).all(|number| !addresses.is_left_out(ip(number), now)));
    }

    #[test]
    fn look_ups_add_and_forget() {
        let (mut addresses, now) = eight();
        assert!(!addresses.begins_look_up(now + FRESH / 2));
        assert_eq!(shares(&mut addresses, 16, now), [2; 8]);
        let later = now + FRESH;
        assert!(addresses.begins_look_up(later));
        assert!(!addresses.begins_look_up(later), "one does it");
        addresses.found(&[ip(1), ip(9)], later);
        assert_eq!(addresses.turns(later).len(), 9);
        let much_later = now + REMEMBERED;
        addresses.found(&[ip(9)], much_later);
        assert_eq!(addresses.turns(much_later).len(), 2, "those that were named lately");
    }
}
