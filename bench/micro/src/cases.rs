//! The cases: each prepares its input and gives back what is to be measured.

use std::hint::black_box;

use s3dcp_checkpoint::{
    AllowList, DType, Destination, ItemRead, Piece, ReadOptions, TensorSpec, archive_layout,
    parse_archive_head, plan_reads, scan_index,
};
use s3dcp_prefix::{HexPrefixStrategy, NumericOptions, PrefixStrategy};
use s3dcp_s3::{crc32, crc32_combine};

const ARCHIVE: &[u8] = include_bytes!("../../../crates/checkpoint/tests/data/archives/float32_2x3.pt");
const INDEX: &[u8] = include_bytes!("../../../crates/checkpoint/tests/data/index/s3dcp_plain.pkl");
const MIB: usize = 1 << 20;

/// One measurement.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Small enough to run under Valgrind.
    pub(crate) small: bool,
    /// The input is made here, once; the closure is measured.
    pub(crate) prepare: fn() -> Box<dyn FnMut()>,
}

/// Takes bytes and keeps none.
struct Nowhere;

impl Destination for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) {}

    fn split(&mut self, _: u64) -> Option<Box<dyn Destination>> {
        Some(Box::new(Nowhere))
    }
}

fn strategy(ranks: u64) -> HexPrefixStrategy {
    let options =
        NumericOptions { prefix_count: Some(ranks), epoch_num: Some(5), ..NumericOptions::default() };
    HexPrefixStrategy::new(options).expect("a count of a million is within every limit")
}

fn reads(items: u64) -> Vec<ItemRead> {
    let item = |number: u64| ItemRead {
        name: format!("state.{number}"),
        key: format!("a000000000/__{}_0.distcp", number % 8),
        offset: number / 8 * 2048,
        length: 1024,
        checksums: None,
        head: None,
        pieces: vec![Piece { item_range: 0..1024, destination: Box::new(Nowhere) }],
    };
    (0..items).map(item).collect()
}

fn planned(items: u64) -> Box<dyn FnMut()> {
    let mut options = ReadOptions::default();
    options.range_size = 16 << 20;
    options.coalesce_gap = 1 << 20;
    options.verify = true;
    Box::new(move || {
        black_box(plan_reads(reads(items), &options)).expect("items lie side by side");
    })
}

/// Every case, in the order of the table.
pub(crate) fn all() -> Vec<Case> {
    let case = |name, small, prepare| Case { name, small, prepare };
    vec![
        case("prefix of one rank", true, || {
            let (strategy, mut prefix, mut rank) = (strategy(1_000_000), String::with_capacity(64), 0);
            Box::new(move || {
                prefix.clear();
                strategy.write_prefix(black_box(rank), &mut prefix);
                black_box(&prefix);
                rank = (rank + 1) % 1_000_000;
            })
        }),
        case("prefixes of 1,000,000 ranks", false, || {
            let (strategy, mut prefix) = (strategy(1_000_000), String::with_capacity(64));
            Box::new(move || {
                for rank in 0..1_000_000 {
                    prefix.clear();
                    strategy.write_prefix(rank, &mut prefix);
                    black_box(&prefix);
                }
            })
        }),
        case("size of a tensor's archive", true, || {
            let spec = TensorSpec::contiguous(DType::BFloat16, vec![2048, 5632]);
            Box::new(move || {
                black_box(archive_layout(black_box(&spec))).expect("the shape fits");
            })
        }),
        case("head of a tensor's archive read", true, || {
            Box::new(|| {
                black_box(parse_archive_head(black_box(ARCHIVE))).expect("torch wrote it");
            })
        }),
        case("index of 3 items scanned", true, || {
            let allow = AllowList::default_globals();
            Box::new(move || {
                black_box(scan_index(black_box(INDEX), &allow)).expect("the index is a good one");
            })
        }),
        case("reads of 1,000 items planned", true, || planned(1_000)),
        case("reads of 100,000 items planned", false, || planned(100_000)),
        case("CRC-32 of 4 MiB", true, || {
            let bytes: Vec<u8> = (0..4 * MIB).map(|n| ((n * 31) >> 3) as u8).collect();
            Box::new(move || {
                black_box(crc32(black_box(&bytes)));
            })
        }),
        case("two CRC-32 combined", true, || {
            Box::new(|| {
                black_box(crc32_combine(black_box(0x1234_5678), black_box(0x9abc_def0), black_box(4 << 20)));
            })
        }),
    ]
}
