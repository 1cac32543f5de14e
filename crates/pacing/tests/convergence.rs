//! Many clients that know nothing of each other, on one partition of the model.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;
use s3dcp_pacing::{Lane, Lanes, Share};
use s3dcp_partition::{Access, KeySpace, Limits};

/// Requests that each client has under way at most.
const CONNECTIONS: usize = 32;
const LATENCY: Duration = Duration::from_millis(20);
const KEY: &str = "b/k";

struct Client {
    lanes: Lanes,
    share: Share,
    in_flight: usize,
    admitted: u64,
    refused: u64,
    waking: Duration,
}

impl Client {
    fn new() -> Client {
        Client {
            lanes: Lanes::default(),
            share: Share::new(Duration::ZERO, "b/"),
            in_flight: 0,
            admitted: 0,
            refused: 0,
            waking: Duration::ZERO,
        }
    }
}

/// When, in which order, to which client, and when what is answered then was sent.
type Event = (Duration, u64, usize, Option<Duration>);

struct Fleet {
    space: KeySpace,
    clients: Vec<Client>,
    events: BinaryHeap<Reverse<Event>>,
    count: u64,
    random: Rng,
    now: Duration,
}

/// One partition that takes so many writes per second.
fn of_budget(mut limits: Limits, writes_per_second: f64) -> KeySpace {
    limits.writes_per_second = writes_per_second;
    KeySpace::new(limits)
}

impl Fleet {
    fn new(clients: usize, budget: f64, seed: u64) -> Fleet {
        let mut limits = Limits::default();
        limits.split_after = Duration::from_secs(1_000_000);
        let mut fleet = Fleet {
            space: of_budget(limits, budget),
            clients: (0..clients).map(|_| Client::new()).collect(),
            events: BinaryHeap::new(),
            count: 0,
            random: Rng::with_seed(seed),
            now: Duration::ZERO,
        };
        for client in 0..clients {
            let begin = Duration::from_millis(fleet.random.u64(0..20));
            fleet.at(begin, client, None);
        }
        fleet
    }

    fn at(&mut self, time: Duration, client: usize, sent: Option<Duration>) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, client, sent)));
    }

    /// Lets everybody send as much as the lanes allow until `end`.
    fn run(&mut self, end: Duration) {
        while let Some(&Reverse((now, _, index, sent))) = self.events.peek()
            && now < end
        {
            self.events.pop();
            self.now = now;
            if let Some(sent) = sent {
                let random = self.random.f64();
                let client = &mut self.clients[index];
                client.in_flight -= 1;
                let lane = client.lanes.lane(now, KEY, random);
                if self.space.admit(now, KEY, Access::Write).is_ok() {
                    lane.admitted();
                    client.admitted += 1;
                } else {
                    lane.refused(now, sent, random);
                    client.refused += 1;
                }
            }
            loop {
                let client = &mut self.clients[index];
                if client.in_flight == CONNECTIONS {
                    break;
                }
                let lane = client.lanes.lane(now, KEY, self.random.f64());
                match lane.take(now) {
                    Ok(()) => {
                        client.in_flight += 1;
                        lane.sent(now);
                        let jitter = LATENCY.mul_f64(self.random.f64());
                        self.at(now + LATENCY / 2 + jitter, index, Some(now));
                    }
                    Err(at) => {
                        if client.waking <= now || client.waking > at {
                            client.waking = at;
                            self.at(at, index, None);
                        }
                        break;
                    }
                }
            }
        }
        self.now = end;
    }

    /// The same for clients that tell each other what they were answered.
    fn run_sharing(&mut self, end: Duration) {
        self.run_resuming(end, None);
    }

    /// The same where they know what was found before.
    fn run_resuming(&mut self, end: Duration, found: Option<f64>) {
        let (mut counter, clients) = (0, self.clients.len() as u32);
        for client in &mut self.clients {
            client.lanes.begin(self.now, "b/", clients, found, || 0.5);
        }
        while self.now < end {
            self.run((self.now + Share::period(1)).min(end));
            for client in &mut self.clients {
                if let Some(change) = client.share.change(self.now, &client.lanes) {
                    counter += change;
                    client.share.agree(self.now, &mut client.lanes, counter);
                }
            }
        }
    }

    fn forget(&mut self) {
        for client in &mut self.clients {
            (client.admitted, client.refused) = (0, 0);
        }
    }

    fn totals(&self) -> (f64, f64, f64) {
        let admitted: u64 = self.clients.iter().map(|client| client.admitted).sum();
        let refused: u64 = self.clients.iter().map(|client| client.refused).sum();
        let squares: f64 = self.clients.iter().map(|client| (client.admitted as f64).powi(2)).sum();
        let jain = (admitted as f64).powi(2) / (self.clients.len() as f64 * squares);
        (admitted as f64, refused as f64, jain)
    }
}

/// What `clients` come to on a partition of this budget, over the requests that follow a minute: the share of the budget
/// that is used, the share of requests that is refused, and how alike the clients are served.
fn converged(clients: usize, budget: f64, seed: u64) -> (f64, f64, f64) {
    let mut fleet = Fleet::new(clients, budget, seed);
    fleet.run(Duration::from_secs(60));
    fleet.forget();
    let measured = (2_000.0 / budget).max(60.0);
    fleet.run(Duration::from_secs_f64(60.0 + measured));
    let (admitted, refused, jain) = fleet.totals();
    (admitted / budget / measured, refused / (admitted + refused), jain)
}

/// Clients, budget, the most that may be refused and how alike they are to be served.
const FLEETS: [(usize, f64, f64, f64); 6] = [
    (8, 100.0, 0.04, 0.85),
    (8, 200.0, 0.03, 0.9),
    (8, 700.0, 0.02, 0.9),
    (64, 3_500.0, 0.02, 0.9),
    (64, 350.0, 0.08, 0.85),
    // Half a request per second each: a refusal is all they ever learn.
    (64, 35.0, 0.25, 0.55),
];

#[test]
fn clients_that_know_nothing_of_each_other_use_the_budget_waste_little_and_share_alike() {
    for (clients, budget, waste, alike) in FLEETS {
        for seed in 0..5 {
            let (used, refused, jain) = converged(clients, budget, seed);
            let what = format!("{clients} on {budget}, seed {seed}: {used:.3} {refused:.3} {jain:.3}");
            assert!(used >= 0.9, "{what}");

            assert!(refused <= waste, "{what}");
            assert!(jain >= alike, "{what}");
        }
    }
}

/// From the first request on, not once they have found it out.
#[test]
fn clients_that_tell_each_other_share_alike_at_once() {
    for (clients, budget, ..) in FLEETS {
        for seed in 0..5 {
            let mut fleet = Fleet::new(clients, budget, seed);
            let end = (2_000.0 / budget).max(10.0);
            fleet.run_sharing(Duration::from_secs_f64(end));
            let (admitted, refused, jain) = fleet.totals();
            let what = format!("{clients} on {budget}, seed {seed}: {admitted} {refused} {jain:.3}");
            assert!(admitted >= 0.95 * budget * end, "{what}");
            assert!(jain >= 0.85, "{what}");
        }
    }
}

/// The share of its budget that such a job uses in that time, and the share of its requests that is refused; and what it has found.
fn resumed(clients: usize, budget: f64, seed: u64, found: Option<f64>, seconds: f64) -> (f64, f64, f64) {
    let mut fleet = Fleet::new(clients, budget, seed);
    fleet.run_resuming(Duration::from_secs_f64(seconds), found);
    let (admitted, refused, _) = fleet.totals();
    let first = &fleet.clients[0];
    let found = first.share.found(fleet.now, &first.lanes).expect("something was refused");
    (admitted / budget / seconds, refused / (admitted + refused), found)
}

#[test]
fn what_was_found_before_is_enough_to_waste_little() {
    for (clients, budget) in [(1, 20.0), (8, 8.0), (8, 20.0), (8, 200.0), (64, 350.0), (512, 3_500.0)] {
        let (mut all_used, mut all_refused) = (0.0, 0.0);
        for seed in 0..5 {
            let (_, first_refused, mut found) = resumed(clients, budget, seed, None, 15.0);
            for round in 1..4 {
                let (used, refused, again) = resumed(clients, budget, seed + 10 * round, Some(found), 15.0);
                assert!(refused < first_refused, "{clients} on {budget}: {refused} {first_refused}");
                (all_used, all_refused, found) =
                    (all_used + used / 15.0, all_refused + refused / 15.0, again);
            }
        }
        let what = format!("{clients} on {budget}: {all_used:.3} {all_refused:.3}");
        assert!(all_used >= 0.95, "{what}");
        let slow = budget / (clients as f64) < 2.0;
        assert!(all_refused <= if slow { 0.08 } else { 0.05 }, "{what}");
    }
}

/// However wrong it is, or whoever wrote it.
#[test]
fn what_was_found_before_costs_little_where_it_is_wrong() {
    let (clients, budget, seconds) = (8, 200.0, 30.0);
    for seed in 0..5 {
        let (used, refused, _) = resumed(clients, budget, seed, None, seconds);
        for wrong in [1e-300, 0.5, 20.0, 2_000.0, 1e300, f64::NAN, f64::INFINITY, -1.0] {
            let (found_used, found_refused, _) = resumed(clients, budget, seed, Some(wrong), seconds);
            let what = format!(
                "{wrong:e}, seed {seed}: {found_used:.3} of {used:.3}, {found_refused:.3} of {refused:.3}"
            );
            assert!(found_used >= used - 18.0 / seconds, "{what}");
            assert!(wrong < budget || found_used >= 0.8 * used, "{what}");
            assert!(found_refused <= refused + 0.01, "{what}");
        }
    }
}

#[test]
fn a_split_is_found() {
    let mut fleet = Fleet::new(8, 200.0, 1);
    fleet.run(Duration::from_secs(60));
    fleet.space = of_budget(fleet.space.limits().clone(), 400.0);
    fleet.forget();
    fleet.run(Duration::from_secs(120));
    fleet.forget();
    fleet.run(Duration::from_secs(150));
    let (admitted, refused, _) = fleet.totals();
    assert!(admitted >= 0.9 * 400.0 * 30.0, "{admitted}");
    assert!(refused <= 0.05 * (admitted + refused), "{refused}");
}

#[test]
fn half_the_budget_is_enough_to_slow_everybody_down() {
    let mut fleet = Fleet::new(8, 400.0, 1);
    fleet.run(Duration::from_secs(60));
    fleet.space = of_budget(fleet.space.limits().clone(), 200.0);
    fleet.forget();
    fleet.run(Duration::from_secs(70));
    let (admitted, refused, _) = fleet.totals();
    assert!(admitted >= 0.9 * 200.0 * 10.0, "{admitted}");
    assert!(refused <= 0.2 * (admitted + refused), "{refused}");
}

#[test]
fn after_an_outage_the_rate_comes_back() {
    let mut fleet = Fleet::new(8, 200.0, 1);
    fleet.run(Duration::from_secs(60));
    let limits = fleet.space.limits().clone();
    fleet.space = of_budget(limits.clone(), 0.001);
    fleet.forget();
    fleet.run(Duration::from_secs(120));
    let (_, refused, _) = fleet.totals();
    assert!(refused < 300.0, "all that is asked in a minute without an admission: {refused}");
    fleet.space = KeySpace::new(limits);
    fleet.run(Duration::from_secs(150));
    fleet.forget();
    fleet.run(Duration::from_secs(180));
    let (admitted, _, jain) = fleet.totals();
    assert!(admitted >= 0.9 * 200.0 * 30.0, "{admitted}");
    assert!(jain >= 0.85, "{jain}");
}

#[test]
fn a_latecomer_gets_its_share() {
    let mut fleet = Fleet::new(9, 200.0, 1);
    fleet.events.retain(|Reverse((_, _, client, _))| *client != 8);
    fleet.at(Duration::from_secs(60), 8, None);
    fleet.run(Duration::from_secs(65));
    fleet.forget();
    fleet.run(Duration::from_secs(95));
    let (admitted, ..) = fleet.totals();
    let share = fleet.clients[8].admitted as f64 / (admitted / 9.0);
    assert!((0.5..=2.0).contains(&share), "{share}");
}

/// Requests of one client that are under way one after the other, as many as it wants, of which one is refused.
#[test]
fn one_refusal_among_many_requests_costs_little() {
    let mut lane = Lane::default();
    let mut now = Duration::ZERO;
    for sent in 0..1_000 {
        while let Err(turn) = lane.take(now) {
            now = turn;
        }
        lane.sent(now);
        now += Duration::from_millis(10);
        if sent == 100 { lane.refused(now, now, 0.5) } else { lane.admitted() }
    }
    assert!(now < Duration::from_secs(20), "instead of 10 s without pacing: {now:?}");
}

/// As in a save in which each kind of request is refused once.
#[test]
fn a_few_refusals_in_a_row_cost_a_second_or_two() {
    let mut lane = Lane::default();
    let mut now = Duration::ZERO;
    for request in 0..8 {
        while let Err(turn) = lane.take(now) {
            now = turn;
        }
        lane.sent(now);
        now += Duration::from_millis(10);
        if request % 2 == 0 { lane.refused(now, now, 0.5) } else { lane.admitted() }
    }
    assert!(now < Duration::from_millis(2_100), "{now:?}");
    // Those that follow tell that the rate is too high.
    for _ in 0..8 {
        now += Duration::from_secs(1);
        lane.refused(now, now, 0.5);
    }
    assert!(lane.rate().unwrap() < 0.5, "{lane:?}");
}

/// One of the clients of a job, the only one that has something to send, is refused by chance and not for its rate.
#[test]
fn refusals_that_no_rate_causes_hold_a_job_up_for_seconds() {
    let found = [None, Some(8.0)];
    let jobs =
        [(1, 60), (2, 60), (4, 120), (8, 240)].into_iter().flat_map(|job| found.map(|found| (job, found)));
    for ((clients, bound), found) in jobs {
        let mut longest = Duration::ZERO;
        for seed in 0..50 {
            let mut random = Rng::with_seed(seed);
            let mut lanes = Lanes::default();
            lanes.begin(Duration::ZERO, "b/", clients, found, || 0.5);
            let (mut now, mut left) = (Duration::ZERO, 40);
            while left > 0 {
                let lane = lanes.lane(now, KEY, 0.5);
                match lane.take(now) {
                    Ok(()) if random.bool() => {
                        lane.sent(now);
                        left -= 1;
                        lane.refused(now + LATENCY, now, 0.5);
                    }
                    Ok(()) => lane.admitted(),
                    Err(turn) => now = turn,
                }
            }
            longest = longest.max(now);
        }
        assert!(longest < Duration::from_secs(bound), "{clients} clients, {found:?}: {longest:?}");
    }
}
