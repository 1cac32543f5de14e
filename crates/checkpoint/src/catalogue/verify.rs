//! Whether a checkpoint is whole and what was saved: every file there, every item in it, every checksum.
//!
//! Nothing of what is read is kept: it is summed up as it passes. Whatever is found wrong is noted, and the rest is looked
//! at all the same. An item whose bytes do not fit is read once more before it is called damaged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, ObjectInfo, crc32, crc32_combine};
use serde::Serialize;

use super::open::OpenCheckpoint;
use super::sums::{Expected, Judge, Run, RunId, Sums, Verdict};
use super::verified::Verified;
use super::walk::is_fault;
use crate::archive::directory::{Directory, LOCAL_HEADER, ZipRecord, read_directory};
use crate::index::checksums::SLICE_SIZE;
use crate::load::chunks::{Chunk, Cover, check_chunks};
use crate::load::contents::{Stored, StoredTensor};
use crate::load::fetch::{fetch_items, read_ranges};
use crate::load::foreign::{ForeignTensor, foreign_sources};
use crate::load::plan::Piece;
use crate::load::source::{Entry, OwnFormats};
use crate::storage::Storage;

/// HEAD requests under way at once.
const CONCURRENT_HEADS: usize = 32;
/// Items whose heads or directories are read at once.
const ITEMS: usize = 4096;
/// What is asked for of an archive's end first, in bytes.
const END_BYTES: u64 = 2048;
/// Runs, and bytes, that are planned as one download.
const BATCH_RUNS: usize = 1 << 16;
const BATCH_BYTES: u64 = 64 << 30;
/// Bytes of a file in no item that `quick` reads, such as a header of safetensors.
const MOST_BETWEEN: u64 = 4 << 20;

/// How to verify.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Read no items: compare sizes, and the checksums of whole files that the storage keeps.
    pub quick: bool,
    /// A file that keeps what has been verified, from which a run that was killed goes on. It is deleted at the end.
    pub resume: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The folder of the checkpoint's index, as a URI or a local path.
    pub uri: String,
    /// Whether nothing was found wrong.
    pub good: bool,
    /// Whether no items were read.
    pub quick: bool,
    /// Files that the index names.
    pub files: u64,
    /// Items: chunks of tensors, and objects.
    pub items: u64,
    /// Bytes of the items.
    pub bytes: u64,
    /// Bytes that were read and summed up.
    pub read_bytes: u64,
    /// Bytes that an earlier run had verified.
    pub resumed_bytes: u64,
    /// Items by what vouches for them.
    pub by: VerifiedBy,
    /// What is wrong.
    pub faults: Vec<VerifyFault>,
}

/// How many items were compared, and with what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifiedBy {
    /// With the checksums in the index.
    pub index: u64,
    /// With those in their own archives, of items that others wrote.
    pub archive: u64,
    /// With those of their whole files that the storage keeps.
    pub storage: u64,
    /// Heads and sizes alone: nothing vouches for their values.
    pub head: u64,
    /// Sizes alone.
    pub size: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyFault {
    /// The item.
    pub name: Option<String>,
    /// The rank in whose own index it is.
    pub rank: Option<u64>,
    /// The file, as a URI or a local path.
    pub file: Option<String>,
    /// Where the item begins in it, in bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// An item as its index places it.
struct Item<'a> {
    name: &'a str,
    rank: Option<u64>,
    /// Dtype and shape of a tensor's chunk.
    tensor: Option<(&'a StoredTensor, &'a Chunk)>,
    stored: &'a Stored,
    /// Its bytes are elsewhere than the index says, as another's file of safetensors tells.
    placed: Option<Range<u64>>,
    faulty: bool,
}

impl Item<'_> {
    fn entry(&self) -> &Entry {
        &self.stored.entry
    }

    fn range(&self) -> Range<u64> {
        let Entry { offset, length, .. } = *self.entry();
        self.placed.clone().unwrap_or(offset..offset.saturating_add(length))
    }
}

/// Verifies an open checkpoint. `read` hears of bytes as they are verified, and how many there are in all.
///
/// # Errors
/// Those of requests, and `Config` for a `resume` that is no such file. What is wrong with the checkpoint is no error.
pub async fn verify(
    checkpoint: &OpenCheckpoint,
    options: &VerifyOptions,
    read: impl Fn(u64, u64) + Send + Sync + 'static,
) -> Result<Verification, Error> {
    let verified = options.resume.as_ref().map(|path| Verified::open(path, checkpoint)).transpose()?;
    let mut verifier = Verifier {
        storage: &checkpoint.storage,
        items: Vec::new(),
        report: Verification { uri: checkpoint.uri.clone(), quick: options.quick, ..Verification::default() },
    };
    verifier.take_items(checkpoint);
    let files = verifier.files(options.quick).await?;
    verifier.check_places(&files);
    if options.quick {
        verifier.check_overlaps();
        verifier.compare_files(&files).await?;
    } else {
        verifier.check_heads().await?;
        verifier.check_overlaps();
        verifier.sum_up(&files, verified, read).await?;
    }
    let mut report = verifier.report;
    report.good = report.faults.is_empty();
    report.faults.sort_by(|one, other| {
        (&one.name, &one.file, one.offset, &one.what).cmp(&(
            &other.name,
            &other.file,
            other.offset,
            &other.what,
        ))
    });
    report.faults.dedup();
    Ok(report)
}

struct Verifier<'a> {
    storage: &'a Storage,
    items: Vec<Item<'a>>,
    report: Verification,
}

/// What is known of each file, by key.
type Files = BTreeMap<Arc<str>, (ObjectInfo, Option<u32>)>;

impl<'a> Verifier<'a> {
    /// Takes the items out of the indexes, and sees that chunks fill their tensors.
    fn take_items(&mut self, checkpoint: &'a OpenCheckpoint) {
        let ranks = checkpoint.indexes.iter().find_map(|index| index.load.facts().ranks);
        let found = checkpoint.indexes.len() as u64;
        if let Some(ranks) =
            ranks.filter(|&ranks| checkpoint.indexes[0].rank.is_some() && ranks != found && found > 1)
        {
            self.fault(None, format!("{ranks} ranks saved it, but there are indexes of {found}"));
        }
        let mut tensors: BTreeMap<&str, Vec<(Option<u64>, &StoredTensor)>> = BTreeMap::new();
        for index in &checkpoint.indexes {
            let (rank, contents) = (index.rank, index.load.contents());
            for (name, tensor) in &contents.tensors {
                tensors.entry(name).or_default().push((rank, tensor));
                for chunk in &tensor.chunks {
                    self.take(name, rank, Some((tensor, &chunk.chunk)), chunk.stored.as_ref());
                }
            }
            for (name, stored) in &contents.objects {
                self.take(name, rank, None, stored.as_ref());
            }
        }
        // One rank's own index alone holds what that rank saved.
        let is_part = checkpoint.indexes[0].rank.is_some() && found == 1 && ranks != Some(1);
        for (name, tensors) in tensors {
            if let Err(what) = fills(&tensors, is_part) {
                let (rank, _) = tensors[0];
                self.report.faults.push(VerifyFault {
                    name: Some(name.to_owned()),
                    rank: rank.filter(|_| tensors.len() == 1),
                    file: None,
                    offset: None,
                    what,
                });
            }
        }
        self.report.items = self.items.len() as u64;
        self.report.bytes = self.items.iter().map(|item| item.entry().length).fold(0, u64::saturating_add);
    }

    fn take(
        &mut self,
        name: &'a str,
        rank: Option<u64>,
        tensor: Option<(&'a StoredTensor, &'a Chunk)>,
        stored: Option<&'a Stored>,
    ) {
        match stored {
            Some(stored) => {
                self.items.push(Item { name, rank, tensor, stored, placed: None, faulty: false });
            }
            None if tensor.is_some_and(|(_, chunk)| chunk.sizes.contains(&0)) => {}
            None => self.report.faults.push(VerifyFault {
                name: Some(name.to_owned()),
                rank,
                file: None,
                offset: None,
                what: "the index does not say where this item is stored".to_owned(),
            }),
        }
    }

    fn fault(&mut self, item: Option<usize>, what: impl Into<String>) {
        let item = item.map(|item| {
            self.items[item].faulty = true;
            &self.items[item]
        });
        self.report.faults.push(VerifyFault {
            name: item.map(|item| item.name.to_owned()),
            rank: item.and_then(|item| item.rank),
            file: item.map(|item| self.storage.uri(&item.entry().key)),
            offset: item.map(|item| item.entry().offset),
            what: what.into(),
        });
    }

    fn file_fault(&mut self, key: &str, what: impl Into<String>) {
        self.report.faults.push(VerifyFault {
            name: None,
            rank: None,
            file: Some(self.storage.uri(key)),
            offset: None,
            what: what.into(),
        });
    }

    /// Asks for every file.
    async fn files(&mut self, checksums: bool) -> Result<Files, Error> {
        let mut keys: Vec<Arc<str>> = self.items.iter().map(|item| item.entry().key.clone()).collect();
        keys.sort_unstable();
        keys.dedup();
        self.report.files = keys.len() as u64;
        let storage = self.storage;
        let mut heads = stream::iter(keys)
            .map(|key| async move {
                let found = match checksums {
                    true => storage.head_checksum(&key).await,
                    false => storage.head(&key).await.map(|info| (info, None)),
                };
                (key, found)
            })
            .buffered(CONCURRENT_HEADS);
        let mut files = Files::new();
        while let Some((key, found)) = heads.next().await {
            match found {
                Ok(found) => drop(files.insert(key, found)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.file_fault(&key, "this file is missing")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// Sees that each item is in its file, as long as dtype and shape make it.
    fn check_places(&mut self, files: &Files) {
        let mut formats = OwnFormats::default();
        for number in 0..self.items.len() {
            let item = &self.items[number];
            let entry = item.entry();
            let Some((file, _)) = files.get(&entry.key) else {
                self.items[number].faulty = true;
                continue;
            };
            if item.range().end > file.size {
                let Entry { offset, length, .. } = entry;
                let what = format!(
                    "the index gives this item {length} bytes at {offset} of a file of {}",
                    file.size
                );
                self.fault(Some(number), what);
                continue;
            }
            let mut checked = entry.checksums.as_ref().map_or(Ok(()), |sums| sums.check(entry.length));
            if let Some((tensor, chunk)) = item.tensor
                && entry.is_own_tensor()
                && !item.stored.is_transformed
                && checked.is_ok()
            {
                let format = formats.of("", tensor.dtype(), &unsigned(chunk));
                checked = format.and_then(|format| format.source("", entry.clone())).map(drop);
            }
            if let Err(error) = checked {
                self.fault(Some(number), error.message().trim_start_matches(": "));
            }
        }
    }

    /// Sees that no two items have the same bytes.
    fn check_overlaps(&mut self) {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.retain(|&number| {
            let item = &self.items[number];
            !item.faulty && !item.range().is_empty()
        });
        order.sort_by_cached_key(|&number| {
            let item = &self.items[number];
            (item.entry().key.clone(), item.range().start, item.range().end)
        });
        let mut furthest: Option<usize> = None;
        for number in order {
            let before =
                furthest.filter(|&before| self.items[before].entry().key == self.items[number].entry().key);
            if let Some(before) = before
                && self.items[number].range().start < self.items[before].range().end
            {
                let other = self.items[before].name;
                // Headers of safetensors that were not read leave all their tensors at one place.
                if !(self.report.quick && self.items[number].entry().checksums.is_none()) {
                    self.fault(Some(number), format!("the index gives it bytes of {other} too"));
                }
            }
            let end = |number: usize| self.items[number].range().end;
            if before.is_none_or(|before| end(before) < end(number)) {
                furthest = Some(number);
            }
        }
    }

    /// Reads heads and ends of what has none in the index.
    async fn check_heads(&mut self) -> Result<(), Error> {
        let foreign: Vec<(usize, ForeignTensor)> = self
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| !item.faulty && !item.stored.is_transformed && !item.entry().is_own_tensor())
            .filter_map(|(number, item)| {
                let (_, chunk) = item.tensor?;
                let (name, entry) = (item.name.to_owned(), item.entry().clone());
                Some((number, ForeignTensor { name, entry, shape: unsigned(chunk) }))
            })
            .collect();
        for some in foreign.chunks(ITEMS) {
            let found = each(some, async |some| {
                let tensors: Vec<ForeignTensor> = some.iter().map(|(_, tensor)| tensor.clone()).collect();
                foreign_sources(self.storage, &tensors).await
            })
            .await?;
            for ((number, _), found) in some.iter().zip(found) {
                match found {
                    Ok(Some(source)) => {
                        let Entry { offset, length, .. } = source.entry;
                        self.items[*number].placed = Some(offset..offset.saturating_add(length));
                    }
                    Ok(None) => {}
                    Err(error) => self.fault(Some(*number), error.message()),
                }
            }
        }
        Ok(())
    }

    /// The runs with checksums of those of these items that have some.
    async fn expected(&mut self, items: &[usize]) -> Result<Vec<Expected>, Error> {
        let mut all = Vec::new();
        let mut formats = OwnFormats::default();
        let mut archives = Vec::new();
        for &number in items {
            let item = &self.items[number];
            let entry = item.entry();
            let Some(sums) = &entry.checksums else {
                let in_place = item.range() == (entry.offset..entry.offset + entry.length);
                if in_place && !item.stored.is_transformed {
                    archives.push(number);
                } else if item.stored.is_transformed {
                    self.report.by.size += 1;
                } else {
                    self.report.by.head += 1;
                }
                continue;
            };
            self.report.by.index += 1;
            let head = item.tensor.filter(|_| entry.is_own_tensor() && !item.stored.is_transformed).and_then(
                |(tensor, chunk)| {
                    let format = formats.of("", tensor.dtype(), &unsigned(chunk)).ok()?;
                    let head = format.source("", entry.clone()).ok()?.head?;
                    Some((head.length, head.crc32))
                },
            );
            let slices = if sums.slices.is_empty() { std::slice::from_ref(&sums.item) } else { &sums.slices };
            for (slice, &crc32) in slices.iter().enumerate() {
                let start = slice as u64 * SLICE_SIZE;
                let range = start..(start + SLICE_SIZE).min(entry.length);
                let head = head.filter(|_| slice == 0);
                all.push(Expected { item: number, range, crc32, head, what: Run::Slice });
            }
        }
        for some in archives.chunks(ITEMS) {
            let found = each(some, async |some| records(self.storage, &self.items, some).await).await?;
            for (&number, found) in some.iter().zip(found) {
                match found {
                    Ok(records) => {
                        let is_covered = !records.is_empty();
                        *(if is_covered { &mut self.report.by.archive } else { &mut self.report.by.head }) +=
                            1;
                        all.extend(records.into_iter().map(|(name, range, crc32)| Expected {
                            item: number,
                            range,
                            crc32,
                            head: None,
                            what: Run::Record(name),
                        }));
                    }
                    Err(error) => self.fault(Some(number), error.message()),
                }
            }
        }
        all.retain(|run| !run.range.is_empty());
        Ok(all)
    }

    /// Reads every item that has checksums and compares it with them.
    async fn sum_up(
        &mut self,
        files: &Files,
        mut verified: Option<Verified>,
        read: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        if let Some(verified) = &mut verified {
            files.values().for_each(|(file, _)| verified.is(file));
        }
        let items: Vec<usize> = (0..self.items.len()).filter(|&item| !self.items[item].faulty).collect();
        let expected = self.expected(&items).await?;
        let mut bench = self.bench(expected, verified, read);
        let mut runs = bench.runs();
        let left: u64 = runs.iter().map(|&run| bench.expected[run].length()).sum();
        self.report.read_bytes = left;
        self.report.resumed_bytes = bench.total - left;
        (bench.read)(bench.total - left, bench.total);
        self.read_runs(&runs, &bench).await?;
        if !bench.bad(&runs).is_empty() {
            bench = self.bench_of_bad(&runs, &bench).await?;
            runs = bench.runs();
            self.read_runs(&runs, &bench).await?;
        }
        for (run, verdict) in bench.bad(&runs) {
            let Expected { item, range, what, .. } = &bench.expected[run];
            let offset = self.items[*item].entry().offset;
            let (start, end) = (offset + range.start, offset + range.end);
            let what = match (verdict, what) {
                (Verdict::BadHead, _) => {
                    format!("at byte {offset} is no tensor of the dtype and shape that the index says")
                }
                (_, Run::Slice) => format!("the checksum of bytes {start}..{end} does not fit"),
                (_, Run::Record(name)) => {
                    format!("the checksum of {name}, bytes {start}..{end}, does not fit")
                }
            };
            self.fault(Some(*item), what);
        }
        if let Some(verified) = bench.lock().verified.take() {
            verified.end();
        }
        Ok(())
    }

    fn bench(
        &self,
        expected: Vec<Expected>,
        verified: Option<Verified>,
        read: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Arc<Bench> {
        let place = |run: &Expected| {
            let Entry { key, offset, .. } = self.items[run.item].entry();
            (key.clone(), offset + run.range.start..offset + run.range.end)
        };
        Arc::new(Bench {
            places: expected.iter().map(place).collect(),
            total: expected.iter().map(Expected::length).sum(),
            expected: Arc::new(expected),
            state: Mutex::new(Judged { verified, verdicts: HashMap::new(), failed: None }),
            read: Box::new(read),
        })
    }

    /// What does not fit is judged once more, and asked for where it lies: it may have been the way here.
    async fn bench_of_bad(&mut self, runs: &[usize], bench: &Bench) -> Result<Arc<Bench>, Error> {
        let bad = bench.bad(runs);
        let mut items: Vec<usize> = bad.iter().map(|&(run, _)| bench.expected[run].item).collect();
        items.sort_unstable();
        items.dedup();
        let by = self.report.by;
        let mut expected = self.expected(&items).await?;
        self.report.by = by;
        let fits = bench.good(runs);
        expected.retain(|run| !fits.contains(&run.id()));
        let verified = bench.lock().verified.take();
        Ok(self.bench(expected, verified, |_, _| {}))
    }

    async fn read_runs(&mut self, runs: &[usize], bench: &Arc<Bench>) -> Result<(), Error> {
        for batch in batches(runs, &bench.expected) {
            self.read_batch(batch, bench).await?;
        }
        Ok(())
    }

    /// Reads some runs; a file that cannot be read is noted.
    async fn read_batch(&mut self, runs: &[usize], bench: &Arc<Bench>) -> Result<(), Error> {
        match self.download(runs, bench).await {
            Err(error) if is_fault(&error) && bench.lock().failed.is_none() => {}
            result => return result,
        }
        let left: Vec<usize> = {
            let judged = bench.lock();
            runs.iter().copied().filter(|run| !judged.verdicts.contains_key(run)).collect()
        };
        for of_file in left.chunk_by(|&one, &other| bench.places[one].0 == bench.places[other].0) {
            match self.download(of_file, bench).await {
                Err(error) if is_fault(&error) && bench.lock().failed.is_none() => {
                    self.file_fault(
                        &bench.places[of_file[0]].0,
                        format!("cannot be read: {}", error.message()),
                    );
                }
                result => result?,
            }
        }
        Ok(())
    }

    async fn download(&self, runs: &[usize], bench: &Arc<Bench>) -> Result<(), Error> {
        let expected = &bench.expected;
        let sums = Sums::new(expected.clone(), bench.clone());
        let of_items = runs.chunk_by(|&one, &other| expected[one].item == expected[other].item);
        let reads = of_items.map(|runs| {
            let item = &self.items[expected[runs[0]].item];
            let pieces = runs
                .iter()
                .map(|&run| Piece { item_range: expected[run].range.clone(), destination: sums.of(run) });
            item.entry().read(item.name, None, pieces.collect())
        });
        fetch_items(self.storage, reads.collect(), false, None).await?;
        bench.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Compares the checksums of whole files with those of their items.
    async fn compare_files(&mut self, files: &Files) -> Result<(), Error> {
        let mut by_file: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (number, item) in self.items.iter().enumerate() {
            by_file.entry(item.entry().key.clone()).or_default().push(number);
        }
        for (key, mut items) in by_file {
            let Some((file, stored)) = files.get(&key) else { continue };
            items.sort_by_key(|&number| self.items[number].range().start);
            let count = items.len() as u64;
            let expected = match stored {
                Some(stored) if items.iter().all(|&number| !self.items[number].faulty) => {
                    match self.file_checksum(file, &items).await? {
                        Some(expected) if expected != *stored => self.file_checksum(file, &items).await?,
                        expected => expected,
                    }
                }
                _ => None,
            };
            match (expected, stored) {
                (Some(expected), Some(stored)) if expected == *stored => self.report.by.storage += count,
                (Some(_), Some(_)) => {
                    self.report.by.storage += count;
                    let what = "the checksum that the storage keeps of this file is not that of its items";
                    self.file_fault(&key, what);
                }
                _ => self.report.by.size += count,
            }
        }
        Ok(())
    }

    /// What the index makes the checksum of a file; `None` where it does not say enough.
    async fn file_checksum(&self, file: &ObjectInfo, items: &[usize]) -> Result<Option<u32>, Error> {
        let (mut sum, mut position, mut between) = (0, 0, 0);
        let end = (file.size..file.size, None);
        let items = items.iter().map(|&number| {
            let item = &self.items[number];
            (item.range(), item.entry().checksums.as_ref().map(|sums| sums.item))
        });
        for (range, crc) in items.map(|(range, crc)| (range, Some(crc))).chain([end]) {
            if range.start < position {
                return Ok(None);
            }
            if range.start > position {
                between += range.start - position;
                if between > MOST_BETWEEN {
                    return Ok(None);
                }
                let gap = self.storage.get_range(&file.key, position..range.start).await?;
                sum = crc32_combine(sum, crc32(&gap), gap.len() as u64);
            }
            match crc {
                Some(Some(crc)) => sum = crc32_combine(sum, crc, range.end - range.start),
                Some(None) => return Ok(None),
                None => {}
            }
            position = range.end;
        }
        Ok(Some(sum))
    }
}

/// Whether the chunks of a tensor fill it, over all indexes that have it with one shape.
fn fills(tensors: &[(Option<u64>, &StoredTensor)], is_part: bool) -> Result<(), String> {
    let mut shapes: BTreeMap<&[i64], Vec<Chunk>> = BTreeMap::new();
    for (_, tensor) in tensors {
        let chunks = tensor.chunks.iter().map(|stored| stored.chunk.clone());
        if tensors.len() == 1 {
            shapes.insert(&tensor.size, chunks.collect());
            break;
        }
        // What every rank saved whole is there as often.
        let known = shapes.entry(&tensor.size).or_default();
        for chunk in chunks {
            if !known.contains(&chunk) {
                known.push(chunk);
            }
        }
    }
    for (size, chunks) in shapes {
        match check_chunks(size, &chunks) {
            Err(error) => return Err(error.message().to_owned()),
            Ok(Cover::Holes) if !is_part => return Err("its chunks leave elements out".to_owned()),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn unsigned(chunk: &Chunk) -> Vec<u64> {
    // One below zero has been told of; as large as can be, it fits nothing.
    chunk.sizes.iter().map(|&size| u64::try_from(size).unwrap_or(u64::MAX)).collect()
}

/// Asks about many; where that fails, about fewer, down to the ones that are to blame, and about each of those once more: it may have
/// been the way here.
async fn each<T, R>(
    all: &[T],
    ask: impl AsyncFn(&[T]) -> Result<Vec<R>, Error>,
) -> Result<Vec<Result<R, Error>>, Error> {
    let mut answers = Vec::with_capacity(all.len());
    let mut waiting = vec![all];
    while let Some(some) = waiting.pop().filter(|some| !some.is_empty()) {
        let mut found = ask(some).await;
        if some.len() == 1 && found.as_ref().is_err_and(is_fault) {
            found = ask(some).await;
        }
        match found {
            Ok(found) => answers.extend(found.into_iter().map(Ok)),
            Err(error) if !is_fault(&error) => return Err(error),
            Err(error) if some.len() == 1 => answers.push(Err(error)),
            Err(_) => {
                let (first, second) = some.split_at(some.len() / 2);
                waiting.extend([second, first]);
            }
        }
    }
    Ok(answers)
}

/// Where the records of an archive lie in it, with their checksums.
type Records = Vec<(String, Range<u64>, u32)>;

/// Reads which records with checksums these archives have; none of what is no archive.
async fn records(storage: &Storage, items: &[Item<'_>], some: &[usize]) -> Result<Vec<Records>, Error> {
    let entry = |number: usize| items[number].entry();
    let mut directories: Vec<Directory> = some.iter().map(|_| Directory::Unknown).collect();
    // What seems to be no archive is asked for once more: it may have been the way here.
    for _ in 0..2 {
        let is_open = |directory: &Directory| !matches!(directory, Directory::Records(_));
        let mut starts: Vec<(usize, u64)> = (0..some.len())
            .filter(|&place| is_open(&directories[place]))
            .map(|place| (place, entry(some[place]).length.saturating_sub(END_BYTES)))
            .collect();
        while !starts.is_empty() {
            let wanted = starts.iter().map(|&(place, start)| {
                let entry = entry(some[place]);
                (entry, start..entry.length)
            });
            let ends = read_ranges(storage, wanted.collect()).await?;
            let mut longer = Vec::new();
            for ((place, _), end) in starts.into_iter().zip(ends) {
                directories[place] = read_directory(&end, entry(some[place]).length);
                if let Directory::NeedFrom(from) = directories[place] {
                    longer.push((place, from));
                }
            }
            starts = longer;
        }
    }
    let mut wanted: Vec<(usize, ZipRecord)> = Vec::new();
    for (place, directory) in directories.into_iter().enumerate() {
        if let Directory::Records(records) = directory {
            let records = records.into_iter().filter(|record| record.crc32.is_some() && record.length > 0);
            wanted.extend(records.map(|record| (place, record)));
        }
    }
    let headers = wanted.iter().map(|(place, record)| {
        let entry = entry(some[*place]);
        let end = record.header.saturating_add(LOCAL_HEADER).min(entry.length);
        (entry, record.header.min(end)..end)
    });
    let headers = read_ranges(storage, headers.collect()).await?;
    let mut all = vec![Records::new(); some.len()];
    for ((place, record), header) in wanted.into_iter().zip(headers) {
        let Some(range) = record.data(&header, entry(some[place]).length) else {
            let what = format!("its archive has no {} where its directory says", record.name);
            return Err(crate::error::corrupt(what));
        };
        all[place].extend(record.crc32.map(|crc32| (record.name, range, crc32)));
    }
    Ok(all)
}

/// Runs in downloads of a bounded size.
fn batches<'a>(runs: &'a [usize], expected: &[Expected]) -> Vec<&'a [usize]> {
    let mut all = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (place, &run) in runs.iter().enumerate() {
        bytes += expected[run].length();
        if place + 1 == runs.len() || place + 1 - start >= BATCH_RUNS || bytes >= BATCH_BYTES {
            all.push(&runs[start..=place]);
            (start, bytes) = (place + 1, 0);
        }
    }
    all
}

/// Where runs are judged.
struct Bench {
    expected: Arc<Vec<Expected>>,
    /// The file of each run, and its bytes there.
    places: Vec<(Arc<str>, Range<u64>)>,
    state: Mutex<Judged>,
    total: u64,
    read: Box<dyn Fn(u64, u64) + Send + Sync>,
}

#[derive(Default)]
struct Judged {
    verified: Option<Verified>,
    verdicts: HashMap<usize, Verdict>,
    /// Why what was verified could not be noted.
    failed: Option<Error>,
}

impl Bench {
    fn lock(&self) -> MutexGuard<'_, Judged> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that no earlier run has verified, in the order of their places.
    fn runs(&self) -> Vec<usize> {
        let judged = self.lock();
        let is_known = |(key, range): &(Arc<str>, Range<u64>)| {
            judged.verified.as_ref().is_some_and(|known| known.has(key, range))
        };
        let mut runs: Vec<usize> =
            (0..self.places.len()).filter(|&run| !is_known(&self.places[run])).collect();
        runs.sort_by_key(|&run| (&self.places[run].0, self.places[run].1.start));
        runs
    }

    fn bad(&self, runs: &[usize]) -> Vec<(usize, Verdict)> {
        let judged = self.lock();
        let verdicts = runs.iter().filter_map(|&run| Some((run, *judged.verdicts.get(&run)?)));
        verdicts.filter(|(_, verdict)| *verdict != Verdict::Good).collect()
    }

    fn good(&self, runs: &[usize]) -> HashSet<RunId> {
        let judged = self.lock();
        let is_good = |run: &&usize| judged.verdicts.get(*run) == Some(&Verdict::Good);
        runs.iter().filter(is_good).map(|&run| self.expected[run].id()).collect()
    }
}

impl Judge for Bench {
    fn judged(&self, run: usize, verdict: Verdict) {
        let (key, range) = &self.places[run];
        let mut judged = self.lock();
        let is_new = judged.verdicts.insert(run, verdict).is_none();
        if verdict == Verdict::Good
            && let Some(verified) = &mut judged.verified
            && let Err(error) = verified.add(key, range)
        {
            judged.failed.get_or_insert(error);
        }
        drop(judged);
        if is_new {
            (self.read)(range.end - range.start, self.total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::corrupt;

    #[tokio::test]
    async fn what_fails_is_found_among_many_and_asked_about_once_more() {
        for (all, bad) in [(vec![7], vec![7]), (vec![1, 7, 3, 9], vec![7, 9]), (vec![1, 2], vec![])] {
            for lasts in [false, true] {
                let alone = Mutex::new(HashMap::new());
                let found = each(&all, async |some| {
                    let is_passing = |number: &i32| {
                        let mut alone = alone.lock().unwrap();
                        let times = alone.entry(*number).or_insert(0);
                        *times += u32::from(some.len() == 1);
                        !lasts && *times > 1
                    };
                    match some.iter().filter(|number| bad.contains(number)).all(is_passing) {
                        true => Ok(some.to_vec()),
                        false => Err(corrupt("a bit has flipped")),
                    }
                });
                let found: Vec<Option<i32>> = found.await.unwrap().into_iter().map(Result::ok).collect();
                let expected =
                    all.iter().map(|number| Some(*number).filter(|number| !lasts || !bad.contains(number)));
                assert_eq!(found, expected.collect::<Vec<_>>(), "{all:?}");
            }
        }
    }
}
