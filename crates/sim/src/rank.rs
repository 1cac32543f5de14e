//! One rank: what it has to send, and its network.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use s3dcp_pacing::{Lanes, Share};
use s3dcp_s3::PartPlan;

use crate::scenario::{Network, Scenario};

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) file: u32,
    pub(crate) step: Step,
    pub(crate) bytes: u64,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A whole file.
    Put,
    /// The begin of a file of several parts.
    Create,
    Part,
    Complete,
    Index,
    Range,
}

/// A shard file, or the index.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) key: Box<str>,
    plan: Option<PartPlan>,
    /// Bytes and parts that were cut off so far.
    cut: u64,
    parts: u64,
    /// Parts that are cut off and not there.
    missing: usize,
    /// Parts that wait for the file to be begun; `None` once it is.
    waiting: Option<Vec<Request>>,
}

impl File {
    pub(crate) fn new(key: String, plan: Option<PartPlan>) -> Self {
        Self { key: key.into(), plan, cut: 0, parts: 0, missing: 0, waiting: Some(Vec::new()) }
    }
}

#[derive(Debug)]
pub(crate) struct Rank {
    /// The shard files, then the index.
    pub(crate) files: Vec<File>,
    /// The file of which parts are cut off.
    cutting: usize,
    /// Bytes cut off and not there, in so many parts.
    held: u64,
    parts: usize,
    pub(crate) fresh: VecDeque<Request>,
    /// Refused requests, with the time from which on they may be tried again.
    pub(crate) again: VecDeque<(Duration, Request)>,
    pub(crate) lanes: Lanes,
    /// Its part in the pace of all.
    pub(crate) share: Share,
    /// Requests under way.
    pub(crate) in_flight: usize,
    /// Files of a save, and requests of a load, that are not done.
    pub(crate) unfinished: usize,
    pub(crate) largest_request: u64,
    pub(crate) done_at: Duration,
    /// The next time at which it looks for something to send.
    pub(crate) wakes_at: Option<Duration>,
    pub(crate) transfers: Transfers,
}

/// Bytes on their way: all connections move at the same rate, as many as there are.
#[derive(Debug)]
pub(crate) struct Transfers {
    connection_rate: f64,
    rank_rate: f64,
    /// Bytes that a connection moved which was there all the time, as of `updated`.
    moved: f64,
    updated: Duration,
    under_way: BinaryHeap<Reverse<Transfer>>,
    /// Counts changes of what is under way: when the next one ends was foreseen for one of them.
    pub(crate) change: u64,
}

/// One request's bytes.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transfer {
    /// What `moved` is when it ends: the bits of a positive number, which are in its order.
    ends_at: u64,
    pub(crate) request: Request,
    pub(crate) sent: Duration,
    /// When it ends at the earliest, whatever this rank's network does.
    pub(crate) not_before: Duration,
}

impl Transfers {
    fn new(network: &Network) -> Self {
        Self {
            connection_rate: network.connection_bytes_per_second,
            rank_rate: network.rank_bytes_per_second,
            moved: 0.0,
            updated: Duration::ZERO,
            under_way: BinaryHeap::new(),
            change: 0,
        }
    }

    fn rate(&self) -> f64 {
        self.connection_rate.min(self.rank_rate / self.under_way.len().max(1) as f64)
    }

    fn advance(&mut self, now: Duration) {
        self.moved += self.rate() * now.saturating_sub(self.updated).as_secs_f64();
        self.updated = now;
    }

    /// Begins with a request's bytes, which take as long as `work` bytes do on average.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        work: f64,
        request: Request,
        sent: Duration,
        not_before: Duration,
    ) {
        self.advance(now);
        let ends_at = (self.moved + work).to_bits();
        self.under_way.push(Reverse(Transfer { ends_at, request, sent, not_before }));
        self.change += 1;
    }

    /// When the next one ends, if nothing begins before.
    pub(crate) fn next_end(&self) -> Option<Duration> {
        let Reverse(next) = self.under_way.peek()?;
        let left = (f64::from_bits(next.ends_at) - self.moved).max(0.0);
        Some(self.updated + Duration::from_secs_f64(left / self.rate()))
    }

    /// Takes the next one out, which ends now.
    pub(crate) fn end(&mut self, now: Duration) -> Option<Transfer> {
        self.advance(now);
        self.change += 1;
        let Reverse(ended) = self.under_way.pop()?;
        // The clock counts nanoseconds: what is over may seem to lack some bytes.
        self.moved = self.moved.max(f64::from_bits(ended.ends_at));
        Some(ended)
    }
}

impl Rank {
    pub(crate) fn new(network: &Network) -> Self {
        Self {
            files: Vec::new(),
            cutting: 0,
            held: 0,
            parts: 0,
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            lanes: Lanes::default(),
            share: Share::default(),
            in_flight: 0,
            unfinished: 0,
            largest_request: 0,
            done_at: Duration::ZERO,
            wakes_at: None,
            transfers: Transfers::new(network),
        }
    }

    /// Takes a round's files, none of them begun.
    pub(crate) fn begin(&mut self, files: Vec<File>) {
        (self.files, self.cutting, self.largest_request) = (files, 0, 0);
    }

    /// Cuts off parts as long as there is room for them.
    pub(crate) fn cut(&mut self, now: Duration, scenario: &Scenario) {
        let size = scenario.file_bytes();
        while let Some(file) = self.files.get_mut(self.cutting)
            && let Some(plan) = &mut file.plan
        {
            let rate = self.lanes.rate(now, &file.key);
            if rate.is_some() && file.parts > 0 || scenario.in_place && file.parts == 1 {
                let promised = scenario.promised();
                let mut capacity = scenario.capacity(rate.map_or(promised, |rate| rate.min(promised)));
                if scenario.in_place {
                    capacity.in_flight = u64::MAX;
                }
                plan.grow(&capacity, Some(size - file.cut));
            }
            let bytes = plan.part_size(file.parts + 1, file.cut).min(size - file.cut);
            let is_full = if scenario.in_place {
                self.parts >= scenario.network.connections
            } else {
                self.held > 0 && self.held + bytes > scenario.network.in_flight
            };
            if is_full {
                return;
            }
            self.parts += 1;
            let number = self.cutting as u32;
            self.held += bytes;
            self.largest_request = self.largest_request.max(bytes);
            file.cut += bytes;
            file.parts += 1;
            file.missing += 1;
            if bytes == size {
                self.fresh.push_back(Request { file: number, step: Step::Put, bytes });
            } else {
                if file.parts == 1 {
                    self.fresh.push_back(Request { file: number, step: Step::Create, bytes: 0 });
                }
                let part = Request { file: number, step: Step::Part, bytes };
                match &mut file.waiting {
                    Some(waiting) => waiting.push(part),
                    None => self.fresh.push_back(part),
                }
            }
            if file.cut == size {
                self.cutting += 1;
            }
        }
    }

    /// A request was admitted and its bytes moved.
    pub(crate) fn admitted(&mut self, request: Request, scenario: &Scenario) {
        let file = &mut self.files[request.file as usize];
        match request.step {
            Step::Create => self.fresh.extend(file.waiting.take().unwrap_or_default()),
            Step::Part | Step::Put => {
                self.held -= request.bytes;
                self.parts -= 1;
                file.missing -= 1;
                if request.step == Step::Put {
                    self.unfinished -= 1;
                } else if file.missing == 0 && file.cut == scenario.file_bytes() {
                    self.fresh.push_front(Request { step: Step::Complete, bytes: 0, ..request });
                }
            }
            Step::Complete | Step::Range | Step::Index => self.unfinished -= 1,
        }
    }

    /// The request to send next at `now`, refused ones first; and when there may be one if not now.
    pub(crate) fn next(&self, now: Duration) -> Result<Request, Option<Duration>> {
        match (self.again.front(), self.fresh.front()) {
            (Some((from, request)), _) if *from <= now => Ok(*request),
            (_, Some(request)) => Ok(*request),
            (Some((from, _)), None) => Err(Some(*from)),
            (None, None) => Err(None),
        }
    }

    /// Takes what `next` gave.
    pub(crate) fn take(&mut self, now: Duration) {
        match self.again.front() {
            Some((from, _)) if *from <= now => drop(self.again.pop_front()),
            _ => drop(self.fresh.pop_front()),
        }
        self.in_flight += 1;
    }

    /// The key of a request, bucket included.
    pub(crate) fn key(&self, request: Request) -> &str {
        &self.files[request.file as usize].key
    }
}
