//! Some items of a checkpoint as a checkpoint of their own: new shard files of these items alone, and a new index.

use std::collections::BTreeMap;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use s3dcp_s3::Error;

use crate::error::config;
use crate::layout::{Layout, id_text};
use crate::load::chunks::Chunk;
use crate::load::contents::{Contents, Stored};
use crate::name_filter::NameFilter;
use crate::save::tensor_index::{Place, TensorIndex};
use crate::transfer::body::{Body, Content};
use crate::transfer::names::{base, rank_of};

/// What the names of safetensors files end with: their items are no files of their own.
const SAFETENSORS: &str = ".safetensors";

/// A checkpoint that is cut out of another.
pub(crate) struct Subset {
    pub(crate) index: Bytes,
    /// The shard files, by their names relative to the index.
    pub(crate) files: BTreeMap<String, Body>,
}

/// An item that is wanted.
struct Wanted<'a> {
    name: &'a str,
    chunk: Option<(&'a str, &'a [i64], &'a Chunk)>,
    stored: &'a Stored,
}

/// Cuts the selected items out. `ranks` saved the checkpoint; `is_part` where this is the index of one of them, which may have
/// none of the items, and a part of a tensor. `names` gives each of the old files, by its key, a new name.
///
/// # Errors
/// `Config` for items that cannot be told apart from their file.
pub(crate) fn subset(
    index: &[u8],
    contents: &Contents,
    ranks: u64,
    is_part: bool,
    selection: &NameFilter,
    names: &BTreeMap<String, String>,
) -> Result<Subset, Error> {
    let mut wanted = Vec::new();
    for (name, tensor) in contents.tensors.iter().filter(|(name, _)| selection.has(name)) {
        for chunk in &tensor.chunks {
            let stored = chunk.stored.as_ref().ok_or_else(|| unplaced(name))?;
            let chunk = Some((&tensor.dtype_name[..], &tensor.size[..], &chunk.chunk));
            wanted.push(Wanted { name, chunk, stored });
        }
    }
    for (name, stored) in contents.objects.iter().filter(|(name, _)| selection.has(name)) {
        let stored = stored.as_ref().ok_or_else(|| unplaced(name))?;
        wanted.push(Wanted { name, chunk: None, stored });
    }
    wanted.sort_by_key(|item| (&item.stored.entry.key, item.stored.entry.offset));
    let id = subset_id(index, &wanted);
    let mut files: BTreeMap<String, Body> = BTreeMap::new();
    let mut subset = TensorIndex::new();
    for Wanted { name, chunk, stored } in wanted {
        let entry = &stored.entry;
        if stored.is_transformed || entry.key.ends_with(SAFETENSORS) {
            return Err(config(format!(
                "{name}: it is stored in a way that cannot be taken out of its file; copy all of the checkpoint"
            )));
        }
        let old = names.get(&entry.key[..]).ok_or_else(|| unplaced(name))?;
        let file = subset_name(old, &id);
        let body = files.entry(file.clone()).or_default();
        let place = Place {
            file,
            offset: body.length(),
            length: entry.length,
            data_offset: entry.data_offset,
            checksums: entry.checksums.clone(),
            hash: stored.hash,
        };
        let content = Content::Item { name: name.into(), entry: entry.clone(), head: None, start: 0 };
        body.push(content, entry.length);
        match chunk {
            Some((dtype, size, chunk)) => subset.place(name, dtype, size, chunk.clone(), place)?,
            None => subset.object(name, place),
        }
    }
    let ranks = u32::try_from(ranks).unwrap_or(1);
    let index = if is_part { subset.finish_part(&id, ranks)? } else { subset.finish(&id, ranks, None)? };
    let index = index.seal("").to_vec().into();
    Ok(Subset { index, files })
}

fn unplaced(name: &str) -> Error {
    config(format!("--select {name:?}: the index does not say where it is stored"))
}

/// The id of the new files: the same for the same items of the same checkpoint, so that what was copied before is known again.
fn subset_id(index: &[u8], wanted: &[Wanted<'_>]) -> String {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(index);
    for item in wanted {
        digest.update(item.name.as_bytes());
        digest.update(&[0]);
    }
    id_text(digest.finalize())
}

/// A name of this project for the part of a file: the old one with another id.
fn subset_name(old: &str, id: &str) -> String {
    let folder = &old[..old.len() - base(old).len()];
    let name = base(old);
    match rank_of(name) {
        Some((rank, rest)) => {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let number = if number.is_empty() { "0" } else { &number };
            format!("{folder}__{rank}_{number}-{id}.distcp")
        }
        None => {
            let stem = name.strip_suffix(".distcp").unwrap_or(name);
            format!("{folder}{stem}_0-{id}.distcp")
        }
    }
}

/// The files of an index by their keys, with their new names.
pub(crate) fn names_by_key(
    names: &BTreeMap<String, String>,
    layout: &Layout,
) -> Result<BTreeMap<String, String>, Error> {
    names.iter().map(|(old, new)| Ok((layout.resolve(old)?, new.clone()))).collect()
}
