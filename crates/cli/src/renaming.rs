//! What tensors are called in another format, as options; and the names of what has no place there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use s3dcp_checkpoint::Renaming;

use crate::format::printable;
use crate::output::count;
use crate::report::Failure;

/// Names of what is left out that are shown.
const SHOWN: usize = 5;

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Take this off the front of names
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Vec<String>,
    /// Call an item, or what names begin with before a dot, otherwise
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_pair)]
    map: Vec<(String, String)>,
    /// A JSON object of old names and new ones, as many --map
    #[arg(long, value_name = "FILE")]
    map_file: Option<PathBuf>,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("must be OLD=NEW".to_owned()),
    }
}

impl Names {
    pub(crate) fn renaming(&self) -> Result<Renaming, Failure> {
        let mut renaming = Renaming::default();
        if let Some(file) = &self.map_file {
            let shown = file.display();
            let text = std::fs::read(file)
                .map_err(|error| Failure::usage(format!("--map-file {shown}: {error}")))?;
            let map: BTreeMap<String, String> = serde_json::from_slice(&text).map_err(|error| {
                Failure::usage(format!("--map-file {shown}: must be an object of names: {error}"))
            })?;
            renaming.map.extend(map);
        }
        renaming.map.extend(self.map.iter().cloned());
        renaming.strip_prefixes.clone_from(&self.strip_prefix);
        Ok(renaming)
    }
}

/// A line on what is left out, as it is no tensor; `None` where nothing is.
pub(crate) fn left_out(names: &[String], noun: &str) -> Option<String> {
    let shown: Vec<Cow<'_, str>> = names.iter().take(SHOWN).map(|name| printable(name)).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    let count = count(names.len() as u64, noun);
    (!names.is_empty()).then(|| format!("left out, no tensors: {count} ({}{more})", shown.join(", ")))
}
