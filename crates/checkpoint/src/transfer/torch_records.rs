//! The records of a file of `torch.save`, and where the bytes of each lie.

use std::collections::HashMap;
use std::ops::Range;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use s3dcp_s3::Error;

use crate::archive::directory::{Directory, LOCAL_HEADER, ZipRecord, read_directory};
use crate::error::{config, corrupt};
use crate::storage::Storage;

/// What is asked for of the file's end first, in bytes.
const END_BYTES: u64 = 64 << 10;
/// The longest directory that is read, in bytes: some million records.
const MOST_BYTES: u64 = 128 << 20;
/// Requests under way at once.
const CONCURRENT_READS: usize = 32;

/// The records of a file, by their names without the folder they all lie in.
#[derive(Debug)]
pub(crate) struct TorchRecords {
    records: HashMap<String, ZipRecord>,
    size: u64,
}

fn damaged() -> Error {
    corrupt("torch file: its zip directory is damaged")
}

impl TorchRecords {
    /// Reads the directory of a file.
    pub(crate) async fn read(storage: &Storage, key: &str) -> Result<TorchRecords, Error> {
        let size = storage.head(key).await?.size;
        let mut start = size.saturating_sub(END_BYTES);
        loop {
            match read_directory(&storage.get_range(key, start..size).await?, size) {
                Directory::Records(records) => return Ok(TorchRecords { records: named(records)?, size }),
                Directory::NeedFrom(from) if size - from > MOST_BYTES => {
                    let length = size - from;
                    return Err(corrupt(format!("torch file: a zip directory of {length} bytes")));
                }
                Directory::NeedFrom(from) if from < start => start = from,
                Directory::NeedFrom(_) | Directory::Unknown => return Err(damaged()),
                Directory::NotStored => {
                    return Err(config(
                        "torch file: its records are compressed or encrypted, as torch.save never has them",
                    ));
                }
            }
        }
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
            let header_end = record.header.checked_add(LOCAL_HEADER).filter(|&end| end <= self.size);
            let header = storage.get_range(key, record.header..header_end.ok_or_else(damaged)?).await?;
            record.data(&header, self.size).ok_or_else(damaged)
        });
        located.buffered(CONCURRENT_READS).try_collect().await
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.records.contains_key(name)
    }
}

/// Records by their names below the one folder that holds them all.
fn named(records: Vec<ZipRecord>) -> Result<HashMap<String, ZipRecord>, Error> {
    let mut named = HashMap::with_capacity(records.len());
    let mut folder: Option<String> = None;
    for record in records {
        let (within, name) = record.name.split_once('/').ok_or_else(damaged)?;
        if folder.get_or_insert_with(|| within.to_owned()) != within {
            return Err(damaged());
        }
        let name = name.to_owned();
        if named.insert(name.clone(), record).is_some() {
            return Err(corrupt(format!("torch file: two records are called {name:?}")));
        }
    }
    Ok(named)
}
