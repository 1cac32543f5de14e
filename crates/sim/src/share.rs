//! Loads of ranks that want the same: what each fetches for itself, against what one fetches and passes on.
//!
//! Of what `replicas` ranks want each fetches its part, while it receives the others' and sends its own. What the ranks pass on
//! is another network than the one to S3, with a rate of its own; the slower of both is how long it takes.

use std::time::Duration;

use crate::fleet::simulate;
use crate::scenario::{Operation, Scenario};

/// A load with and without sharing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharing {
    /// How long it takes where each rank fetches all it wants, in the last round.
    pub alone: Duration,
    /// How long where one of those that want the same fetches it.
    pub shared: Duration,
    /// Bytes from S3, without.
    pub bytes_alone: u64,
    /// Bytes from S3, with.
    pub bytes_shared: u64,
}

impl Sharing {
    /// Whether it is the faster way, by which `share="auto"` goes.
    #[must_use]
    pub fn is_worth(&self) -> bool {
        self.shared <= self.alone
    }
}

/// Simulates both for a load in which groups of `replicas` ranks want the same, and pass on so many bytes a second each.
///
/// # Errors
/// Why it cannot be.
pub fn share(scenario: &Scenario, replicas: u32, pass_bytes_per_second: f64) -> Result<Sharing, String> {
    if scenario.operation != Operation::Load {
        return Err("replicas: only a load is shared".to_owned());
    }
    if replicas < 2 || !scenario.world_size.is_multiple_of(replicas) {
        return Err(format!(
            "replicas={replicas}: must be at least 2, and divide {} ranks",
            scenario.world_size
        ));
    }
    if !(pass_bytes_per_second > 0.0 && pass_bytes_per_second.is_finite()) {
        return Err(format!("pass_bytes_per_second={pass_bytes_per_second}: must be above 0"));
    }
    let last = |scenario: &Scenario| simulate(scenario).rounds.last().map(|round| round.duration);
    let own = scenario.bytes_per_rank.div_ceil(u64::from(replicas));
    let passed = (scenario.bytes_per_rank - own) as f64 / pass_bytes_per_second;
    let part = Scenario { bytes_per_rank: own, ..scenario.clone() };
    let ranks = u64::from(scenario.world_size);
    Ok(Sharing {
        alone: last(scenario).unwrap_or_default(),
        shared: last(&part).unwrap_or_default().max(Duration::from_secs_f64(passed)),
        bytes_alone: scenario.bytes_per_rank.saturating_mul(ranks),
        bytes_shared: own.saturating_mul(ranks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Scenario {
        Scenario {
            operation: Operation::Load,
            world_size: 16,
            bytes_per_rank: 4 << 30,
            ..Scenario::default()
        }
    }

    #[test]
    fn eight_replicas_take_an_eighth_from_s3_and_less_than_half_the_time() {
        let sharing = share(&load(), 8, 10.0 * load().network.rank_bytes_per_second).unwrap();
        assert_eq!(sharing.bytes_shared * 8, sharing.bytes_alone);
        assert!(sharing.shared * 2 < sharing.alone, "{sharing:?}");
        assert!(sharing.is_worth());
    }

    #[test]
    fn it_is_not_worth_it_where_passing_on_is_slower_than_s3() {
        let scenario = load();
        let rate = scenario.network.rank_bytes_per_second;
        assert!(!share(&scenario, 2, rate / 8.0).unwrap().is_worth());
        assert!(share(&scenario, 2, 2.0 * rate).unwrap().is_worth());
    }

    #[test]
    fn what_cannot_be_says_why() {
        for replicas in [0, 1, 3, 32] {
            assert!(share(&load(), replicas, 1e9).unwrap_err().contains("replicas="));
        }
        assert!(share(&load(), 2, 0.0).unwrap_err().contains("pass_bytes_per_second="));
        assert!(share(&Scenario::default(), 2, 1e9).unwrap_err().contains("load"));
    }
}
