//! What happens to the bytes of one range: each goes to the pieces that want it, and the checked runs are summed up.
//!
//! Long runs that one piece wants are read into its memory, and summed up while they are still in the processor's
//! caches. Everything else (the heads and tails of archives, small tensors, pieces that overlap) is copied to its
//! places, so that a thousand small tensors cost one read.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use s3dcp_s3::{Error, RangeSink, Space};

use crate::error::corrupt;
use crate::index::checksums::crc32_extend;
use crate::load::destination::Destination;

/// Shortest run that is read into its memory, in bytes: below it, a copy costs less than a read of its own.
const DIRECT: u64 = 32 << 10;

/// How far to look for the next such run, in bytes; about what the engine reads at once.
const LOOK_AHEAD: u64 = 1 << 20;

/// What a checked run is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// A slice of an item, as it was saved.
    Slice,
    /// The first bytes of an item, as its dtype and shape make them.
    Head,
}

/// A run of a file whose CRC-32 is known.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) crc: u32,
    /// Its item, as a place in [`Names`].
    pub(crate) item: u32,
    pub(crate) of: Of,
}

/// The names of all items of a plan, for errors.
pub(crate) type Names = Arc<Vec<String>>;

/// A run of a file and where it goes.
pub(crate) struct Delivery {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) destination: Box<dyn Destination>,
}

/// A destination that several ranges write, one at a time.
struct Shared {
    base: u64,
    whole: Arc<Mutex<Box<dyn Destination>>>,
}

impl Destination for Shared {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.write(self.base + offset, bytes);
    }
}

/// Cuts a delivery at these places of its file, in order, all inside it.
pub(crate) fn share(delivery: Delivery, cuts: impl Iterator<Item = u64>) -> Vec<Delivery> {
    let mut parts = Vec::new();
    let mut cuts = cuts.peekable();
    let mut rest = delivery;
    while let Some(&cut) = cuts.peek() {
        let Some(tail) = rest.destination.split(cut - rest.start) else { break };
        cuts.next();
        let end = std::mem::replace(&mut rest.end, cut);
        parts.push(rest);
        rest = Delivery { start: cut, end, destination: tail };
    }
    if cuts.peek().is_none() {
        parts.push(rest);
        return parts;
    }
    let whole = Arc::new(Mutex::new(rest.destination));
    let origin = rest.start;
    let mut start = rest.start;
    for end in cuts.chain([rest.end]) {
        let destination = Box::new(Shared { base: start - origin, whole: whole.clone() });
        parts.push(Delivery { start, end, destination });
        start = end;
    }
    parts
}

/// Compares the bytes that pass with the checks of a range.
struct Checks {
    /// In the order of their starts.
    all: Vec<Check>,
    /// How many have begun.
    begun: usize,
    /// Those under way: which, and the CRC-32 so far.
    sums: Vec<(usize, u32)>,
    /// The first that does not fit; a slice rather than a head.
    failed: Option<usize>,
    /// An item begins with other bytes than its dtype and shape say: no more values are taken.
    begun_wrong: bool,
}

impl Checks {
    /// The next bytes, which begin at `position`.
    fn add(&mut self, position: u64, bytes: &[u8]) {
        let Checks { all, begun, sums, failed, begun_wrong } = self;
        let end = position + bytes.len() as u64;
        while all.get(*begun).is_some_and(|check| check.start < end) {
            sums.push((*begun, 0));
            *begun += 1;
        }
        sums.retain_mut(|(check, sum)| {
            let Check { start, end: check_end, crc, of, .. } = all[*check];
            *sum = crc32_extend(*sum, overlap(bytes, position, start, check_end));
            if check_end <= end && *sum != crc {
                *begun_wrong |= of == Of::Head;
                match failed {
                    Some(first) if all[*first].of == Of::Slice || of == Of::Head => {}
                    _ => *failed = Some(*check),
                }
            }
            check_end > end
        });
    }

    fn restart(&mut self) {
        self.begun = 0;
        self.sums.clear();
        self.failed = None;
        self.begun_wrong = false;
    }
}

/// The sink of one range.
pub(crate) struct ReadSink {
    key: String,
    names: Names,
    range: Range<u64>,
    position: u64,
    checks: Checks,
    /// In the order of their starts.
    deliveries: Vec<Delivery>,
    /// Deliveries below this place have ended.
    done_deliveries: usize,
}

impl ReadSink {
    pub(crate) fn new(key: &str, names: Names, range: Range<u64>) -> ReadSink {
        ReadSink {
            key: key.to_owned(),
            names,
            position: range.start,
            range,
            checks: Checks { all: Vec::new(), begun: 0, sums: Vec::new(), failed: None, begun_wrong: false },
            deliveries: Vec::new(),
            done_deliveries: 0,
        }
    }

    /// To be called in the order of their starts.
    pub(crate) fn add_check(&mut self, check: Check) {
        self.checks.all.push(check);
    }

    /// To be called in the order of their starts.
    pub(crate) fn add_delivery(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
    }

    /// The next bytes are summed up and in place.
    fn advance(&mut self, end: u64) {
        while self.deliveries.get(self.done_deliveries).is_some_and(|delivery| delivery.end <= end) {
            self.done_deliveries += 1;
        }
        self.position = end;
    }

    /// How many of the next bytes go to one delivery alone, if its memory can take them.
    fn direct(&mut self) -> Option<u64> {
        if self.checks.begun_wrong {
            return None;
        }
        let [first, rest @ ..] = &mut self.deliveries[self.done_deliveries..] else { return None };
        let at = self.position.checked_sub(first.start)?;
        let end = rest.first().map_or(first.end, |next| next.start.min(first.end));
        let run = end.saturating_sub(self.position).min(self.range.end.saturating_sub(self.position));
        (run >= DIRECT).then(|| run.min(first.destination.memory(at).len() as u64)).filter(|&run| run > 0)
    }

    /// The memory of the next bytes; only after [`ReadSink::direct`].
    fn memory(&mut self) -> &mut [u8] {
        let delivery = &mut self.deliveries[self.done_deliveries];
        delivery.destination.memory(self.position - delivery.start)
    }
}

/// The part of `bytes`, which begin at `position`, that lies in `start..end`.
fn overlap(bytes: &[u8], position: u64, start: u64, end: u64) -> &[u8] {
    let from = start.max(position) - position;
    let to = end.min(position + bytes.len() as u64).saturating_sub(position);
    if from < to { &bytes[from as usize..to as usize] } else { &[] }
}

impl RangeSink for ReadSink {
    fn space(&mut self) -> Space<'_> {
        if let Some(run) = self.direct() {
            return Space::Memory(&mut self.memory()[..run as usize]);
        }
        let ahead = self.deliveries[self.done_deliveries..].iter();
        let next = ahead
            .map(|delivery| (delivery.start.saturating_sub(self.position), delivery.end - delivery.start))
            .take_while(|&(distance, _)| distance < LOOK_AHEAD)
            .find(|&(distance, length)| distance > 0 && length >= DIRECT);
        Space::Write(next.map_or(LOOK_AHEAD, |(distance, _)| distance) as usize)
    }

    fn filled(&mut self, count: usize) -> Result<(), Error> {
        let ReadSink { checks, deliveries, position, done_deliveries, .. } = self;
        let delivery = &mut deliveries[*done_deliveries];
        checks.add(*position, &delivery.destination.memory(*position - delivery.start)[..count]);
        self.advance(self.position + count as u64);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let position = self.position;
        let end = position + bytes.len() as u64;
        if end > self.range.end {
            return Err(corrupt("more bytes than the range has").with_key(self.key.clone()));
        }
        self.checks.add(position, bytes);
        for delivery in &mut self.deliveries[self.done_deliveries..] {
            if delivery.start >= end || self.checks.begun_wrong {
                break;
            }
            let part = overlap(bytes, position, delivery.start, delivery.end);
            if !part.is_empty() {
                delivery.destination.write(position.max(delivery.start) - delivery.start, part);
            }
        }
        self.advance(end);
        Ok(())
    }

    fn restart(&mut self) {
        self.position = self.range.start;
        self.checks.restart();
        self.done_deliveries = 0;
    }

    fn finish(&mut self) -> Result<(), Error> {
        if self.position != self.range.end {
            return Err(corrupt(format!(
                "bytes {}..{} ended at {}",
                self.range.start, self.range.end, self.position
            ))
            .with_key(self.key.clone()));
        }
        match self.checks.failed.map(|failed| self.checks.all[failed]) {
            None => Ok(()),
            Some(Check { start, end, item, of, .. }) => {
                let name = &self.names[item as usize];
                let message = match of {
                    Of::Slice => format!("{name}: the checksum of bytes {start}..{end} does not fit"),
                    Of::Head => {
                        format!(
                            "{name}: at byte {start} is no tensor of the dtype and shape that the index says"
                        )
                    }
                };
                Err(corrupt(message).with_key(self.key.clone()))
            }
        }
    }
}
