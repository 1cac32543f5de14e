//! A chunk of a tensor in bands of bounded size, each of which lies in one run where the chunk is stored row by row.

use crate::load::chunks::Chunk;

/// The bands of a chunk that lies in its tensor, of at most `most_bytes` each or one element.
pub(crate) fn bands(
    chunk: &Chunk,
    item_size: u64,
    most_bytes: u64,
) -> impl Iterator<Item = Chunk> + Send + use<> {
    let chunk = chunk.clone();
    let is_empty = chunk.sizes.iter().any(|&size| size <= 0);
    let most = i128::from((most_bytes / item_size).max(1));
    // The dimension that is cut: within a step of it, all of the narrower ones fit.
    let (mut cut, mut within) = (chunk.sizes.len(), 1i128);
    while cut > 0 && within * i128::from(chunk.sizes[cut - 1]) <= most {
        within *= i128::from(chunk.sizes[cut - 1]);
        cut -= 1;
    }
    let cut = cut.checked_sub(1);
    let step = i64::try_from(most / within.max(1)).unwrap_or(i64::MAX).max(1);
    let steps = |dimension: usize| match Some(dimension) == cut {
        true => (i128::from(chunk.sizes[dimension]) - 1) / i128::from(step) + 1,
        false => i128::from(chunk.sizes[dimension]),
    };
    let counts: Vec<i128> = cut.map_or(Vec::new(), |cut| (0..=cut).map(steps).collect());
    let total =
        if is_empty { 0 } else { counts.iter().fold(1i128, |total, &count| total.saturating_mul(count)) };
    let mut next = 0i128;
    std::iter::from_fn(move || {
        if next == total {
            return None;
        }
        let mut rest = next;
        next += 1;
        let mut band = chunk.clone();
        for (dimension, &count) in counts.iter().enumerate().rev() {
            let length = if Some(dimension) == cut { step } else { 1 };
            let place = (rest % count) as i64 * length;
            rest /= count;
            band.offsets[dimension] += place;
            band.sizes[dimension] = length.min(chunk.sizes[dimension] - place);
        }
        Some(band)
    })
}

/// Bytes of a band; more than there can be is as many as there can be.
pub(crate) fn byte_count(sizes: &[i64], item_size: u64) -> u64 {
    sizes.iter().fold(item_size, |bytes, &size| bytes.saturating_mul(u64::try_from(size).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::chunks::{Cover, check_chunks};

    #[test]
    fn bands_fill_their_chunk_and_none_is_larger_than_it_may_be() {
        for sizes in [&[][..], &[7], &[5, 3], &[4, 1, 6], &[2, 3, 4, 5], &[1, 1], &[100, 1000]] {
            let chunk = Chunk { offsets: vec![0; sizes.len()], sizes: sizes.to_vec() };
            for most in [1, 4, 12, 40, 100, 4000, 1 << 30] {
                let all: Vec<Chunk> = bands(&chunk, 4, most).collect();
                assert_eq!(check_chunks(sizes, &all).unwrap(), Cover::Whole, "{sizes:?} {most}");
                assert!(all.iter().all(|band| byte_count(&band.sizes, 4) <= most.max(4)));
            }
        }
        let far = Chunk { offsets: vec![10, 20], sizes: vec![4, 8] };
        let all: Vec<Chunk> = bands(&far, 1, 16).collect();
        assert_eq!(all[1], Chunk { offsets: vec![12, 20], sizes: vec![2, 8] });
        assert_eq!(bands(&Chunk { offsets: vec![0, 0], sizes: vec![0, 8] }, 1, 16).count(), 0);
        let huge = Chunk { offsets: vec![0, 0], sizes: vec![i64::MAX, i64::MAX] };
        assert_eq!(bands(&huge, 8, 1 << 20).take(3).count(), 3, "no more than is asked for");
    }
}
