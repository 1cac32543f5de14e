//! What others stored: heads and ends of items, read before anything is loaded.
//!
//! An item is one of torch's archives, which tells of itself, or lies in a safetensors file, whose header tells. torch
//! gives every tensor of such a file the place of the header; names tell them apart.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use s3dcp_s3::Error;
use serde_json::{Map, Value};

use super::fetch::read_ranges;
use super::source::{Entry, Source};
use crate::archive::parse::{ArchiveHead, HeadState, MAX_END, ends_archive, parse_archive_head};
use crate::archive::spec::TensorSpec;
use crate::dtype::DType;
use crate::error::corrupt;
use crate::storage::Storage;

/// What is asked for of an item first, in bytes.
const HEAD_BYTES: u64 = 2048;
/// Heads and ends are read for so many items at a time.
const ITEMS: usize = 4096;
/// No archive of torch's is this small: shorter items can only be safetensors.
const SMALLEST_ARCHIVE_BYTES: u64 = 512;
/// The longest header of a safetensors file that is read, in bytes: that of the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor that others stored, or this project in a safetensors file without checksums.
#[derive(Clone, Debug)]
pub struct ForeignTensor {
    /// Its name.
    pub name: String,
    /// Its item.
    pub entry: Entry,
    /// The shape that the index says.
    pub shape: Vec<u64>,
}

impl ForeignTensor {
    fn corrupt(&self, what: &str) -> Error {
        corrupt(format!("{}: {what}", self.name))
    }

    /// Refuses a stored tensor of another shape than the index says. Its dtype may be another: that of what a planner
    /// made of the tensor when it was saved.
    fn source(&self, entry: Entry, data_offset: u64, spec: TensorSpec) -> Result<Source, Error> {
        if spec.shape != self.shape {
            let (stored, said) = (&spec.shape, &self.shape);
            return Err(self.corrupt(&format!("stored in the shape {stored:?}, but the index says {said:?}")));
        }
        Ok(Source { entry, data_offset, spec: Arc::new(spec), head: None })
    }

    /// `None` where only torch can read it.
    fn archive_source(&self, head: ArchiveHead) -> Result<Option<Source>, Error> {
        if head.big_endian {
            return Ok(None);
        }
        let needed = head.spec.extent_bytes();
        let end = head.data_offset.checked_add(head.data_length);
        let source = self.source(self.entry.clone(), head.data_offset, head.spec)?;
        if needed.is_none_or(|needed| needed > head.data_length)
            || end.is_none_or(|end| end > self.entry.length)
        {
            return Err(self.corrupt("the stored archive holds too few bytes for its shape"));
        }
        Ok(Some(source))
    }

    fn safetensors_source(&self, header: &Header) -> Result<Source, Error> {
        let found = header.tensor(&self.name).filter(|(_, range)| {
            !self.is_own() || (range.start, range.end - range.start) == (self.entry.offset, self.entry.length)
        });
        let Some((spec, range)) = found else {
            return Err(self.corrupt(&format!("{} does not hold this tensor as safetensors", self.entry.key)));
        };
        let entry = Entry {
            offset: range.start,
            length: range.end - range.start,
            checksums: None,
            ..self.entry.clone()
        };
        self.source(entry, 0, spec)
    }

    /// Whether this project wrote it as safetensors: then the place is that of the values.
    fn is_own(&self) -> bool {
        self.entry.data_offset == Some(0)
    }
}

/// Where these tensors lie, in their order; `None` for one that only torch can read.
///
/// # Errors
/// `Corrupt` for what is no stored tensor of the shape in the index, and those of a download.
pub async fn foreign_sources(
    storage: &Storage,
    tensors: &[ForeignTensor],
) -> Result<Vec<Option<Source>>, Error> {
    let mut headers = HashMap::new();
    let mut sources = Vec::with_capacity(tensors.len());
    for some in tensors.chunks(ITEMS) {
        sources.extend(Heads { storage, headers: &mut headers }.sources(some).await?);
    }
    Ok(sources)
}

/// The header of each safetensors file so far, by its key and place.
type Headers = HashMap<(Arc<str>, u64), Header>;

struct Heads<'a> {
    storage: &'a Storage,
    headers: &'a mut Headers,
}

impl Heads<'_> {
    async fn sources(&mut self, tensors: &[ForeignTensor]) -> Result<Vec<Option<Source>>, Error> {
        let mut sources = vec![None; tensors.len()];
        let mut safetensors = Vec::new();
        let mut waiting = Vec::new();
        for (number, tensor) in tensors.iter().enumerate() {
            if tensor.entry.length < SMALLEST_ARCHIVE_BYTES || tensor.is_own() {
                safetensors.push(number);
            } else {
                waiting.push((number, HEAD_BYTES));
            }
        }
        let ends = waiting.iter().map(|&(number, _)| {
            let entry = &tensors[number].entry;
            (entry, entry.length - MAX_END..entry.length)
        });
        let heads = |waiting: &[(usize, u64)]| -> Vec<(&Entry, Range<u64>)> {
            let head = |&(number, want): &(usize, u64)| {
                let entry = &tensors[number].entry;
                (entry, 0..want.min(entry.length))
            };
            waiting.iter().map(head).collect()
        };
        let mut read = read_ranges(self.storage, heads(&waiting).into_iter().chain(ends).collect()).await?;
        let mut ends = read.split_off(waiting.len()).into_iter();
        while !waiting.is_empty() {
            let mut still = Vec::new();
            for ((number, want), head) in waiting.into_iter().zip(read) {
                let tensor = &tensors[number];
                let length = tensor.entry.length;
                let end = ends.next();
                if !head.starts_with(b"PK\x03\x04") {
                    safetensors.push(number);
                    continue;
                }
                if end.is_some_and(|end| !ends_archive(&end, length)) {
                    let what = format!("the index gives this item {length} bytes, where no archive ends");
                    return Err(tensor.corrupt(&what));
                }
                match parse_archive_head(&head).map_err(|error| tensor.corrupt(error.message()))? {
                    HeadState::Complete(head) => sources[number] = tensor.archive_source(head)?,
                    HeadState::NotPlain => {}
                    HeadState::NeedMore(_) if want >= length => {
                        return Err(tensor.corrupt("the stored archive is cut short"));
                    }
                    HeadState::NeedMore(least) => still.push((number, least.max(2 * want))),
                }
            }
            waiting = still;
            read = read_ranges(self.storage, heads(&waiting)).await?;
        }
        for number in safetensors {
            let tensor = &tensors[number];
            let offset = if tensor.is_own() { 0 } else { tensor.entry.offset };
            sources[number] = Some(tensor.safetensors_source(self.header(&tensor.entry.key, offset).await?)?);
        }
        Ok(sources)
    }

    async fn header(&mut self, key: &Arc<str>, offset: u64) -> Result<&Header, Error> {
        let place = (key.clone(), offset);
        if !self.headers.contains_key(&place) {
            let header = Header::read(self.storage, key, offset).await?;
            self.headers.insert(place.clone(), header);
        }
        Ok(&self.headers[&place])
    }
}

/// The header of a safetensors file.
pub(crate) struct Header {
    /// Where the values begin in the object.
    data_start: u64,
    tensors: Map<String, Value>,
}

impl Header {
    pub(crate) async fn read(storage: &Storage, key: &str, offset: u64) -> Result<Header, Error> {
        let start = offset.saturating_add(8);
        let length = storage.get_range(key, offset..start).await?;
        let length = length.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if !(2..=MAX_HEADER_BYTES).contains(&length) {
            return Err(corrupt(format!(
                "{key}: neither a torch archive nor a safetensors file at byte {offset}"
            )));
        }
        let data_start = start + length;
        let header = storage.get_range(key, start..data_start).await?;
        let tensors = serde_json::from_slice(&header)
            .map_err(|error| corrupt(format!("{key}: the safetensors header is damaged: {error}")))?;
        Ok(Header { data_start, tensors })
    }

    /// The names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(|name| &name[..]).filter(|name| *name != "__metadata__")
    }

    /// What it says of a tensor, and the bytes of its values in the object; `None` where that cannot be.
    pub(crate) fn tensor(&self, name: &str) -> Option<(TensorSpec, Range<u64>)> {
        let entry = self.tensors.get(name)?;
        let numbers =
            |name| -> Option<Vec<u64>> { entry.get(name)?.as_array()?.iter().map(Value::as_u64).collect() };
        let dtype = DType::from_safetensors_name(entry.get("dtype")?.as_str()?)?;
        let spec = TensorSpec::contiguous(dtype, numbers("shape")?);
        let [start, end] = numbers("data_offsets")?[..] else { return None };
        let nbytes = spec.numel()?.checked_mul(dtype.item_size())?;
        let range = self.data_start.checked_add(start)?..self.data_start.checked_add(end)?;
        (end.checked_sub(start)? == nbytes && range.end <= i64::MAX as u64).then_some((spec, range))
    }
}
