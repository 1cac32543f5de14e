//! The vectors that the Python tests read too.

use std::num::NonZeroU64;

use s3dcp_prefix::{
    BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, NumericPrefixStrategy,
    PrefixError, PrefixStrategy, RoundRobinPrefixStrategy,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    vectors: Vec<Vector>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Vector {
    strategy: String,
    arguments: Arguments,
    world_size: Option<NonZeroU64>,
    prefix_map: Option<Vec<String>>,
    prefixes: Vec<(i64, String)>,
}

#[derive(Deserialize)]
struct Refused {
    strategy: String,
    arguments: Arguments,
    names: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    base: Option<u32>,
    epoch_num: Option<i64>,
    min_prefix_length: Option<usize>,
    prefix_count: Option<u64>,
    user_prefixes: Option<Vec<String>>,
}

impl Arguments {
    fn numeric(&self) -> NumericOptions {
        NumericOptions {
            epoch_num: self.epoch_num,
            min_prefix_length: self.min_prefix_length.unwrap_or(10),
            prefix_count: self.prefix_count,
        }
    }

    fn strategy(&self, name: &str) -> Result<Box<dyn PrefixStrategy>, PrefixError> {
        let numeric = self.numeric();
        Ok(match name {
            "DefaultPrefixStrategy" => Box::new(DefaultPrefixStrategy),
            "BinaryPrefixStrategy" => Box::new(BinaryPrefixStrategy::new(numeric)?),
            "HexPrefixStrategy" => Box::new(HexPrefixStrategy::new(numeric)?),
            "NumericPrefixStrategy" => Box::new(NumericPrefixStrategy::new(
                self.base.expect("a numeric vector has a base"),
                numeric,
            )?),
            "RoundRobinPrefixStrategy" => {
                let user_prefixes = self.user_prefixes.clone().expect("a round-robin vector has prefixes");
                Box::new(RoundRobinPrefixStrategy::new(user_prefixes, self.epoch_num)?)
            }
            other => panic!("no strategy {other}"),
        })
    }

    /// The patterns of a numeric strategy for a number of ranks.
    fn prefix_map(&self, name: &str, world_size: u64) -> Vec<String> {
        let base = match name {
            "BinaryPrefixStrategy" => 2,
            "HexPrefixStrategy" => 16,
            _ => self.base.expect("a numeric vector has a base"),
        };
        let options =
            NumericOptions { prefix_count: self.prefix_count.or(Some(world_size)), ..self.numeric() };
        NumericPrefixStrategy::new(base, options).expect("accepted before").prefix_map().collect()
    }
}

fn golden() -> Golden {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/prefix_vectors.json"));
    serde_json::from_str(text).expect("the golden file has this shape")
}

#[test]
fn every_golden_prefix_comes_out() {
    let vectors = golden().vectors;
    assert!(vectors.len() > 50);
    for Vector { strategy: name, arguments, world_size, prefix_map, prefixes } in vectors {
        let free = arguments.strategy(&name).unwrap();
        let ranks = world_size.unwrap_or(NonZeroU64::MIN);
        let strategy = free.bind(ranks).unwrap_or(free);
        for (rank, prefix) in prefixes {
            assert_eq!(strategy.generate_prefix(rank), prefix, "{strategy:?}, rank {rank}");
        }
        if let Some(expected) = prefix_map {
            assert_eq!(arguments.prefix_map(&name, ranks.get()), expected, "{name} {arguments:?}");
        }
    }
}

#[test]
fn every_golden_refusal_names_its_argument() {
    let refused = golden().refused;
    assert!(refused.len() > 20);
    for Refused { strategy: name, arguments, names } in refused {
        let error = arguments.strategy(&name).expect_err(&format!("{name} {arguments:?}"));
        assert!(error.to_string().contains(&names), "{error} does not name {names}");
        assert!(error.argument().contains(&names));
    }
}
