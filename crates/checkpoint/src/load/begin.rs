//! One load, as a Rust caller drives it: open a checkpoint, see what it holds, read what is wanted of it.

use bytes::{Bytes, BytesMut};
use s3dcp_s3::{Error, ErrorKind};

use super::chunks::{Chunk, Cover, check_chunks, has_all};
use super::contents::{Contents, Stored, StoredTensor, contents_of};
use super::fetch::{buffer, check_in_file, fetch_items};
use super::foreign::{ForeignTensor, foreign_sources};
use super::located::{Located, only_torch, unsigned};
use super::memory::Loan;
use super::source::{Entry, OwnFormats, Source};
use crate::archive::spec::TensorSpec;
use crate::error::{config, corrupt};
use crate::index::allow::AllowList;
use crate::index::facts::IndexFacts;
use crate::index::judge::judged_tree;
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
            let (tree, survey) = judged_tree(index, &AllowList::default_globals())?;
            let facts = survey.facts()?;
            drop(survey);
            Ok((facts, contents_of(&tree, &Layout::beside(index_key))?))
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
        for (_, entry) in self.check(name, tensor, &block)? {
            check_in_file(&self.storage, name, entry).await?;
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
        let mut tensors = Vec::with_capacity(wanted.len());
        for (name, block, memory) in wanted {
            let tensor = self.tensor(name)?;
            if byte_length(tensor, block).is_some_and(|length| length != memory.len()) {
                return Err(config(format!(
                    "{name}: memory of {} bytes for a block of {:?} {}",
                    memory.len(),
                    block.sizes,
                    tensor.dtype_name
                )));
            }
            tensors.push((name, tensor, self.check(name, tensor, block)?));
            blocks.push((block, memory));
        }
        let mut loans = Vec::with_capacity(blocks.len());
        let mut reads = Vec::new();
        for (located, (block, memory)) in self.locate(&tensors).await?.iter().zip(blocks) {
            let (loan, of_block) = located.lend(block, memory)?;
            loans.push(loan);
            reads.extend(of_block);
        }
        fetch_items(&self.storage, reads, true, None).await?;
        Ok(loans.into_iter().map(Loan::back).collect())
    }

    /// Where all of these tensors lie.
    ///
    /// # Errors
    /// Those of [`Load::read_block`].
    pub(crate) async fn locate_all(&self, names: &[&str]) -> Result<Vec<Located>, Error> {
        let mut wanted = Vec::with_capacity(names.len());
        for name in names {
            let tensor = self.tensor(name)?;
            let whole = Chunk { offsets: vec![0; tensor.size.len()], sizes: tensor.size.clone() };
            wanted.push((*name, tensor, self.check(name, tensor, &whole)?));
        }
        self.locate(&wanted).await
    }

    /// Where the checkpoint lies.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    fn tensor(&self, name: &str) -> Result<&StoredTensor, Error> {
        self.contents.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        let error = Error::new(ErrorKind::NotFound, format!("the checkpoint holds no {name:?}"));
        self.storage.at(&self.index_key, error)
    }

    /// Sees that the chunks of a tensor hold the block; those that share elements with it.
    fn check<'a>(&self, name: &str, tensor: &'a StoredTensor, block: &Chunk) -> Result<Parts<'a>, Error> {
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
        for stored in tensor.chunks.iter().filter(|stored| stored.chunk.shares(block)) {
            parts.push((&stored.chunk, placed(name, stored.stored.as_ref())?));
        }
        Ok(parts)
    }

    /// Where chunks of tensors lie.
    async fn locate(&self, wanted: &[(&str, &StoredTensor, Parts<'_>)]) -> Result<Vec<Located>, Error> {
        let mut formats = OwnFormats::default();
        let mut sources: Vec<Option<Source>> = Vec::new();
        let mut foreign = Vec::new();
        for (name, tensor, parts) in wanted {
            for (chunk, entry) in parts {
                let shape = unsigned(&chunk.sizes)?;
                if entry.is_own_tensor() {
                    let format = formats.of(name, tensor.dtype(), &shape)?;
                    sources.push(Some(format.source(name, (*entry).clone())?));
                } else {
                    sources.push(None);
                    foreign.push(ForeignTensor { name: (*name).to_owned(), entry: (*entry).clone(), shape });
                }
            }
            let mut own: Vec<&Entry> =
                parts.iter().map(|(_, entry)| *entry).filter(|entry| entry.is_own_tensor()).collect();
            own.sort_unstable_by_key(|entry| (&entry.key, entry.offset));
            if own.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
                return Err(corrupt(format!("{name}: the index gives two of its chunks the same bytes")));
            }
        }
        let mut found = foreign_sources(&self.storage, &foreign).await?.into_iter();
        let mut sources = sources.into_iter();
        let mut all = Vec::with_capacity(wanted.len());
        for (name, tensor, parts) in wanted {
            let dtype = tensor.dtype().ok_or_else(|| only_torch(name))?;
            let mut chunks = Vec::with_capacity(parts.len());
            for (chunk, _) in parts {
                let source = sources.next().flatten().or_else(|| found.next().flatten());
                let source = source.ok_or_else(|| only_torch(name))?;
                if source.spec.dtype != dtype {
                    let (stored, said) = (source.spec.dtype.torch_name(), &tensor.dtype_name);
                    return Err(config(format!(
                        "{name}: stored as {stored}, but the index says {said}; torch converts it"
                    )));
                }
                chunks.push(((*chunk).clone(), source));
            }
            all.push(Located { name: (*name).into(), dtype, size: unsigned(&tensor.size)?, chunks });
        }
        Ok(all)
    }
}

/// Chunks of a tensor, and where they are stored.
type Parts<'a> = Vec<(&'a Chunk, &'a Entry)>;

fn placed<'a>(name: &str, stored: Option<&'a Stored>) -> Result<&'a Entry, Error> {
    match stored {
        None => Err(corrupt(format!("{name}: the index does not say where this item is stored"))),
        Some(stored) if stored.is_transformed => Err(only_torch(name)),
        Some(stored) => Ok(&stored.entry),
    }
}

/// Bytes of a block; `None` for a dtype that only torch knows, and for more than there can be.
fn byte_length(tensor: &StoredTensor, block: &Chunk) -> Option<usize> {
    let spec = TensorSpec::contiguous(tensor.dtype()?, unsigned(&block.sizes).ok()?);
    usize::try_from(spec.numel()?.checked_mul(spec.dtype.item_size())?).ok()
}
