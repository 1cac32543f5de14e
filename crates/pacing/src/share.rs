//! The rate that the clients of a job go at together.

use std::collections::BTreeMap;
use std::time::Duration;

use s3dcp_partition::Limits;

use crate::lane::{FASTEST, SLOWEST};
use crate::lanes::Lanes;

/// Time between two looks at the counter, and how many clients may look at it in a second: it is one number on one machine.
const PERIOD: Duration = Duration::from_millis(500);
const LOOKS_PER_SECOND: f64 = 8_000.0;
/// A lane that was not used for so long has nothing to send: longer than the slowest waits for its turn.
const IDLE: Duration = Duration::from_secs(6);
/// The counter holds the lanes that take part, and below them the sum of the logarithms of their rates in millionths.
const LANE: i64 = 1 << 40;
const UNIT: f64 = 1e6;

/// One client's part in a rate that the clients of a job agree on while they work.
///
/// What they share is one counter that each can add to, such as the store of a torch process group has. Its mean is their
/// rate. From time to time every client adds by how much its own rate has changed since ([`Share::change`]) and takes over
/// what the sum says now ([`Share::agree`]), so that each goes by what all were answered. The rate of a lane that is
/// done ([`Share::leave`]) goes to those that are not.
///
/// That is the same rate for every lane, as a strategy gives every rank as much to send: where they share a range of keys it is
/// fair, and where one range is more crowded than others nothing would be done sooner if the others were faster.
#[derive(Debug, Default)]
pub struct Share {
    within: Box<str>,
    begun_at: Duration,
    /// The lanes that take part, and what the counter knows of each.
    lanes: BTreeMap<Box<str>, i64>,
    counter: i64,
    /// Most lanes that took part at once.
    most: i64,
}

impl Share {
    /// The part of a client in what goes to folders that begin with `within` from now on.
    pub fn new(now: Duration, within: &str) -> Share {
        Share { within: within.into(), begun_at: now, lanes: BTreeMap::new(), counter: 0, most: 0 }
    }

    /// How often to exchange, with so many clients.
    pub fn period(clients: u32) -> Duration {
        PERIOD.max(Duration::from_secs_f64(f64::from(clients) / LOOKS_PER_SECOND))
    }

    /// What to add to the counter; `None` while nothing is held back.
    pub fn change(&mut self, now: Duration, lanes: &Lanes) -> Option<i64> {
        let mut change = 0;
        let had_part = !self.lanes.is_empty();
        let since = self.begun_at.max(now.saturating_sub(IDLE));
        // Where nothing is asked for any more, nothing is learned: it counts no longer, and changes the mean of none.
        self.lanes.retain(|folder, known| {
            let used = lanes.used(folder, since);
            change -= if used { 0 } else { LANE + *known };
            used
        });
        for (folder, rate) in lanes.paced(since).filter(|(folder, _)| folder.starts_with(&*self.within)) {
            let rate = (UNIT * rate.ln()) as i64;
            match self.lanes.get_mut(folder) {
                Some(known) => change += rate - std::mem::replace(known, rate),
                None => {
                    change += LANE + rate;
                    self.lanes.insert(folder.into(), rate);
                }
            }
        }
        (had_part || !self.lanes.is_empty()).then_some(change)
    }

    /// Takes over the rate that the counter stands for, which is at this now.
    pub fn agree(&mut self, now: Duration, lanes: &mut Lanes, counter: i64) {
        self.counter = counter;
        let Some((count, logarithm)) = mean(counter) else { return };
        self.most = self.most.max(count);
        for (folder, known) in &mut self.lanes {
            *known = (UNIT * logarithm) as i64;
            lanes.agree(now, folder, logarithm.exp(), self.most as f64 / count as f64);
        }
    }

    /// Requests per second that all lanes together have found, or of this client's alone where it is the only one; `None` while
    /// nothing is held back. It is never less than what was served, besides what the budget had saved up: a short job ends before it
    /// has found its rate.
    pub fn found(&self, now: Duration, lanes: &Lanes) -> Option<f64> {
        let rate = self.found_by_refusals(now, lanes)?;
        let time = now.saturating_sub(self.begun_at) + Limits::default().burst;
        Some(rate.max(lanes.served(&self.within) / time.as_secs_f64()))
    }

    fn found_by_refusals(&self, now: Duration, lanes: &Lanes) -> Option<f64> {
        let since = self.begun_at.max(now.saturating_sub(IDLE));
        if let Some(rate) = lanes.still_known(&self.within, since) {
            return Some(rate);
        }
        let clients = lanes.clients(&self.within);
        if let Some((count, logarithm)) = mean(self.counter).filter(|_| !self.lanes.is_empty()) {
            // Those that were never refused take no part in the counter; they were no slower.
            return Some(count as f64 * logarithm.exp() * (clients / self.most as f64).max(1.0));
        }
        let paced = lanes.paced(since).filter(|(folder, _)| folder.starts_with(&*self.within));
        Some(clients * paced.map(|(_, rate)| rate).sum::<f64>()).filter(|rate| *rate > 0.0)
    }

    /// What to add to the counter at the end, so that the others together go as fast as before; `None` when this client had no part.
    pub fn leave(&mut self) -> Option<i64> {
        let leaving = std::mem::take(&mut self.lanes).len() as i64;
        let (count, sum) = read(self.counter);
        let left = count - leaving;
        let sum_left = if left > 0 {
            let (count, left, mean) = (count as f64, left as f64, sum as f64 / count as f64);
            (left * (mean + UNIT * (count / left).ln())) as i64
        } else {
            0
        };
        (leaving > 0).then_some(sum_left - sum - leaving * LANE)
    }

    /// What to add in the end if nobody is left then: clients that leave at the same time know nothing of each other.
    pub fn remainder(counter: i64) -> Option<i64> {
        let (count, sum) = read(counter);
        (count == 0 && sum != 0).then_some(-sum)
    }
}

/// Lanes, and the sum of their logarithms.
fn read(counter: i64) -> (i64, i64) {
    let count = (counter + LANE / 2).div_euclid(LANE);
    (count, counter - count * LANE)
}

/// Lanes, and the mean of the logarithms of their rates; `None` where there are none.
fn mean(counter: i64) -> Option<(i64, f64)> {
    let (count, sum) = read(counter);
    let mean = sum as f64 / count as f64 / UNIT;
    (count > 0).then(|| (count, mean.clamp(SLOWEST.ln(), FASTEST.ln())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    /// A client with a lane for each of these rates, in requests per second.
    struct Client {
        lanes: Lanes,
        share: Share,
    }

    impl Client {
        fn new(rates: &[f64]) -> Client {
            let mut lanes = Lanes::default();
            for (number, rate) in rates.iter().enumerate() {
                let lane = lanes.lane(START, &format!("b/run/{number}/x"), 0.5);
                lane.refused(START, START, 0.5);
                lane.agree(START, *rate, 1.0);
            }
            lanes.lane(START, "b/other/x", 0.5).refused(START, START, 0.5);
            Client { lanes, share: Share::new(START, "b/run/") }
        }

        fn exchange(&mut self, counter: &mut i64) {
            if let Some(change) = self.share.change(START, &self.lanes) {
                *counter += change;
                self.share.agree(START, &mut self.lanes, *counter);
            }
        }

        fn leave(&mut self, counter: &mut i64) {
            *counter += self.share.leave().unwrap_or_default();
            *counter += Share::remainder(*counter).unwrap_or_default();
        }

        fn rates(&self) -> Vec<f64> {
            self.lanes
                .paced(START)
                .filter(|(folder, _)| *folder != "b/other/")
                .map(|(_, rate)| rate)
                .collect()
        }
    }

    fn about(rates: &[f64], expected: &[f64]) -> bool {
        rates.len() == expected.len()
            && rates.iter().zip(expected).all(|(rate, expected)| (rate / expected - 1.0).abs() < 1e-4)
    }

    #[test]
    fn clients_come_to_the_mean_of_their_rates() {
        let mut counter = 0;
        let (mut one, mut other) = (Client::new(&[2.0, 2.0]), Client::new(&[16.0, 16.0]));
        one.exchange(&mut counter);
        assert!(about(&one.rates(), &[2.0, 2.0]), "{:?}", one.rates());
        other.exchange(&mut counter);
        one.exchange(&mut counter);
        let mean = 32_f64.sqrt();
        assert!(about(&one.rates(), &[mean, mean]), "{:?}", one.rates());
        assert!(about(&other.rates(), &[mean, mean]), "{:?}", other.rates());
    }

    #[test]
    fn those_that_were_not_refused_are_found_as_fast_as_the_others() {
        let mut counter = 0;
        let mut clients = [Client::new(&[10.0]), Client::new(&[10.0])];
        for client in &mut clients {
            client.lanes.begin(START, "b/run/", 4, None, || 0.5);
            assert_eq!(client.share.found(START, &client.lanes), Some(40.0), "alone");
        }
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        let [one, two] = &mut clients;
        assert!(about(&[two.share.found(START, &two.lanes).unwrap()], &[40.0]));
        one.exchange(&mut counter);
        one.leave(&mut counter);
        two.exchange(&mut counter);
        assert!(about(&[two.share.found(START, &two.lanes).unwrap()], &[40.0]), "the rate of one is left");
    }

    #[test]
    fn what_one_learns_all_learn() {
        let mut counter = 0;
        let mut clients = [Client::new(&[10.0]), Client::new(&[10.0])];
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        let later = START + Duration::from_secs(1);
        let refused = clients[0].lanes.lane(START, "b/run/0/x", 0.5);
        refused.refused(later, later, 0.5);
        let cut = refused.rate().unwrap() / 10.0;
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        for client in &clients {
            assert!(about(&client.rates(), &[10.0 * cut.sqrt()]), "{:?}", client.rates());
        }
    }

    #[test]
    fn those_who_are_done_leave_their_rate_to_the_others() {
        let mut counter = 0;
        let mut clients = [Client::new(&[10.0]), Client::new(&[10.0]), Client::new(&[10.0])];
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        let [one, two, three] = &mut clients;
        one.exchange(&mut counter);
        one.leave(&mut counter);
        two.exchange(&mut counter);
        assert!(about(&two.rates(), &[15.0]), "{:?}", two.rates());
        two.leave(&mut counter);
        three.exchange(&mut counter);
        assert!(about(&three.rates(), &[30.0]), "{:?}", three.rates());
        three.leave(&mut counter);
        assert_eq!(counter, 0);
    }

    #[test]
    fn a_lane_without_requests_counts_no_longer_until_it_has_some() {
        let mut counter = 0;
        let mut clients = [Client::new(&[10.0]), Client::new(&[10.0, 10.0])];
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        let (one, now) = (&mut clients[1], START + IDLE + Duration::from_millis(1));
        one.lanes.lane(now, "b/run/0/x", 0.5);
        counter += one.share.change(now, &one.lanes).unwrap();
        one.share.agree(now, &mut one.lanes, counter);
        assert_eq!(read(counter).0, 2);
        assert!(about(&one.rates(), &[10.0, 10.0]), "{:?}", one.rates());
        one.lanes.lane(now, "b/run/1/x", 0.5);
        counter += one.share.change(now, &one.lanes).unwrap();
        assert_eq!(read(counter).0, 3);
    }

    #[test]
    fn those_who_leave_at_once_leave_nothing_behind() {
        let mut counter = 0;
        let mut clients = [Client::new(&[10.0]), Client::new(&[10.0])];
        clients.iter_mut().for_each(|client| client.exchange(&mut counter));
        clients.iter_mut().for_each(|client| client.leave(&mut counter));
        assert_eq!(counter, 0);
    }

    #[test]
    fn without_a_refusal_there_is_nothing_to_say() {
        let mut share = Share::new(START, "b/run/");
        let mut lanes = Lanes::default();
        lanes.lane(START, "b/run/x", 0.5).admitted();
        assert_eq!(share.change(START, &lanes), None);
        assert_eq!(share.leave(), None);
        lanes.lane(START, "b/run/x", 0.5).refused(START, START, 0.5);
        let mut later = Share::new(START + Duration::from_secs(1), "b/run/");
        assert_eq!(later.change(START, &lanes), None, "of a lane that it does not use");
    }

    #[test]
    fn slow_lanes_and_many_of_them_fit_the_counter() {
        for (count, rate) in [(0, 0.0), (1, SLOWEST), (1 << 15, SLOWEST), (1 << 15, FASTEST)] {
            let sum = if count > 0 { count * (UNIT * rate.ln()) as i64 } else { 0 };
            assert_eq!(read(count * LANE + sum), (count, sum));
        }
    }

    #[test]
    fn more_clients_look_less_often() {
        assert_eq!(Share::period(8), PERIOD);
        assert_eq!(Share::period(16_000), Duration::from_secs(2));
    }
}
