//! All ranks and the key space, event by event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;
use s3dcp_checkpoint::Layout;
use s3dcp_pacing::Share;
use s3dcp_partition::{Access, KeySpace};
use s3dcp_s3::PartPlan;

use crate::outcome::{Moment, Outcome, Round};
use crate::rank::{File, Rank, Request, Step};
use crate::scenario::{Network, Operation, Scenario, shard_file_key};

/// How much a latency varies, and the time that a connection needs for its bytes, as a share of it.
const LATENCY_SPREAD: f64 = 0.5;
const CONNECTION_SPREAD: f64 = 0.5;
/// Bytes of the index for each file.
const INDEX_BYTES_PER_FILE: u64 = 4096;
/// How much progress, or else how much of the time that the network alone needs, makes the next moment.
const MOMENT: f64 = 0.01;
const MOMENTS_OF_NETWORK_TIME: u32 = 20;
const SHORTEST_MOMENT: Duration = Duration::from_secs(1);

/// Runs the scenario.
///
/// # Panics
/// When [`Scenario::invalid`] says why.
pub fn simulate(scenario: &Scenario) -> Outcome {
    if let Some(reason) = scenario.invalid() {
        panic!("{reason}");
    }
    let mut fleet = Fleet::new(scenario);
    let rounds = (0..scenario.rounds).map(|round| fleet.round(round)).collect();
    Outcome { rounds, moments: fleet.moments }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A rank looks for something to send.
    Wake,
    /// A rank exchanges its pace with the others.
    Exchange,
    /// A request reaches S3.
    Arrival { request: Request, sent: Duration },
    /// A rank's bytes are through, unless something changed since this was foreseen.
    Moved { change: u64 },
    /// The answer reaches the rank.
    Answer { request: Request, sent: Duration, refused: Option<Duration> },
}

struct Fleet<'a> {
    scenario: &'a Scenario,
    access: Access,
    space: KeySpace,
    ranks: Vec<Rank>,
    /// The request for the index, the last of each rank's files.
    index: Request,
    /// When the bytes of all ranks that are under way are through.
    network_free: Duration,
    /// What the ranks share their pace by.
    counter: i64,
    /// What each rank of the last round found, if it was refused.
    found: Vec<f64>,
    events: BinaryHeap<Reverse<(Duration, u64, usize, Event)>>,
    count: u64,
    random: Rng,
    now: Duration,
    tally: Tally,
    moments: Vec<Moment>,
}

#[derive(Default)]
struct Tally {
    admitted: u64,
    refused: u64,
    refused_before: u64,
    moved: u64,
    ranks_left: usize,
    /// The progress at the last moment, and the time of the next.
    noted: f64,
    next_moment: Duration,
}

impl<'a> Fleet<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let mut random = Rng::with_seed(scenario.seed);
        let ranks = (0..scenario.world_size).map(|_| {
            let slow = random.f64() < scenario.stragglers.share;
            let slowdown = if slow { scenario.stragglers.slowdown } else { 1.0 };
            let network = scenario.network;
            Rank::new(&Network {
                connection_bytes_per_second: network.connection_bytes_per_second / slowdown,
                rank_bytes_per_second: network.rank_bytes_per_second / slowdown,
                ..network
            })
        });
        let ranks = ranks.collect();
        Self {
            access: match scenario.operation {
                Operation::Save => Access::Write,
                Operation::Load => Access::Read,
            },
            space: KeySpace::divided(scenario.limits.clone(), scenario.first_keys()),
            ranks,
            index: Request {
                file: scenario.files_per_rank,
                step: Step::Index,
                bytes: INDEX_BYTES_PER_FILE
                    * u64::from(scenario.files_per_rank)
                    * u64::from(scenario.world_size),
            },
            network_free: Duration::ZERO,
            counter: 0,
            found: Vec::new(),
            events: BinaryHeap::new(),
            count: 0,
            random,
            now: Duration::ZERO,
            tally: Tally::default(),
            moments: Vec::new(),
            scenario,
        }
    }

    fn round(&mut self, number: u32) -> Round {
        let began = if number == 0 { Duration::ZERO } else { self.now + self.scenario.pause };
        self.now = began;
        self.tally = Tally { ranks_left: self.ranks.len(), ..Tally::default() };
        let partitions = self.space.count();
        self.prepare(number);
        self.run(number);
        let done: Vec<f64> = self.ranks.iter().map(|rank| (rank.done_at - began).as_secs_f64()).collect();
        if self.scenario.operation == Operation::Save {
            self.write_index(number);
            self.run(number);
        }
        self.note(number);
        Round {
            began,
            duration: self.now - began,
            ideal: self.ideal(partitions),
            admitted: self.tally.admitted,
            refused: self.tally.refused,
            fairness: fairness(&done),
            partitions: self.space.count(),
            request_bytes: self.ranks.iter().map(|rank| rank.largest_request).max().unwrap_or_default(),
        }
    }

    /// Gives every rank its requests.
    fn prepare(&mut self, round: u32) {
        let scenario = self.scenario;
        let index = Layout::new(&scenario.folder(round)).index_key(None);
        let plan = PartPlan::new(
            scenario.part_size,
            Some(scenario.file_bytes()),
            &scenario.capacity(scenario.promised()),
        );
        let plan = (scenario.operation == Operation::Save).then_some(plan);
        let noted = median(std::mem::take(&mut self.found));
        for (number, prefix) in scenario.prefixes(round).into_iter().enumerate() {
            let mut files: Vec<File> = (0..scenario.files_per_rank)
                .map(|file| {
                    File::new(shard_file_key(&prefix, file).unwrap_or_else(|fault| panic!("{fault}")), plan)
                })
                .collect();
            files.push(File::new(index.clone(), None));
            let rank = &mut self.ranks[number];
            rank.begin(files);
            rank.share = Share::new(self.now, &scenario.folder(round));
            let clients = if scenario.sharing { scenario.world_size } else { 1 };
            rank.lanes.begin(self.now, &scenario.folder(round), clients, noted, || self.random.f64());
            rank.unfinished = match scenario.operation {
                Operation::Save => scenario.files_per_rank as usize,
                Operation::Load => {
                    rank.fresh.push_back(self.index);
                    1
                }
            };
            let begin = self.now + scenario.start_spread.mul_f64(self.random.f64());
            self.wake(begin, number);
            if scenario.sharing {
                self.push(begin + Share::period(scenario.world_size), number, Event::Exchange);
            }
        }
    }

    fn write_index(&mut self, round: u32) {
        let rank = &mut self.ranks[0];
        rank.fresh.push_back(self.index);
        rank.unfinished = 1;
        self.tally.ranks_left = 1;
        debug_assert!(rank.key(self.index).starts_with(&self.scenario.folder(round)));
        self.wake(self.now, 0);
    }

    /// The least that the round could take, with so many partitions.
    fn ideal(&self, partitions: usize) -> Duration {
        let scenario = self.scenario;
        let requests = self.tally.admitted;
        let budget = scenario.budget();
        let saved_up = budget * scenario.limits.burst.as_secs_f64();
        let for_requests = (requests as f64 / partitions as f64 - saved_up).max(0.0) / budget;
        scenario.network_time().max(Duration::from_secs_f64(for_requests))
    }

    fn run(&mut self, round: u32) {
        while let Some(Reverse((now, _, number, event))) = self.events.pop() {
            self.now = now;
            if now >= self.tally.next_moment || self.progress() >= self.tally.noted + MOMENT {
                self.note(round);
            }
            match event {
                Event::Wake => self.ranks[number].wakes_at = None,
                Event::Exchange => self.exchange(number),
                Event::Arrival { request, sent } => {
                    self.arrive(number, request, sent);
                    continue;
                }
                Event::Moved { change } => {
                    self.moved(number, change);
                    continue;
                }
                Event::Answer { request, sent, refused } => {
                    self.answer(number, request, sent, refused);
                    if self.tally.ranks_left == 0 {
                        // What is left are ranks that wake for nothing.
                        self.events.clear();
                        self.ranks.iter_mut().for_each(|rank| rank.wakes_at = None);
                        return;
                    }
                }
            }
            self.send(number);
        }
    }

    /// Takes the rank to the pace of all.
    fn exchange(&mut self, number: usize) {
        let rank = &mut self.ranks[number];
        if rank.unfinished == 0 {
            return;
        }
        if let Some(change) = rank.share.change(self.now, &rank.lanes) {
            self.counter += change;
            rank.share.agree(self.now, &mut rank.lanes, self.counter);
        }
        self.push(self.now + Share::period(self.scenario.world_size), number, Event::Exchange);
    }

    /// Sends what the rank may send now.
    fn send(&mut self, number: usize) {
        let now = self.now;
        self.ranks[number].cut(now, self.scenario);
        loop {
            let rank = &mut self.ranks[number];
            if rank.in_flight >= self.scenario.network.connections {
                return;
            }
            let turn = match rank.next(now) {
                Err(None) => return,
                Err(Some(at)) => Err(at),
                Ok(request) => {
                    let key = &rank.files[request.file as usize].key;
                    let lane = rank.lanes.lane(now, key, self.random.f64());
                    lane.take(now).map(|()| {
                        lane.sent(now);
                        request
                    })
                }
            };
            match turn {
                Ok(request) => {
                    rank.take(now);
                    let delay = self.half_latency();
                    self.push(now + delay, number, Event::Arrival { request, sent: now });
                }
                Err(at) => {
                    self.wake(at, number);
                    return;
                }
            }
        }
    }

    fn arrive(&mut self, number: usize, request: Request, sent: Duration) {
        let rank = &mut self.ranks[number];
        if let Err(refusal) = self.space.admit(self.now, rank.key(request), self.access) {
            return self.reply(number, self.now, request, sent, Some(refusal.retry_after));
        }
        if request.bytes == 0 {
            return self.reply(number, self.now, request, sent, None);
        }
        let share = request.bytes as f64 / self.scenario.network.fleet_bytes_per_second;
        self.network_free = self.network_free.max(self.now) + Duration::from_secs_f64(share);
        let work = request.bytes as f64 * spread(&mut self.random, CONNECTION_SPREAD);
        rank.transfers.begin(self.now, work, request, sent, self.network_free);
        self.foresee(number);
    }

    /// Plans for the end of a rank's next transfer.
    fn foresee(&mut self, number: usize) {
        let transfers = &self.ranks[number].transfers;
        if let Some(at) = transfers.next_end() {
            let change = transfers.change;
            self.push(at.max(self.now), number, Event::Moved { change });
        }
    }

    fn moved(&mut self, number: usize, change: u64) {
        let transfers = &mut self.ranks[number].transfers;
        if transfers.change != change {
            return;
        }
        if let Some(ended) = transfers.end(self.now) {
            self.reply(number, self.now.max(ended.not_before), ended.request, ended.sent, None);
        }
        self.foresee(number);
    }

    /// Sends the answer to a request that ends at `at`.
    fn reply(
        &mut self,
        number: usize,
        at: Duration,
        request: Request,
        sent: Duration,
        refused: Option<Duration>,
    ) {
        let delay = self.half_latency();
        self.push(at + delay, number, Event::Answer { request, sent, refused });
    }

    fn answer(&mut self, number: usize, request: Request, sent: Duration, refused: Option<Duration>) {
        let rank = &mut self.ranks[number];
        rank.in_flight -= 1;
        let random = self.random.f64();
        let key = &rank.files[request.file as usize].key;
        let lane = rank.lanes.lane(self.now, key, random);
        if let Some(retry_after) = refused {
            self.tally.refused += 1;
            lane.refused(self.now, sent, random);
            let pause = if self.scenario.retry_after { retry_after.as_secs_f64().ceil() } else { 0.0 };
            rank.again.push_back((self.now + Duration::from_secs_f64(pause), request));
            return;
        }
        lane.admitted();
        self.tally.admitted += 1;
        rank.admitted(request, self.scenario);
        match request.step {
            Step::Put | Step::Range | Step::Part => self.tally.moved += request.bytes,
            Step::Index if self.scenario.operation == Operation::Load => self.ask_for_ranges(number),
            Step::Index | Step::Create | Step::Complete => {}
        }
        let rank = &mut self.ranks[number];
        if rank.unfinished == 0 {
            rank.done_at = self.now;
            if self.scenario.resumes() && request.step != Step::Index {
                self.found.extend(rank.share.found(self.now, &rank.lanes));
            }
            self.counter += rank.share.leave().unwrap_or_default();
            self.counter += Share::remainder(self.counter).unwrap_or_default();
            self.tally.ranks_left -= 1;
        }
    }

    /// The index has come, and with it what to read.
    fn ask_for_ranges(&mut self, number: usize) {
        let (size, whole) = (self.scenario.range_size(), self.scenario.file_bytes());
        let rank = &mut self.ranks[number];
        for file in 0..self.scenario.files_per_rank {
            let mut offset = 0;
            while offset < whole {
                let bytes = size.min(whole - offset);
                rank.fresh.push_back(Request { file, step: Step::Range, bytes });
                rank.unfinished += 1;
                rank.largest_request = rank.largest_request.max(bytes);
                offset += bytes;
            }
        }
    }

    fn half_latency(&mut self) -> Duration {
        (self.scenario.network.latency / 2).mul_f64(spread(&mut self.random, LATENCY_SPREAD))
    }

    fn wake(&mut self, at: Duration, number: usize) {
        let rank = &mut self.ranks[number];
        if rank.wakes_at.is_none_or(|planned| planned > at) {
            rank.wakes_at = Some(at);
            self.push(at, number, Event::Wake);
        }
    }

    fn push(&mut self, at: Duration, number: usize, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, number, event)));
    }

    /// Bytes moved in this round, as a share of all.
    fn progress(&self) -> f64 {
        let bytes = self.scenario.bytes_per_rank as f64 * f64::from(self.scenario.world_size);
        self.tally.moved as f64 / bytes
    }

    fn note(&mut self, round: u32) {
        let progress = self.progress();
        self.moments.push(Moment {
            at: self.now,
            round,
            progress,
            refused: self.tally.refused - self.tally.refused_before,
            partitions: self.space.partitions(self.now),
        });
        let step = (self.scenario.network_time() / MOMENTS_OF_NETWORK_TIME).max(SHORTEST_MOMENT);
        self.tally.refused_before = self.tally.refused;
        (self.tally.noted, self.tally.next_moment) = (progress, self.now + step);
    }
}

/// Of two in the middle the upper one.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A factor around 1.
fn spread(random: &mut Rng, share: f64) -> f64 {
    1.0 + share * (random.f64() - 0.5)
}

/// Jain's index of what the ranks got in a second.
fn fairness(seconds: &[f64]) -> f64 {
    let rates = seconds.iter().map(|seconds| 1.0 / seconds.max(f64::MIN_POSITIVE));
    let (sum, squares) = rates.fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
    sum * sum / (seconds.len() as f64 * squares)
}
