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
    /// The pieces that fill these parts of `memory`, which do not overlap, in their order.
    ///
    /// Parts that lie in one run each get memory of their own; as soon as one is scattered, all take turns.
    pub(crate) fn of(mut memory: BytesMut, parts: Vec<Part>) -> (Loan, Vec<Piece>) {
        let loan = Loan::default();
        let piece = |part: Part, destination| Piece { item_range: part.item_range, destination };
        if parts.iter().any(|part| part.runs.is_some()) {
            loan.give(0, memory);
            let turns = parts.into_iter().map(|part| {
                let (base, runs) = (part.memory.start, part.runs.clone());
                piece(part, Box::new(Turns { loan: loan.clone(), base, runs }) as Box<dyn Destination>)
            });
            return (loan.clone(), turns.collect());
        }
        let mut places: Vec<(usize, Part)> = parts.into_iter().enumerate().collect();
        places.sort_unstable_by_key(|(_, part)| part.memory.start);
        let mut pieces = Vec::with_capacity(places.len());
        let mut at = 0;
        for (number, part) in places {
            loan.give(at, memory.split_to((part.memory.start - at) as usize));
            let bytes = memory.split_to((part.memory.end - part.memory.start) as usize);
            let start = part.memory.start;
            at = part.memory.end;
            pieces.push((number, piece(part, Box::new(Lent { loan: loan.clone(), start, bytes }))));
        }
        loan.give(at, memory);
        pieces.sort_unstable_by_key(|(number, _)| *number);
        (loan, pieces.into_iter().map(|(_, piece)| piece).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_the_order_of_their_parts_wherever_these_lie_in_memory() {
        let part = |at: u64, place: u64| Part {
            item_range: at..at + 2,
            memory: place..place + 2,
            runs: None,
            elements: 0..1,
        };
        let (loan, pieces) = Loan::of(BytesMut::zeroed(6), vec![part(10, 4), part(20, 0), part(30, 2)]);
        let starts: Vec<u64> = pieces.iter().map(|piece| piece.item_range.start).collect();
        assert_eq!(starts, [10, 20, 30]);
        for (mut piece, bytes) in pieces.into_iter().zip([b"ef", b"ab", b"cd"]) {
            piece.destination.write(0, bytes);
        }
        assert_eq!(&loan.back()[..], b"abcdef");
    }
}
