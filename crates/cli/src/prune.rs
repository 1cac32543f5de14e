//! `s3dcp prune`: what killed and failed saves left below a path.

use std::io::{self, BufWriter, Write as _};
use std::time::Duration;

use clap::Args;
use s3dcp_checkpoint::{Leftover, LeftoverKind, Leftovers, Pruned, find_leftovers};

use crate::format::{duration, parse_duration, printable, size};
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Below this, a save under way may well be older.
const USUAL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// List what killed and failed saves left below a path, and delete it when told to
///
/// That is unfinished multipart uploads, shard files that no index names, and probe objects; never what another program
/// wrote. Checkpoints further below count as well. Ages are by the service's clock. A shard file is deleted only if no
/// index names it, read anew right before; an index that cannot be read ends it.
///
/// Credentials come from the usual AWS places: environment, profile, web identity, container, instance.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to look: s3://bucket/path, s3://bucket for all of it, or a local folder
    uri: String,
    /// Delete what is listed
    #[arg(long)]
    delete: bool,
    /// Spare what is younger than this, such as 30m, 2h or 7d; a save that takes longer loses what it wrote
    #[arg(long, value_name = "AGE", default_value = "24h", value_parser = parse_duration)]
    older_than: Duration,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let limit = duration(arguments.older_than);
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let runtime = runtime()?;
    let found = runtime.block_on(find_leftovers(&storage, &path_key, arguments.older_than))?;
    table(&found, &limit).map_err(Failure::output)?;
    if let Some(why) = &found.uploads_unlisted {
        let warning = format!("warning: unfinished uploads were not looked for: {why}");
        writeln!(io::stderr(), "{warning}").map_err(Failure::output)?;
    }
    if found.old.is_empty() {
        return Ok(());
    }
    if !arguments.delete {
        return writeln!(io::stdout(), "nothing was deleted; --delete does that").map_err(Failure::output);
    }
    if arguments.older_than < USUAL_LIMIT {
        let warning = format!("warning: a save under way that takes longer than {limit} loses what it wrote");
        writeln!(io::stderr(), "{warning}").map_err(Failure::output)?;
    }
    summarize(&runtime.block_on(found.delete(&storage)))
}

/// What was found, a line for each, and the total.
fn table(found: &Leftovers, limit: &str) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if !found.old.is_empty() {
        writeln!(out, "{:10}  {:>10}  {:>9}  key", "kind", "bytes", "age")?;
        for leftover in &found.old {
            let kind = match leftover.kind {
                LeftoverKind::Upload { .. } => "upload",
                LeftoverKind::ShardFile => "shard file",
                LeftoverKind::Probe => "probe",
            };
            let (bytes, age) = (size(leftover.bytes), duration(leftover.age));
            writeln!(out, "{kind:10}  {bytes:>10}  {age:>9}  {}", printable(&leftover.key))?;
        }
    }
    writeln!(out, "{} at least {limit} old", count(&found.old))?;
    if found.younger > 0 {
        writeln!(out, "{} more younger than that", found.younger)?;
    }
    out.flush()
}

fn summarize(pruned: &Pruned) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{} deleted", count(&pruned.deleted)).map_err(Failure::output)?;
    if !pruned.named.is_empty() {
        writeln!(out, "{} named by an index by now and not deleted", count(&pruned.named))
            .map_err(Failure::output)?;
    }
    let mut problems: Vec<String> = pruned
        .failed
        .iter()
        .map(|(leftover, reason)| format!("{} could not be deleted: {reason}", printable(&leftover.key)))
        .collect();
    problems.extend(pruned.stopped.as_ref().map(|error| format!("not all was tried: {error}")));
    if problems.is_empty() { Ok(()) } else { Err(Failure::failed(problems.join("\nerror: "))) }
}

fn count(leftovers: &[Leftover]) -> String {
    let plural = if leftovers.len() == 1 { "" } else { "s" };
    let bytes = leftovers.iter().map(|leftover| leftover.bytes).sum();
    format!("{} leftover{plural} of {}", leftovers.len(), size(bytes))
}
