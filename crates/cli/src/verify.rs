//! `s3dcp verify`: whether a checkpoint is whole and as it was saved.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Args;
use s3dcp_checkpoint::{Verification, VerifyFault, VerifyOptions, open_checkpoint, verify};
use s3dcp_s3::ErrorKind;

use crate::format::{printable, seconds, size};
use crate::output::{Output, bad, count, faint, good};
use crate::progress::Progress;
use crate::report::Failure;
use crate::service::{Service, runtime};

/// What a verification that could not be carried out ends with.
const UNKNOWN: i32 = 3;

/// Verify a checkpoint: every file that its index names, every item in it, every checksum
///
/// Reads everything once and keeps nothing of it. Items of this project are compared with the checksums in the index, those
/// of torch and of s3torchconnector with those in their own archives. Every item that is bad is listed.
///
/// Exit codes: 0 good; 1 bad, or no checkpoint; 2 arguments that make no sense; 3 it could not be found out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp verify s3://bucket/run/epoch_5\n  s3dcp verify s3://bucket/run --resume /tmp/run.verify\n  s3dcp verify /data/run --json | jq -r '.faults[].name'"
)]
pub(crate) struct Arguments {
    /// The checkpoint: s3://bucket/path or a local folder, an epoch's or step's folder, or an index (.metadata)
    uri: String,
    /// Read no items: compare sizes, and the checksums of whole files that S3 keeps with those in the index
    #[arg(long)]
    quick: bool,
    /// Keep in this file what has been verified; a run that was killed goes on from there, and one that ends deletes it
    #[arg(long, value_name = "FILE", conflicts_with = "quick")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let runtime = runtime()?;
    let unknown = |error: s3dcp_s3::Error| match error.kind() {
        ErrorKind::Config => Failure::usage(error),
        ErrorKind::Corrupt | ErrorKind::NotFound => Failure::failed(error),
        _ => Failure::Told(Some(error.to_string()), UNKNOWN),
    };
    let begun = Instant::now();
    let checkpoint = runtime.block_on(open_checkpoint(&storage, &path_key)).map_err(unknown)?;
    let mut options = VerifyOptions::default();
    options.quick = arguments.quick;
    options.resume.clone_from(&arguments.resume);
    let progress: Arc<OnceLock<Progress>> = Arc::default();
    let (bar, show) = (progress.clone(), !arguments.output.json);
    let found = runtime
        .block_on(verify(&checkpoint, &options, move |bytes, total| {
            bar.get_or_init(|| Progress::new(show, total)).add(bytes);
        }))
        .map_err(unknown)?;
    if let Some(progress) = progress.get() {
        progress.end();
    }
    arguments.output.show(|| &found, |out| tell(out, &found, begun.elapsed()))?;
    if found.good { Ok(()) } else { Err(Failure::Told(None, 1)) }
}

fn tell(out: &mut dyn Write, found: &Verification, taken: Duration) -> io::Result<()> {
    for fault in &found.faults {
        writeln!(out, "{} {}", bad("bad"), said(fault))?;
    }
    let uri = printable(&found.uri);
    let what =
        format!("{}, {} in {}", count(found.items, "item"), size(found.bytes), count(found.files, "file"));
    match found.faults.len() {
        0 => writeln!(out, "{} {uri}: {what}", good("good"))?,
        faults => writeln!(out, "{} {uri}: {} in {what}", bad("bad"), count(faults as u64, "fault"))?,
    }
    let by = found.by;
    let how = [
        (by.index, "by the checksums in the index"),
        (by.archive, "by those in their own archives"),
        (by.storage, "by those that S3 keeps of whole files"),
        (by.head, "by head and size, as nothing has checksums of their values"),
        (by.size, "by size alone"),
    ];
    let how: Vec<String> = how
        .into_iter()
        .filter(|(items, _)| *items > 0)
        .map(|(items, how)| format!("{} {how}", count(items, "item")))
        .collect();
    let rate = found.read_bytes as f64 / taken.as_secs_f64().max(1e-9);
    let mut read = format!("{} read in {}", size(found.read_bytes), seconds(taken));
    if found.read_bytes > 0 {
        read += &format!(", {}/s", size(rate as u64));
    }
    if found.resumed_bytes > 0 {
        read += &format!("; {} verified before", size(found.resumed_bytes));
    }
    let how = if how.is_empty() { read } else { format!("{}; {read}", how.join(", ")) };
    writeln!(out, "{}", faint(how))
}

fn said(fault: &VerifyFault) -> String {
    let mut text = String::new();
    if let Some(name) = &fault.name {
        text += &printable(name);
        if let Some(rank) = fault.rank {
            text += &format!(" (rank {rank})");
        }
        text += ": ";
    }
    text += &printable(&fault.what);
    if let Some(file) = &fault.file {
        text += &format!(" [{}]", printable(file));
    }
    text
}
