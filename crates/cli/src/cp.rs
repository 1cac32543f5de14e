//! `s3dcp cp`: a checkpoint, copied from one place to another.

use std::io::{self, Write};

use clap::{ArgGroup, Args};
use s3dcp_checkpoint::{Copied, CopyOptions, FileNames, NameFilter, plan_copy};

use crate::format::{printable, size};
use crate::output::{Output, count, faint};
use crate::progress::Progress;
use crate::report::Failure;
use crate::service::{Other, Service, run_until_stopped};

/// Copy a checkpoint between buckets, services and local folders
///
/// The index goes last, and only where there is none: until then nobody takes the copy for a checkpoint. From bucket to bucket of
/// one service, AWS in all regions of a partition, the service copies by itself where the destination's credentials may read the source. A copy
/// that was stopped is gone on with by the same command: a file is left as it is where it has the right size and, where both services
/// keep one, the right CRC-32. A file whose name another save gives as well (torch's have no id) must have the right CRC-32; those on a
/// disk are read for it.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("names").args(["flatten", "spread"])),
    after_help = "Examples:
  s3dcp cp s3://bucket/run/epoch_5 /data/epoch_5
  s3dcp cp /data/epoch_5 s3://bucket/restored --spread hex
  s3dcp cp s3://bucket/run s3://elsewhere/run --to-region eu-west-1 --to-profile archive
  s3dcp cp s3://bucket/run s3://bucket/weights --select model"
)]
pub(crate) struct Arguments {
    /// The checkpoint: s3://bucket/path or a local folder
    from: String,
    /// Where its copy goes: s3://bucket/path or a local folder
    to: String,
    /// Copy these items only: a name, what names begin with before a dot, or a pattern with * and ?
    #[arg(long, value_name = "NAME", num_args = 1..)]
    select: Vec<String>,
    /// Put all files beside the index
    #[arg(long)]
    flatten: bool,
    /// Put each rank's files under a prefix: hex, binary, or numeric:BASE (see `s3dcp strategies`)
    #[arg(long, value_name = "STRATEGY", value_parser = parse_strategy)]
    spread: Option<String>,
    /// Replace a checkpoint that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
    #[command(flatten)]
    other: Other,
}

/// Checks the strategy of `--spread`.
fn parse_strategy(text: &str) -> Result<String, String> {
    FileNames::spread(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (source, from) = arguments.service.source(&arguments.from)?;
    let (target, to) = arguments.service.other(&arguments.other, &source, &arguments.to)?;
    let mut options = CopyOptions::default();
    options.overwrite = arguments.overwrite;
    options.selection = NameFilter::new(&arguments.select)?;
    options.names = match &arguments.spread {
        Some(strategy) => FileNames::spread(strategy)?,
        None if arguments.flatten => FileNames::Flatten,
        None => FileNames::Keep,
    };
    let copied = run_until_stopped(async {
        let plan = plan_copy(&source, &from, &target, &to, &options).await?;
        let progress = Progress::new(!arguments.output.json, plan.bytes());
        plan.run(&|bytes| progress.add(bytes)).await
    })?;
    arguments.output.show(|| &copied, |out| tell(out, &copied))
}

fn tell(out: &mut dyn Write, copied: &Copied) -> io::Result<()> {
    let items = count(copied.items, "item");
    let files = count(copied.files, "file");
    let to = printable(&copied.to);
    writeln!(out, "copied {items} in {files} of {} to {to}", size(copied.bytes))?;
    let mut notes = Vec::new();
    if copied.skipped_files > 0 {
        let were = if copied.skipped_files == 1 { "was" } else { "were" };
        let files = count(copied.skipped_files, "file");
        notes.push(format!("{files} of {} {were} there", size(copied.skipped_bytes)));
    }
    if copied.bytes_by_service > 0 {
        notes.push(format!("{} copied by the service", size(copied.bytes_by_service)));
    }
    notes.push(format!("{} through this machine", size(copied.bytes_through_client)));
    writeln!(out, "{}", faint(notes.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_named_as_the_command_strategies_names_them() {
        for text in ["hex", "binary", "numeric:7"] {
            assert!(parse_strategy(text).is_ok(), "{text}");
        }
        for text in ["", "hexadecimal", "numeric", "numeric:1", "numeric:37", "numeric:x"] {
            assert!(parse_strategy(text).is_err(), "{text}");
        }
    }
}
