//! `s3dcp simulate`: how long a fleet saves or loads, in virtual time.

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use s3dcp_sim::{Moment, Outcome, Paths, Round, Sharing, share, simulate};
use serde_json::{Value, json};

use crate::fleet::{BYTES_PER_GBIT, Fleet, Strategy};
use crate::format::{parse_duration, parse_positive, parse_size, seconds, size};
use crate::report::Failure;

/// The report, with the place for its figures marked.
const PAGE: &str = include_str!("simulate.html");
const FIGURES: &str = "/*figures*/";

/// Simulate a fleet that saves to S3 or loads from it
///
/// Prefixes, part sizes and pacing are the shipped code, S3 is a model of its partitions: what it assumes stands in
/// `docs/partitions.md`. Times are virtual; equal seeds give equal results.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp simulate --ranks 512 --bytes-per-rank 10GiB\n  s3dcp simulate --ranks 4096 --bytes-per-rank 1GiB --strategy hex --part-size 8MiB,64MiB --html report.html\n  s3dcp simulate --load --ranks 64 --bytes-per-rank 20GiB --replicas 64 --pass 25"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    fleet: Fleet,
    /// Strategies to compare
    #[arg(long, value_delimiter = ',', default_value = "default,binary,hex,round-robin")]
    strategy: Vec<Strategy>,
    /// Patterns to spread over [default: the number of ranks, 16 for round robin]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    prefix_count: Option<u64>,
    /// Bytes of a part, such as 64MiB; give several to compare them [default: what s3dcp chooses]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_size)]
    part_size: Vec<u64>,
    /// Saves or loads one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    rounds: u32,
    /// Time between them
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pause: Duration,
    /// Where the files of each round go: to the same keys, below a path of its own (step_7/<pattern>), or below the same
    /// patterns (<pattern>/epoch_7)
    #[arg(long, value_enum, default_value = "same")]
    paths: Placement,
    /// How many ranks want the same in a load, as DDP has all of them: also what it gains that one fetches and passes on
    #[arg(long, value_name = "COUNT", requires = "load")]
    replicas: Option<u32>,
    /// What a rank passes on to others, in Gbit/s [default: that of --network]
    #[arg(long, value_name = "GBPS", value_parser = parse_positive, requires = "replicas")]
    pass: Option<f64>,
    /// Write all figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with charts there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Placement {
    Same,
    PerRound,
    EpochInPrefix,
}

/// One simulation.
struct Case {
    strategy: &'static str,
    part_size: Option<u64>,
    outcome: Outcome,
    /// Where ranks want the same.
    sharing: Option<Sharing>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut scenario = arguments.fleet.scenario()?;
    scenario.rounds = arguments.rounds;
    scenario.pause = arguments.pause;
    scenario.paths = match arguments.paths {
        Placement::Same => Paths::Same,
        Placement::PerRound => Paths::PerRound,
        Placement::EpochInPrefix => Paths::EpochInPrefix,
    };
    let part_sizes: Vec<Option<u64>> = match &arguments.part_size[..] {
        [] => vec![None],
        sizes => sizes.iter().copied().map(Some).collect(),
    };
    let mut cases = Vec::new();
    for strategy in &arguments.strategy {
        for &part_size in &part_sizes {
            scenario.strategy = strategy.build(arguments.prefix_count).map_err(Failure::usage)?;
            scenario.part_size = part_size;
            if let Some(reason) = scenario.invalid() {
                return Err(Failure::usage(reason));
            }
            let pass =
                arguments.pass.map_or(scenario.network.rank_bytes_per_second, |rate| rate * BYTES_PER_GBIT);
            let sharing = arguments.replicas.map(|replicas| share(&scenario, replicas, pass)).transpose();
            let sharing = sharing.map_err(Failure::usage)?;
            cases.push(Case { strategy: strategy.name(), part_size, outcome: simulate(&scenario), sharing });
        }
    }
    table(&cases).map_err(Failure::output)?;
    let figures = figures(arguments, &cases).to_string();
    let write = |path: &PathBuf, text: &str| {
        fs::write(path, text).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
    };
    if let Some(path) = &arguments.json {
        write(path, &figures)?;
    }
    if let Some(path) = &arguments.html {
        write(path, &PAGE.replace(FIGURES, &figures.replace("</", "<\\/")))?;
    }
    Ok(())
}

fn table(cases: &[Case]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    writeln!(
        out,
        "{:<12} {:>9} {:>5} {:>10} {:>10} {:>7} {:>10} {:>10} {:>6} {:>10} {:>8}",
        "strategy",
        "request",
        "round",
        "time",
        "ideal",
        "x ideal",
        "requests",
        "503",
        "503 %",
        "partitions",
        "fairness"
    )?;
    for case in cases {
        for (number, round) in case.outcome.rounds.iter().enumerate() {
            writeln!(
                out,
                "{:<12} {:>9} {:>5} {:>10} {:>10} {:>7.2} {:>10} {:>10} {:>6.1} {:>10} {:>8.3}",
                case.strategy,
                size(round.request_bytes),
                number,
                seconds(round.duration),
                seconds(round.ideal),
                round.duration.as_secs_f64() / round.ideal.as_secs_f64(),
                round.admitted,
                round.refused,
                100.0 * round.refused as f64 / (round.admitted + round.refused) as f64,
                round.partitions,
                round.fairness
            )?;
        }
    }
    for case in cases {
        let Some(sharing) = case.sharing else { continue };
        writeln!(
            out,
            "{}: each rank fetches all of it: {} for {} from S3; shared: {} for {}; share=\"auto\" {}",
            case.strategy,
            seconds(sharing.alone),
            size(sharing.bytes_alone),
            seconds(sharing.shared),
            size(sharing.bytes_shared),
            if sharing.is_worth() { "shares" } else { "does not share" }
        )?;
    }
    out.flush()
}

fn figures(arguments: &Arguments, cases: &[Case]) -> Value {
    let round = |round: &Round| {
        json!({
            "began_s": round.began.as_secs_f64(),
            "duration_s": round.duration.as_secs_f64(),
            "ideal_s": round.ideal.as_secs_f64(),
            "admitted": round.admitted,
            "refused": round.refused,
            "fairness": round.fairness,
            "partitions": round.partitions,
            "request_bytes": round.request_bytes,
        })
    };
    let moment = |moment: &Moment| {
        json!({
            "at_s": moment.at.as_secs_f64(),
            "round": moment.round,
            "progress": moment.progress,
            "refused": moment.refused,
            "partitions": moment.partitions.iter().map(|partition| json!({
                "first_key": partition.first_key,
                "load": partition.load,
                "admitted": partition.admitted,
                "refused": partition.refused,
            })).collect::<Vec<_>>(),
        })
    };
    let case = |case: &Case| {
        json!({
            "strategy": case.strategy,
            "part_size": case.part_size,
            "rounds": case.outcome.rounds.iter().map(round).collect::<Vec<_>>(),
            "sharing": case.sharing.map(|sharing| json!({
                "alone_s": sharing.alone.as_secs_f64(),
                "shared_s": sharing.shared.as_secs_f64(),
                "bytes_alone": sharing.bytes_alone,
                "bytes_shared": sharing.bytes_shared,
                "is_worth": sharing.is_worth(),
            })),
            "moments": case.outcome.moments.iter().map(moment).collect::<Vec<_>>(),
        })
    };
    json!({
        "ranks": arguments.fleet.ranks,
        "bytes_per_rank": arguments.fleet.bytes_per_rank,
        "operation": if arguments.fleet.load { "load" } else { "save" },
        "partitions": arguments.fleet.partitions,
        "cases": cases.iter().map(case).collect::<Vec<_>>(),
    })
}
