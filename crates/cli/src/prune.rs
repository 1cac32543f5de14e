//! `s3dcp prune`: what killed and failed saves left below a path.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use s3dcp_checkpoint::{Leftover, LeftoverKind, Pruned, find_leftovers};
use serde::Serialize;

use crate::format::{duration, parse_duration, printable, size};
use crate::output::{self, Column, Output, count};
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Below this, a save under way may well be older.
const USUAL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// List what killed and failed saves left below a path, and delete it when told to
///
/// That is unfinished multipart uploads, shard files that no index names, probe objects, intents of incremental saves that
/// are a day old, and what a deletion that was killed had yet to take; nothing else that another program wrote. Nothing tells who
/// began an upload under another name, such as a model's: it is counted, and taken with --all-uploads. Checkpoints
/// further below count as well. Ages are by the service's clock. A shard file is deleted only if no index names it, nor a
/// younger intent, read anew right before; one that cannot be read ends it.
///
/// Credentials come from the usual AWS places: environment, profile, web identity, container, instance.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp prune s3://bucket/run\n  s3dcp prune s3://bucket/run --older-than 2h --delete\n  s3dcp prune s3://bucket/model --all-uploads --delete"
)]
pub(crate) struct Arguments {
    /// Where to look: s3://bucket/path, s3://bucket for all of it, or a local folder
    uri: String,
    /// Delete what is listed
    #[arg(long)]
    delete: bool,
    /// Spare what is younger than this, such as 30m, 2h or 7d; a save that takes longer loses what it wrote
    #[arg(long, value_name = "AGE", default_value = "24h", value_parser = parse_duration)]
    older_than: Duration,
    /// Take unfinished uploads of every name, whoever began them: a killed cp or export may have left them, or another program
    #[arg(long)]
    all_uploads: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let limit = duration(arguments.older_than);
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let runtime = runtime()?;
    let mut found = runtime.block_on(find_leftovers(&storage, &path_key, arguments.older_than))?;
    if arguments.all_uploads {
        found.take_other_uploads();
    }
    if let Some(why) = &found.uploads_unlisted {
        warn(&format!("not all unfinished uploads were looked at: {why}"))?;
    }
    let output = &arguments.output;
    let (old, younger, others) = (found.old.clone(), found.younger, found.other_uploads.clone());
    output.tell(|out| table(out, &old, younger, &others, &limit))?;
    if old.is_empty() || !arguments.delete {
        return output.show(
            || Told { leftovers: &old, younger, other_uploads: &others, pruned: None },
            |out| {
                if old.is_empty() { Ok(()) } else { writeln!(out, "nothing was deleted; --delete does that") }
            },
        );
    }
    if arguments.older_than < USUAL_LIMIT {
        warn(&format!("a save under way that takes longer than {limit} loses what it wrote"))?;
    }
    let pruned = runtime.block_on(found.delete(&storage));
    let told = || Told { leftovers: &old, younger, other_uploads: &others, pruned: Some(&pruned) };
    output.show(told, |out| summarize(out, &pruned))?;
    problems(&pruned)
}

fn warn(what: &str) -> Result<(), Failure> {
    writeln!(io::stderr(), "warning: {what}").map_err(Failure::output)
}

/// What is shown as JSON.
#[derive(Serialize)]
struct Told<'a> {
    leftovers: &'a [Leftover],
    younger: usize,
    other_uploads: &'a [Leftover],
    pruned: Option<&'a Pruned>,
}

/// What was found, a line for each, and the total.
fn table(
    out: &mut dyn Write,
    old: &[Leftover],
    younger: usize,
    others: &[Leftover],
    limit: &str,
) -> io::Result<()> {
    let columns =
        [Column::Words("kind"), Column::Numbers("bytes"), Column::Numbers("age"), Column::Words("key")];
    let rows = old.iter().map(|leftover| {
        let kind = match leftover.kind {
            LeftoverKind::Upload { .. } => "upload",
            LeftoverKind::ShardFile => "shard file",
            LeftoverKind::Probe => "probe",
            LeftoverKind::File => "file",
            LeftoverKind::Tombstone => "tombstone",
            LeftoverKind::Intent => "intent",
        };
        vec![kind.to_owned(), size(leftover.bytes), duration(leftover.age), printable(&leftover.key).into()]
    });
    out.write_all(output::table(&columns, rows).as_bytes())?;
    writeln!(out, "{} at least {limit} old", of(old))?;
    if younger > 0 {
        writeln!(out, "{younger} more younger than that")?;
    }
    if let [first, rest @ ..] = others {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let (uploads, key) = (count(others.len() as u64, "upload"), printable(&first.key));
        writeln!(
            out,
            "{uploads} of {} under other names, as old: {key}{more}; --all-uploads takes them",
            bytes(others)
        )?;
    }
    Ok(())
}

fn summarize(out: &mut dyn Write, pruned: &Pruned) -> io::Result<()> {
    writeln!(out, "{} deleted", of(&pruned.deleted))?;
    if !pruned.named.is_empty() {
        writeln!(out, "{} named by an index by now and not deleted", of(&pruned.named))?;
    }
    Ok(())
}

fn problems(pruned: &Pruned) -> Result<(), Failure> {
    let mut problems: Vec<String> = pruned
        .failed
        .iter()
        .map(|(leftover, reason)| format!("{} could not be deleted: {reason}", printable(&leftover.key)))
        .collect();
    problems.extend(pruned.stopped.as_ref().map(|error| format!("not all was tried: {error}")));
    if problems.is_empty() { Ok(()) } else { Err(Failure::failed(problems.join("\nerror: "))) }
}

fn of(leftovers: &[Leftover]) -> String {
    format!("{} of {}", count(leftovers.len() as u64, "leftover"), bytes(leftovers))
}

fn bytes(leftovers: &[Leftover]) -> String {
    size(leftovers.iter().map(|leftover| leftover.bytes).sum())
}
