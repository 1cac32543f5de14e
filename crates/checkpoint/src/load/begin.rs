//! One load, as a Rust caller drives it: open a checkpoint, see what it holds, read what is wanted of it.

use bytes::{Bytes, BytesMut};
use s3dcp_s3::{Error, ErrorKind};

use super::chunks::{Chunk, Cover, check_chunks, has_all};
use super::contents::{Contents, Stored, StoredTensor, contents_of};
use super::cut::Part;
use super::fetch::{buffer, check_in_file, fetch_items};
use super::foreign::{ForeignTensor, foreign_sources};
use super::memory::Loan;
use super::plan::ItemRead;
use super::source::{Entry, OwnFormats, Source};
use crate::archive::spec::{TensorSpec, row_major};
use crate::error::{config, corrupt};
use crate::index::allow::AllowList;
use crate::index::facts::IndexFacts;
use crate::index::judge::judged;
use crate::index::read::MAX_INDEX_BYTES;
use crate::layout::Layout;
use crate::storage::Storage;

/// A load under way. What it knows of the checkpoint is what its index said when it was opened.
#[derive(Debug)]
pub struct Load {
    storage: Storage,
    index_key: String,
    facts: IndexFacts,
    contents: Contents,
}

impl Load {
    /// Opens the checkpoint whose index is at `index_key`: reads and judges that. Nothing in it is run.
    ///
    /// # Errors
    /// `NotFound` where no checkpoint is; `Corrupt` for an index that is damaged or holds what none needs.
    pub async fn open(storage: &Storage, index_key: &str) -> Result<Load, Error> {
        let index = storage.get(index_key, MAX_INDEX_BYTES).await?.body;
        Load::of(storage, index_key, &index)
    }

    /// The same with the bytes of the index.
    pub(crate) fn of(storage: &Storage, index_key: &str, index: &[u8]) -> Result<Load, Error> {
        let read = || {
            let (pickle, survey) = judged(index, &AllowList::default_globals())?;
            Ok((survey.facts()?, contents_of(pickle, &Layout::beside(index_key))?))
        };
        let (facts, contents) = read().map_err(|error| storage.at(index_key, error))?;
        Ok(Load { storage: storage.clone(), index_key: index_key.to_owned(), facts, contents })
    }

    /// What several loads of one place hold, as one: of a tensor every chunk once, of an object the first. `None` of none.
    pub(crate) fn joined(loads: Vec<Load>) -> Option<Load> {
        let mut loads = loads.into_iter();
        let mut all = loads.next()?;
        for load in loads {
            for (name, tensor) in load.contents.tensors {
                let known = all.contents.tensors.entry(name).or_insert_with(|| StoredTensor {
                    chunks: Vec::new(),
                    dtype_name: tensor.dtype_name.clone(),
                    size: tensor.size.clone(),
                });
                // Of ranks that have something else by this name the first counts.
                if (&known.dtype_name, &known.size) != (&tensor.dtype_name, &tensor.size) {
                    continue;
                }
                for chunk in tensor.chunks {
                    if !known.chunks.iter().any(|there| there.chunk == chunk.chunk) {
                        known.chunks.push(chunk);
                    }
                }
            }
            for (name, stored) in load.contents.objects {
                all.contents.objects.entry(name).or_insert(stored);
            }
        }
        Some(all)
    }

    /// What its index says of the save.
    #[must_use]
    pub fn facts(&self) -> &IndexFacts {
        &self.facts
    }

    /// What the checkpoint holds.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The pickled object of this name, as its bytes: what runs in them is for the caller to judge.
    ///
    /// # Errors
    /// `NotFound` for another name; `Corrupt` where its checksum does not fit.
    pub async fn read_object(&self, name: &str) -> Result<Bytes, Error> {
        let stored = self.contents.objects.get(name).ok_or_else(|| self.missing(name))?;
        let entry = placed(name, stored.as_ref())?;
        check_in_file(&self.storage, name, entry).await?;
        let (loan, pieces) = buffer(0..entry.length);
        fetch_items(&self.storage, vec![entry.read(name, None, pieces)], true, None).await?;
        Ok(loan.back().freeze())
    }

    /// A whole tensor, its elements in row-major order in the dtype in which they are stored.
    ///
    /// # Errors
    /// Those of [`Load::read_block`].
    pub async fn read_tensor(&self, name: &str) -> Result<Bytes, Error> {
        let tensor = self.tensor(name)?;
        let block = Chunk { offsets: vec![0; tensor.size.len()], sizes: tensor.size.clone() };
        let nbytes =
            byte_length(tensor, &block).ok_or_else(|| corrupt(format!("{name}: it has no such shape")))?;
        for part in self.check(name, tensor, &block)? {
            check_in_file(&self.storage, name, part.entry).await?;
        }
        Ok(self.read_block(name, &block, BytesMut::zeroed(nbytes)).await?.freeze())
    }

    /// A block of a tensor into `memory`, which is then given back: its elements in row-major order, in the dtype in which
    /// they are stored. All of it has been compared with the checksums of the checkpoint where it has some.
    ///
    /// # Errors
    /// `NotFound` for another name, `Config` for a block that is not in the tensor, memory of another length, and what
    /// only torch can read; `Corrupt`, naming the tensor, for what is not stored as the index says.
    pub async fn read_block(&self, name: &str, block: &Chunk, memory: BytesMut) -> Result<BytesMut, Error> {
        let mut read = self.read_blocks(vec![(name, block, memory)]).await?;
        Ok(read.pop().unwrap_or_default())
    }

    /// The same for many blocks, in one download: what lies side by side is fetched together.
    ///
    /// # Errors
    /// Those of [`Load::read_block`], the first that comes.
    pub async fn read_blocks(&self, wanted: Vec<(&str, &Chunk, BytesMut)>) -> Result<Vec<BytesMut>, Error> {
        let mut blocks = Vec::with_capacity(wanted.len());
        for (name, block, memory) in wanted {
            let tensor = self.tensor(name)?;
            let parts = self.check(name, tensor, block)?;
            if byte_length(tensor, block) != Some(memory.len()) {
                return Err(config(format!(
                    "{name}: memory of {} bytes for a block of {:?} {}",
                    memory.len(),
                    block.sizes,
                    tensor.dtype_name
                )));
            }
            blocks.push(WantedBlock { name, tensor, sizes: &block.sizes, parts, memory });
        }
        let mut sources = self.sources(&blocks).await?.into_iter();
        let mut loans = Vec::with_capacity(blocks.len());
        let mut reads = Vec::new();
        for WantedBlock { name, sizes, parts, memory, .. } in blocks {
            let sources: Vec<Source> = sources.by_ref().take(parts.len()).collect();
            let (loan, of_block) = block_reads(name, sizes, &parts, &sources, memory)?;
            loans.push(loan);
            reads.extend(of_block);
        }
        fetch_items(&self.storage, reads, true, None).await?;
        Ok(loans.into_iter().map(Loan::back).collect())
    }

    fn tensor(&self, name: &str) -> Result<&StoredTensor, Error> {
        self.contents.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        let error = Error::new(ErrorKind::NotFound, format!("the checkpoint holds no {name:?}"));
        self.storage.at(&self.index_key, error)
    }

    /// Sees that the chunks of a tensor hold the block; which parts of which they are.
    fn check<'a>(
        &self,
        name: &str,
        tensor: &'a StoredTensor,
        block: &Chunk,
    ) -> Result<Vec<Wanted<'a>>, Error> {
        let chunks: Vec<Chunk> = tensor.chunks.iter().map(|stored| stored.chunk.clone()).collect();
        let cover = check_chunks(&tensor.size, &chunks).map_err(|error| {
            let message = format!("{name}: {}", error.message());
            error.with_message(message)
        })?;
        let inside = block.offsets.len() == tensor.size.len()
            && block.sizes.len() == tensor.size.len()
            && (0..tensor.size.len()).all(|dim| {
                let end = block.offsets[dim].checked_add(block.sizes[dim]);
                block.offsets[dim] >= 0
                    && block.sizes[dim] >= 0
                    && end.is_some_and(|end| end <= tensor.size[dim])
            });
        if !inside {
            return Err(config(format!("{name}: {block:?} is outside a tensor of {:?}", tensor.size)));
        }
        if cover == Cover::Holes && !has_all(&tensor.size, &chunks, block) {
            return Err(corrupt(format!("{name}: its chunks in the index do not hold {block:?}")));
        }
        let mut parts = Vec::new();
        for stored in &tensor.chunks {
            let chunk = &stored.chunk;
            let starts: Vec<i64> =
                block.offsets.iter().zip(&chunk.offsets).map(|(one, other)| *one.max(other)).collect();
            let sizes: Vec<i64> = (0..starts.len())
                .map(|dim| {
                    let end = chunk.offsets[dim] + chunk.sizes[dim];
                    end.min(block.offsets[dim] + block.sizes[dim]) - starts[dim]
                })
                .collect();
            if sizes.iter().any(|&size| size <= 0) {
                continue;
            }
            let from =
                |offsets: &[i64]| starts.iter().zip(offsets).map(|(start, offset)| start - offset).collect();
            let (in_chunk, in_block) = (from(&chunk.offsets), from(&block.offsets));
            let entry = placed(name, stored.stored.as_ref())?;
            parts.push(Wanted { entry, shape: unsigned(&chunk.sizes)?, in_chunk, in_block, sizes });
        }
        Ok(parts)
    }

    /// Where the chunks of all parts of these blocks lie, one after another.
    async fn sources(&self, blocks: &[WantedBlock<'_>]) -> Result<Vec<Source>, Error> {
        let mut formats = OwnFormats::default();
        let mut sources: Vec<Option<Source>> = Vec::new();
        let mut foreign = Vec::new();
        for WantedBlock { name, tensor, parts, .. } in blocks {
            for Wanted { entry, shape, .. } in parts {
                if entry.is_own_tensor() {
                    let format = formats.of(name, tensor.dtype(), shape)?;
                    sources.push(Some(format.source(name, (*entry).clone())?));
                } else {
                    sources.push(None);
                    foreign.push(ForeignTensor {
                        name: (*name).to_owned(),
                        entry: (*entry).clone(),
                        shape: shape.clone(),
                    });
                }
            }
            let mut own: Vec<&Entry> =
                parts.iter().map(|part| part.entry).filter(|entry| entry.is_own_tensor()).collect();
            own.sort_unstable_by_key(|entry| (&entry.key, entry.offset));
            if own.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
                return Err(corrupt(format!("{name}: the index gives two of its chunks the same bytes")));
            }
        }
        let mut found = foreign_sources(&self.storage, &foreign).await?.into_iter();
        let mut filled = sources.into_iter().map(|source| source.or_else(|| found.next().flatten()));
        let mut all = Vec::new();
        for WantedBlock { name, tensor, parts, .. } in blocks {
            for source in filled.by_ref().take(parts.len()) {
                let source = source.ok_or_else(|| only_torch(name))?;
                if Some(source.spec.dtype) != tensor.dtype() {
                    let (stored, said) = (source.spec.dtype.torch_name(), &tensor.dtype_name);
                    return Err(config(format!(
                        "{name}: stored as {stored}, but the index says {said}; torch converts it"
                    )));
                }
                all.push(source);
            }
        }
        Ok(all)
    }
}

/// A block that is to be read.
struct WantedBlock<'a> {
    name: &'a str,
    tensor: &'a StoredTensor,
    sizes: &'a [i64],
    parts: Vec<Wanted<'a>>,
    memory: BytesMut,
}

/// The reads that fill the memory of a block.
fn block_reads(
    name: &str,
    sizes: &[i64],
    parts: &[Wanted<'_>],
    sources: &[Source],
    memory: BytesMut,
) -> Result<(Loan, Vec<ItemRead>), Error> {
    let strides = row_major(&unsigned(sizes)?);
    let mut all: Vec<Part> = Vec::new();
    let mut counts = Vec::new();
    for (wanted, source) in parts.iter().zip(sources) {
        let item_size = source.spec.dtype.item_size();
        let (offsets, lengths) = (unsigned(&wanted.in_chunk)?, unsigned(&wanted.sizes)?);
        let Some(stored) = source.block(&offsets, &lengths)? else {
            return Err(only_torch(name));
        };
        let place: u64 = unsigned(&wanted.in_block)?.iter().zip(&strides).map(|(at, step)| at * step).sum();
        let before = all.len();
        for mut part in stored.direct(Some(&strides))? {
            part.memory.start += place * item_size;
            part.memory.end += place * item_size;
            all.push(part);
        }
        counts.push(all.len() - before);
    }
    let (loan, pieces) = Loan::of(memory, all);
    let mut pieces = pieces.into_iter();
    let reads = sources.iter().zip(counts);
    let reads = reads
        .map(|(source, count)| source.entry.read(name, source.head, pieces.by_ref().take(count).collect()));
    Ok((loan, reads.collect()))
}

/// A part of a block that one chunk holds.
struct Wanted<'a> {
    entry: &'a Entry,
    /// Of the chunk.
    shape: Vec<u64>,
    in_chunk: Vec<i64>,
    in_block: Vec<i64>,
    sizes: Vec<i64>,
}

fn placed<'a>(name: &str, stored: Option<&'a Stored>) -> Result<&'a Entry, Error> {
    match stored {
        None => Err(corrupt(format!("{name}: the index does not say where this item is stored"))),
        Some(stored) if stored.is_transformed => Err(only_torch(name)),
        Some(stored) => Ok(&stored.entry),
    }
}

fn only_torch(name: &str) -> Error {
    config(format!("{name}: stored in a way that only torch reads"))
}

/// Sizes that have been seen to be none below zero.
fn unsigned(numbers: &[i64]) -> Result<Vec<u64>, Error> {
    numbers
        .iter()
        .map(|&number| u64::try_from(number).map_err(|_| corrupt(format!("a size of {number} elements"))))
        .collect()
}

/// Bytes of a block; `None` for a dtype that only torch knows, and for more than there can be.
fn byte_length(tensor: &StoredTensor, block: &Chunk) -> Option<usize> {
    let spec = TensorSpec::contiguous(tensor.dtype()?, unsigned(&block.sizes).ok()?);
    usize::try_from(spec.numel()?.checked_mul(spec.dtype.item_size())?).ok()
}
