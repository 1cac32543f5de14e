//! The index of a checkpoint of tensors, from what writing them told: for programs that have no objects of torch to
//! pickle.
//!
//! What it pickles is torch's `Metadata`: what each tensor is and how its chunks lie in it, where each chunk is stored,
//! and what this project notes of the save.

use std::collections::BTreeMap;

use s3dcp_s3::Error;

use crate::dtype::DType;
use crate::error::config;
use crate::index::checksums::ItemChecksums;
use crate::index::item_hash::{ITEM_HASH, ItemHash};
use crate::index::write::{Index, IndexWriter};
use crate::load::chunks::{Chunk, Cover, check_chunks};
use crate::pickle::write::PickleWriter;
use crate::save::shard_writer::ItemRecord;

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILE_SYSTEM: &str = "torch.distributed.checkpoint.filesystem";

/// The tensors of a checkpoint, by name, with the chunks that all ranks have written of them.
#[derive(Clone, Debug, Default)]
pub struct TensorIndex {
    tensors: BTreeMap<String, Tensor>,
    objects: BTreeMap<String, Place>,
}

#[derive(Clone, Debug)]
struct Tensor {
    /// As torch calls it.
    dtype: String,
    shape: Vec<i64>,
    chunks: Vec<Chunk>,
    /// Where each is stored.
    stored: Vec<Place>,
}

/// Where an item is stored: the shard file, and what an index keeps of the item.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) data_offset: Option<u64>,
    pub(crate) checksums: Option<ItemChecksums>,
    pub(crate) hash: Option<ItemHash>,
}

impl TensorIndex {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> TensorIndex {
        TensorIndex::default()
    }

    /// Adds a tensor that one item holds: in `file`, a [`ShardName::relative_path`](crate::ShardName::relative_path).
    ///
    /// # Errors
    /// Those of [`TensorIndex::chunk`].
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        file: &str,
        record: ItemRecord,
    ) -> Result<(), Error> {
        let whole = Chunk { offsets: vec![0; shape.len()], sizes: signed(shape)? };
        self.chunk(name, dtype, shape, whole, file, record)
    }

    /// Adds a chunk, stored as an item of its own, of a tensor of this whole `shape`.
    ///
    /// # Errors
    /// `Config` for a shape beyond `i64`, and where the name has been given to a tensor of another dtype or shape.
    pub fn chunk(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        chunk: Chunk,
        file: &str,
        record: ItemRecord,
    ) -> Result<(), Error> {
        let place = Place {
            file: file.to_owned(),
            offset: record.offset,
            length: record.length,
            data_offset: Some(record.data_offset),
            checksums: Some(record.checksums),
            hash: record.hash,
        };
        self.place(name, dtype.torch_name(), &signed(shape)?, chunk, place)
    }

    /// The same for a chunk that another writer may have stored, of any dtype of torch's.
    pub(crate) fn place(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[i64],
        chunk: Chunk,
        place: Place,
    ) -> Result<(), Error> {
        let new = || Tensor {
            dtype: dtype.to_owned(),
            shape: shape.to_vec(),
            chunks: Vec::new(),
            stored: Vec::new(),
        };
        let tensor = self.tensors.entry(name.to_owned()).or_insert_with(new);
        if tensor.dtype != dtype || tensor.shape != shape {
            return Err(config(format!("tensor {name:?}: has another dtype or shape in this index")));
        }
        tensor.chunks.push(chunk);
        tensor.stored.push(place);
        Ok(())
    }

    /// Adds a pickled object.
    pub(crate) fn object(&mut self, name: &str, place: Place) {
        self.objects.insert(name.to_owned(), place);
    }

    /// The index of a save with this id by so many ranks, of an epoch where it is of one.
    ///
    /// # Errors
    /// `Config` for a tensor that cannot be, or whose chunks leave holes, overlap or lie outside.
    pub fn finish(&self, save_id: &str, ranks: u32, epoch: Option<i64>) -> Result<Index, Error> {
        self.check(false)?;
        Ok(self.pickled(save_id, ranks, epoch))
    }

    /// The index of what one of so many ranks saved without the others: chunks of its tensors may be theirs.
    pub(crate) fn finish_part(&self, save_id: &str, ranks: u32) -> Result<Index, Error> {
        self.check(true)?;
        Ok(self.pickled(save_id, ranks, None))
    }

    fn check(&self, may_have_holes: bool) -> Result<(), Error> {
        for (name, tensor) in &self.tensors {
            let fault = match check_chunks(&tensor.shape, &tensor.chunks) {
                Ok(Cover::Whole) => continue,
                Ok(Cover::Holes) if may_have_holes => continue,
                Ok(Cover::Holes) => "its chunks leave holes".to_owned(),
                Err(error) => error.message().to_owned(),
            };
            return Err(config(format!("tensor {name:?}: {fault}")));
        }
        Ok(())
    }

    fn pickled(&self, save_id: &str, ranks: u32, epoch: Option<i64>) -> Index {
        let mut index = IndexWriter::new();
        begin(&mut index.pickle, METADATA, "Metadata");
        index.pickle.text("state_dict_metadata");
        self.describe(&mut index.pickle);
        index.pickle.text("storage_data");
        self.locate(&mut index);
        let pickle = &mut index.pickle;
        pickle.text("storage_meta");
        begin(pickle, METADATA, "StorageMeta");
        pickle.text("save_id");
        pickle.text(save_id);
        pickle.text("s3dcp");
        pickle.empty_dict();
        pickle.mark();
        for (field, value) in [("format", Some(1)), ("ranks", Some(ranks.into())), ("epoch", epoch)] {
            pickle.text(field);
            match value {
                Some(value) => pickle.int(value),
                None => pickle.none(),
            }
        }
        pickle.set_items();
        end(pickle);
        pickle.text("version");
        pickle.text("1.0.0");
        end(pickle);
        index.finish(save_id)
    }

    /// `state_dict_metadata`: what each tensor is.
    fn describe(&self, pickle: &mut PickleWriter) {
        pickle.empty_dict();
        pickle.mark();
        for (name, tensor) in &self.tensors {
            pickle.text(name);
            begin(pickle, METADATA, "TensorStorageMetadata");
            pickle.text("properties");
            properties(pickle, &tensor.dtype);
            pickle.text("size");
            size(pickle, &tensor.shape);
            pickle.text("chunks");
            pickle.empty_list();
            pickle.mark();
            for chunk in &tensor.chunks {
                begin(pickle, METADATA, "ChunkStorageMetadata");
                pickle.text("offsets");
                size(pickle, &chunk.offsets);
                pickle.text("sizes");
                size(pickle, &chunk.sizes);
                end(pickle);
            }
            pickle.appends();
            end(pickle);
            pickle.between_items();
        }
        for name in self.objects.keys() {
            pickle.text(name);
            pickle.global(METADATA, "BytesStorageMetadata");
            pickle.new_object();
            pickle.between_items();
        }
        pickle.set_items();
    }

    /// `storage_data`: where each chunk is stored.
    fn locate(&self, index: &mut IndexWriter) {
        index.pickle.empty_dict();
        index.pickle.mark();
        for (name, tensor) in &self.tensors {
            for (number, (chunk, place)) in tensor.chunks.iter().zip(&tensor.stored).enumerate() {
                begin(&mut index.pickle, METADATA, "MetadataIndex");
                index.pickle.text("fqn");
                index.pickle.text(name);
                index.pickle.text("offset");
                size(&mut index.pickle, &chunk.offsets);
                index.pickle.text("index");
                index.pickle.int(number as i64);
                end(&mut index.pickle);
                stored(index, place);
            }
        }
        for (name, place) in &self.objects {
            begin(&mut index.pickle, METADATA, "MetadataIndex");
            index.pickle.text("fqn");
            index.pickle.text(name);
            for field in ["offset", "index"] {
                index.pickle.text(field);
                index.pickle.none();
            }
            end(&mut index.pickle);
            stored(index, place);
        }
        index.pickle.set_items();
    }
}

/// Where an item is stored.
fn stored(index: &mut IndexWriter, place: &Place) {
    begin(&mut index.pickle, FILE_SYSTEM, "_StorageInfo");
    index.pickle.text("relative_path");
    index.shard_file(&place.file);
    let fields =
        [("offset", Some(place.offset)), ("length", Some(place.length)), ("data_offset", place.data_offset)];
    for (field, value) in fields {
        if let Some(value) = value {
            index.pickle.text(field);
            index.pickle.int(value as i64);
        }
    }
    if let Some(checksums) = &place.checksums {
        index.pickle.text("crc32");
        index.pickle.bytes(&checksums.to_bytes());
    }
    if let Some(hash) = place.hash {
        index.pickle.text(ITEM_HASH);
        index.pickle.bytes(&hash.to_bytes());
    }
    end(&mut index.pickle);
    index.pickle.between_items();
}

/// Lengths as torch counts them.
fn signed(shape: &[u64]) -> Result<Vec<i64>, Error> {
    let lengths = shape.iter().map(|&length| i64::try_from(length)).collect::<Result<_, _>>();
    lengths.map_err(|_| config(format!("a tensor of shape {shape:?} cannot be")))
}

/// Begins an object whose attributes follow.
fn begin(pickle: &mut PickleWriter, module: &str, class: &str) {
    pickle.global(module, class);
    pickle.new_object();
    pickle.empty_dict();
    pickle.mark();
}

fn end(pickle: &mut PickleWriter) {
    pickle.set_items();
    pickle.build();
}

fn size(pickle: &mut PickleWriter, lengths: &[i64]) {
    let start = pickle.begin_value();
    pickle.global("torch", "Size");
    pickle.mark();
    for &length in lengths {
        pickle.int(length);
    }
    pickle.tuple();
    pickle.tuple_of(1);
    pickle.reduce();
    pickle.share(start);
}

/// A dense tensor, contiguous, without a gradient.
fn properties(pickle: &mut PickleWriter, dtype: &str) {
    let start = pickle.begin_value();
    pickle.global(METADATA, "TensorProperties");
    pickle.new_object();
    pickle.mark();
    pickle.global("torch", dtype);
    pickle.global("torch.serialization", "_get_layout");
    pickle.text("torch.strided");
    pickle.tuple_of(1);
    pickle.reduce();
    pickle.bool(false);
    pickle.global(METADATA, "_MEM_FORMAT_ENCODING");
    pickle.int(0);
    pickle.tuple_of(1);
    pickle.reduce();
    pickle.bool(false);
    pickle.tuple();
    pickle.build();
    pickle.share(start);
}
