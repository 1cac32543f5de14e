//! Makes a checkpoint of a model: of safetensors files, or of one file of torch.save. Nothing in either is run.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, UploadOptions, join_key};
use serde::Serialize;
use serde_json::Value;

use crate::archive::spec::TensorSpec;
use crate::error::{config, corrupt};
use crate::index::read::get;
use crate::layout::{Layout, new_save_id};
use crate::load::chunks::Chunk;
use crate::load::foreign::Header;
use crate::load::located::Located;
use crate::load::source::{Entry, Source};
use crate::name_filter::NameFilter;
use crate::save::observe::EXISTS;
use crate::save::shard_writer::{ItemRecord, ShardWriter};
use crate::save::tensor_index::TensorIndex;
use crate::storage::Storage;
use crate::transfer::commit::{delete_unnamed, note_replaced, write_last};
use crate::transfer::planned::{Block, Planned, in_blocks};
use crate::transfer::rename::Renaming;
use crate::transfer::torch_pickle::torch_contents;
use crate::transfer::torch_records::TorchRecords;
use crate::transfer::write::OnBytes;

/// Files that are written at once.
const CONCURRENT_FILES: usize = 4;
/// Blocks that are read ahead of the one that is written.
const READ_AHEAD: usize = 4;
/// The longest index of a model, and pickle of a torch file, that is read, in bytes.
const MOST_BYTES: u64 = 256 << 20;
const INDEX: &str = "model.safetensors.index.json";

/// How a model is read.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Which of its tensors.
    pub selection: NameFilter,
    /// What they are called in the checkpoint.
    pub renaming: Renaming,
    /// Replace a checkpoint that is there.
    pub overwrite: bool,
}

/// A checkpoint that has been made of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The model, as a URI or a local path.
    pub from: String,
    /// The folder of the checkpoint's index.
    pub to: String,
    /// Tensors of the checkpoint.
    pub tensors: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Shard files.
    pub files: u64,
    /// Values in a torch file that are no tensors, and are not in the checkpoint.
    pub left_out: Vec<String>,
}

/// A checkpoint that is about to be made.
#[derive(Debug)]
pub struct ImportPlan {
    source: Storage,
    target: Storage,
    layout: Layout,
    /// The tensors of each file.
    files: Vec<Vec<Planned>>,
    /// The index that is there now.
    seen: Option<(Bytes, Option<String>)>,
    result: Imported,
}

/// Looks at a model, a file or a folder, and at where its checkpoint is to go. Nothing is written yet.
///
/// # Errors
/// `NotFound` where no model is; `Corrupt` for one that is damaged; `Config` for one that holds more than tensors and plain
/// values, and for options that do not fit; `AlreadyExists` where a checkpoint is that may not be replaced; else those of the requests.
pub async fn plan_import(
    source: &Storage,
    source_key: &str,
    target: &Storage,
    target_key: &str,
    options: &ImportOptions,
) -> Result<ImportPlan, Error> {
    let layout = Layout::new(target_key);
    let model = Model::read(source, source_key).await?;
    let names: Vec<&String> = model.files.iter().flatten().map(|(name, _)| name).collect();
    options.selection.check(names.into_iter())?;
    let mut taken = BTreeSet::new();
    let mut files = Vec::new();
    let mut result = Imported {
        from: source.uri(source_key.trim_end_matches('/')),
        to: target.uri(layout.folder().trim_end_matches('/')),
        left_out: model.left_out,
        ..Imported::default()
    };
    for file in model.files {
        let mut tensors = Vec::new();
        for (old, stored) in file.into_iter().filter(|(name, _)| options.selection.has(name)) {
            let name = options.renaming.name(&old);
            if !taken.insert(name.clone()) {
                return Err(config(format!("two tensors would be called {name:?}")));
            }
            let tensor = planned(name, stored)?;
            result.tensors += 1;
            result.bytes += tensor.nbytes;
            tensors.push(tensor);
        }
        if !tensors.is_empty() {
            files.push(tensors);
        }
    }
    if files.is_empty() {
        return Err(config(format!("{} holds no tensor to import", result.from)));
    }
    result.files = files.len() as u64;
    let index_key = layout.index_key(None);
    let seen = get(target, &index_key).await?;
    if seen.is_some() && !options.overwrite {
        let message = format!("{EXISTS} at {}; overwrite replaces it", target.uri(&index_key));
        return Err(target.at(&index_key, Error::new(ErrorKind::AlreadyExists, message)));
    }
    Ok(ImportPlan { source: source.clone(), target: target.clone(), layout, files, seen, result })
}

fn planned(name: String, source: Source) -> Result<Planned, Error> {
    let spec = &source.spec;
    let count = spec.numel().and_then(|count| count.checked_mul(spec.dtype.item_size()));
    let nbytes = count.ok_or_else(|| corrupt(format!("{name}: it has no such shape")))?;
    let signed: Option<Vec<i64>> = spec.shape.iter().map(|&side| i64::try_from(side).ok()).collect();
    let sizes = signed.ok_or_else(|| corrupt(format!("{name}: it has no such shape")))?;
    let (dtype, size) = (spec.dtype, spec.shape.clone());
    let chunk = Chunk { offsets: vec![0; sizes.len()], sizes };
    let chunks = if nbytes == 0 { Vec::new() } else { vec![(chunk, source)] };
    let located = Arc::new(Located { name: name[..].into(), dtype, size, chunks });
    Ok(Planned { name, dtype, located, nbytes })
}

/// The tensors of a model, file by file, and where each lies.
struct Model {
    files: Vec<Vec<(String, Source)>>,
    left_out: Vec<String>,
}

impl Model {
    async fn read(storage: &Storage, key: &str) -> Result<Model, Error> {
        if is_file(storage, key).await? {
            let start = storage.get_range(key, 0..4.min(storage.head(key).await?.size)).await?;
            return match &start[..] {
                b"PK\x03\x04" => Model::of_torch(storage, key).await,
                _ => Ok(Model { files: vec![safetensors(storage, key).await?], left_out: Vec::new() }),
            };
        }
        let mut files = Vec::new();
        for name in file_names(storage, key).await? {
            files.push(safetensors(storage, &join_key(key, &name)).await?);
        }
        Ok(Model { files, left_out: Vec::new() })
    }

    async fn of_torch(storage: &Storage, key: &str) -> Result<Model, Error> {
        let located = |error: Error| storage.at(key, error);
        let records = TorchRecords::read(storage, key).await.map_err(located)?;
        let place = records.locate(storage, key, ["data.pkl".to_owned()]).await.map_err(located)?;
        let [place] = &place[..] else { return Err(located(corrupt("torch file: it has no pickle"))) };
        if place.end - place.start > MOST_BYTES {
            return Err(located(corrupt("torch file: its pickle is too long")));
        }
        if records.has("byteorder") {
            let order = records.locate(storage, key, ["byteorder".to_owned()]).await.map_err(located)?;
            for place in order {
                if storage.get_range(key, place.start..place.end.min(place.start + 16)).await? != "little" {
                    return Err(located(config("torch file: its values are big-endian")));
                }
            }
        }
        let pickle = storage.get_range(key, place.clone()).await?;
        let contents = torch_contents(&pickle).map_err(located)?;
        let storage_name = |key: &[u8]| format!("data/{}", String::from_utf8_lossy(key));
        let wanted: BTreeSet<String> =
            contents.tensors.iter().map(|(_, tensor)| storage_name(tensor.key)).collect();
        let places = records.locate(storage, key, wanted.iter().cloned()).await.map_err(located)?;
        let places: BTreeMap<&String, _> = wanted.iter().zip(places).collect();
        let shared_key: Arc<str> = key.into();
        let mut tensors = Vec::with_capacity(contents.tensors.len());
        for (name, tensor) in contents.tensors {
            let place = &places[&storage_name(tensor.key)];
            if tensor.data_length > place.end - place.start {
                return Err(located(corrupt(format!(
                    "{name}: the file holds too few bytes for its storage"
                ))));
            }
            let entry = Entry {
                key: shared_key.clone(),
                offset: place.start,
                length: place.end - place.start,
                data_offset: None,
                checksums: None,
            };
            let source = Source { entry, data_offset: 0, spec: Arc::new(tensor.spec), head: None };
            tensors.push((name, source));
        }
        Ok(Model { files: vec![tensors], left_out: contents.others })
    }
}

async fn is_file(storage: &Storage, key: &str) -> Result<bool, Error> {
    if key.is_empty() || key.ends_with('/') {
        return Ok(false);
    }
    match storage.head(key).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The safetensors files of a folder: those that its index names, else all.
async fn file_names(storage: &Storage, key: &str) -> Result<BTreeSet<String>, Error> {
    let index_key = join_key(key, INDEX);
    match storage.get(&index_key, MOST_BYTES).await {
        Ok(index) => {
            let damaged = |why: &str| storage.at(&index_key, corrupt(format!("the model's index {why}")));
            let index: Value = serde_json::from_slice(&index.body)
                .map_err(|error| damaged(&format!("is damaged: {error}")))?;
            let map = index.get("weight_map").and_then(Value::as_object);
            let map = map.ok_or_else(|| damaged("has no weight_map"))?;
            let name = |name: &Value| {
                let name = name.as_str().filter(|name| !name.is_empty() && !name.contains('/'));
                name.map(str::to_owned).ok_or_else(|| damaged("names a file outside its folder"))
            };
            return map.values().map(name).collect();
        }
        Err(error) if error.kind() == ErrorKind::NotFound && error.code() != Some("NoSuchBucket") => {}
        Err(error) => return Err(error),
    }
    let folder = join_key(key, "");
    let listing = storage.list(&folder, Some("/")).await?;
    let names = listing.objects.iter().map(|object| object.key[folder.len()..].to_owned());
    let names: BTreeSet<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
    if names.is_empty() {
        let message = format!("there is no model at {}: no safetensors file", storage.uri(key));
        return Err(storage.at(key, Error::new(ErrorKind::NotFound, message)));
    }
    Ok(names)
}

/// The tensors of a safetensors file, in the order of their values.
async fn safetensors(storage: &Storage, key: &str) -> Result<Vec<(String, Source)>, Error> {
    let size = storage.head(key).await?.size;
    let header = Header::read(storage, key, 0).await.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => {
            storage.at(key, corrupt("neither a safetensors file nor one of torch.save's zip files"))
        }
        _ => error,
    })?;
    let shared_key: Arc<str> = key.into();
    let mut tensors = Vec::new();
    for name in header.names() {
        let found = header.tensor(name).filter(|(_, range)| range.end <= size);
        let (spec, range) =
            found.ok_or_else(|| storage.at(key, corrupt(format!("{name}: the file does not hold it"))))?;
        let entry = Entry {
            key: shared_key.clone(),
            offset: range.start,
            length: range.end - range.start,
            data_offset: None,
            checksums: None,
        };
        tensors.push((name.to_owned(), Source { entry, data_offset: 0, spec: Arc::new(spec), head: None }));
    }
    tensors.sort_by_key(|(_, source)| source.entry.offset);
    if tensors.windows(2).any(|pair| pair[0].1.entry.overlaps(&pair[1].1.entry) && pair[1].1.entry.length > 0)
    {
        return Err(storage.at(key, corrupt("two tensors of the file share bytes")));
    }
    Ok(tensors)
}

impl ImportPlan {
    /// Bytes of the tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.result.bytes
    }

    /// Makes the checkpoint, its index last. `on_bytes` is told of the bytes that have been written.
    ///
    /// # Errors
    /// The first failure; no index was written then, and a prune finds the files that were complete.
    pub async fn run(self, on_bytes: OnBytes<'_>) -> Result<Imported, Error> {
        let save_id = new_save_id();
        let mut index = TensorIndex::new();
        let mut written = pin!(
            stream::iter(self.files.iter().enumerate())
                .map(async |(number, tensors)| {
                    let name = self.layout.shard_file(&format!("__{number}_"), 0, &save_id)?;
                    let path = name.relative_path.clone();
                    let mut options = UploadOptions::default();
                    options.size_hint = Some(tensors.iter().map(|tensor| tensor.nbytes + 4096).sum());
                    let mut shard = ShardWriter::begin_in(&self.target, name, options)?;
                    match self.write(tensors, &mut shard, on_bytes).await {
                        Ok(records) => {
                            shard.finish().await?;
                            Ok((path, tensors, records))
                        }
                        Err(error) => {
                            shard.stop().await;
                            Err(error)
                        }
                    }
                })
                .buffered(CONCURRENT_FILES)
        );
        while let Some(file) = written.next().await {
            let (path, tensors, records) = file?;
            for (tensor, record) in tensors.iter().zip(records) {
                index.tensor(&tensor.name, tensor.dtype, &tensor.located.size, &path, record)?;
            }
        }
        let ranks = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let body: Bytes = index.finish(&save_id, ranks, None)?.seal("").to_vec().into();
        let key = self.layout.index_key(None);
        let etag = self.seen.as_ref().and_then(|(_, etag)| etag.as_deref());
        let old = self.seen.iter().map(|(there, _)| (&key[..], &there[..], etag));
        let tombstone = note_replaced(&self.target, &self.layout, old.clone()).await?;
        write_last(&self.target, &key, body.clone(), etag).await?;
        let (old, new) = (old.map(|(_, there, _)| there), [(&key[..], &body[..])].into_iter());
        delete_unnamed(&self.target, &self.layout, old, new, tombstone).await;
        Ok(self.result.clone())
    }

    async fn write(
        &self,
        tensors: &[Planned],
        shard: &mut ShardWriter,
        on_bytes: OnBytes<'_>,
    ) -> Result<Vec<ItemRecord>, Error> {
        let (body, blocks) = in_blocks(tensors)?;
        let mut records = Vec::with_capacity(tensors.len());
        let mut is_open = false;
        let read = stream::iter(blocks)
            .map(async |block| Ok::<_, Error>((body.read(&self.source, block.range.clone()).await?, block)));
        let mut read = pin!(read.buffered(READ_AHEAD));
        while let Some(block) = read.next().await {
            let (bytes, Block { number, is_last, .. }) = block?;
            let tensor = &tensors[number];
            if !is_open {
                shard.begin_tensor(&TensorSpec::contiguous(tensor.dtype, tensor.located.size.clone()))?;
            }
            on_bytes(bytes.len() as u64);
            shard.write(bytes).await?;
            is_open = !is_last;
            if is_last {
                records.push(shard.end().await?);
            }
        }
        Ok(records)
    }
}
