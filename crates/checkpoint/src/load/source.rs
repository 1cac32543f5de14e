//! Where a stored tensor lies: the bytes of its item that are its values, in which dtype, shape and steps.
//!
//! Of an item of ours the index says it all: dtype and shape tell how long it is and what it begins with. Of others'
//! items head and end are read first (`foreign.rs`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use s3dcp_s3::Error;

use super::cut::{Block, Nesting, Part};
use super::plan::{ItemHead, ItemRead, Piece};
use crate::archive::spec::TensorSpec;
use crate::archive::write::archive_layout;
use crate::dtype::DType;
use crate::error::corrupt;
use crate::index::checksums::ItemChecksums;

/// What an index says of an item's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The shard file.
    pub key: Arc<str>,
    /// The item's first byte in the file.
    pub offset: u64,
    /// Bytes of the item.
    pub length: u64,
    /// Where its raw bytes begin, from its first byte; of tensors in checkpoints of this project.
    pub data_offset: Option<u64>,
    /// Of checkpoints of this project.
    pub checksums: Option<ItemChecksums>,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its item.
    pub entry: Entry,
    /// The first byte of its storage, from the item's first byte.
    pub data_offset: u64,
    /// Dtype and shape, and how its elements lie in the storage.
    pub spec: Arc<TensorSpec>,
    /// What the item must begin with; `None` where that has been seen.
    pub head: Option<ItemHead>,
}

impl Source {
    /// The block of `lengths` at `offsets`; `None` where elements share bytes of the storage.
    ///
    /// # Errors
    /// Those of [`Block::new`].
    pub fn block(&self, offsets: &[u64], lengths: &[u64]) -> Result<Option<Block>, Error> {
        let Some(nesting) = Nesting::of(&self.spec) else { return Ok(None) };
        Block::new(&self.spec, &nesting, self.data_offset, offsets, lengths).map(Some)
    }

    /// The whole tensor in one part; `None` where its elements do not lie one after another.
    #[must_use]
    pub fn values(&self) -> Option<Part> {
        let count = self.spec.numel().filter(|_| self.spec.is_contiguous())?;
        let start = if count > 0 { self.spec.storage_offset } else { 0 };
        Some(self.elements(start..start + count))
    }

    /// The storage up to the tensor's last element, in one part.
    #[must_use]
    pub fn storage(&self) -> Part {
        self.elements(0..self.spec.extent_bytes().unwrap_or(0) / self.spec.dtype.item_size())
    }

    fn elements(&self, elements: Range<u64>) -> Part {
        let item_size = self.spec.dtype.item_size();
        let bytes = elements.start * item_size..elements.end * item_size;
        Part {
            item_range: self.data_offset + bytes.start..self.data_offset + bytes.end,
            memory: 0..bytes.end - bytes.start,
            runs: None,
            elements,
        }
    }
}

impl Entry {
    /// A read of pieces of the item, which is `name` in errors and must begin with `head`.
    #[must_use]
    pub fn read(&self, name: &str, head: Option<ItemHead>, pieces: Vec<Piece>) -> ItemRead {
        ItemRead {
            name: name.to_owned(),
            key: self.key.to_string(),
            offset: self.offset,
            length: self.length,
            checksums: self.checksums.clone(),
            head,
            pieces,
        }
    }

    /// The whole item, in one part.
    #[must_use]
    pub fn whole(&self) -> Part {
        Part { item_range: 0..self.length, memory: 0..self.length, runs: None, elements: 0..0 }
    }

    /// Whether this project wrote the item, as a tensor.
    #[must_use]
    pub fn is_own_tensor(&self) -> bool {
        self.data_offset.is_some() && self.checksums.is_some()
    }

    /// Whether two items have the same checksums; `None` where one has none.
    pub(crate) fn same_checksums(&self, other: &Entry) -> Option<bool> {
        let (sums, against) = (self.checksums.as_ref()?, other.checksums.as_ref()?);
        Some(self.length == other.length && sums == against)
    }

    /// Whether an entry gives its item bytes that this one gives another. Entries are asked in the order of their files.
    #[must_use]
    pub fn overlaps(&self, next: &Entry) -> bool {
        self.key == next.key && next.offset < self.offset.saturating_add(self.length)
    }
}

/// How this project stores a tensor.
#[derive(Debug)]
pub struct OwnFormat {
    spec: Arc<TensorSpec>,
    head: ItemHead,
    /// Bytes of its archive.
    length: u64,
    /// Bytes of its values, all that there is of it in a safetensors file.
    nbytes: u64,
}

impl OwnFormat {
    /// The source of a tensor that is stored so, at `entry`.
    ///
    /// # Errors
    /// `Corrupt` for an entry that gives its tensor neither an archive nor its raw bytes alone.
    pub fn source(&self, name: &str, entry: Entry) -> Result<Source, Error> {
        let data_offset = entry.data_offset.unwrap_or_default();
        let is_archive = (entry.length, data_offset) == (self.length, self.head.length);
        if is_archive || (entry.length, data_offset) == (self.nbytes, 0) {
            let head = is_archive.then_some(self.head);
            return Ok(Source { entry, data_offset, spec: self.spec.clone(), head });
        }
        let TensorSpec { dtype, shape, .. } = &*self.spec;
        Err(corrupt(format!(
            "{name}: the index gives this item {} bytes with values from byte {data_offset} on, not as a tensor of \
             {} {shape:?} is stored",
            entry.length,
            dtype.torch_name()
        )))
    }
}

/// How this project stores tensors of these dtypes and shapes.
#[derive(Debug, Default)]
pub struct OwnFormats(HashMap<(DType, Vec<u64>), Arc<OwnFormat>>);

impl OwnFormats {
    /// How it stores this one.
    ///
    /// # Errors
    /// `Corrupt` where it stores none such: `dtype` is unknown, or memory could not hold it.
    pub fn of(&mut self, name: &str, dtype: Option<DType>, shape: &[u64]) -> Result<Arc<OwnFormat>, Error> {
        let Some(dtype) = dtype else {
            return Err(corrupt(format!(
                "{name}: the index gives it a dtype in which no tensor is stored so"
            )));
        };
        let key = (dtype, shape.to_vec());
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let spec = TensorSpec::contiguous(dtype, shape.to_vec());
        let layout =
            archive_layout(&spec).map_err(|error| corrupt(format!("{name}: {}", error.message())))?;
        let head = ItemHead { length: layout.head_length, crc32: layout.head_crc32 };
        let nbytes = spec.extent_bytes().unwrap_or(0);
        let format = Arc::new(OwnFormat { spec: Arc::new(spec), head, length: layout.length, nbytes });
        self.0.insert(key, format.clone());
        Ok(format)
    }
}
