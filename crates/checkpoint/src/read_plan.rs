//! From wanted bytes of items to ranges of shard files, and from arriving bytes to their places.
//!
//! With checksums only whole slices are fetched, and each is verified; without, only the wanted bytes. Near ranges
//! of one file are joined, long ones split, and no byte of a file is asked for twice. The keys take turns in the
//! result, so that a download spreads over the prefixes from its first request on.
//!
//! Pure: no request is made here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use s3dcp_s3::{Error, RangeRead};

use crate::checksums::{ItemChecksums, SLICE_SIZE};
use crate::error::config;
use crate::read_sink::{Check, ReadSink, Target, share};

/// Memory that a piece of an item goes to.
pub trait Destination: Send {
    /// Takes bytes at `offset` from the piece's first byte. Within one range bytes come in order; when a range is
    /// read again they come again.
    fn write(&mut self, offset: u64, bytes: &[u8]);

    /// Cuts this destination at `at`: `self` keeps what lies before, the answer takes what lies from there on, with
    /// offsets from its own first byte. Both are then written at the same time by different requests. `None` (the
    /// default) leaves it whole, and its writers take turns.
    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let _ = at;
        None
    }
}

/// Some bytes of an item, and where they go.
pub struct Piece {
    /// Bytes of the item.
    pub item_range: Range<u64>,
    /// Gets exactly these bytes.
    pub destination: Box<dyn Destination>,
}

/// What is wanted of one item.
pub struct ItemRead {
    /// The item's name in errors.
    pub name: String,
    /// The shard file.
    pub key: String,
    /// The item's first byte in the file.
    pub offset: u64,
    /// Bytes of the item.
    pub length: u64,
    /// What the index knows of its content.
    pub checksums: Option<ItemChecksums>,
    /// The wanted bytes; pieces may overlap.
    pub pieces: Vec<Piece>,
}

/// How ranges are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Bytes a range should not pass; a whole slice is never cut for it.
    pub range_size: u64,
    /// Unwanted bytes between two wanted runs that are fetched along rather than asked around.
    pub coalesce_gap: u64,
    /// Verify items that have checksums.
    pub verify: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { range_size: 8 << 20, coalesce_gap: 256 << 10, verify: true }
    }
}

/// A run of a file that must be fetched; a checked one must not be cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    start: u64,
    end: u64,
    checked: bool,
}

#[derive(Default)]
struct File {
    runs: Vec<Run>,
    checks: Vec<Check>,
    targets: Vec<Target>,
}

/// Plans the ranges that bring every wanted byte to its destination once.
///
/// The answer is in file order within each key, and the keys take turns.
///
/// # Errors
/// `Config` for a piece outside its item, an item outside `i64`, or a range size of 0; `Corrupt` when checksums do
/// not fit their item.
pub fn plan_reads(items: Vec<ItemRead>, options: &ReadOptions) -> Result<Vec<RangeRead>, Error> {
    if options.range_size == 0 {
        return Err(config("range_size is 0, must be at least 1"));
    }
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    for item in items {
        let end = item.offset.checked_add(item.length).filter(|&end| end <= i64::MAX as u64);
        if end.is_none() {
            return Err(config(format!("{}: item of {} bytes at {}", item.name, item.length, item.offset)));
        }
        let checksums = item.checksums.as_ref().filter(|_| options.verify);
        if let Some(checksums) = checksums {
            checksums.check(item.length).map_err(|error| {
                let message = format!("{}: {}", item.name, error.message());
                error.with_message(message).with_key(item.key.clone())
            })?;
        }
        let mut wanted = Vec::with_capacity(item.pieces.len());
        for piece in &item.pieces {
            let Range { start, end } = piece.item_range;
            if start > end || end > item.length {
                return Err(config(format!(
                    "{}: bytes {start}..{end} of an item of {} bytes",
                    item.name, item.length
                )));
            }
            if start < end {
                wanted.push(start..end);
            }
        }
        if wanted.is_empty() {
            continue;
        }
        wanted.sort_unstable_by_key(|range| (range.start, range.end));
        let file = match files.get_mut(&item.key) {
            Some(file) => file,
            None => files.entry(item.key.clone()).or_default(),
        };
        match checksums {
            Some(checksums) => file.add_slices(&item, checksums, &wanted),
            None => file.add_wanted(item.offset, &wanted, options.range_size),
        }
        for piece in item.pieces {
            let Range { start, end } = piece.item_range;
            if start < end {
                let start = item.offset + start;
                file.targets.push(Target { start, end: item.offset + end, destination: piece.destination });
            }
        }
    }
    let mut queues = Vec::with_capacity(files.len());
    for (key, file) in files {
        queues.push(file.plan(&key, options).into_iter());
    }
    let mut reads = Vec::new();
    while !queues.is_empty() {
        queues.retain_mut(|queue| {
            let next = queue.next();
            let some = next.is_some();
            reads.extend(next);
            some
        });
    }
    Ok(reads)
}

impl File {
    /// Every slice that holds a wanted byte.
    fn add_slices(&mut self, item: &ItemRead, checksums: &ItemChecksums, wanted: &[Range<u64>]) {
        let mut next = 0; // slices below are in already
        for range in wanted {
            let last = (range.end - 1) / SLICE_SIZE;
            for slice in (range.start / SLICE_SIZE).max(next)..=last {
                let start = item.offset + slice * SLICE_SIZE;
                let end = item.offset + ((slice + 1) * SLICE_SIZE).min(item.length);
                let crc = match checksums.slices.get(slice as usize) {
                    Some(&crc) => crc,
                    None => checksums.item,
                };
                self.runs.push(Run { start, end, checked: true });
                self.checks.push(Check { start, end, crc, name: item.name.clone() });
            }
            next = next.max(last + 1);
        }
    }

    /// The wanted bytes themselves, in steps of a range's size.
    fn add_wanted(&mut self, offset: u64, wanted: &[Range<u64>], step: u64) {
        for range in wanted {
            let mut start = range.start;
            while start < range.end {
                let end = start.saturating_add(step).min(range.end);
                self.runs.push(Run { start: offset + start, end: offset + end, checked: false });
                start = end;
            }
        }
    }

    fn plan(mut self, key: &str, options: &ReadOptions) -> Vec<RangeRead> {
        let ranges = join_runs(std::mem::take(&mut self.runs), options);
        self.checks.sort_unstable_by_key(|check| (check.start, check.end, check.crc));
        self.checks.dedup_by(|a, b| (a.start, a.end, a.crc) == (b.start, b.end, b.crc));
        let mut sinks: Vec<_> = ranges.iter().map(|range| ReadSink::new(key, range.clone())).collect();
        let range_of = |place: u64| ranges.partition_point(|range| range.end <= place);
        for check in self.checks {
            sinks[range_of(check.start)].add_check(check);
        }
        self.targets.sort_by_key(|target| target.start);
        for target in self.targets {
            let first = range_of(target.start);
            let last = range_of(target.end - 1);
            let cuts = ranges[first..last].iter().map(|range| range.end);
            for (part, sink) in share(target, cuts).into_iter().zip(&mut sinks[first..]) {
                sink.add_target(part);
            }
        }
        let reads = ranges.into_iter().zip(sinks);
        reads.map(|(range, sink)| RangeRead { key: key.to_owned(), range, sink: Box::new(sink) }).collect()
    }
}

/// Joins runs into ranges that do not overlap, in order.
fn join_runs(runs: Vec<Run>, options: &ReadOptions) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut heap: BinaryHeap<Reverse<Run>> = runs.into_iter().map(Reverse).collect();
    while let Some(Reverse(run)) = heap.pop() {
        let Some(current) = ranges.last_mut() else {
            ranges.push(run.start..run.end);
            continue;
        };
        if run.end <= current.end {
            continue;
        }
        if run.start < current.end {
            if run.checked {
                current.end = run.end; // items that overlap in a file: odd, but each slice stays whole
            } else {
                heap.push(Reverse(Run { start: current.end, ..run }));
            }
            continue;
        }
        let gap = run.start - current.end;
        if gap <= options.coalesce_gap && run.end - current.start <= options.range_size {
            current.end = run.end;
        } else {
            ranges.push(run.start..run.end);
        }
    }
    ranges
}
