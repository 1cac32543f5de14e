//! `s3dcp keep`: which checkpoints of a path stay, and the deletion of the others.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use s3dcp_checkpoint::{Best, Checkpoint, Choice, Deleted, KeepRules, choose, list_checkpoints};
use serde::Serialize;

use crate::format::{duration, parse_duration, printable, size};
use crate::output::{Column, Output, bad, count, faint, good, table};
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Keep some checkpoints of a path, and delete the others when told to
///
/// What any rule keeps stays, and so does the checkpoint that was committed last. The checkpoints of a path are its own, its
/// epochs' and those in folders of steps directly below it; others are left alone. An index is deleted first, and only if
/// it is still the one that was judged; its files go after, unless another index names them, and with them what else is in
/// the folder of the step. While an index cannot be read, nothing is deleted.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp keep s3://bucket/run --last 3\n  s3dcp keep s3://bucket/run --last 3 --every 1000 --best loss:min:2 --younger 7d --delete"
)]
pub(crate) struct Arguments {
    /// The path of the checkpoints: s3://bucket/path, or a local folder
    uri: String,
    /// Keep the newest N, by step
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Keep every step that STEPS divides
    #[arg(long, value_name = "STEPS")]
    every: Option<u64>,
    /// Keep the best by a metric noted with the save, such as loss:min or accuracy:max:3; may be given again
    #[arg(long, value_name = "METRIC:min|max[:N]", value_parser = parse_best)]
    best: Vec<Best>,
    /// Keep what is younger than this, such as 12h or 7d
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    younger: Option<Duration>,
    /// Keep the checkpoint in the folder of this name, such as step-700; may be given again
    #[arg(long = "name", value_name = "FOLDER")]
    names: Vec<String>,
    /// Delete the others
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

/// What is shown as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    choice: &'a Choice,
    deleted: &'a Option<Deleted>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let mut rules = KeepRules::default();
    rules.last = arguments.last;
    rules.every = arguments.every;
    rules.best.clone_from(&arguments.best);
    rules.younger = arguments.younger;
    rules.names.clone_from(&arguments.names);
    let runtime = runtime()?;
    let found = runtime.block_on(list_checkpoints(&storage, &path_key))?;
    let asked = found.asked;
    let age = |checkpoint: &Checkpoint| checkpoint.age(asked).map_or_else(|| "-".to_owned(), duration);
    let choice = choose(found, &rules)?;
    let output = &arguments.output;
    output.tell(|out| tell(out, &choice, &age, arguments.delete))?;
    let deleted = if arguments.delete { Some(runtime.block_on(choice.delete(&storage))?) } else { None };
    output.show(
        || Shown { choice: &choice, deleted: &deleted },
        |out| match &deleted {
            Some(deleted) if !choice.delete.is_empty() => summarize(out, deleted),
            _ => Ok(()),
        },
    )?;
    match deleted.map_or(0, |deleted| deleted.failed.len()) {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{} could not be deleted", count(failed as u64, "file")))),
    }
}

fn tell(
    out: &mut dyn Write,
    choice: &Choice,
    age: &dyn Fn(&Checkpoint) -> String,
    delete: bool,
) -> io::Result<()> {
    let columns = [
        Column::Numbers("step"),
        Column::Numbers("age"),
        Column::Numbers("bytes"),
        Column::Words("checkpoint"),
        Column::Words("why it stays"),
    ];
    let kept = choice.keep.iter().map(|kept| (&kept.checkpoint, kept.why.join(", ")));
    let mut all: Vec<(&Checkpoint, String)> = kept.collect();
    all.extend(choice.delete.iter().map(|checkpoint| (checkpoint, String::new())));
    all.sort_by(|(one, _), (other, _)| (one.step, &one.uri).cmp(&(other.step, &other.uri)));
    let rows = all.iter().map(|(checkpoint, why)| {
        let step = checkpoint.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
        let bytes = size(checkpoint.bytes - checkpoint.shared_bytes);
        vec![step, age(checkpoint), bytes, printable(&checkpoint.uri).into(), why.clone()]
    });
    for (number, line) in table(&columns, rows).lines().enumerate() {
        let goes = number > 0 && all[number - 1].1.is_empty();
        writeln!(out, "{}", if goes { faint(line) } else { line.to_owned() })?;
    }
    let bytes: u64 = choice.delete.iter().map(|checkpoint| checkpoint.bytes - checkpoint.shared_bytes).sum();
    let (stay, go) = (choice.keep.len() as u64, choice.delete.len() as u64);
    let stays = good(format!("{} stay{}", count(stay, "checkpoint"), if stay == 1 { "s" } else { "" }));
    let goes =
        format!("{} of {} go{}", count(go, "checkpoint"), size(bytes), if go == 1 { "es" } else { "" });
    writeln!(out, "{stays}, {}", if go > 0 { bad(goes) } else { goes })?;
    if go > 0 && !delete {
        writeln!(out, "nothing was deleted; --delete does that")?;
    }
    Ok(())
}

fn summarize(out: &mut dyn Write, deleted: &Deleted) -> io::Result<()> {
    let checkpoints = count(deleted.deleted.len() as u64, "checkpoint");
    writeln!(out, "{checkpoints} deleted, with {}", count(deleted.files, "file"))?;
    if deleted.named > 0 {
        writeln!(
            out,
            "{} of them stay, because another checkpoint names them",
            count(deleted.named, "file")
        )?;
    }
    for uri in &deleted.replaced {
        writeln!(out, "{} stays: it was replaced meanwhile", printable(uri))?;
    }
    for failure in &deleted.failed {
        writeln!(out, "{}", printable(failure))?;
    }
    Ok(())
}

/// Reads a rule such as `loss:min` or `accuracy:max:3`.
fn parse_best(text: &str) -> Result<Best, String> {
    let refused = || "must be a metric with min or max, such as loss:min or accuracy:max:3".to_owned();
    let mut parts = text.rsplitn(3, ':').collect::<Vec<_>>();
    parts.reverse();
    let (metric, order, number) = match parts[..] {
        [metric, order, number] => match number.parse::<usize>() {
            Ok(number) if number > 0 => (metric.to_owned(), order, number),
            // A colon in the metric's name.
            _ => (format!("{metric}:{order}"), number, 1),
        },
        [metric, order] => (metric.to_owned(), order, 1),
        _ => return Err(refused()),
    };
    let largest = match order {
        "min" => false,
        "max" => true,
        _ => return Err(refused()),
    };
    if metric.is_empty() { Err(refused()) } else { Ok(Best { metric, largest, count: number }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_the_best_has_a_metric_and_a_direction() {
        let best = |metric: &str, largest, count| Ok(Best { metric: metric.to_owned(), largest, count });
        assert_eq!(parse_best("loss:min"), best("loss", false, 1));
        assert_eq!(parse_best("accuracy:max:3"), best("accuracy", true, 3));
        assert_eq!(parse_best("eval:loss:min:2"), best("eval:loss", false, 2));
        assert_eq!(parse_best("eval:loss:min"), best("eval:loss", false, 1));
        for text in ["", "loss", ":min", "loss:least", "loss:min:0", "loss:min:x"] {
            assert!(parse_best(text).is_err(), "{text}");
        }
    }
}
