//! `s3dcp strategies`: which prefix each rank would write under.

use std::io::{self, Write};
use std::num::NonZeroU64;

use clap::{Args, Subcommand};
use s3dcp_prefix::{
    BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, NumericOptions, NumericPrefixStrategy,
    PrefixStrategy, RoundRobinPrefixStrategy,
};

use crate::output::Output;
use crate::report::Failure;

/// Show the prefix that a strategy gives each rank
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp strategies hex --ranks 4 --epoch 5\n  s3dcp strategies numeric --help"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    strategy: Strategy,
}

#[derive(Debug, Subcommand)]
enum Strategy {
    /// `__<rank>_`: no spread
    Default {
        #[command(flatten)]
        job: Job,
    },
    /// Patterns of binary digits
    Binary {
        #[command(flatten)]
        job: Job,
        #[command(flatten)]
        numeric: Numeric,
    },
    /// Patterns of hexadecimal digits
    Hex {
        #[command(flatten)]
        job: Job,
        #[command(flatten)]
        numeric: Numeric,
    },
    /// Patterns of digits of any base
    Numeric {
        #[command(flatten)]
        job: Job,
        #[command(flatten)]
        numeric: Numeric,
        /// Base of the digits, 2 to 36
        #[arg(long)]
        base: u32,
    },
    /// Prefixes of your own, in turn
    RoundRobin {
        #[command(flatten)]
        job: Job,
        /// A prefix; give it once for each
        #[arg(long = "prefix", value_name = "PREFIX", required = true)]
        prefixes: Vec<String>,
        /// Put `epoch_<EPOCH>/` into every prefix
        #[arg(long)]
        epoch: Option<i64>,
    },
}

#[derive(Debug, Args)]
struct Job {
    /// Number of ranks of the job
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    ranks: u64,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Numeric {
    /// Put `epoch_<EPOCH>/` into every prefix
    #[arg(long)]
    epoch: Option<i64>,
    /// How many patterns to spread over [default: the number of ranks]
    #[arg(long)]
    prefix_count: Option<u64>,
    /// Pad patterns to at least this many digits
    #[arg(long, default_value_t = s3dcp_prefix::DEFAULT_MIN_PREFIX_LENGTH)]
    min_prefix_length: usize,
}

impl Numeric {
    fn options(&self) -> NumericOptions {
        NumericOptions {
            epoch_num: self.epoch,
            min_prefix_length: self.min_prefix_length,
            prefix_count: self.prefix_count,
        }
    }
}

impl Strategy {
    fn job(&self) -> &Job {
        match self {
            Self::Default { job }
            | Self::Binary { job, .. }
            | Self::Hex { job, .. }
            | Self::Numeric { job, .. }
            | Self::RoundRobin { job, .. } => job,
        }
    }

    fn build(&self) -> Result<Box<dyn PrefixStrategy>, s3dcp_prefix::PrefixError> {
        Ok(match self {
            Self::Default { .. } => Box::new(DefaultPrefixStrategy),
            Self::Binary { numeric, .. } => Box::new(BinaryPrefixStrategy::new(numeric.options())?),
            Self::Hex { numeric, .. } => Box::new(HexPrefixStrategy::new(numeric.options())?),
            Self::Numeric { numeric, base, .. } => {
                Box::new(NumericPrefixStrategy::new(*base, numeric.options())?)
            }
            Self::RoundRobin { prefixes, epoch, .. } => {
                Box::new(RoundRobinPrefixStrategy::new(prefixes, *epoch)?)
            }
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let ranks = NonZeroU64::new(arguments.strategy.job().ranks)
        .ok_or_else(|| Failure::usage("--ranks must be at least 1"))?;
    let strategy = arguments.strategy.build().map_err(Failure::usage)?;
    let strategy = strategy.bind(ranks).unwrap_or(strategy);
    let prefixes = || {
        let mut prefixes = Vec::new();
        strategy.for_each_prefix(0..ranks.get() as i64, &mut |_, prefix| prefixes.push(prefix.to_string()));
        prefixes
    };
    arguments.strategy.job().output.show(prefixes, |out| table(out, &*strategy, ranks))
}

fn table(out: &mut dyn Write, strategy: &dyn PrefixStrategy, ranks: NonZeroU64) -> io::Result<()> {
    let width = (ranks.get() - 1).to_string().len().max("rank".len());
    writeln!(out, "{:>width$}  prefix", "rank")?;
    let mut written = Ok(());
    strategy.for_each_prefix(0..ranks.get() as i64, &mut |rank, prefix| {
        if written.is_ok() {
            written = writeln!(out, "{rank:>width$}  {prefix}");
        }
    });
    written
}
