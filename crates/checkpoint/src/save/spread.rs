//! Which item goes into which of a rank's shard files.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The number of each item's file, so that `files` files get about equally many bytes: the largest item first, each into
/// the file that has least so far. An item of no bytes counts as one byte.
#[must_use]
pub fn spread(sizes: &[u64], files: usize) -> Vec<usize> {
    let mut largest_first: Vec<usize> = (0..sizes.len()).collect();
    largest_first.sort_by_key(|&item| Reverse(sizes[item]));
    let mut loads: BinaryHeap<_> = (0..files).map(|file| Reverse((0, file))).collect();
    let mut numbers = vec![0; sizes.len()];
    for item in largest_first {
        let Some(mut least) = loads.peek_mut() else { break };
        let Reverse((bytes, file)) = &mut *least;
        *bytes += sizes[item].max(1);
        numbers[item] = *file;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_about_equally_much() {
        assert_eq!(spread(&[1, 5, 3, 3, 2], 2), [1, 0, 1, 1, 0]);
        assert_eq!(spread(&[0, 0, 0, 0], 2), [0, 1, 0, 1]);
        assert_eq!(spread(&[7, 8], 4), [1, 0]);
        assert!(spread(&[], 3).is_empty());
    }
}
