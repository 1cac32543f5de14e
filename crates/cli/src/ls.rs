//! `s3dcp ls`: the checkpoints below a path.

use std::io::{self, Write};

use clap::Args;
use s3dcp_checkpoint::{Checkpoint, Checkpoints, list_checkpoints};

use crate::format::{duration, printable, size};
use crate::output::{Column, Output, bad, count, faint, good, table};
use crate::report::Failure;
use crate::service::{Service, not_there, runtime};

/// List the checkpoints below a path: step, age, size, and whether each is complete
///
/// A checkpoint is complete when every file that its index names is there; `s3dcp verify` reads them too. Checkpoints of
/// torch's own writers and of s3torchconnector count as well. The one that was committed last is marked.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp ls s3://bucket/run\n  s3dcp ls /data/run --json | jq -r '.checkpoints[] | select(.newest).uri'"
)]
pub(crate) struct Arguments {
    /// Where to look: s3://bucket/path, s3://bucket for all of it, or a local folder
    uri: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let runtime = runtime()?;
    let found = runtime.block_on(list_checkpoints(&storage, &path_key))?;
    if found.checkpoints.is_empty() && !arguments.output.json {
        return Err(not_there(
            &runtime,
            &storage,
            &path_key,
            &format!("there is no checkpoint below {}", arguments.uri),
        ));
    }
    arguments.output.show(|| &found, |out| tell(out, &found, &storage.uri(&path_key)))
}

fn tell(out: &mut dyn Write, found: &Checkpoints, below: &str) -> io::Result<()> {
    let columns = [
        Column::Numbers("step"),
        Column::Numbers("age"),
        Column::Numbers("ranks"),
        Column::Numbers("items"),
        Column::Numbers("files"),
        Column::Numbers("bytes"),
        Column::Words("state"),
        Column::Words("checkpoint"),
    ];
    let number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    let row = |checkpoint: &Checkpoint| {
        vec![
            number(checkpoint.step.map(|step| step.to_string())),
            number(checkpoint.age(found.asked).map(duration)),
            number(checkpoint.ranks.map(|ranks| ranks.to_string())),
            checkpoint.items.to_string(),
            checkpoint.files.to_string(),
            size(checkpoint.bytes),
            state(checkpoint).to_owned(),
            name(checkpoint, below),
        ]
    };
    for line in table(&columns, found.checkpoints.iter().map(row)).lines() {
        // Painted as a whole, so that widths are those of the text.
        let newest = line.replacen(" newest ", &format!(" {} ", good("newest")), 1);
        writeln!(out, "{}", newest.replacen(" incomplete ", &format!(" {} ", bad("incomplete")), 1))?;
    }
    for checkpoint in found.checkpoints.iter().filter(|checkpoint| !checkpoint.complete) {
        let what = match (&checkpoint.fault, checkpoint.missing.first()) {
            (Some(fault), _) => fault.clone(),
            (None, Some(first)) => {
                format!(
                    "{} missing, such as {}",
                    count(checkpoint.missing.len() as u64, "file"),
                    printable(first)
                )
            }
            (None, None) => continue,
        };
        writeln!(out, "{}: {}", printable(&checkpoint.uri), printable(&what))?;
    }
    if found.unnamed_files > 0 {
        let files = count(found.unnamed_files, "shard file");
        let note =
            format!("{files} that no index names: a save under way, or leftovers (s3dcp prune {below})");
        writeln!(out, "{}", faint(note))?;
    }
    Ok(())
}

fn state(checkpoint: &Checkpoint) -> &'static str {
    match (checkpoint.newest, checkpoint.complete) {
        (true, _) => "newest",
        (false, true) => "complete",
        (false, false) => "incomplete",
    }
}

/// The folder as seen from the path, or the whole of it for the path's own.
fn name(checkpoint: &Checkpoint, below: &str) -> String {
    let folder = below.trim_end_matches('/');
    let name = checkpoint.uri.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    printable(name.unwrap_or(&checkpoint.uri)).into()
}
