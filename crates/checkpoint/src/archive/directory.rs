//! The directory at the end of a zip archive: where each record is, and what its CRC-32 is.

use std::ops::Range;

use super::parse::directory_range;
use super::zip::{le16, le32, le64};

/// Bytes of a local header before the name.
pub(crate) const LOCAL_HEADER: u64 = 30;
/// Bytes of an entry of the directory before the name.
const ENTRY: usize = 46;
/// What stands for a number that is in the extra field.
const IN_EXTRA: u32 = u32::MAX;

/// A record of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZipRecord {
    pub(crate) name: String,
    /// Its local header's first byte, from the archive's first.
    pub(crate) header: u64,
    /// Bytes of its data.
    pub(crate) length: u64,
    /// Their CRC-32, where the writer noted one.
    pub(crate) crc32: Option<u32>,
}

/// What the end of an archive tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    /// Every record.
    Records(Vec<ZipRecord>),
    /// The directory begins here: come back with all from there on.
    NeedFrom(u64),
    /// No archive that is the whole item.
    Unknown,
    /// Records are compressed or encrypted, as torch never has them.
    NotStored,
}

/// Reads the directory of an archive of `length` bytes from its last ones.
pub(crate) fn read_directory(end: &[u8], length: u64) -> Directory {
    let Some(range) = directory_range(end, length) else { return Directory::Unknown };
    let from = length - end.len() as u64;
    let Some(start) = range.start.checked_sub(from) else { return Directory::NeedFrom(range.start) };
    let mut rest = &end[start as usize..(range.end - from) as usize];
    let mut records = Vec::new();
    while !rest.is_empty() {
        match entry(rest) {
            Some((Some(record), after)) => (rest, _) = (after, records.push(record)),
            Some((None, _)) => return Directory::NotStored,
            None => return Directory::Unknown,
        }
    }
    Directory::Records(records)
}

/// The first record of a directory, `None` for one that is not stored as it is; and what follows.
fn entry(bytes: &[u8]) -> Option<(Option<ZipRecord>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(ENTRY)?;
    if !head.starts_with(b"PK\x01\x02") {
        return None;
    }
    let (flags, method) = (le16(&head[8..]), le16(&head[10..]));
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(le16(&head[at..])));
    let (name, rest) = rest.split_at_checked(name)?;
    let (extra, rest) = rest.split_at_checked(extra)?;
    let (_, rest) = rest.split_at_checked(comment)?;
    let mut wide = zip64(extra).chunks_exact(8).map(le64);
    let mut number = |at: usize| match le32(&head[at..]) {
        IN_EXTRA => wide.next(),
        number => Some(number.into()),
    };
    let (length, stored, header) = (number(24)?, number(20)?, number(42)?);
    let crc32 = le32(&head[16..]);
    let record = ZipRecord {
        name: String::from_utf8_lossy(name).into_owned(),
        header,
        length,
        // torch can be told to compute none.
        crc32: (crc32 != 0).then_some(crc32),
    };
    let is_stored = method == 0 && flags & 1 == 0 && length == stored;
    Some((is_stored.then_some(record), rest))
}

/// The zip64 field of an extra field; empty where there is none.
fn zip64(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let length = usize::from(le16(&head[2..])).min(rest.len());
        if le16(head) == 1 {
            return &rest[..length];
        }
        extra = &rest[length..];
    }
    &[]
}

impl ZipRecord {
    /// Where its data lies, told by its local header, in an archive whose directory begins at `end` or later.
    pub(crate) fn data(&self, local_header: &[u8], end: u64) -> Option<Range<u64>> {
        if local_header.len() < LOCAL_HEADER as usize || !local_header.starts_with(b"PK\x03\x04") {
            return None;
        }
        let names = u64::from(le16(&local_header[26..])) + u64::from(le16(&local_header[28..]));
        let start = self.header.checked_add(LOCAL_HEADER + names)?;
        let range = start..start.checked_add(self.length)?;
        (range.end <= end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use s3dcp_s3::crc32;

    use super::*;

    #[test]
    fn every_record_of_torchs_archives_is_found_with_its_checksum() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/archives");
        let mut seen = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            let length = bytes.len() as u64;
            if !bytes.starts_with(b"PK") {
                continue;
            }
            let Directory::NeedFrom(start) = read_directory(&bytes[bytes.len() - 98..], length) else {
                panic!("it is longer than its end");
            };
            let Directory::Records(records) = read_directory(&bytes[start as usize..], length) else {
                panic!("all of it is there");
            };
            for record in records.iter().filter(|record| record.crc32.is_some()) {
                let data = record.data(&bytes[record.header as usize..], start).unwrap();
                let data = &bytes[data.start as usize..data.end as usize];
                assert_eq!(Some(crc32(data)), record.crc32, "{}", record.name);
                seen += 1;
            }
            assert_eq!(read_directory(&bytes[..bytes.len() - 1], length - 1), Directory::Unknown);
        }
        assert!(seen >= 12);
    }

    #[test]
    fn no_bytes_are_a_reason_to_panic() {
        let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/archives/float32_2x3.pt");
        let mut bytes = fs::read(archive).unwrap();
        let length = bytes.len();
        for place in length.saturating_sub(800)..length {
            for value in [0, 1, 0x7f, 0xff] {
                let before = std::mem::replace(&mut bytes[place], value);
                if let Directory::Records(records) = read_directory(&bytes, length as u64) {
                    for record in records {
                        let header = usize::try_from(record.header).ok().and_then(|at| bytes.get(at..));
                        record.data(header.unwrap_or_default(), length as u64);
                    }
                }
                bytes[place] = before;
            }
        }
    }
}
