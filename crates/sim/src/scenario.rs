//! What is simulated.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use s3dcp_checkpoint::Layout;
use s3dcp_pacing::{Budget, share_of_budget};
use s3dcp_partition::Limits;
use s3dcp_prefix::{DefaultPrefixStrategy, PrefixStrategy, pattern_index};
use s3dcp_s3::{Capacity, ClientConfig, Error};

/// What the ranks do in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operation {
    /// Every rank writes its shard files, then one of them the index.
    #[default]
    Save,
    /// Every rank reads the index, then its shard files.
    Load,
}

/// Where the shard files of each round go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paths {
    /// To the same keys again: `run/<pattern>/__<rank>_`.
    #[default]
    Same,
    /// Below a path of the round: `run/step_<round>/<pattern>/__<rank>_`, as jobs do that keep several checkpoints.
    PerRound,
    /// Below the same patterns, with the round in the prefix: `run/<pattern>/epoch_<round>/__<rank>_`, as strategies do
    /// that have an `epoch_num`.
    EpochInPrefix,
}

/// What lies between the ranks and S3.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Network {
    /// Time from a request to the first byte of its answer.
    pub latency: Duration,
    /// Bytes per second of one connection. Default 85 MB/s, what AWS says to count on ("85-90 MB/s per prefix connection",
    /// Amazon S3 User Guide, "Performance design patterns: horizontal scaling and request parallelization").
    pub connection_bytes_per_second: f64,
    /// Bytes per second of one rank over all its connections.
    pub rank_bytes_per_second: f64,
    /// Bytes per second of all ranks together.
    pub fleet_bytes_per_second: f64,
    /// Requests of one rank at once.
    pub connections: usize,
    /// Bytes of copies that one rank has under way or waiting for their turn, at most.
    pub in_flight: u64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(30),
            connection_bytes_per_second: 85e6,
            rank_bytes_per_second: ClientConfig::default().network_bytes_per_second(),
            fleet_bytes_per_second: f64::INFINITY,
            connections: 0,
            in_flight: 0,
        }
        .of_client(&ClientConfig::default())
    }
}

impl Network {
    /// The same through a client of these settings, which keeps to as many requests at once as it begins with.
    #[must_use]
    pub fn of_client(self, client: &ClientConfig) -> Network {
        Network { connections: client.first_connections(), in_flight: client.in_flight_bytes(), ..self }
    }
}

/// Ranks with a slow network.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Stragglers {
    /// How many, as a share of all.
    pub share: f64,
    /// How many times slower their network is.
    pub slowdown: f64,
}

impl Default for Stragglers {
    fn default() -> Self {
        Self { share: 0.0, slowdown: 1.0 }
    }
}

/// A fleet, what it does, and the S3 it meets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Scenario {
    /// Ranks.
    pub world_size: u32,
    /// Bytes that each rank saves or loads.
    pub bytes_per_rank: u64,
    /// Shard files of each rank.
    pub files_per_rank: u32,
    /// What they do.
    pub operation: Operation,
    /// Where the shard files go; bound to the number of ranks.
    pub strategy: Arc<dyn PrefixStrategy>,
    /// Where the shard files of each round go.
    pub paths: Paths,
    /// How often they do it.
    pub rounds: u32,
    /// Time between the end of a round and the begin of the next.
    pub pause: Duration,
    /// Whether a save sends tensors from where they lie, as those on the CPU are; others are copied part by part.
    pub in_place: bool,
    /// Bytes of a part or a range; `None`: what s3dcp chooses.
    pub part_size: Option<u64>,
    /// What s3dcp counts on, and `limits` with [`Scenario::in_directory_bucket`].
    pub budget: Budget,
    /// Partitions that S3 has from the start, divided evenly over the keys of the first round; 1 for a cold bucket.
    pub partitions: usize,
    /// What each of them takes, and when it splits.
    pub limits: Limits,
    /// Whether refusals say when to come again, as `s3dcp serve` does and S3 does not.
    pub retry_after: bool,
    /// Whether a round begins at the pace that the one before found, as saves to one path do.
    pub resuming: bool,
    /// Whether the ranks share their pace, as those of a torch process group do.
    pub sharing: bool,
    /// What lies between.
    pub network: Network,
    /// Ranks with a slow network.
    pub stragglers: Stragglers,
    /// Within what time the ranks begin a round.
    pub start_spread: Duration,
    /// Equal seeds give equal results.
    pub seed: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            world_size: 8,
            bytes_per_rank: 1 << 30,
            files_per_rank: 1,
            operation: Operation::default(),
            strategy: Arc::new(DefaultPrefixStrategy),
            paths: Paths::default(),
            rounds: 1,
            pause: Duration::from_secs(600),
            in_place: true,
            part_size: None,
            budget: Budget::default(),
            partitions: 1,
            limits: Limits::default(),
            retry_after: false,
            resuming: true,
            sharing: true,
            network: Network::default(),
            stragglers: Stragglers::default(),
            start_spread: Duration::from_millis(50),
            seed: 0,
        }
    }
}

impl Scenario {
    /// The same in a directory bucket, which has no partitions.
    #[must_use]
    pub fn in_directory_bucket(self) -> Scenario {
        let budget = Budget::DirectoryBucket;
        Scenario { budget, partitions: 1, limits: budget.promised(), ..self }
    }

    /// The first setting that makes no sense, in words.
    pub fn invalid(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let number = match self {
            _ if self.world_size == 0 => Some("world_size must be at least 1"),
            _ if self.bytes_per_rank == 0 => Some("bytes_per_rank must be at least 1"),
            _ if self.files_per_rank == 0 => Some("files_per_rank must be at least 1"),
            _ if self.rounds == 0 => Some("rounds must be at least 1"),
            _ if self.part_size == Some(0) => Some("part_size must be at least 1"),
            _ if self.partitions == 0 => Some("partitions must be at least 1"),
            _ if self.network.connections == 0 => Some("connections must be at least 1"),
            _ if !positive(self.network.connection_bytes_per_second) => {
                Some("connection_bytes_per_second must be a positive number")
            }
            _ if !positive(self.network.rank_bytes_per_second) => {
                Some("rank_bytes_per_second must be a positive number")
            }
            _ if self.network.fleet_bytes_per_second.is_nan()
                || self.network.fleet_bytes_per_second <= 0.0 =>
            {
                Some("fleet_bytes_per_second must be a positive number")
            }
            _ if !(0.0..=1.0).contains(&self.stragglers.share) => {
                Some("stragglers: share must be from 0 to 1")
            }
            _ if !positive(self.stragglers.slowdown) => {
                Some("stragglers: slowdown must be a positive number")
            }
            _ => self.limits.invalid(),
        };
        number.map(str::to_owned).or_else(|| self.prefix_fault())
    }

    /// What no key may hold. The last rank of each pattern has the longest prefix with it, in the last round.
    fn prefix_fault(&self) -> Option<String> {
        let strategy = self.bound_strategy();
        let end = i64::from(self.world_size);
        let patterns = i64::try_from(strategy.pattern_count()).unwrap_or(i64::MAX).min(end);
        let mut fault = None;
        self.visit_prefixes(&*strategy, self.rounds - 1, end - patterns..end, &mut |prefix| {
            if fault.is_none() {
                fault = shard_file_key(prefix, u32::MAX).err().map(|error| error.to_string());
            }
        });
        fault
    }

    /// Requests per second of one partition.
    pub(crate) fn budget(&self) -> f64 {
        match self.operation {
            Operation::Save => self.limits.writes_per_second,
            Operation::Load => self.limits.reads_per_second,
        }
    }

    /// Whether a round finds the index of the one before, which says what pace that found.
    pub(crate) fn resumes(&self) -> bool {
        self.resuming && self.operation == Operation::Save && self.paths != Paths::PerRound
    }

    /// What the network alone needs for everybody's bytes.
    pub(crate) fn network_time(&self) -> Duration {
        let network = &self.network;
        let connections = network.connection_bytes_per_second * network.connections as f64;
        let share = network.fleet_bytes_per_second / f64::from(self.world_size);
        let rate = network.rank_bytes_per_second.min(connections).min(share);
        Duration::from_secs_f64(self.bytes_per_rank as f64 / rate)
    }

    /// The strategy as it is for this many ranks.
    fn bound_strategy(&self) -> Arc<dyn PrefixStrategy> {
        let ranks = NonZeroU64::new(self.world_size.into()).expect("checked");
        self.strategy.bind(ranks).map_or_else(|| Arc::clone(&self.strategy), Arc::from)
    }

    /// Where the keys of a round begin, bucket included.
    pub(crate) fn folder(&self, round: u32) -> String {
        match self.paths {
            Paths::PerRound => format!("bucket/run/step_{round}/"),
            Paths::Same | Paths::EpochInPrefix => "bucket/run/".to_owned(),
        }
    }

    /// Where each rank's keys of a round begin, bucket included: `bucket/run/a000000000/__10_`.
    pub fn prefixes(&self, round: u32) -> Vec<String> {
        let mut prefixes = Vec::with_capacity(self.world_size as usize);
        let ranks = 0..i64::from(self.world_size);
        self.visit_prefixes(&*self.bound_strategy(), round, ranks, &mut |prefix| {
            prefixes.push(prefix.to_owned())
        });
        prefixes
    }

    /// Calls `visit` with where each rank's keys of a round begin, in one buffer for all.
    fn visit_prefixes(
        &self,
        strategy: &dyn PrefixStrategy,
        round: u32,
        ranks: Range<i64>,
        visit: &mut dyn FnMut(&str),
    ) {
        let mut text = self.folder(round);
        let folder = text.len();
        if self.paths != Paths::EpochInPrefix {
            return strategy.for_each_prefix(ranks, &mut |_, prefix| {
                text.truncate(folder);
                text.push_str(prefix);
                visit(&text);
            });
        }
        for rank in ranks {
            text.truncate(folder);
            strategy.write_pattern(pattern_index(rank, strategy.pattern_count()), &mut text);
            text.push_str(&format!("epoch_{round}/__{rank}_"));
            visit(&text);
        }
    }

    /// Where the partitions begin that there are from the start, besides the lowest: so that each has as many ranks.
    pub fn first_keys(&self) -> Vec<String> {
        let mut keys = self.prefixes(0);
        keys.sort_unstable();
        let count = self.partitions.min(keys.len());
        (1..count).map(|number| keys[number * keys.len() / count].clone()).collect()
    }

    /// What s3dcp plans requests for, when a rank may send so many per second.
    pub(crate) fn capacity(&self, requests_per_second: f64) -> Capacity {
        Capacity {
            connections: self.network.connections,
            latency: self.network.latency,
            rate: self.network.connection_bytes_per_second,
            network: self.network.rank_bytes_per_second,
            requests_per_second: Some(requests_per_second),
            in_flight: self.network.in_flight,
        }
    }

    /// Requests per second that a file is planned for: s3dcp counts on one partition, or on a directory bucket, and on what AWS
    /// promises for it, whatever
    /// the limits are here.
    pub(crate) fn promised(&self) -> f64 {
        match self.operation {
            Operation::Save => {
                share_of_budget(self.budget, true, self.world_size.into(), self.files_per_rank.into())
            }
            Operation::Load => share_of_budget(self.budget, false, self.world_size.into(), 1),
        }
    }

    /// Bytes of one file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.bytes_per_rank.div_ceil(self.files_per_rank.into())
    }

    /// Bytes of one request of a load.
    pub(crate) fn range_size(&self) -> u64 {
        let chosen =
            || self.capacity(self.promised()).request_size(Some(self.bytes_per_rank), SMALLEST_RANGE);
        self.part_size.unwrap_or_else(chosen)
    }
}

/// Stands for the id that each save has: it says nothing of where its files lie among others.
const SAVE_ID: &str = "0000000000000000";

/// The key of a shard file, bucket included, by what the keys of its rank begin with.
pub(crate) fn shard_file_key(prefix: &str, number: u32) -> Result<String, Error> {
    Ok(Layout::new("").shard_file(prefix, number, SAVE_ID)?.key)
}

/// Smallest range that a load asks for where there is more to read.
const SMALLEST_RANGE: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use s3dcp_prefix::RoundRobinPrefixStrategy;

    use super::*;

    /// Deals out `patterns` and counts the prefixes that it makes.
    #[derive(Debug)]
    struct Counted {
        patterns: RoundRobinPrefixStrategy,
        made: AtomicU64,
    }

    impl PrefixStrategy for Counted {
        fn generate_prefix(&self, rank: i64) -> String {
            self.made.fetch_add(1, Ordering::Relaxed);
            self.patterns.generate_prefix(rank)
        }

        fn pattern_count(&self) -> u64 {
            self.patterns.pattern_count()
        }
    }

    fn counted(patterns: [&str; 3]) -> Arc<Counted> {
        let patterns = RoundRobinPrefixStrategy::new(patterns, None).expect("valid");
        Arc::new(Counted { patterns, made: AtomicU64::new(0) })
    }

    #[test]
    fn a_prefix_that_no_key_can_hold_is_found_without_making_them_all() {
        // With the longest ranks alone it is too long.
        let brim = "p".repeat(1024 - "bucket/run//__0_4294967295-0000000000000000.distcp".len());
        let mut scenario = Scenario::default();
        for (world_size, fits) in [(1, true), (10, true), (12, false), (100_000, false)] {
            let strategy = counted(["a", "b", &brim]);
            scenario.strategy = strategy.clone();
            scenario.world_size = world_size;
            let reason = scenario.invalid();
            assert_eq!(reason.is_none(), fits, "{world_size}: {reason:?}");
            assert_eq!(strategy.made.load(Ordering::Relaxed), u64::from(world_size.min(3)));
        }
    }
}
