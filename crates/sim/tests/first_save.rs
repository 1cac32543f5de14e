//! The first save of a job that knows nothing of the budget, and the one after it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use s3dcp_prefix::{HexPrefixStrategy, NumericOptions};
use s3dcp_sim::{Network, Paths, Round, Scenario, simulate};

use common::with;

fn hex(scenario: Scenario) -> Scenario {
    let strategy = Arc::new(HexPrefixStrategy::new(NumericOptions::default()).unwrap());
    with(scenario, |scenario| scenario.strategy = strategy)
}

/// 512 ranks with 10 GiB each, on a cold partition.
fn large(in_place: bool) -> Round {
    let scenario = with(hex(Scenario::default()), |scenario| {
        scenario.world_size = 512;
        scenario.bytes_per_rank = 10 << 30;
        scenario.in_place = in_place;
    });
    simulate(&scenario).rounds.remove(0)
}

/// 8 ranks with 256 MiB each, twice, on so few writes a second that refusals decide.
fn throttled(part_mib: u64, writes_per_second: f64, seed: u64) -> Vec<Round> {
    let scenario = with(Scenario::default(), |scenario| {
        scenario.bytes_per_rank = 256 << 20;
        scenario.part_size = Some(part_mib << 20);
        scenario.limits.writes_per_second = writes_per_second;
        scenario.limits.split_after = Duration::from_secs(1_000_000);
        scenario.rounds = 2;
        scenario.pause = Duration::from_secs(3);
        scenario.retry_after = true;
        scenario.network = with(Network::default(), |network| {
            network.latency = Duration::from_millis(10);
            network.connection_bytes_per_second = 100e6;
            network.rank_bytes_per_second = 300e6;
        });
        scenario.seed = seed;
    });
    simulate(&scenario).rounds
}

fn refused(round: &Round) -> f64 {
    round.refused as f64 / (round.refused + round.admitted) as f64
}

fn times_ideal(round: &Round) -> f64 {
    round.duration.div_duration_f64(round.ideal)
}

#[test]
fn many_ranks_begin_gently_and_are_done_as_soon() {
    let (cold, copied) = (large(true), large(false));
    for round in [&cold, &copied] {
        assert!(refused(round) <= 0.15, "{round:?}");
        assert!(round.duration <= Duration::from_secs_f64(13.0), "{round:?}");
    }
    assert!(times_ideal(&cold) <= 1.35, "{cold:?}");
}

#[test]
fn a_later_save_begins_as_gently_as_the_first() {
    let scenario = with(hex(Scenario::default()), |scenario| {
        scenario.world_size = 512;
        scenario.part_size = Some(16 << 20);
        scenario.partitions = 8;
        scenario.rounds = 2;
        scenario.paths = Paths::EpochInPrefix;
    });
    let rounds = simulate(&scenario).rounds;
    assert_eq!(rounds[0].refused, 0, "{rounds:?}");
    assert_eq!(rounds[1].refused, 0, "{rounds:?}");
}

#[test]
fn what_a_save_notes_does_not_slow_the_next_one_down() {
    const SEEDS: u64 = 10;
    for (part_mib, writes_per_second) in [(8, 20.0), (64, 20.0), (8, 8.0)] {
        let [mut first, mut next, mut first_refused, mut next_refused] = [0.0; 4];
        for seed in 0..SEEDS {
            let rounds = throttled(part_mib, writes_per_second, seed);
            first += rounds[0].duration.as_secs_f64() / SEEDS as f64;
            next += rounds[1].duration.as_secs_f64() / SEEDS as f64;
            first_refused += refused(&rounds[0]) / SEEDS as f64;
            next_refused += refused(&rounds[1]) / SEEDS as f64;
        }
        let what = format!(
            "{part_mib} MiB on {writes_per_second}: {first:.2} {next:.2} s, {first_refused:.3} {next_refused:.3}"
        );
        assert!(first_refused <= 0.16 && next_refused <= 0.05, "{what}");
        assert!(next <= 1.1 * first, "{what}");
    }
}
