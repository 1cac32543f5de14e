//! The read plan against a slow, obvious model: every wanted byte arrives once, at its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use s3dcp_checkpoint::{
    Destination, ItemChecksums, ItemHead, ItemRead, Piece, ReadOptions, SLICE_SIZE, plan_reads,
};
use s3dcp_s3::{ErrorKind, RangeRead, Space, crc32};

/// The bytes of one piece, and how often each was written.
#[derive(Clone)]
struct Memory(Arc<Mutex<Vec<(u8, u32)>>>);

impl Memory {
    fn new(length: u64) -> Memory {
        Memory(Arc::new(Mutex::new(vec![(0, 0); length as usize])))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().iter().map(|cell| cell.0).collect()
    }
}

/// What a destination can do.
#[derive(Clone, Copy, Debug)]
enum Can {
    Write,
    WriteAndSplit,
    /// Splits too; its bytes arrive in the memory when it is dropped.
    BeFilled,
}

/// A part of a piece's memory.
struct Place {
    memory: Memory,
    base: u64,
    can: Can,
    own: Vec<u8>,
}

impl Place {
    fn new(memory: &Memory, can: Can) -> Place {
        let length = if matches!(can, Can::BeFilled) { memory.0.lock().unwrap().len() } else { 0 };
        Place { memory: memory.clone(), base: 0, can, own: vec![0; length] }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let mut cells = self.memory.0.lock().unwrap();
        let start = (self.base + offset) as usize;
        for (cell, &byte) in cells[start..start + bytes.len()].iter_mut().zip(bytes) {
            *cell = (byte, cell.1 + 1);
        }
    }
}

impl Destination for Place {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        match self.can {
            Can::BeFilled => self.memory(offset)[..bytes.len()].copy_from_slice(bytes),
            _ => self.put(offset, bytes),
        }
    }

    fn memory(&mut self, offset: u64) -> &mut [u8] {
        self.own.get_mut(offset as usize..).unwrap_or_default()
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let own = match self.can {
            Can::Write => return None,
            Can::WriteAndSplit => Vec::new(),
            Can::BeFilled => self.own.split_off(at as usize),
        };
        Some(Box::new(Place { memory: self.memory.clone(), base: self.base + at, can: self.can, own }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.put(0, &self.own);
    }
}

fn content(key: &str, length: u64) -> Vec<u8> {
    let seed = u64::from(crc32(key.as_bytes()));
    (0..length).map(|at| ((at.wrapping_mul(0x9e37_79b9) ^ seed) >> 7) as u8).collect()
}

fn checksums(bytes: &[u8]) -> ItemChecksums {
    let slices: Vec<u32> = bytes.chunks(SLICE_SIZE as usize).map(crc32).collect();
    ItemChecksums { item: crc32(bytes), slices: if slices.len() > 1 { slices } else { Vec::new() } }
}

/// Feeds a range as a download would, in pieces of this size at most: into the memory that the sink offers, or by
/// `write`, every fifth time although memory is offered.
fn feed(read: &mut RangeRead, file: &[u8], chunk: usize) -> Result<(), s3dcp_s3::Error> {
    let mut rest = &file[read.range.start as usize..read.range.end as usize];
    for turn in 1.. {
        if rest.is_empty() {
            break;
        }
        let most = chunk.min(rest.len());
        let count = match read.sink.space() {
            Space::Memory(memory) if turn % 5 > 0 => {
                let count = most.min(memory.len());
                assert!(count > 0);
                memory[..count].copy_from_slice(&rest[..count]);
                read.sink.filled(count)?;
                count
            }
            Space::Memory(_) => {
                read.sink.write(&rest[..most])?;
                most
            }
            Space::Write(limit) => {
                let count = most.min(limit);
                assert!(count > 0);
                read.sink.write(&rest[..count])?;
                count
            }
        };
        rest = &rest[count..];
    }
    read.sink.finish()
}

#[derive(Clone, Debug)]
struct ItemCase {
    gap: u64,
    length: u64,
    checked: bool,
    pieces: Vec<(prop::sample::Index, prop::sample::Index, Can)>,
}

fn item_case() -> impl Strategy<Value = ItemCase> {
    let length = prop_oneof![
        6 => 0u64..3000,
        2 => 30_000u64..100_000,
        1 => SLICE_SIZE - 2..SLICE_SIZE + 3,
        1 => 2 * SLICE_SIZE - 2..2 * SLICE_SIZE + 3000,
    ];
    let can = prop_oneof![Just(Can::Write), Just(Can::WriteAndSplit), Just(Can::BeFilled)];
    let piece = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), can);
    (0u64..500, length, any::<bool>(), prop::collection::vec(piece, 0..5))
        .prop_map(|(gap, length, checked, pieces)| ItemCase { gap, length, checked, pieces })
}

fn options(change: impl FnOnce(&mut ReadOptions)) -> ReadOptions {
    let mut options = ReadOptions::default();
    change(&mut options);
    options
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_wanted_byte_arrives_once_and_ranges_never_overlap(
        files in prop::collection::vec(prop::collection::vec(item_case(), 0..6), 1..4),
        range_size in prop_oneof![1u64..5000, Just(3 << 20), Just(16 << 20)],
        coalesce_gap in prop_oneof![Just(0u64), 1u64..600, Just(1 << 20)],
        verify in any::<bool>(),
        twice in any::<bool>(),
        chunk in prop_oneof![1usize..500, Just(1 << 20)],
    ) {
        // a range of few bytes over items of many MiB would be millions of ranges
        let large = files.iter().flatten().any(|item| item.length > 10_000);
        let range_size = if large { range_size.max(50_000) } else { range_size };
        let chunk = if large { chunk.max(1000) } else { chunk };
        let mut contents = BTreeMap::new();
        let mut items = Vec::new();
        let mut expected: Vec<(Memory, String, Range<u64>)> = Vec::new();
        let mut needed: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for (number, cases) in files.iter().enumerate() {
            let key = format!("a{number}/__{number}_0.distcp");
            let size = cases.iter().map(|item| item.gap + item.length).sum();
            let file = content(&key, size);
            let mut offset = 0;
            for (place, case) in cases.iter().enumerate() {
                offset += case.gap;
                let bytes = &file[offset as usize..(offset + case.length) as usize];
                for _ in 0..if twice { 2 } else { 1 } {
                    let mut pieces = Vec::new();
                    for (from, to, can) in &case.pieces {
                        let from = from.index(case.length as usize + 1) as u64;
                        let to = to.index(case.length as usize + 1) as u64;
                        let item_range = from.min(to)..from.max(to);
                        let memory = Memory::new(item_range.end - item_range.start);
                        let place = offset + item_range.start..offset + item_range.end;
                        if !item_range.is_empty() {
                            let mut fetched = place.clone();
                            if verify && case.checked {
                                fetched.start = offset + item_range.start / SLICE_SIZE * SLICE_SIZE;
                                let end = item_range.end.div_ceil(SLICE_SIZE) * SLICE_SIZE;
                                fetched.end = offset + end.min(case.length);
                            }
                            needed.entry(key.clone()).or_default().push(fetched);
                        }
                        pieces.push(Piece { item_range, destination: Box::new(Place::new(&memory, *can)) });
                        expected.push((memory, key.clone(), place));
                    }
                    items.push(ItemRead {
                        name: format!("item {place}"),
                        key: key.clone(),
                        offset,
                        length: case.length,
                        checksums: case.checked.then(|| checksums(bytes)),
                        head: None,
                        pieces,
                    });
                }
                offset += case.length;
            }
            contents.insert(key, file);
        }
        items.reverse();
        let options = options(|options| {
            options.range_size = range_size;
            options.coalesce_gap = coalesce_gap;
            options.verify = verify;
        });
        let mut reads = plan_reads(items, &options).unwrap();

        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        let mut asked: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for read in &mut reads {
            let end = last.insert(read.key.clone(), read.range.end).unwrap_or(0);
            prop_assert!(read.range.start >= end && read.range.start < read.range.end, "ranges in order");
            prop_assert!(read.range.end - read.range.start <= range_size.max(SLICE_SIZE));
            asked.entry(read.key.clone()).or_default().push(read.range.clone());
            feed(read, &contents[&read.key], chunk).unwrap();
        }
        drop(reads);
        for (memory, key, place) in expected {
            prop_assert!(memory.bytes() == contents[&key][place.start as usize..place.end as usize]);
            prop_assert!(memory.0.lock().unwrap().iter().all(|cell| cell.1 == 1), "each byte once");
        }
        // nothing is fetched but what is needed and gaps up to the limit between needed runs
        for (key, ranges) in asked {
            let mut runs = needed.remove(&key).unwrap();
            runs.sort_by_key(|run| run.start);
            for range in ranges {
                let mut covered = range.start;
                for run in runs.iter().filter(|run| run.end > range.start && run.start < range.end) {
                    prop_assert!(run.start <= covered + coalesce_gap, "a gap too wide");
                    covered = covered.max(run.end);
                }
                prop_assert!(covered >= range.end, "the range ends with needed bytes");
            }
        }
        prop_assert!(needed.is_empty(), "every needed file is asked for");
    }
}

fn one_item(length: u64, wanted: Range<u64>, checked: bool) -> (ItemRead, Vec<u8>, Memory) {
    let file = content("k", length);
    let memory = Memory::new(wanted.end - wanted.start);
    let piece = Piece { item_range: wanted, destination: Box::new(Place::new(&memory, Can::WriteAndSplit)) };
    let item = ItemRead {
        name: "model.weight".into(),
        key: "k".into(),
        offset: 0,
        length,
        checksums: checked.then(|| checksums(&file)),
        head: None,
        pieces: vec![piece],
    };
    (item, file, memory)
}

#[test]
fn a_damaged_slice_is_named_and_a_second_reading_mends_it() {
    let (item, mut file, memory) = one_item(2 * SLICE_SIZE + 10, SLICE_SIZE + 5..SLICE_SIZE + 9, true);
    let mut reads = plan_reads(vec![item], &ReadOptions::default()).unwrap();
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].range, SLICE_SIZE..2 * SLICE_SIZE, "the one slice that holds the wanted bytes");
    let place = 2 * SLICE_SIZE as usize - 1; // not a wanted byte, but of a wanted slice
    file[place] ^= 1;
    let error = feed(&mut reads[0], &file, 100_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.key(), Some("k"));
    assert!(error.message().contains("model.weight"), "{error}");
    file[place] ^= 1;
    reads[0].sink.restart();
    feed(&mut reads[0], &file, 100_000).unwrap();
    assert_eq!(memory.bytes(), &file[SLICE_SIZE as usize + 5..SLICE_SIZE as usize + 9]);
}

#[test]
fn a_small_item_with_checksums_is_fetched_whole_and_verified() {
    let (item, mut file, _) = one_item(5000, 100..101, true);
    let mut reads = plan_reads(vec![item], &ReadOptions::default()).unwrap();
    assert_eq!(reads[0].range, 0..5000);
    file[4999] ^= 0x80;
    assert_eq!(feed(&mut reads[0], &file, 999).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn of_an_item_that_begins_wrong_no_value_is_taken() {
    for (length, checked) in [(5000, true), (5000, false), (3 * SLICE_SIZE, true), (3 * SLICE_SIZE, false)] {
        let (mut item, file, memory) = one_item(length, 700..length, checked);
        item.head = Some(ItemHead { length: 700, crc32: crc32(&file[..700]) ^ 1 });
        let mut reads = plan_reads(vec![item], &ReadOptions::default()).unwrap();
        assert_eq!(reads[0].range.start, 0, "the head is read along");
        let error = feed(&mut reads[0], &file, 300_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("model.weight: at byte 0 is no tensor"), "{error}");
        assert_eq!(memory.bytes(), vec![0; length as usize - 700]);

        let (mut item, file, memory) = one_item(length, 700..length, checked);
        item.head = Some(ItemHead { length: 700, crc32: crc32(&file[..700]) });
        for mut read in plan_reads(vec![item], &ReadOptions::default()).unwrap() {
            feed(&mut read, &file, 300_000).unwrap();
        }
        assert_eq!(memory.bytes(), &file[700..]);
    }
}

#[test]
fn a_head_far_from_the_wanted_bytes_is_not_asked_for() {
    for checked in [true, false] {
        let (mut item, _, _) = one_item(3 * SLICE_SIZE, 2 * SLICE_SIZE + 5..2 * SLICE_SIZE + 9, checked);
        item.head = Some(ItemHead { length: 700, crc32: 0 });
        let reads = plan_reads(vec![item], &ReadOptions::default()).unwrap();
        assert_eq!(reads.len(), 1);
        assert!(reads[0].range.start >= 2 * SLICE_SIZE);
    }
}

#[test]
fn a_range_that_ends_early_or_late_is_corrupt() {
    let (item, file, _) = one_item(5000, 0..5000, false);
    let mut reads = plan_reads(vec![item], &ReadOptions::default()).unwrap();
    reads[0].sink.write(&file[..4999]).unwrap();
    assert_eq!(reads[0].sink.finish().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(reads[0].sink.write(&file[..2]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn impossible_requests_are_refused_by_name() {
    let options = ReadOptions::default();
    let kind = |item: ItemRead, options: &ReadOptions| {
        let Err(error) = plan_reads(vec![item], options) else { panic!("accepted") };
        assert!(error.message().contains("model.weight") || options.range_size == 0, "{error}");
        error.kind()
    };
    let (mut item, ..) = one_item(100, 0..100, false);
    item.length = 99;
    assert_eq!(kind(item, &options), ErrorKind::Config);
    let (mut item, ..) = one_item(100, 0..100, false);
    item.offset = u64::MAX - 5;
    assert_eq!(kind(item, &options), ErrorKind::Corrupt);
    let (mut item, ..) = one_item(100, 0..100, true);
    item.checksums = Some(ItemChecksums { item: 1, slices: vec![1, 2] });
    assert_eq!(kind(item, &options), ErrorKind::Corrupt);
    let (item, ..) = one_item(100, 0..100, false);
    assert_eq!(kind(item, &self::options(|options| options.range_size = 0)), ErrorKind::Config);
}

#[test]
fn files_take_turns() {
    let item = |key: &str| {
        let (mut item, ..) = one_item(10_000, 0..10_000, false);
        item.key = key.into();
        item
    };
    let options = options(|options| options.range_size = 4000);
    let reads = plan_reads(vec![item("a"), item("b")], &options).unwrap();
    let keys: Vec<&str> = reads.iter().map(|read| &read.key[..]).collect();
    assert_eq!(keys, ["a", "b", "a", "b", "a", "b"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_found_in_whatever_pieces_the_bytes_come(
        at in any::<prop::sample::Index>(),
        chunk in prop_oneof![100usize..5000, 20_000usize..500_000],
        small in prop::collection::vec(1u64..2000, 0..40),
        large in 40_000u64..300_000,
    ) {
        let file = content("k", small.iter().sum::<u64>() + large);
        let mut offset = 0;
        let mut items = Vec::new();
        let mut ends = Vec::new();
        for (number, length) in small.into_iter().chain([large]).enumerate() {
            let memory = Memory::new(length);
            items.push(ItemRead {
                name: format!("item<{number}>"),
                key: "k".into(),
                offset,
                length,
                checksums: Some(checksums(&file[offset as usize..(offset + length) as usize])),
                head: None,
                pieces: vec![Piece { item_range: 0..length, destination: Box::new(Place::new(&memory, Can::BeFilled)) }],
            });
            offset += length;
            ends.push(offset);
        }
        let mut reads = plan_reads(items, &ReadOptions::default()).unwrap();
        prop_assert_eq!(reads.len(), 1);
        let at = at.index(file.len());
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let error = feed(&mut reads[0], &damaged, chunk).unwrap_err();
        let item = ends.partition_point(|&end| end <= at as u64);
        prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
        prop_assert!(error.message().contains(&format!("item<{item}>")), "{}", error);
        reads[0].sink.restart();
        feed(&mut reads[0], &file, chunk).unwrap();
    }
}
