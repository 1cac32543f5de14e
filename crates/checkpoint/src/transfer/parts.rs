//! How a file is cut into parts: which ranges of other files the service copies, and which bytes go through this process.
//!
//! A part has 5 MiB at least, but for the last. What is shorter and stands between long ranges is gathered, and takes from the
//! range behind it what it lacks.

use std::ops::Range;
use std::sync::Arc;

use super::body::{Body, Content};

/// What a part must have, but for the last, and a file that ranges are copied of.
const LEAST: u64 = 5 << 20;
/// What a part that goes through this process should have.
const PUSH: u64 = 16 << 20;
/// What a copied part should have at most: many are copied at once.
const COPY: u64 = 128 << 20;
/// A file has 10,000 parts at most. Those that are copied, those before them and the ends of long runs may each be so many.
const MOST: u64 = 3_000;

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FilePart {
    /// Bytes of another file, which the service copies.
    Copy { key: Arc<str>, range: Range<u64> },
    /// Bytes of the body, which are read and sent.
    Push(Range<u64>),
}

/// Bytes of a body that lie in one file in this order, or in none.
struct Run {
    length: u64,
    copied: Option<(Arc<str>, u64)>,
}

/// Cuts a file into parts. `size_of` says how long a file is that the service can copy of.
pub(crate) fn cut(body: &Body, size_of: impl Fn(&str) -> Option<u64>) -> Vec<FilePart> {
    let total = body.length();
    let least = LEAST.max(total.div_ceil(MOST));
    let mut parts = Vec::new();
    let (mut from, mut at) = (0, 0);
    for run in runs(body, size_of) {
        let end = at + run.length;
        let gathered = at - from;
        let borrowed = if gathered == 0 { 0 } else { least.saturating_sub(gathered) };
        if let Some((key, start)) = run.copied.filter(|_| run.length >= borrowed + least) {
            push(from..at + borrowed, &mut parts);
            let start = start + borrowed;
            let count = (run.length - borrowed).div_ceil(COPY.max(least));
            let copy = |range| FilePart::Copy { key: key.clone(), range };
            parts.extend(evenly(start..start + run.length - borrowed, count).map(copy));
            from = end;
        }
        at = end;
    }
    push(from..at, &mut parts);
    parts
}

fn push(range: Range<u64>, parts: &mut Vec<FilePart>) {
    let length = range.end - range.start;
    if length > 0 {
        let count = (length / PUSH).clamp(1, MOST);
        parts.extend(evenly(range, count).map(FilePart::Push));
    }
}

/// A range in so many parts, of which none is longer than another by more than a byte.
fn evenly(range: Range<u64>, count: u64) -> impl Iterator<Item = Range<u64>> {
    let length = range.end - range.start;
    let place =
        move |number: u64| range.start + (u128::from(length) * u128::from(number) / u128::from(count)) as u64;
    (0..count).map(move |number| place(number)..place(number + 1))
}

fn runs(body: &Body, size_of: impl Fn(&str) -> Option<u64>) -> Vec<Run> {
    let mut runs: Vec<(Run, u64)> = Vec::new();
    for piece in body.pieces() {
        let length = piece.range.end - piece.range.start;
        let copied = match &piece.content {
            Content::Item { entry, start, .. } if size_of(&entry.key).is_some_and(|size| size > LEAST) => {
                Some((entry.key.clone(), entry.offset + start))
            }
            _ => None,
        };
        let end = copied.as_ref().map_or(0, |(_, start)| start + length);
        match (runs.last_mut(), &copied) {
            (Some((run, run_end)), Some((key, start)))
                if run.copied.as_ref().is_some_and(|(run_key, _)| run_key == key && run_end == start) =>
            {
                run.length += length;
                *run_end = end;
            }
            (Some((run, _)), None) if run.copied.is_none() => run.length += length,
            _ => runs.push((Run { length, copied }, end)),
        }
    }
    runs.into_iter().map(|(run, _)| run).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::load::source::Entry;

    const MIB: u64 = 1 << 20;

    fn item(body: &mut Body, key: &str, offset: u64, length: u64) {
        let entry = Entry { key: key.into(), offset, length, data_offset: None, checksums: None };
        body.push(Content::Item { name: "".into(), entry, head: None, start: 0 }, length);
    }

    #[test]
    fn small_pieces_take_from_the_range_behind_them_what_a_part_lacks() {
        let mut body = Body::default();
        body.bytes(Bytes::from_static(b"head"));
        item(&mut body, "a", 100, 64 * MIB);
        item(&mut body, "b", 0, 4 * MIB);
        item(&mut body, "c", 7, 300 * MIB);
        body.bytes(Bytes::from_static(b"tail"));
        let parts = cut(&body, |_| Some(1 << 30));
        let copy = |key: &str, range| FilePart::Copy { key: key.into(), range };
        let (lacking, begin) = (5 * MIB - 4, 68 * MIB + 4);
        assert_eq!(parts[0], FilePart::Push(0..5 * MIB));
        assert_eq!(parts[1], copy("a", 100 + lacking..100 + 64 * MIB));
        assert_eq!(parts[2], FilePart::Push(begin - 4 * MIB..begin + MIB));
        assert!(matches!(&parts[3], FilePart::Copy { range, .. } if range.start == 7 + MIB));
        assert_eq!(parts.len(), 7, "three parts of at most 128 MiB, and the tail");
        assert_eq!(parts[6], FilePart::Push(begin + 300 * MIB..body.length()));
    }

    #[test]
    fn neighbours_in_a_file_are_one_range_and_a_small_file_is_not_copied() {
        let mut body = Body::default();
        item(&mut body, "a", 0, 3 * MIB);
        item(&mut body, "a", 3 * MIB, 3 * MIB);
        let parts = cut(&body, |_| Some(6 * MIB));
        assert_eq!(parts, [FilePart::Copy { key: "a".into(), range: 0..6 * MIB }]);
        assert_eq!(cut(&body, |_| Some(5 * MIB)), [FilePart::Push(0..6 * MIB)]);
        assert_eq!(cut(&body, |_| None), [FilePart::Push(0..6 * MIB)]);
        assert_eq!(cut(&Body::default(), |_| None), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_are_the_body_in_order_and_of_sizes_that_s3_takes(
            pieces in prop::collection::vec((0u8..4, 1u64..40, 0u32..40), 1..30),
        ) {
            let mut body = Body::default();
            let mut where_from = Vec::new();
            for (kind, number, shift) in pieces {
                let length = (number << shift.min(33)).min(6 << 30);
                if kind == 0 {
                    // Nobody reads it here, so that it need not have the memory.
                    let entry = Entry {
                        key: "small".into(), offset: 0, length, data_offset: None, checksums: None,
                    };
                    body.push(Content::Item { name: "".into(), entry, head: None, start: 0 }, length);
                    where_from.push((length, None));
                } else {
                    let key = format!("f{kind}");
                    item(&mut body, &key, 1000, length);
                    where_from.push((length, Some((key, 1000))));
                }
            }
            let parts = cut(&body, |key| Some(if key == "small" { 1 } else { 1 << 50 }));
            prop_assert!(parts.len() <= 10_000);
            let mut at = 0;
            for (number, part) in parts.iter().enumerate() {
                let range = match part {
                    FilePart::Copy { range, .. } => range,
                    FilePart::Push(range) => {
                        prop_assert_eq!(range.start, at);
                        range
                    }
                };
                let length = range.end - range.start;
                prop_assert!(length <= 5 << 30);
                prop_assert!(length >= LEAST || number + 1 == parts.len());
                if let FilePart::Copy { key, range } = part {
                    let mut start = 0;
                    let piece = where_from.iter().find(|(length, _)| {
                        let found = at < start + length;
                        start += if found { 0 } else { *length };
                        found
                    });
                    let (_, from) = piece.expect("inside the body");
                    let (from_key, offset) = from.clone().expect("a file that is copied of");
                    prop_assert_eq!(&from_key[..], &key[..]);
                    prop_assert_eq!(range.start, offset + (at - start));
                }
                at += length;
            }
            prop_assert_eq!(at, body.length());
        }
    }
}
