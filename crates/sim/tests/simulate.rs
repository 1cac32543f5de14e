//! What must hold of every simulation, and what some of them show.

mod common;

use std::sync::Arc;
use std::time::Duration;

use s3dcp_prefix::{DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, PrefixStrategy};
use s3dcp_sim::{Network, Operation, Paths, Round, Scenario, Stragglers, simulate};

use common::with;

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
            let scenario = with(Scenario::default(), |scenario| {
                scenario.world_size = world_size;
                scenario.files_per_rank = files_per_rank;
                scenario.bytes_per_rank = bytes_per_rank;
                scenario.operation = operation;
                scenario.strategy = hex();
            });
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
    let scenario = |seed| {
        with(Scenario::default(), |scenario| {
            scenario.world_size = 256;
            scenario.bytes_per_rank = 4 * GIB;
            scenario.seed = seed;
        })
    };
    let part = |seed| simulate(&with(scenario(seed), |scenario| scenario.part_size = Some(8 * MIB)));
    assert_eq!(part(1), part(1));
    assert_ne!(part(1), part(2));
}

#[test]
fn sixteen_thousand_ranks_on_warm_partitions_take_hardly_longer_than_the_ideal() {
    // 405 billion parameters with the optimizer's state, 16 bytes each.
    let scenario = with(Scenario::default(), |scenario| {
        scenario.world_size = 16_384;
        scenario.bytes_per_rank = 405_000_000_000 * 16 / 16_384;
        scenario.strategy = hex();
        scenario.partitions = 64;
        scenario.network = with(Network::default(), |network| network.fleet_bytes_per_second = 0.5e12);
    });
    for part_size in [None, Some(16 * MIB), Some(64 * MIB)] {
        let round = first(&with(scenario.clone(), |scenario| scenario.part_size = part_size));
        assert!(round.duration <= round.ideal.mul_f64(1.1), "{round:?}");
    }
}

#[test]
fn what_is_sent_from_where_it_lies_is_as_fast_as_the_network() {
    let save = |in_place| {
        first(&with(Scenario::default(), |scenario| {
            scenario.world_size = 512;
            scenario.bytes_per_rank = 10 * GIB;
            scenario.partitions = 16;
            scenario.in_place = in_place;
        }))
    };
    let (in_place, copied) = (save(true), save(false));
    assert!(in_place.duration <= in_place.ideal.mul_f64(1.1), "{in_place:?}");
    assert_eq!(in_place.refused, 0);
    // So many copies keep fewer connections busy.
    assert!(copied.duration > in_place.duration.mul_f64(1.1), "{copied:?}");
}

#[test]
fn larger_parts_help_where_requests_are_what_is_scarce() {
    let scenario = with(Scenario::default(), |scenario| {
        scenario.world_size = 1024;
        scenario.bytes_per_rank = GIB;
        scenario.strategy = hex();
    });
    let time = |part_size| first(&with(scenario.clone(), |scenario| scenario.part_size = part_size)).duration;
    assert!(time(Some(64 * MIB)) < time(Some(8 * MIB)) / 3);
    // What s3dcp chooses is not far from the best of these.
    let best = [8, 16, 32, 64, 128, 256].map(|mib| time(Some(mib * MIB))).into_iter().min().unwrap();
    assert!(time(None) < best.mul_f64(1.5), "{:?} {best:?}", time(None));
}

#[test]
fn a_path_per_round_leaves_divided_ranges_behind_and_an_epoch_in_the_prefix_does_not() {
    let later = |paths, strategy| {
        let scenario = with(Scenario::default(), |scenario| {
            scenario.world_size = 1024;
            scenario.bytes_per_rank = GIB;
            scenario.part_size = Some(8 * MIB);
            scenario.partitions = 64;
            scenario.rounds = 2;
            scenario.paths = paths;
            scenario.strategy = strategy;
        });
        simulate(&scenario).rounds[1].refused
    };
    assert!(later(Paths::PerRound, hex()) > 1_000);
    assert_eq!(later(Paths::EpochInPrefix, hex()), 0);
    assert!(later(Paths::EpochInPrefix, Arc::new(DefaultPrefixStrategy)) > 1_000);
    assert_eq!(later(Paths::Same, Arc::new(DefaultPrefixStrategy)), 0);
}

#[test]
fn sustained_heat_splits_the_range_and_what_is_split_takes_more() {
    let mut scenario = with(Scenario::default(), |scenario| {
        scenario.world_size = 512;
        scenario.bytes_per_rank = 8 * GIB;
        scenario.part_size = Some(8 * MIB);
        scenario.strategy = hex();
    });
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
    let scenario = with(Scenario::default(), |scenario| {
        scenario.world_size = 64;
        scenario.bytes_per_rank = 4 * GIB;
    });
    let slow = with(Stragglers::default(), |stragglers| {
        stragglers.share = 0.1;
        stragglers.slowdown = 4.0;
    });
    let (alike, with_slow) =
        (first(&scenario), first(&with(scenario.clone(), |scenario| scenario.stragglers = slow)));
    assert!(with_slow.duration > alike.duration * 3);
    assert!(with_slow.fairness < alike.fairness);
}

#[test]
fn what_makes_no_sense_is_named() {
    let refused = |scenario: Scenario| scenario.invalid().unwrap_or_default();
    assert!(refused(with(Scenario::default(), |scenario| scenario.world_size = 0)).starts_with("world_size"));
    assert!(
        refused(with(Scenario::default(), |scenario| scenario.bytes_per_rank = 0))
            .starts_with("bytes_per_rank")
    );
    assert!(refused(with(Scenario::default(), |scenario| scenario.partitions = 0)).starts_with("partitions"));
    let network = with(Network::default(), |network| network.rank_bytes_per_second = f64::NAN);
    assert!(
        refused(with(Scenario::default(), |scenario| scenario.network = network))
            .starts_with("rank_bytes_per_second")
    );
    assert_eq!(Scenario::default().invalid(), None);
}
