//! `s3dcp plan`: which strategy and part size for a job, and what to expect.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use s3dcp_sim::{Advice, Choice, advise};
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::format::{parse_duration, seconds, size};
use crate::output::Output;
use crate::report::Failure;

/// Find the settings for a job, by simulating it
///
/// Compares strategies, numbers of patterns and part sizes with `s3dcp simulate`, says what a save or load takes with the
/// partitions that S3 has now and with as many as the time wanted needs, and gives code to paste.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp plan --ranks 512 --bytes-per-rank 10GiB --within 30s\n  s3dcp plan --ranks 512 --bytes-per-rank 10GiB --load --partitions 4"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    fleet: Fleet,
    /// Time wanted for one save or load, such as 30s or 2m [default: what the network needs]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    within: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let scenario = arguments.fleet.scenario()?;
    let advice = advise(&scenario, arguments.within);
    arguments.output.show(|| figures(arguments, &advice), |out| tell(out, arguments, &advice))
}

fn figures(arguments: &Arguments, advice: &Advice) -> Value {
    let choice = |choice: &Choice| {
        json!({
            "spreads": choice.spreads,
            "prefix_count": choice.prefix_count,
            "part_size": choice.part_size,
            "request_bytes": choice.first.request_bytes,
            "requests": choice.first.admitted,
            "now": { "seconds": choice.first.duration.as_secs_f64(), "refused": choice.first.refused },
            "settled": { "seconds": choice.settled.duration.as_secs_f64(), "refused": choice.settled.refused },
        })
    };
    json!({
        "ranks": arguments.fleet.ranks,
        "bytes_per_rank": arguments.fleet.bytes_per_rank,
        "operation": if arguments.fleet.load { "load" } else { "save" },
        "network_seconds": advice.network.as_secs_f64(),
        "directory_bucket": arguments.fleet.directory_bucket,
        "partitions": arguments.fleet.partitions,
        "partitions_wanted": advice.partitions_wanted,
        "choices": advice.choices.iter().map(choice).collect::<Vec<_>>(),
    })
}

fn tell(out: &mut dyn Write, arguments: &Arguments, advice: &Advice) -> io::Result<()> {
    let fleet = &arguments.fleet;
    let (best, partitions) = (&advice.choices[0], fleet.partitions);
    let verb = if fleet.load { "load" } else { "save" };
    writeln!(
        out,
        "{} ranks {verb} {} each, {} in all; the network needs {}.\n",
        fleet.ranks,
        size(fleet.bytes_per_rank),
        size(fleet.bytes_per_rank.saturating_mul(fleet.ranks.into())),
        seconds(advice.network),
    )?;
    writeln!(
        out,
        "{:<22} {:>9} {:>9} | {:>10} {:>8} | {:>10} {:>8}",
        "", "part size", "requests", "now", "503", "settled", "503"
    )?;
    for choice in &advice.choices {
        writeln!(
            out,
            "{:<22} {:>9} {:>9} | {:>10} {:>8} | {:>10} {:>8}",
            name(choice),
            size(choice.first.request_bytes),
            choice.first.admitted,
            seconds(choice.first.duration),
            choice.first.refused,
            seconds(choice.settled.duration),
            choice.settled.refused,
        )?;
    }
    if fleet.directory_bucket {
        writeln!(
            out,
            "\nA directory bucket has no partitions: prefixes divide nothing, and there is nothing to ask AWS for. What it takes in \
             all is what is counted on.\n"
        )?;
    } else {
        writeln!(
            out,
            "\nnow: with {partitions} partition{} for these keys; settled: with {}.\n",
            if partitions == 1 { "" } else { "s" },
            advice.partitions_wanted.max(partitions),
        )?;
    }
    writeln!(
        out,
        "Take {}{}.",
        name(best),
        match best.part_size {
            Some(bytes) => format!(" with parts of {}", size(bytes)),
            None => " and let s3dcp choose the parts".to_owned(),
        }
    )?;
    let within = arguments.within.unwrap_or_default();
    if arguments.within.is_some() && advice.network > within {
        writeln!(
            out,
            "{} cannot be met: the network alone needs {}.",
            seconds(within),
            seconds(advice.network)
        )?;
    }
    if advice.partitions_wanted > partitions {
        writeln!(
            out,
            "Keep the path the same from save to save, so that what S3 splits stays of use: it splits ranges of keys that stay \
             hot for minutes. Or ask AWS Support to divide the path into {} partitions before the job begins.",
            advice.partitions_wanted
        )?;
    } else if !fleet.directory_bucket {
        writeln!(out, "There is no need to ask AWS for more partitions.")?;
    }
    writeln!(out, "\n{}", snippet(best, fleet.load))
}

fn name(choice: &Choice) -> String {
    match (choice.spreads, choice.prefix_count) {
        (false, _) => "the default strategy".to_owned(),
        (true, None) => "hex, one per rank".to_owned(),
        (true, Some(count)) => format!("hex over {count}"),
    }
}

fn snippet(choice: &Choice, load: bool) -> String {
    let config = choice.part_size.map(|bytes| format!("S3ClientConfig(part_size={} << 20)", bytes >> 20));
    if load {
        let config = config.map_or(String::new(), |config| format!(", s3client_config={config}"));
        return format!(
            "from s3dcp import S3ClientConfig, S3StorageReader\n\nreader = S3StorageReader(\"<region>\", \
             \"s3://<bucket>/<path>\"{config})"
        );
    }
    let mut names = vec!["S3StorageWriter"];
    let mut arguments = String::new();
    if let Some(config) = config {
        names.push("S3ClientConfig");
        arguments.push_str(&format!(",\n    s3client_config={config}"));
    }
    if choice.spreads {
        names.push("HexPrefixStrategy");
        let count = choice.prefix_count.map_or(String::new(), |count| format!("prefix_count={count}"));
        arguments.push_str(&format!(",\n    prefix_strategy=HexPrefixStrategy({count})"));
    }
    names.sort_unstable();
    format!(
        "from s3dcp import {}\n\nwriter = S3StorageWriter(\n    \"<region>\",\n    \"s3://<bucket>/<path>\"{arguments},\n)",
        names.join(", ")
    )
}
