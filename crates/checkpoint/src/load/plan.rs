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
use std::sync::Arc;

use s3dcp_s3::{Error, RangeRead};

use crate::error::{config, corrupt};
use crate::index::checksums::{ItemChecksums, SLICE_SIZE};
use crate::load::destination::Destination;
use crate::load::sink::{Check, Delivery, Names, Of, ReadSink, share};

/// Some bytes of an item, and where they go.
pub struct Piece {
    /// Bytes of the item.
    pub item_range: Range<u64>,
    /// Gets exactly these bytes.
    pub destination: Box<dyn Destination>,
}

/// What an item must begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemHead {
    /// So many bytes.
    pub length: u64,
    /// Their CRC-32.
    pub crc32: u32,
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
    /// What its dtype and shape say of its first bytes. It is seen to wherever these come along: with their slice, or
    /// where the wanted bytes begin near them.
    pub head: Option<ItemHead>,
    /// The wanted bytes; pieces may overlap.
    pub pieces: Vec<Piece>,
}

/// How ranges are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    deliveries: Vec<Delivery>,
}

/// Plans the ranges that bring every wanted byte to its destination once.
///
/// The answer is in file order within each key, and the keys take turns.
///
/// # Errors
/// `Config` for a piece outside its item, an item outside `i64`, a range size of 0, or more than 2^32 items; `Corrupt` when checksums do
/// not fit their item.
pub fn plan_reads(items: Vec<ItemRead>, options: &ReadOptions) -> Result<Vec<RangeRead>, Error> {
    if options.range_size == 0 {
        return Err(config("range_size is 0, must be at least 1"));
    }
    let count = u32::try_from(items.len()).map_err(|_| config(format!("{} items", items.len())))?;
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    let mut names = Vec::with_capacity(items.len());
    let mut wanted: Vec<Range<u64>> = Vec::new();
    for (number, item) in (0..count).zip(items) {
        let end = item.offset.checked_add(item.length).filter(|&end| end <= i64::MAX as u64);
        if end.is_none() {
            return Err(corrupt(format!("{}: item of {} bytes at {}", item.name, item.length, item.offset)));
        }
        let checksums = item.checksums.as_ref().filter(|_| options.verify);
        if let Some(checksums) = checksums {
            checksums.check(item.length).map_err(|error| {
                let message = format!("{}: {}", item.name, error.message());
                error.with_message(message).with_key(item.key.clone())
            })?;
        }
        wanted.clear();
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
            names.push(item.name);
            continue;
        }
        wanted.sort_unstable_by_key(|range| (range.start, range.end));
        let file = match files.get_mut(&item.key) {
            Some(file) => file,
            None => files.entry(item.key.clone()).or_default(),
        };
        let head = item.head.filter(|head| head.length <= item.length);
        match checksums {
            Some(checksums) => {
                file.add_slices(number, &item, checksums, &wanted);
                if let Some(head) = head.filter(|head| wanted[0].start.max(head.length) < SLICE_SIZE) {
                    file.add_head(number, item.offset, head);
                }
            }
            None => {
                let start = wanted[0].start;
                let is_near = |head: &ItemHead| start.saturating_sub(head.length) <= options.coalesce_gap;
                if let Some(head) = head.filter(is_near) {
                    let end = wanted[0].end.min(options.range_size).max(head.length);
                    let (start, end) = (item.offset, item.offset + end);
                    file.runs.push(Run { start, end, checked: true });
                    file.add_head(number, item.offset, head);
                    wanted[0].start = wanted[0].start.max(end - start).min(wanted[0].end);
                }
                file.add_wanted(item.offset, &wanted, options.range_size);
            }
        }
        for piece in item.pieces {
            let Range { start, end } = piece.item_range;
            if start < end {
                let start = item.offset + start;
                file.deliveries.push(Delivery {
                    start,
                    end: item.offset + end,
                    destination: piece.destination,
                });
            }
        }
        names.push(item.name);
    }
    let names = Arc::new(names);
    let mut queues = Vec::with_capacity(files.len());
    for (key, file) in files {
        queues.push(file.plan(&key, &names, options).into_iter());
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
    fn add_slices(&mut self, number: u32, item: &ItemRead, checksums: &ItemChecksums, wanted: &[Range<u64>]) {
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
                self.checks.push(Check { start, end, crc, item: number, of: Of::Slice });
            }
            next = next.max(last + 1);
        }
    }

    /// The first bytes of an item, which a checked run holds.
    fn add_head(&mut self, number: u32, offset: u64, head: ItemHead) {
        let end = offset + head.length;
        self.checks.push(Check { start: offset, end, crc: head.crc32, item: number, of: Of::Head });
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

    fn plan(self, key: &str, names: &Names, options: &ReadOptions) -> Vec<RangeRead> {
        let File { runs, mut checks, mut deliveries } = self;
        let ranges = join_runs(runs, options);
        let new_sink = |range: &Range<u64>| ReadSink::new(key, names.clone(), range.clone());
        let mut sinks: Vec<_> = ranges.iter().map(new_sink).collect();
        checks.sort_unstable_by_key(|check| (check.start, check.end, check.crc));
        checks.dedup_by_key(|check| (check.start, check.end, check.crc));
        let mut first = 0; // the range that the next place is in: places come in order
        for check in checks {
            first += ranges[first..].iter().take_while(|range| range.end <= check.start).count();
            sinks[first].add_check(check);
        }
        deliveries.sort_by_key(|delivery| delivery.start);
        first = 0;
        for delivery in deliveries {
            first += ranges[first..].iter().take_while(|range| range.end <= delivery.start).count();
            let cut = ranges[first..].iter().take_while(|range| range.end < delivery.end).count();
            let cuts = ranges[first..first + cut].iter().map(|range| range.end);
            for (part, sink) in share(delivery, cuts).into_iter().zip(&mut sinks[first..]) {
                sink.add_delivery(part);
            }
        }
        let reads = ranges.into_iter().zip(sinks);
        reads.map(|(range, sink)| RangeRead { key: key.to_owned(), range, sink: Box::new(sink) }).collect()
    }
}

/// Joins runs into ranges that do not overlap, in order.
fn join_runs(mut runs: Vec<Run>, options: &ReadOptions) -> Vec<Range<u64>> {
    runs.sort_unstable();
    let mut runs = runs.into_iter().peekable();
    let mut rests: BinaryHeap<Reverse<Run>> = BinaryHeap::new(); // of runs that overlap the range before
    let mut ranges: Vec<Range<u64>> = Vec::new();
    loop {
        let rest_is_next = match (rests.peek(), runs.peek()) {
            (Some(Reverse(rest)), Some(run)) => rest < run,
            (rest, _) => rest.is_some(),
        };
        let next = if rest_is_next { rests.pop().map(|Reverse(rest)| rest) } else { runs.next() };
        let Some(run) = next else { return ranges };
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
                rests.push(Reverse(Run { start: current.end, ..run }));
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
}
