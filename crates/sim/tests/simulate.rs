//! What must hold of every simulation, and what some of them show.

use std::sync::Arc;
use std::time::Duration;

use s3dcp_prefix::{DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, PrefixStrategy};
use s3dcp_sim::{Network, Operation, Paths, Round, Scenario, Stragglers, simulate};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn hex() -> Arc<dyn PrefixStrategy> {
    Arc::new(HexPrefixStrategy::new(NumericOptions::default()).expect("valid"))
}

fn first(scenario: &Scenario) -> Round {
    simulate(scenario).rounds.remove(0)
}

#[test]
fn every_byte_is_moved_once_whatever_is_refused() {
    for operation in [Operation::Save, Operation::Load] {
        for (world_size, files_per_rank, bytes_per_rank) in
            [(1, 1, 1), (3, 2, 100 * MIB + 1), (64, 1, GIB), (300, 3, 2 * GIB)]
        {
            let scenario = Scenario {
                world_size,
                files_per_rank,
                bytes_per_rank,
                operation,
                strategy: hex(),
                ..Scenario::default()
            };
            let outcome = simulate(&scenario);
            let last = outcome.moments.last().unwrap();
            let bytes = bytes_per_rank.div_ceil(files_per_rank.into()) * u64::from(files_per_rank);
            assert!((last.progress - bytes as f64 / bytes_per_rank as f64).abs() < 1e-9, "{}", last.progress);
            let round = &outcome.rounds[0];
            assert!(round.duration >= round.ideal, "{round:?}");
            assert!(outcome.moments.windows(2).all(|pair| pair[0].at <= pair[1].at));
        }
    }
}

#[test]
fn equal_seeds_give_equal_results() {
    let scenario = |seed| Scenario { world_size: 256, bytes_per_rank: 4 * GIB, seed, ..Scenario::default() };
    let part = |seed| simulate(&Scenario { part_size: Some(8 * MIB), ..scenario(seed) });
    assert_eq!(part(1), part(1));
    assert_ne!(part(1), part(2));
}

#[test]
fn sixteen_thousand_ranks_on_warm_partitions_take_hardly_longer_than_the_ideal() {
    // 405 billion parameters with the optimizer's state, 16 bytes each.
    let scenario = Scenario {
        world_size: 16_384,
        bytes_per_rank: 405_000_000_000 * 16 / 16_384,
        strategy: hex(),
        partitions: 64,
        network: Network { fleet_bytes_per_second: 0.5e12, ..Network::default() },
        ..Scenario::default()
    };
    for part_size in [None, Some(16 * MIB), Some(64 * MIB)] {
        let round = first(&Scenario { part_size, ..scenario.clone() });
        assert!(round.duration <= round.ideal.mul_f64(1.1), "{round:?}");
    }
}

#[test]
fn larger_parts_help_where_requests_are_what_is_scarce() {
    let scenario = Scenario { world_size: 1024, bytes_per_rank: GIB, strategy: hex(), ..Scenario::default() };
    let time = |part_size| first(&Scenario { part_size, ..scenario.clone() }).duration;
    assert!(time(Some(64 * MIB)) < time(Some(8 * MIB)) / 3);
    // What s3dcp chooses is not far from the best of these.
    let best = [8, 16, 32, 64, 128, 256].map(|mib| time(Some(mib * MIB))).into_iter().min().unwrap();
    assert!(time(None) < best.mul_f64(1.5), "{:?} {best:?}", time(None));
}

#[test]
fn a_path_per_round_leaves_divided_ranges_behind_and_an_epoch_in_the_prefix_does_not() {
    let later = |paths, strategy| {
        let scenario = Scenario {
            world_size: 1024,
            bytes_per_rank: GIB,
            part_size: Some(8 * MIB),
            partitions: 64,
            rounds: 2,
            paths,
            strategy,
            ..Scenario::default()
        };
        simulate(&scenario).rounds[1].refused
    };
    assert!(later(Paths::PerRound, hex()) > 1_000);
    assert_eq!(later(Paths::EpochInPrefix, hex()), 0);
    assert!(later(Paths::EpochInPrefix, Arc::new(DefaultPrefixStrategy)) > 1_000);
    assert_eq!(later(Paths::Same, Arc::new(DefaultPrefixStrategy)), 0);
}

#[test]
fn sustained_heat_splits_the_range_and_what_is_split_takes_more() {
    let mut scenario = Scenario {
        world_size: 512,
        bytes_per_rank: 8 * GIB,
        part_size: Some(8 * MIB),
        strategy: hex(),
        ..Scenario::default()
    };
    let most = |scenario: &Scenario| {
        let outcome = simulate(scenario);
        let at = outcome.moments.iter().find(|moment| moment.progress >= 0.9).unwrap().at;
        (at, outcome.rounds[0].partitions)
    };
    let (cold, one) = most(&scenario);
    scenario.limits.split_after = Duration::from_secs(10);
    let (splitting, several) = most(&scenario);
    assert_eq!(one, 1);
    assert!(several > 1);
    assert!(splitting < cold.mul_f64(0.8), "{splitting:?} {cold:?}");
}

#[test]
fn slow_ranks_decide_when_all_are_done() {
    let scenario = Scenario { world_size: 64, bytes_per_rank: 4 * GIB, ..Scenario::default() };
    let slow = Stragglers { share: 0.1, slowdown: 4.0 };
    let (alike, with_slow) = (first(&scenario), first(&Scenario { stragglers: slow, ..scenario.clone() }));
    assert!(with_slow.duration > alike.duration * 3);
    assert!(with_slow.fairness < alike.fairness);
}

#[test]
fn what_makes_no_sense_is_named() {
    let refused = |scenario: Scenario| scenario.invalid().unwrap_or_default();
    assert!(refused(Scenario { world_size: 0, ..Scenario::default() }).starts_with("world_size"));
    assert!(refused(Scenario { bytes_per_rank: 0, ..Scenario::default() }).starts_with("bytes_per_rank"));
    assert!(refused(Scenario { partitions: 0, ..Scenario::default() }).starts_with("partitions"));
    let network = Network { rank_bytes_per_second: f64::NAN, ..Network::default() };
    assert!(refused(Scenario { network, ..Scenario::default() }).starts_with("rank_bytes_per_second"));
    assert_eq!(Scenario::default().invalid(), None);
}
