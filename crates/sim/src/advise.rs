//! Which strategy, and how large parts.

use std::sync::Arc;
use std::time::Duration;

use s3dcp_pacing::Budget;
use s3dcp_prefix::{DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, PrefixStrategy};

use crate::fleet::simulate;
use crate::outcome::Round;
use crate::scenario::Scenario;

/// Part sizes that are tried besides what s3dcp chooses itself.
const PART_SIZES: [u64; 3] = [16 << 20, 64 << 20, 256 << 20];
/// Numbers of patterns that are tried besides one for each rank.
const PREFIX_COUNTS: [u64; 2] = [16, 256];
/// What is at most so many times slower is as good: then what comes earlier in the list, and needs fewer settings, is
/// taken.
const AS_GOOD: f64 = 1.02;

/// Settings, and what comes of them.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The strategy.
    pub strategy: Arc<dyn PrefixStrategy>,
    /// Its number of patterns; `None`: one for each rank, or no patterns at all.
    pub prefix_count: Option<u64>,
    /// Whether it spreads ranks over patterns.
    pub spreads: bool,
    /// Bytes of a part; `None`: what s3dcp chooses.
    pub part_size: Option<u64>,
    /// The first save or load.
    pub first: Round,
    /// One after S3 has as many partitions for these keys as the time wanted needs.
    pub settled: Round,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Advice {
    /// The best settings first.
    pub choices: Vec<Choice>,
    /// What the network alone needs for the bytes.
    pub network: Duration,
    /// Partitions that carry the requests of the best settings within the time wanted; 1 for a directory bucket.
    pub partitions_wanted: usize,
}

/// Simulates what makes a difference for this job and compares it: in a directory bucket, which has no partitions, part sizes
/// alone. Strategy, part size and rounds of `scenario` are not looked
/// at. `within`: the time wanted for one save or load; `None` for what the network can do.
///
/// # Panics
/// When [`Scenario::invalid`] says why.
pub fn advise(scenario: &Scenario, within: Option<Duration>) -> Advice {
    let network = scenario.network_time();
    let within = within.unwrap_or(network).max(network);
    let one_round = Scenario { rounds: 1, ..scenario.clone() };
    let job = Job { scenario: one_round, within };
    // Where there are no partitions, there is nothing to spread over.
    let spreads = scenario.budget == Budget::Partition;
    let first: Arc<dyn PrefixStrategy> = if spreads { hex(None) } else { Arc::new(DefaultPrefixStrategy) };
    let mut choices = vec![job.choice(Arc::clone(&first), None, spreads, None)];
    choices.extend(PART_SIZES.map(|size| job.choice(Arc::clone(&first), None, spreads, Some(size))));
    let part_size =
        choices.iter().min_by_key(|choice| choice.first.duration).and_then(|choice| choice.part_size);
    if spreads {
        for count in PREFIX_COUNTS.into_iter().filter(|&count| count < u64::from(scenario.world_size)) {
            choices.push(job.choice(hex(Some(count)), Some(count), true, part_size));
        }
        choices.push(job.choice(Arc::new(DefaultPrefixStrategy), None, false, part_size));
    }
    let least = choices.iter().map(Choice::time).min().unwrap_or_default();
    let (good, mut others): (Vec<_>, Vec<_>) =
        choices.into_iter().partition(|choice| choice.time() <= least.mul_f64(AS_GOOD));
    others.sort_by_key(Choice::time);
    let choices: Vec<Choice> = good.into_iter().chain(others).collect();
    let partitions_wanted = job.partitions_wanted(&choices[0].first);
    Advice { choices, network, partitions_wanted }
}

struct Job {
    scenario: Scenario,
    within: Duration,
}

impl Job {
    fn choice(
        &self,
        strategy: Arc<dyn PrefixStrategy>,
        prefix_count: Option<u64>,
        spreads: bool,
        part_size: Option<u64>,
    ) -> Choice {
        let scenario = Scenario { strategy: Arc::clone(&strategy), part_size, ..self.scenario.clone() };
        let round = |scenario: &Scenario| simulate(scenario).rounds.remove(0);
        let first = round(&scenario);
        let partitions = self.partitions_wanted(&first).max(scenario.partitions);
        let settled = if partitions == scenario.partitions {
            first.clone()
        } else {
            round(&Scenario { partitions, ..scenario })
        };
        Choice { strategy, prefix_count, spreads, part_size, first, settled }
    }

    fn partitions_wanted(&self, round: &Round) -> usize {
        if self.scenario.budget == Budget::DirectoryBucket {
            return 1;
        }
        let per_partition = self.scenario.budget() * self.within.as_secs_f64();
        (round.admitted as f64 / per_partition).ceil().max(1.0) as usize
    }
}

impl Choice {
    fn time(&self) -> Duration {
        self.first.duration + self.settled.duration
    }
}

fn hex(prefix_count: Option<u64>) -> Arc<dyn PrefixStrategy> {
    let options = NumericOptions { prefix_count, ..NumericOptions::default() };
    Arc::new(HexPrefixStrategy::new(options).expect("the numbers are valid"))
}
