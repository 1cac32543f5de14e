//! What happens to the bytes of one range: each goes to the pieces that want it, and the checked runs are summed up.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crc_fast::{CrcAlgorithm, Digest};
use s3dcp_s3::{Error, RangeSink};

use crate::error::corrupt;
use crate::read_plan::Destination;

/// A run of a file whose CRC-32 is known.
pub(crate) struct Check {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) crc: u32,
    pub(crate) name: String,
}

/// A run of a file and where it goes.
pub(crate) struct Target {
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

/// Cuts a target at these places of its file, in order, all inside it.
pub(crate) fn share(target: Target, cuts: impl Iterator<Item = u64>) -> Vec<Target> {
    let mut parts = Vec::new();
    let mut cuts = cuts.peekable();
    let mut rest = target;
    while let Some(&cut) = cuts.peek() {
        let Some(tail) = rest.destination.split(cut - rest.start) else { break };
        cuts.next();
        let end = std::mem::replace(&mut rest.end, cut);
        parts.push(rest);
        rest = Target { start: cut, end, destination: tail };
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
        parts.push(Target { start, end, destination });
        start = end;
    }
    parts
}

/// The sink of one range.
pub(crate) struct ReadSink {
    key: String,
    range: Range<u64>,
    position: u64,
    checks: Vec<(Check, Digest)>,
    targets: Vec<Target>,
    /// Checks and targets below these places have ended.
    done_checks: usize,
    done_targets: usize,
}

impl ReadSink {
    pub(crate) fn new(key: &str, range: Range<u64>) -> ReadSink {
        ReadSink {
            key: key.to_owned(),
            position: range.start,
            range,
            checks: Vec::new(),
            targets: Vec::new(),
            done_checks: 0,
            done_targets: 0,
        }
    }

    /// To be called in the order of their starts.
    pub(crate) fn add_check(&mut self, check: Check) {
        self.checks.push((check, Digest::new(CrcAlgorithm::Crc32IsoHdlc)));
    }

    /// To be called in the order of their starts.
    pub(crate) fn add_target(&mut self, target: Target) {
        self.targets.push(target);
    }
}

/// The part of `bytes`, which begin at `position`, that lies in `start..end`.
fn overlap(bytes: &[u8], position: u64, start: u64, end: u64) -> &[u8] {
    let from = start.max(position) - position;
    let to = end.min(position + bytes.len() as u64).saturating_sub(position);
    if from < to { &bytes[from as usize..to as usize] } else { &[] }
}

impl RangeSink for ReadSink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let position = self.position;
        let end = position + bytes.len() as u64;
        if end > self.range.end {
            return Err(corrupt("more bytes than the range has").with_key(self.key.clone()));
        }
        for (check, digest) in &mut self.checks[self.done_checks..] {
            if check.start >= end {
                break;
            }
            digest.update(overlap(bytes, position, check.start, check.end));
        }
        for target in &mut self.targets[self.done_targets..] {
            if target.start >= end {
                break;
            }
            let part = overlap(bytes, position, target.start, target.end);
            if !part.is_empty() {
                target.destination.write(position.max(target.start) - target.start, part);
            }
        }
        while self.checks.get(self.done_checks).is_some_and(|(check, _)| check.end <= end) {
            self.done_checks += 1;
        }
        while self.targets.get(self.done_targets).is_some_and(|target| target.end <= end) {
            self.done_targets += 1;
        }
        self.position = end;
        Ok(())
    }

    fn restart(&mut self) {
        self.position = self.range.start;
        self.done_checks = 0;
        self.done_targets = 0;
        for (_, digest) in &mut self.checks {
            digest.reset();
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        if self.position != self.range.end {
            return Err(corrupt(format!(
                "bytes {}..{} ended at {}",
                self.range.start, self.range.end, self.position
            ))
            .with_key(self.key.clone()));
        }
        for (check, digest) in &self.checks {
            if digest.finalize() != u64::from(check.crc) {
                return Err(corrupt(format!(
                    "{}: the checksum of bytes {}..{} does not fit",
                    check.name, check.start, check.end
                ))
                .with_key(self.key.clone()));
            }
        }
        Ok(())
    }
}
