//! A wanted block of a stored tensor, as runs of bytes: where each lies in the file and where it goes in memory.
//!
//! A block out of the middle of rows is many short runs. They are scattered as the bytes pass, so that such a block
//! needs neither a request per row nor memory for the whole rows.

use s3dcp_s3::Error;

use crate::error::config;

/// One dimension of a block, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDim {
    /// How many there are.
    pub count: u64,
    /// From one to the next in the file.
    pub stored_step: u64,
    /// From one to the next in memory.
    pub target_step: u64,
}

/// Runs of equal length, repeated along dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    run: u64,
    dims: Vec<BlockDim>,
}

impl BlockLayout {
    /// Runs of `run` bytes along `dims`, the outermost first.
    ///
    /// # Errors
    /// `Config` for an empty block, one past 2^63 bytes, or a step in the file shorter than what it steps over.
    pub fn new(run: u64, dims: Vec<BlockDim>) -> Result<BlockLayout, Error> {
        let refuse = |what: &str| Err(config(format!("block of runs of {run} bytes along {dims:?}: {what}")));
        if run == 0 || dims.iter().any(|dim| dim.count == 0) {
            return refuse("it is empty");
        }
        let (mut stored, mut target) = (run, run);
        for dim in dims.iter().rev() {
            if dim.stored_step < stored {
                return refuse("its runs overlap in the file");
            }
            let grown = |extent: u64, step: u64| (dim.count - 1).checked_mul(step)?.checked_add(extent);
            match (grown(stored, dim.stored_step), grown(target, dim.target_step)) {
                (Some(longer), Some(wider)) if longer.max(wider) <= i64::MAX as u64 => {
                    (stored, target) = (longer, wider);
                }
                _ => return refuse("it is too large"),
            }
        }
        Ok(BlockLayout { run, dims })
    }

    /// Hands each wanted run in `bytes`, which begin `at` bytes after the block's first, to `write`, with its place
    /// in memory from the block's first byte there.
    pub fn scatter(&self, at: u64, bytes: &[u8], mut write: impl FnMut(u64, &[u8])) {
        if !bytes.is_empty() {
            visit(&self.dims, self.run, at, bytes, 0, 0, &mut write);
        }
    }
}

fn visit(
    dims: &[BlockDim],
    run: u64,
    at: u64,
    bytes: &[u8],
    stored: u64,
    target: u64,
    write: &mut impl FnMut(u64, &[u8]),
) {
    let end = at + bytes.len() as u64;
    let Some((dim, inner)) = dims.split_first() else {
        let (from, to) = (at.max(stored), end.min(stored + run));
        if from < to {
            write(target + (from - stored), &bytes[(from - at) as usize..(to - at) as usize]);
        }
        return;
    };
    if end <= stored {
        return;
    }
    let first = at.saturating_sub(stored) / dim.stored_step;
    let last = ((end - 1 - stored) / dim.stored_step).min(dim.count - 1);
    for number in first..=last {
        let (stored, target) = (stored + number * dim.stored_step, target + number * dim.target_step);
        visit(inner, run, at, bytes, stored, target, write);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dim(count: u64, stored_step: u64, target_step: u64) -> BlockDim {
        BlockDim { count, stored_step, target_step }
    }

    #[test]
    fn a_block_that_cannot_be_is_refused() {
        for (run, dims) in [
            (0, vec![]),
            (4, vec![dim(0, 8, 8)]),
            (4, vec![dim(2, 3, 8)]),
            (4, vec![dim(2, 10, 8), dim(3, 4, 4)]),
            (4, vec![dim(u64::MAX, 8, 8)]),
            (4, vec![dim(2, 8, u64::MAX)]),
            (u64::MAX, vec![dim(1, u64::MAX, 8)]),
        ] {
            assert!(BlockLayout::new(run, dims.clone()).is_err(), "{run} {dims:?}");
        }
    }

    #[test]
    fn columns_come_out_of_rows() {
        let layout = BlockLayout::new(2, vec![dim(3, 5, 2)]).unwrap();
        let mut columns = Vec::new();
        layout.scatter(0, b"abcdefghijkl", |place, run| columns.push((place, run.to_vec())));
        assert_eq!(columns, [(0, b"ab".to_vec()), (2, b"fg".to_vec()), (4, b"kl".to_vec())]);
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_scatters_the_same(
            run in 1u64..6,
            counts in prop::collection::vec((1u64..4, 0u64..4, 0u64..4), 0..4),
            cuts in prop::collection::vec(0usize..2000, 0..6),
        ) {
            // From the innermost dimension out, each with some room between its steps.
            let (mut stored, mut target, mut dims) = (run, run, Vec::new());
            for (count, gap, spread) in counts {
                dims.insert(0, dim(count, stored + gap, target + spread));
                (stored, target) = ((count - 1) * (stored + gap) + stored, (count - 1) * (target + spread) + target);
            }
            let file: Vec<u8> = (0..stored).map(|place| (place % 251) as u8 + 1).collect();

            let mut expected = vec![0u8; target as usize];
            let mut number = vec![0u64; dims.len()];
            'all: loop {
                let at = |step: fn(&BlockDim) -> u64| -> u64 {
                    dims.iter().zip(&number).map(|(dim, n)| n * step(dim)).sum()
                };
                let (from, to) = (at(|dim| dim.stored_step) as usize, at(|dim| dim.target_step) as usize);
                expected[to..to + run as usize].copy_from_slice(&file[from..from + run as usize]);
                for place in (0..dims.len()).rev() {
                    number[place] += 1;
                    if number[place] < dims[place].count {
                        continue 'all;
                    }
                    number[place] = 0;
                }
                break;
            }

            let layout = BlockLayout::new(run, dims).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (file.len() + 1)).collect();
            cuts.extend([0, file.len()]);
            cuts.sort_unstable();
            let mut memory = vec![0u8; target as usize];
            for pair in cuts.windows(2) {
                layout.scatter(pair[0] as u64, &file[pair[0]..pair[1]], |place, run| {
                    memory[place as usize..place as usize + run.len()].copy_from_slice(run);
                });
            }
            prop_assert_eq!(memory, expected);
        }
    }
}
