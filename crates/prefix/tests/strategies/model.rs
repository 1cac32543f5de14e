//! Every strategy against a slow, obvious model.

use std::num::NonZeroU64;

use proptest::prelude::*;
use s3dcp_prefix::{
    BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, NumericPrefixStrategy,
    PrefixStrategy, RoundRobinPrefixStrategy,
};

/// One digit at a time, least significant first, until the pattern is long enough for every index below `count`.
fn model_pattern(base: u32, count: u64, min_length: usize, index: u64) -> String {
    let mut length = 1;
    while u128::from(base).pow(length) < u128::from(count) {
        length += 1;
    }
    let mut rest = u128::from(index);
    let mut pattern = Vec::new();
    while pattern.len() < (length as usize).max(min_length) {
        pattern.push(char::from_digit((rest % u128::from(base)) as u32, base).expect("a digit"));
        rest /= u128::from(base);
    }
    assert_eq!(rest, 0);
    pattern.into_iter().collect()
}

fn model_prefix(spread: &str, epoch_num: Option<i64>, rank: i64) -> String {
    match epoch_num {
        Some(epoch_num) => format!("{spread}/epoch_{epoch_num}/__{rank}_"),
        None => format!("{spread}/__{rank}_"),
    }
}

fn model_index(rank: i64, count: u64) -> u64 {
    u64::try_from(i128::from(rank).rem_euclid(i128::from(count))).expect("not negative")
}

fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![1..40_u64, 1..2_000_000_u64, 1..=u64::MAX]
}

fn ranks() -> impl Strategy<Value = i64> {
    prop_oneof![-50..50_i64, 0..2_000_000_i64, any::<i64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numeric_strategies_match_the_model(
        base in 2..=36_u32,
        epoch_num in any::<Option<i64>>(),
        min_prefix_length in prop_oneof![1..80_usize, 1..900_usize],
        prefix_count in proptest::option::of(counts()),
        world_size in counts(),
        rank in ranks(),
    ) {
        let options = NumericOptions { epoch_num, min_prefix_length, prefix_count };
        let world_size = NonZeroU64::new(world_size).unwrap();
        for strategy in [
            Box::new(NumericPrefixStrategy::new(base, options).unwrap()) as Box<dyn PrefixStrategy>,
            Box::new(BinaryPrefixStrategy::new(options).unwrap()),
            Box::new(HexPrefixStrategy::new(options).unwrap()),
        ].into_iter().zip([base, 2, 16]) {
            let (strategy, base) = strategy;
            prop_assert_eq!(strategy.epoch_num(), epoch_num);
            for (strategy, count) in [
                (strategy.bind(world_size), prefix_count.unwrap_or(world_size.get())),
                (Some(strategy), prefix_count.unwrap_or(1)),
            ] {
                let Some(strategy) = strategy else {
                    prop_assert!(prefix_count.is_some());
                    continue;
                };
                let pattern = model_pattern(base, count, min_prefix_length, model_index(rank, count));
                prop_assert_eq!(strategy.generate_prefix(rank), model_prefix(&pattern, epoch_num, rank));
                prop_assert_eq!(strategy.pattern(rank), pattern);
            }
        }
    }

    #[test]
    fn round_robin_matches_the_model(
        user_prefixes in proptest::collection::vec("[a-z0-9é日 ]{1,8}(/[a-z.]{3,5}){0,2}/?", 1..9),
        epoch_num in any::<Option<i64>>(),
        rank in ranks(),
    ) {
        prop_assume!(user_prefixes.iter().all(|prefix| !prefix.contains("/../")));
        let strategy = RoundRobinPrefixStrategy::new(user_prefixes.clone(), epoch_num).unwrap();
        let mine = &user_prefixes[model_index(rank, user_prefixes.len() as u64) as usize];
        prop_assert_eq!(strategy.generate_prefix(rank), model_prefix(mine, epoch_num, rank));
        prop_assert_eq!(&strategy.pattern(rank), mine);
    }

    #[test]
    fn a_range_of_ranks_matches_each_rank_alone(
        start in ranks(),
        length in 0..200_i64,
        prefix_count in counts(),
    ) {
        let range = start..start.saturating_add(length);
        let options = NumericOptions { prefix_count: Some(prefix_count), ..NumericOptions::default() };
        for strategy in [
            Box::new(HexPrefixStrategy::new(options).unwrap()) as Box<dyn PrefixStrategy>,
            Box::new(RoundRobinPrefixStrategy::new(["a", "b", "c"], Some(7)).unwrap()),
            Box::new(DefaultPrefixStrategy),
        ] {
            let mut seen = Vec::new();
            strategy.for_each_prefix(range.clone(), &mut |rank, prefix| seen.push((rank, prefix.to_owned())));
            let alone: Vec<_> = range.clone().map(|rank| (rank, strategy.generate_prefix(rank))).collect();
            prop_assert_eq!(seen, alone);
        }
    }
}
