//! Memory of a Rust caller, lent to a read and given back without a copy.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;

use super::cut::{Part, Runs};
use super::destination::Destination;
use super::plan::Piece;

/// Memory that is lent out, by where each part of it begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loan(Arc<Mutex<Vec<(u64, BytesMut)>>>);

impl Loan {
    /// The pieces that fill these parts of `memory`, which do not overlap.
    ///
    /// Parts that lie in one run each get memory of their own; as soon as one is scattered, all take turns.
    pub(crate) fn of(mut memory: BytesMut, mut parts: Vec<Part>) -> (Loan, Vec<Piece>) {
        let loan = Loan::default();
        parts.sort_unstable_by_key(|part| part.memory.start);
        let piece = |part: Part, destination| Piece { item_range: part.item_range, destination };
        let mut pieces: Vec<Piece> = Vec::with_capacity(parts.len());
        if parts.iter().any(|part| part.runs.is_some()) {
            loan.give(0, memory);
            for part in parts {
                let (base, runs) = (part.memory.start, part.runs.clone());
                pieces.push(piece(part, Box::new(Turns { loan: loan.clone(), base, runs })));
            }
            return (loan, pieces);
        }
        let mut at = 0;
        for part in parts {
            loan.give(at, memory.split_to((part.memory.start - at) as usize));
            let bytes = memory.split_to((part.memory.end - part.memory.start) as usize);
            let start = part.memory.start;
            at = part.memory.end;
            pieces.push(piece(part, Box::new(Lent { loan: loan.clone(), start, bytes })));
        }
        loan.give(at, memory);
        (loan, pieces)
    }

    fn give(&self, start: u64, bytes: BytesMut) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((start, bytes));
    }

    /// The memory, once the read has ended.
    pub(crate) fn back(self) -> BytesMut {
        let mut parts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        parts.retain(|(_, bytes)| !bytes.is_empty());
        parts.sort_unstable_by_key(|(start, _)| *start);
        let mut whole = BytesMut::new();
        for (_, bytes) in parts {
            whole.unsplit(bytes);
        }
        whole
    }
}

/// A part that is written alone.
struct Lent {
    loan: Loan,
    start: u64,
    bytes: BytesMut,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.loan.give(self.start, std::mem::take(&mut self.bytes));
    }
}

impl Destination for Lent {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.memory(offset)[..bytes.len()].copy_from_slice(bytes);
    }

    fn memory(&mut self, offset: u64) -> &mut [u8] {
        &mut self.bytes[offset as usize..]
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let bytes = self.bytes.split_off(usize::try_from(at).ok().filter(|&at| at <= self.bytes.len())?);
        Some(Box::new(Lent { loan: self.loan.clone(), start: self.start + at, bytes }))
    }
}

/// A part of memory that is written in turns with others.
struct Turns {
    loan: Loan,
    base: u64,
    runs: Option<Runs>,
}

impl Destination for Turns {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut parts = self.loan.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [(_, memory)] = &mut parts[..] else { return };
        let memory = &mut memory[self.base as usize..];
        let mut put = |place: u64, run: &[u8]| memory[place as usize..][..run.len()].copy_from_slice(run);
        match &self.runs {
            Some(runs) => runs.scatter(offset, bytes, put),
            None => put(offset, bytes),
        }
    }

    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let (base, runs) = match &self.runs {
            Some(runs) => (self.base, Some(runs.after(at))),
            None => (self.base + at, None),
        };
        Some(Box::new(Turns { loan: self.loan.clone(), base, runs }))
    }
}
