//! What `simulate` and `plan` are told of a job.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use s3dcp_prefix::{
    BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, PrefixError,
    PrefixStrategy, RoundRobinPrefixStrategy,
};
use s3dcp_s3::ClientConfig;
use s3dcp_sim::{Operation, Scenario, Stragglers};

use crate::format::{parse_positive, parse_size};
use crate::report::Failure;

pub(crate) const BYTES_PER_GBIT: f64 = 1e9 / 8.0;

/// A job, the S3 it meets and what lies between.
#[derive(Debug, Args)]
pub(crate) struct Fleet {
    /// Ranks of the job
    #[arg(long)]
    pub(crate) ranks: u32,
    /// What each rank saves, such as 350MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) bytes_per_rank: u64,
    /// Load it instead of saving it
    #[arg(long)]
    pub(crate) load: bool,
    /// Shard files of each rank (`thread_count` of the writer)
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    files: u32,
    /// Requests of one rank at once [default: as many as the client begins with]
    #[arg(long, value_name = "COUNT")]
    connections: Option<usize>,
    /// Tensors are copied before they are sent, as those on a GPU are, and the copies limited as the client limits them
    #[arg(long, conflicts_with = "load")]
    copied: bool,
    /// Network of one rank, in Gbit/s
    #[arg(long, value_name = "GBPS", default_value = "10", value_parser = parse_positive)]
    network: f64,
    /// Network of all ranks together, in Gbit/s [default: no limit]
    #[arg(long, value_name = "GBPS", value_parser = parse_positive)]
    fleet_network: Option<f64>,
    /// One connection, in MB/s
    #[arg(long, value_name = "MBPS", default_value = "85", value_parser = parse_positive)]
    connection: f64,
    /// Time from a request to the first byte of its answer, in milliseconds [default: 30, or 5 in a directory bucket]
    #[arg(long, value_name = "MS")]
    latency: Option<u64>,
    /// Partitions that S3 has for these keys from the start; 1 is a cold bucket
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) partitions: usize,
    /// The keys lie in a directory bucket (S3 Express One Zone), which has no partitions
    #[arg(long, conflicts_with = "partitions")]
    pub(crate) directory_bucket: bool,
    /// Share of ranks that are slow, and how many times: 0.02:4
    #[arg(long, value_name = "SHARE:TIMES", value_parser = parse_stragglers)]
    stragglers: Option<Stragglers>,
    /// Equal seeds give equal results
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Fleet {
    /// What is simulated; still without a strategy of its own.
    pub(crate) fn scenario(&self) -> Result<Scenario, Failure> {
        let mut scenario = Scenario::default();
        scenario.world_size = self.ranks;
        scenario.bytes_per_rank = self.bytes_per_rank;
        scenario.files_per_rank = self.files;
        scenario.operation = if self.load { Operation::Load } else { Operation::Save };
        scenario.partitions = self.partitions;
        let network = &mut scenario.network;
        let usual = if self.directory_bucket { 5 } else { 30 };
        network.latency = Duration::from_millis(self.latency.unwrap_or(usual));
        network.connection_bytes_per_second = self.connection * 1e6;
        network.rank_bytes_per_second = self.network * BYTES_PER_GBIT;
        if let Some(rate) = self.fleet_network {
            network.fleet_bytes_per_second = rate * BYTES_PER_GBIT;
        }
        let mut client = ClientConfig::default();
        client.max_connections = self.connections;
        *network = network.of_client(&client);
        scenario.in_place = !self.copied;
        scenario.stragglers = self.stragglers.unwrap_or_default();
        scenario.seed = self.seed;
        if self.directory_bucket {
            scenario = scenario.in_directory_bucket();
        }
        scenario.invalid().map_or(Ok(scenario), |reason| Err(Failure::usage(reason)))
    }
}

/// The strategies that can be compared by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    Default,
    Binary,
    Hex,
    RoundRobin,
}

impl Strategy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Strategy::Default => "default",
            Strategy::Binary => "binary",
            Strategy::Hex => "hex",
            Strategy::RoundRobin => "round-robin",
        }
    }

    /// The strategy itself, over `prefix_count` patterns (one for each rank where `None`; 16 for round robin).
    pub(crate) fn build(self, prefix_count: Option<u64>) -> Result<Arc<dyn PrefixStrategy>, PrefixError> {
        let options = NumericOptions { prefix_count, ..NumericOptions::default() };
        Ok(match self {
            Strategy::Default => Arc::new(DefaultPrefixStrategy),
            Strategy::Binary => Arc::new(BinaryPrefixStrategy::new(options)?),
            Strategy::Hex => Arc::new(HexPrefixStrategy::new(options)?),
            Strategy::RoundRobin => {
                let names: Vec<String> = (0..prefix_count.unwrap_or(16)).map(|n| format!("p{n}")).collect();
                Arc::new(RoundRobinPrefixStrategy::new(&names, None)?)
            }
        })
    }
}

fn parse_stragglers(text: &str) -> Result<Stragglers, String> {
    let (share, slowdown) = text
        .split_once(':')
        .and_then(|(share, times)| share.parse().ok().zip(times.parse().ok()))
        .ok_or("must be a share and a number of times, such as 0.02:4")?;
    let mut stragglers = Stragglers::default();
    (stragglers.share, stragglers.slowdown) = (share, slowdown);
    Ok(stragglers)
}
