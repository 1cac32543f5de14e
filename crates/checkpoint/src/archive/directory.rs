//! Reads the directory of a zip file of torch: its records, and where the bytes of each lie.

use std::collections::HashMap;
use std::ops::Range;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use s3dcp_s3::Error;

use super::zip::{le16, le32, le64};
use crate::error::{config, corrupt};
use crate::storage::Storage;

/// The end record, and the two of zip64 before it.
const END: usize = 22;
const LOCATOR: usize = 20;
/// The longest directory that is read, in bytes: some million records.
const MOST_BYTES: u64 = 128 << 20;
/// Requests under way at once.
const CONCURRENT_READS: usize = 32;

/// A record of a zip file, stored as it is.
#[derive(Clone, Debug)]
struct Record {
    header: u64,
    length: u64,
}

/// The records of a file of `torch.save`, by their names without the folder they all lie in.
#[derive(Debug)]
pub(crate) struct Directory {
    records: HashMap<String, Record>,
    size: u64,
}

fn damaged() -> Error {
    corrupt("torch file: its zip directory is damaged")
}

impl Directory {
    /// Reads the directory of a file.
    pub(crate) async fn read(storage: &Storage, key: &str) -> Result<Directory, Error> {
        let size = storage.head(key).await?.size;
        let start = size.saturating_sub((END + LOCATOR) as u64);
        let tail = storage.get_range(key, start..size).await?;
        let Some((before, end)) = tail.split_last_chunk::<END>() else { return Err(damaged()) };
        if !end.starts_with(b"PK\x05\x06") {
            return Err(damaged());
        }
        let mut length = u64::from(le32(&end[12..]));
        let mut offset = u64::from(le32(&end[16..]));
        if let Some(locator) = before.last_chunk::<LOCATOR>()
            && locator.starts_with(b"PK\x06\x07")
        {
            let at = le64(&locator[8..]);
            let record_end = at.checked_add(56).filter(|&end| end <= size).ok_or_else(damaged)?;
            let record = storage.get_range(key, at..record_end).await?;
            if !record.starts_with(b"PK\x06\x06") {
                return Err(damaged());
            }
            (length, offset) = (le64(&record[40..]), le64(&record[48..]));
        }
        let end = offset.checked_add(length).filter(|&end| end <= size).ok_or_else(damaged)?;
        if length > MOST_BYTES {
            return Err(corrupt(format!("torch file: a zip directory of {length} bytes")));
        }
        let bytes = storage.get_range(key, offset..end).await?;
        Ok(Directory { records: records(&bytes)?, size })
    }

    /// Where the bytes of these records lie, in their order.
    pub(crate) async fn locate(
        &self,
        storage: &Storage,
        key: &str,
        names: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Range<u64>>, Error> {
        let located = stream::iter(names).map(|name| async move {
            let record = self.records.get(&name);
            let record = record.ok_or_else(|| corrupt(format!("torch file: it has no record {name:?}")))?;
            let header_end =
                record.header.checked_add(30).filter(|&end| end <= self.size).ok_or_else(damaged)?;
            let header = storage.get_range(key, record.header..header_end).await?;
            if !header.starts_with(b"PK\x03\x04") {
                return Err(damaged());
            }
            let start = header_end + u64::from(le16(&header[26..])) + u64::from(le16(&header[28..]));
            let end = start.checked_add(record.length).filter(|&end| end <= self.size);
            Ok(start..end.ok_or_else(damaged)?)
        });
        located.buffered(CONCURRENT_READS).try_collect().await
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.records.contains_key(name)
    }
}

fn records(mut bytes: &[u8]) -> Result<HashMap<String, Record>, Error> {
    let mut records = HashMap::new();
    let mut folder: Option<&[u8]> = None;
    while !bytes.is_empty() {
        if bytes.len() < 46 || !bytes.starts_with(b"PK\x01\x02") {
            return Err(damaged());
        }
        let (flags, method) = (le16(&bytes[8..]), le16(&bytes[10..]));
        let lengths = [28, 30, 32].map(|at| usize::from(le16(&bytes[at..])));
        let (name_end, extra_end) = (46 + lengths[0], 46 + lengths[0] + lengths[1]);
        let next = extra_end + lengths[2];
        let name = bytes.get(46..name_end).ok_or_else(damaged)?;
        let extra = bytes.get(name_end..extra_end).ok_or_else(damaged)?;
        let (mut stored, mut length) = (u64::from(le32(&bytes[20..])), u64::from(le32(&bytes[24..])));
        let mut header = u64::from(le32(&bytes[42..]));
        let wide = [&mut length, &mut stored, &mut header].into_iter();
        let mut fields = zip64(extra).chunks_exact(8);
        for field in wide.filter(|field| **field == u64::from(u32::MAX)) {
            *field = fields.next().map(le64).ok_or_else(damaged)?;
        }
        if method != 0 || flags & 1 != 0 || stored != length {
            return Err(config(
                "torch file: its records are compressed or encrypted, as torch.save never has them",
            ));
        }
        let slash = name.iter().position(|&byte| byte == b'/').ok_or_else(damaged)?;
        if *folder.get_or_insert(&name[..slash]) != &name[..slash] {
            return Err(damaged());
        }
        let name = std::str::from_utf8(&name[slash + 1..]).map_err(|_| damaged())?;
        if records.insert(name.to_owned(), Record { header, length }).is_some() {
            return Err(corrupt(format!("torch file: two records are called {name:?}")));
        }
        bytes = bytes.get(next..).ok_or_else(damaged)?;
    }
    Ok(records)
}

/// The fields of the zip64 extra.
fn zip64(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (id, length) = (le16(extra), usize::from(le16(&extra[2..])));
        let Some(body) = extra.get(4..4 + length) else { break };
        if id == 1 {
            return body;
        }
        extra = &extra[4 + length..];
    }
    &[]
}
