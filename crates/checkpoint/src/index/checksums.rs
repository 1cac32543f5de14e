//! CRC-32 of an item and of its slices, so that a part of an item can be verified too.

use crc_fast::{CrcAlgorithm, Digest};
use s3dcp_s3::{Error, crc32_combine};

use crate::error::corrupt;

/// Bytes per slice, counted from the item's first byte; the last slice is what remains.
pub const SLICE_SIZE: u64 = 4 << 20;

/// The checksums an index keeps of one item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemChecksums {
    /// CRC-32 of the whole item.
    pub item: u32,
    /// CRC-32 of each slice of [`SLICE_SIZE`] bytes; empty when the item is one slice or less.
    pub slices: Vec<u32>,
}

impl ItemChecksums {
    /// How many slice checksums an item of `length` bytes has; `None` for an absurd length.
    fn slice_count(length: u64) -> Option<usize> {
        if length <= SLICE_SIZE { Some(0) } else { usize::try_from(length.div_ceil(SLICE_SIZE)).ok() }
    }

    /// Little-endian `u32`s, the item's first.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.item].iter().chain(&self.slices).flat_map(|crc| crc.to_le_bytes()).collect()
    }

    /// The inverse of [`ItemChecksums::to_bytes`].
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no sequence of `u32`s, or none.
    pub fn from_bytes(bytes: &[u8]) -> Result<ItemChecksums, Error> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
            return Err(corrupt(format!("item checksums: {} bytes, must be a multiple of 4", bytes.len())));
        }
        let mut numbers = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let item = numbers.next().unwrap_or_default();
        Ok(ItemChecksums { item, slices: numbers.collect() })
    }

    /// Checks that these can be the checksums of an item of `length` bytes: as many slices as it has, which combine
    /// to the item's own.
    ///
    /// # Errors
    /// `Corrupt` when they cannot.
    pub fn check(&self, length: u64) -> Result<(), Error> {
        if ItemChecksums::slice_count(length) != Some(self.slices.len()) {
            return Err(corrupt(format!(
                "item checksums: {} slices do not fit an item of {length} bytes",
                self.slices.len()
            )));
        }
        let mut whole = 0;
        let mut left = length;
        for &slice in &self.slices {
            let bytes = left.min(SLICE_SIZE);
            whole = crc32_combine(whole, slice, bytes);
            left -= bytes;
        }
        if !self.slices.is_empty() && whole != self.item {
            return Err(corrupt("item checksums: the slices do not combine to the item"));
        }
        Ok(())
    }
}

/// The CRC-32 of some bytes whose own is `crc`, and then `more`. For short runs this costs far less than a
/// combination, whose cost does not depend on the length.
pub(crate) fn crc32_extend(crc: u32, more: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, u64::from(!crc));
    digest.update(more);
    digest.finalize() as u32
}

/// Builds [`ItemChecksums`] from runs of bytes, long ones by their CRC-32, short ones by themselves.
#[derive(Default)]
pub(crate) struct Accumulator {
    item: u32,
    length: u64,
    slices: Vec<u32>,
    slice: u32,
}

impl Accumulator {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes until the current slice is full; a run may not be longer.
    pub(crate) fn slice_remaining(&self) -> u64 {
        SLICE_SIZE - self.length % SLICE_SIZE
    }

    /// Adds a run whose CRC-32 is known.
    pub(crate) fn add(&mut self, crc: u32, length: u64) {
        self.grow(length, |before, before_length| match before_length {
            0 => crc,
            _ => crc32_combine(before, crc, length),
        });
    }

    /// Adds a short run.
    pub(crate) fn add_short(&mut self, run: &[u8]) {
        self.grow(run.len() as u64, |before, _| crc32_extend(before, run));
    }

    /// Applies `extend`, from the CRC-32 and the length so far to the CRC-32 with the run, to the item and the slice.
    fn grow(&mut self, length: u64, extend: impl Fn(u32, u64) -> u32) {
        let starts_slice = self.length.is_multiple_of(SLICE_SIZE);
        if starts_slice && self.length > 0 {
            self.slices.push(self.slice);
        }
        // within the first slice the item's own checksum is the slice's too
        let first = self.length < SLICE_SIZE;
        self.item = extend(self.item, self.length);
        self.slice = match (first, starts_slice) {
            (true, _) => self.item,
            (false, true) => extend(0, 0),
            (false, false) => extend(self.slice, self.length % SLICE_SIZE),
        };
        self.length += length;
    }

    pub(crate) fn finish(mut self) -> ItemChecksums {
        if self.length > SLICE_SIZE {
            self.slices.push(self.slice);
        }
        ItemChecksums { item: self.item, slices: self.slices }
    }
}

#[cfg(test)]
mod tests {
    use s3dcp_s3::crc32;

    use super::*;

    fn slow(bytes: &[u8]) -> ItemChecksums {
        let slices = bytes.chunks(SLICE_SIZE as usize).map(crc32).collect::<Vec<_>>();
        let slices = if slices.len() > 1 { slices } else { Vec::new() };
        ItemChecksums { item: crc32(bytes), slices }
    }

    #[test]
    fn runs_of_any_length_give_the_checksums_of_the_whole() {
        let slice = SLICE_SIZE as usize;
        for length in [0, 1, slice - 1, slice, slice + 1, 2 * slice, 2 * slice + 77] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
            let mut sums = Accumulator::default();
            let mut rest = &bytes[..];
            let mut want = 700_001;
            while !rest.is_empty() {
                let take = rest.len().min(want).min(sums.slice_remaining() as usize);
                match take < 5000 {
                    true => sums.add_short(&rest[..take]),
                    false => sums.add(crc32(&rest[..take]), take as u64),
                }
                rest = &rest[take..];
                want = want * 3 % 1_900_000 + 1;
            }
            let sums = sums.finish();
            assert_eq!(sums, slow(&bytes), "length {length}");
            sums.check(length as u64).unwrap();
            assert_eq!(ItemChecksums::from_bytes(&sums.to_bytes()).unwrap(), sums);
        }
    }

    #[test]
    fn checksums_of_another_length_or_a_wrong_slice_are_refused() {
        let mut sums = slow(&vec![3; 2 * SLICE_SIZE as usize + 5]);
        assert!(sums.check(2 * SLICE_SIZE).is_err());
        assert!(sums.check(u64::MAX).is_err());
        sums.slices[1] ^= 1;
        assert!(sums.check(2 * SLICE_SIZE + 5).is_err());
        assert!(ItemChecksums::from_bytes(&[]).is_err());
        assert!(ItemChecksums::from_bytes(&[1, 2, 3]).is_err());
    }
}
