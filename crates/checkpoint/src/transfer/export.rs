//! Writes the tensors of a checkpoint as a model: safetensors files with Hugging Face's names and index.
//!
//! The values of a chunk lie in one run in its item. Where that run is one in the tensor too, as those of row shards are, it is a
//! range that the service can copy. Small tensors stand together at the front of those of their element size, so that few ranges are
//! taken apart for them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind, join_key};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::catalogue::open::open_checkpoint;
use crate::dtype::DType;
use crate::error::{config, corrupt};
use crate::layout::{Layout, Name};
use crate::load::begin::Load;
use crate::load::located::Located;
use crate::name_filter::NameFilter;
use crate::storage::Storage;
use crate::transfer::body::Body;
use crate::transfer::cast::{can_cast, is_float};
use crate::transfer::commit::write_last;
use crate::transfer::copy::look_at_sources;
use crate::transfer::planned::Planned;
use crate::transfer::ranks::joined;
use crate::transfer::rename::Renaming;
use crate::transfer::torch_file::write_torch_file;
use crate::transfer::write::{Mover, OnBytes};

/// Files that are written at once.
const CONCURRENT_FILES: usize = 4;
/// Bytes of a file of Hugging Face's at most, unless told otherwise.
const USUAL_FILE_BYTES: u64 = 5_000_000_000;
const INDEX: &str = "model.safetensors.index.json";
const SUFFIX: &str = ".safetensors";

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// Safetensors files in a folder, with an index where there are several; or one file, where the destination is called `….safetensors`.
    #[default]
    Safetensors,
    /// One file of `torch.save`, a dict of tensors.
    Torch,
}

/// How a model is written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExportOptions {
    /// What is written.
    pub format: ExportFormat,
    /// Which of the checkpoint's tensors.
    pub selection: NameFilter,
    /// What they are called.
    pub renaming: Renaming,
    /// The dtype of floating-point tensors; `None`: as they are stored.
    pub dtype: Option<DType>,
    /// Bytes of tensors in a safetensors file at most; a larger tensor has one of its own.
    pub max_file_bytes: u64,
    /// Replace a model that is there.
    pub overwrite: bool,
}

impl Default for ExportOptions {
    fn default() -> ExportOptions {
        ExportOptions {
            format: ExportFormat::default(),
            selection: NameFilter::default(),
            renaming: Renaming::default(),
            dtype: None,
            max_file_bytes: USUAL_FILE_BYTES,
            overwrite: false,
        }
    }
}

/// A model that has been written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The folder of the checkpoint's index, as a URI or a local path.
    pub from: String,
    /// The folder of the model, or its file.
    pub to: String,
    /// Tensors that were written.
    pub tensors: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// The files, as URIs or local paths.
    pub files: Vec<String>,
    /// Objects of the checkpoint that are no tensors, and are not in the model.
    pub left_out: Vec<String>,
    /// Bytes that the service copied by itself.
    pub bytes_by_service: u64,
    /// Bytes that went through this process.
    pub bytes_through_client: u64,
}

/// A model that is about to be written.
#[derive(Debug)]
pub struct ExportPlan {
    load: Load,
    target: Storage,
    /// The folder, or the file.
    target_key: String,
    format: ExportFormat,
    tensors: Vec<Planned>,
    sources: Vec<s3dcp_s3::ObjectInfo>,
    /// Names of files with the numbers of their tensors.
    files: Vec<(String, Vec<usize>)>,
    result: Exported,
}

/// Looks at a checkpoint and at where its model is to go. Nothing is written yet. What ranks saved without collectives is put
/// together; where `source_key` is that of an index, it is that one alone.
///
/// # Errors
/// `NotFound` where no checkpoint is, or one that lacks a file; `Corrupt` for an index that is damaged or holds what none
/// needs; `AlreadyExists` where a model is that may not be replaced; `Config` for options that do not fit and tensors that only torch reads; else
/// those of the requests.
pub async fn plan_export(
    source: &Storage,
    source_key: &str,
    target: &Storage,
    target_key: &str,
    options: &ExportOptions,
) -> Result<ExportPlan, Error> {
    let checkpoint = open_checkpoint(source, source_key).await?;
    let from = checkpoint.uri.clone();
    let is_index = Name::of(source_key).is_index();
    let layout = if is_index { Layout::beside(source_key) } else { Layout::new(source_key) };
    let load = match is_index {
        true => Load::joined(checkpoint.indexes.into_iter().map(|index| index.load).collect()),
        false => joined(checkpoint, &options.selection).await?,
    };
    let load = load.ok_or_else(|| config("there is no tensor to write"))?;
    let contents = load.contents();
    options.selection.check(contents.names())?;
    let names: Vec<&str> =
        contents.tensors.keys().filter(|name| options.selection.has(name)).map(|name| &name[..]).collect();
    if names.is_empty() {
        return Err(config("there is no tensor to write"));
    }
    let entries = names.iter().flat_map(|name| &contents.tensors[*name].chunks);
    let keys = entries.filter_map(|chunk| Some(&*chunk.stored.as_ref()?.entry.key));
    layout.check_shard_files(keys).map_err(|error| source.at(&layout.index_key(None), error))?;
    let left_out = contents.objects.keys().filter(|name| options.selection.has(name)).cloned().collect();
    let located = load.locate_all(&names).await?;
    let mut tensors = Vec::with_capacity(located.len());
    let mut taken = BTreeMap::new();
    for tensor in located {
        let name = options.renaming.name(&tensor.name);
        if let Some(other) = taken.insert(name.clone(), tensor.name.clone()) {
            return Err(config(format!("{other:?} and {:?} would both be called {name:?}", tensor.name)));
        }
        tensors.push(planned(name, tensor, options)?);
    }
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    let keys = tensors.iter().flat_map(|tensor| &tensor.located.chunks);
    let keys: BTreeSet<String> = keys.map(|(_, source)| source.entry.key.to_string()).collect();
    let sources: Vec<_> = look_at_sources(source, keys).await?.into_iter().map(|(info, _)| info).collect();
    check_in_files(source, &tensors, &sources)?;
    let one_file = options.format == ExportFormat::Torch || target_key.ends_with(SUFFIX);
    let files = match one_file {
        true => vec![(target_key.to_owned(), (0..tensors.len()).collect())],
        false => files(&tensors, options.max_file_bytes)
            .into_iter()
            .map(|(name, numbers)| (join_key(target_key, &name), numbers))
            .collect(),
    };
    let result = Exported {
        from,
        to: target.uri(target_key.trim_end_matches('/')),
        tensors: tensors.len() as u64,
        bytes: tensors.iter().map(|tensor| tensor.nbytes).sum(),
        files: files.iter().map(|(key, _)| target.uri(key)).collect(),
        left_out,
        ..Exported::default()
    };
    let plan = ExportPlan {
        load,
        target: target.clone(),
        target_key: target_key.to_owned(),
        format: options.format,
        tensors,
        sources,
        files,
        result,
    };
    if !options.overwrite {
        plan.refuse_model(one_file).await?;
    }
    Ok(plan)
}

fn planned(name: String, tensor: Located, options: &ExportOptions) -> Result<Planned, Error> {
    let wanted = options.dtype.filter(|_| is_float(tensor.dtype));
    let dtype = wanted.unwrap_or(tensor.dtype);
    if !can_cast(tensor.dtype, dtype) {
        return Err(config(format!("dtype: {} cannot be what tensors are converted to", dtype.torch_name())));
    }
    if options.format == ExportFormat::Safetensors && dtype.safetensors_name().is_none() {
        return Err(config(format!("{name}: safetensors has no name for {}", dtype.torch_name())));
    }
    let count = tensor.size.iter().try_fold(1u64, |count, &side| count.checked_mul(side));
    let nbytes = count.and_then(|count| count.checked_mul(dtype.item_size()));
    let nbytes = nbytes.ok_or_else(|| corrupt(format!("{name}: it has no such shape")))?;
    Ok(Planned { name, dtype, located: Arc::new(tensor), nbytes })
}

/// Sees that what the index says of items lies in their files.
fn check_in_files(
    storage: &Storage,
    tensors: &[Planned],
    sources: &[s3dcp_s3::ObjectInfo],
) -> Result<(), Error> {
    let sizes: BTreeMap<&str, u64> = sources.iter().map(|info| (&info.key[..], info.size)).collect();
    for tensor in tensors {
        for (_, source) in &tensor.located.chunks {
            let entry = &source.entry;
            let size = sizes.get(&entry.key[..]).copied().unwrap_or(0);
            if entry.offset.checked_add(entry.length).is_none_or(|end| end > size) {
                let message = format!(
                    "{}: the index gives this item {} bytes at {} of a file of {size}",
                    tensor.located.name, entry.length, entry.offset
                );
                return Err(storage.at(&entry.key, corrupt(message)));
            }
        }
    }
    Ok(())
}

/// The files of a model, by Hugging Face's names, with the numbers of their tensors.
fn files(tensors: &[Planned], most: u64) -> Vec<(String, Vec<usize>)> {
    let mut files: Vec<Vec<usize>> = vec![Vec::new()];
    let mut bytes = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        let full = files.last().is_some_and(|file| !file.is_empty()) && bytes + tensor.nbytes > most;
        if full {
            files.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.nbytes;
        if let Some(file) = files.last_mut() {
            file.push(number);
        }
    }
    let count = files.len();
    let name = |number: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    files.into_iter().enumerate().map(|(number, file)| (name(number), file)).collect()
}

/// Whether Hugging Face's libraries give a file such a name.
fn is_model_file(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(stem) = name.strip_prefix("model").and_then(|rest| rest.strip_suffix(SUFFIX)) else {
        return false;
    };
    stem.is_empty()
        || stem
            .strip_prefix('-')
            .and_then(|stem| stem.split_once("-of-"))
            .is_some_and(|(number, count)| digits(number) && digits(count))
}

impl ExportPlan {
    /// Bytes that are to be written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.result.bytes
    }

    fn index_key(&self) -> String {
        join_key(&self.target_key, INDEX)
    }

    async fn refuse_model(&self, one_file: bool) -> Result<(), Error> {
        let keys = match one_file {
            true => vec![self.target_key.clone()],
            false => vec![self.index_key(), join_key(&self.target_key, "model.safetensors")],
        };
        for key in keys {
            match self.target.head(&key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    let message =
                        format!("there is a model already, {}; overwrite replaces it", self.target.uri(&key));
                    return Err(self.target.at(&key, Error::new(ErrorKind::AlreadyExists, message)));
                }
            }
        }
        Ok(())
    }

    /// Writes the model, its index last. `on_bytes` is told of the bytes of files that have reached their place.
    ///
    /// # Errors
    /// The first failure; no index was written then. `PreconditionFailed` for a source that changed meanwhile.
    pub async fn run(self, on_bytes: OnBytes<'_>) -> Result<Exported, Error> {
        let mover =
            Mover::new(self.load.storage(), &self.target, self.sources.iter().cloned(), on_bytes).await?;
        match self.format {
            ExportFormat::Torch => write_torch_file(&mover, &self.target_key, &self.tensors).await?,
            ExportFormat::Safetensors => self.write_files(&mover).await?,
        }
        let mut result = self.result;
        result.bytes_by_service = mover.by_service.load(Ordering::Relaxed);
        result.bytes_through_client = mover.through_client.load(Ordering::Relaxed);
        Ok(result)
    }

    async fn write_files(&self, mover: &Mover<'_>) -> Result<(), Error> {
        let in_folder = self.files.iter().any(|(key, _)| *key != self.target_key);
        if in_folder {
            // What was there is a model no more, before any of its files is replaced.
            self.target.delete_if(&self.index_key(), None).await?;
        }
        let mut written = pin!(
            stream::iter(&self.files)
                .map(async |(key, numbers)| {
                    let body = self.body(numbers)?;
                    mover.write(key, &body).await
                })
                .buffer_unordered(CONCURRENT_FILES)
        );
        while let Some(result) = written.next().await {
            result?;
        }
        if !in_folder {
            return Ok(());
        }
        if self.files.len() > 1 {
            let name = |key: &str| key.rsplit_once('/').map_or(key, |(_, name)| name).to_owned();
            let tensors = self.files.iter().flat_map(|(key, numbers)| {
                numbers.iter().map(move |&number| (&self.tensors[number].name, name(key)))
            });
            let map: BTreeMap<_, _> = tensors.collect();
            let index = json!({"metadata": {"total_size": self.result.bytes}, "weight_map": map});
            let index = serde_json::to_vec_pretty(&index).map_err(|error| config(error.to_string()))?;
            write_last(&self.target, &self.index_key(), index.into(), None).await?;
        }
        self.delete_others().await
    }

    /// Deletes the files that an earlier model had beside those of this one.
    async fn delete_others(&self) -> Result<(), Error> {
        let folder = join_key(&self.target_key, "");
        let own: BTreeSet<&str> = self.files.iter().map(|(key, _)| &key[..]).collect();
        let listing = self.target.list(&folder, Some("/")).await?;
        let others = listing.objects.into_iter().map(|object| object.key);
        let others: Vec<String> =
            others.filter(|key| is_model_file(&key[folder.len()..]) && !own.contains(&key[..])).collect();
        if others.is_empty() {
            return Ok(());
        }
        let refused = self.target.delete(&others).await?;
        refused.into_iter().next().map_or(Ok(()), |failure| Err(self.target.refusal(failure)))
    }

    /// A safetensors file of these tensors.
    fn body(&self, numbers: &[usize]) -> Result<Body, Error> {
        let mut tensors: Vec<&Planned> = numbers.iter().map(|&number| &self.tensors[number]).collect();
        // Larger elements first, so that each lies at a multiple of its size; small tensors together.
        tensors.sort_by_key(|tensor| (Reverse(tensor.dtype.item_size()), tensor.nbytes));
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut at = 0u64;
        for tensor in &tensors {
            let entry = json!({
                "dtype": tensor.dtype.safetensors_name(),
                "shape": tensor.located.size,
                "data_offsets": [at, at + tensor.nbytes],
            });
            header.insert(tensor.name.clone(), entry);
            at += tensor.nbytes;
        }
        let mut header =
            serde_json::to_vec(&Value::Object(header)).map_err(|error| config(error.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut body = Body::default();
        body.bytes((header.len() as u64).to_le_bytes().to_vec());
        body.bytes(header);
        for tensor in tensors {
            tensor.add_to(&mut body)?;
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_model_files_are_known() {
        for (name, is) in [
            ("model.safetensors", true),
            ("model-00001-of-00003.safetensors", true),
            ("model-1.safetensors", false),
            ("models.safetensors", false),
            ("adapter_model.safetensors", false),
            (INDEX, false),
        ] {
            assert_eq!(is_model_file(name), is, "{name}");
        }
    }
}
