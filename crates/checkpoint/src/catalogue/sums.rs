//! Bytes of a download summed up as they pass, and kept nowhere.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use s3dcp_s3::crc32_combine;

use crate::index::checksums::crc32_extend;
use crate::load::destination::Destination;

/// A run of bytes whose checksum is known.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// Its item.
    pub(crate) item: usize,
    /// Bytes of the item.
    pub(crate) range: Range<u64>,
    pub(crate) crc32: u32,
    /// How many of them are a head, and the CRC-32 of that.
    pub(crate) head: Option<(u64, u32)>,
    /// What the run is, in messages.
    pub(crate) what: Run,
}

/// The item of a run, which bytes of it, and their CRC-32.
pub(crate) type RunId = (usize, Range<u64>, u32);

impl Expected {
    pub(crate) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub(crate) fn id(&self) -> RunId {
        (self.item, self.range.clone(), self.crc32)
    }
}

/// What a run is.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    /// A slice of an item.
    Slice,
    /// A record of an archive, by its name.
    Record(String),
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// The bytes are others.
    Bad,
    /// They begin with another head than dtype and shape say.
    BadHead,
}

/// Takes the sums of runs as they are complete.
pub(crate) trait Judge: Send + Sync {
    /// The run with this number was read.
    fn judged(&self, run: usize, verdict: Verdict);
}

/// The sums of one download.
pub(crate) struct Sums {
    expected: Arc<Vec<Expected>>,
    judge: Arc<dyn Judge>,
    /// Of runs that came in several ranges: what is known of them.
    parts: Mutex<HashMap<usize, Vec<Part>>>,
}

/// The sum of a part of a run.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    length: u64,
    crc32: u32,
    /// Of the head alone, where the part has all of it.
    head: Option<u32>,
}

impl Sums {
    pub(crate) fn new(expected: Arc<Vec<Expected>>, judge: Arc<dyn Judge>) -> Arc<Sums> {
        Arc::new(Sums { expected, judge, parts: Mutex::default() })
    }

    /// What sums up the run with this number.
    pub(crate) fn of(self: &Arc<Sums>, run: usize) -> Box<dyn Destination> {
        let expected = &self.expected[run];
        Box::new(Sum {
            sums: self.clone(),
            run,
            length: expected.length(),
            head_length: expected.head.map(|(length, _)| length),
            part: Part { start: 0, length: 0, crc32: 0, head: None },
        })
    }

    fn add(&self, run: usize, part: Part) {
        let expected = &self.expected[run];
        let Expected { crc32, head, .. } = expected;
        let length = expected.length();
        let mut whole = vec![part];
        if part.length < length {
            let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            let known = parts.entry(run).or_default();
            known.push(part);
            if known.iter().map(|part| part.length).sum::<u64>() < length {
                return;
            }
            whole = parts.remove(&run).unwrap_or_default();
            whole.sort_unstable_by_key(|part| part.start);
        }
        let sum = whole.iter().fold(0, |sum, part| crc32_combine(sum, part.crc32, part.length));
        let verdict = match head {
            _ if sum != *crc32 => Verdict::Bad,
            Some((_, expected)) if whole[0].head.is_some_and(|head| head != *expected) => Verdict::BadHead,
            _ => Verdict::Good,
        };
        self.judge.judged(run, verdict);
    }
}

/// Sums up a part of a run, and tells of it when all of it has passed.
struct Sum {
    sums: Arc<Sums>,
    run: usize,
    length: u64,
    head_length: Option<u64>,
    part: Part,
}

impl Destination for Sum {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if offset == 0 {
            // The first time, or once more.
            self.part = Part { length: 0, crc32: 0, head: None, ..self.part };
        }
        let mut rest = bytes;
        if let Some(head) = self.head_length.filter(|_| self.part.start == 0 && self.part.head.is_none())
            && head <= offset + bytes.len() as u64
        {
            let (first, after) = bytes.split_at(head.saturating_sub(offset) as usize);
            self.part.crc32 = crc32_extend(self.part.crc32, first);
            self.part.head = Some(self.part.crc32);
            rest = after;
        }
        self.part.crc32 = crc32_extend(self.part.crc32, rest);
        self.part.length = offset + bytes.len() as u64;
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let length = self.length.checked_sub(at)?;
        self.length = at;
        let part = Part { start: self.part.start + at, length: 0, crc32: 0, head: None };
        Some(Box::new(Sum {
            sums: self.sums.clone(),
            run: self.run,
            length,
            head_length: self.head_length,
            part,
        }))
    }
}

impl Drop for Sum {
    fn drop(&mut self) {
        if self.part.length == self.length {
            self.sums.add(self.run, self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use s3dcp_s3::crc32;

    use super::*;

    #[derive(Default)]
    struct Noted(Mutex<Vec<(usize, Verdict)>>);

    impl Judge for Noted {
        fn judged(&self, run: usize, verdict: Verdict) {
            self.0.lock().unwrap().push((run, verdict));
        }
    }

    fn judged(bytes: &[u8], expected: Expected, cuts: &[u64], again: bool) -> Vec<(usize, Verdict)> {
        let noted = Arc::new(Noted::default());
        let sums = Sums::new(Arc::new(vec![expected]), noted.clone());
        let mut parts = vec![(0u64, sums.of(0))];
        for &cut in cuts {
            let (start, last) = parts.last_mut().unwrap();
            let tail = last.split(cut - *start).unwrap();
            parts.push((cut, tail));
        }
        let ends: Vec<u64> = cuts.iter().copied().chain([bytes.len() as u64]).collect();
        for ((start, mut part), end) in parts.into_iter().zip(ends).rev() {
            let bytes = &bytes[start as usize..end as usize];
            if again {
                part.write(0, &[9; 2][..bytes.len().min(2)]);
            }
            for (number, few) in bytes.chunks(3).enumerate() {
                part.write(number as u64 * 3, few);
            }
        }
        let noted = noted.0.lock().unwrap();
        noted.clone()
    }

    #[test]
    fn a_run_is_judged_once_all_of_it_has_passed_however_it_came() {
        let bytes: Vec<u8> = (0..40).collect();
        let head = Some((7, crc32(&bytes[..7])));
        let good = Expected { item: 0, range: 0..40, crc32: crc32(&bytes), head, what: Run::Slice };
        for cuts in [&[][..], &[20], &[10, 11, 39]] {
            for again in [false, true] {
                assert_eq!(judged(&bytes, good.clone(), cuts, again), [(0, Verdict::Good)]);
            }
            let other = Expected { head: Some((7, 1)), ..good.clone() };
            assert_eq!(judged(&bytes, other, cuts, false), [(0, Verdict::BadHead)]);
            let other = Expected { crc32: 1, ..good.clone() };
            assert_eq!(judged(&bytes, other, cuts, false), [(0, Verdict::Bad)]);
        }
        assert_eq!(judged(&bytes[..39], good, &[], false), [], "cut short");
    }
}
