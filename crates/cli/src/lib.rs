//! The `s3dcp` command.
//!
//! Everything is here rather than in the binary, so that the Python package's `s3dcp` runs the same code through
//! [`run`]. Each subcommand is a module.

mod bench;
mod cp;
mod diff;
mod export;
mod fleet;
mod format;
mod import;
mod inspect;
mod keep;
mod ls;
mod names;
mod output;
mod plan;
mod progress;
mod prune;
mod renaming;
mod report;
mod serve;
mod service;
mod settings;
mod shell;
mod simulate;
mod strategies;
mod tree;
mod verify;

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser, Subcommand};

use report::Failure;

/// PyTorch distributed checkpoints on S3.
#[derive(Debug, Parser)]
#[command(name = "s3dcp", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Arguments),
    Completions(shell::Completions),
    Cp(cp::Arguments),
    Diff(diff::Arguments),
    Export(export::Arguments),
    Import(import::Arguments),
    Inspect(inspect::Arguments),
    Keep(keep::Arguments),
    Ls(ls::Arguments),
    Man(shell::Man),
    Plan(plan::Arguments),
    Prune(prune::Arguments),
    Serve(serve::Arguments),
    Settings(settings::Arguments),
    Simulate(simulate::Arguments),
    Strategies(strategies::Arguments),
    Tree(tree::Arguments),
    Verify(verify::Arguments),
}

/// Runs the command with its arguments, the first of which is the program's name, and gives its exit code: 0 for success,
/// 1 for a failure, 2 for arguments that make no sense; what else a subcommand ends with, its help says.
pub fn run(arguments: impl Iterator<Item = OsString>) -> i32 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nowhere is left to tell if this fails.
            let _told = error.print();
            return error.exit_code();
        }
    };
    let result = match arguments.command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Completions(arguments) => shell::complete(&arguments, Arguments::command()),
        Command::Cp(arguments) => cp::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Keep(arguments) => keep::run(&arguments),
        Command::Ls(arguments) => ls::run(&arguments),
        Command::Man(arguments) => shell::man(&arguments, Arguments::command()),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Prune(arguments) => prune::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Settings(arguments) => settings::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Strategies(arguments) => strategies::run(&arguments),
        Command::Tree(arguments) => tree::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    result.map_or_else(Failure::report, |()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(arguments: &[&str]) -> i32 {
        run(["s3dcp"].iter().chain(arguments).map(OsString::from))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn exit_codes_tell_success_from_failure_from_misuse() {
        assert_eq!(exit_code(&["--version"]), 0);
        assert_eq!(exit_code(&["serve", "--help"]), 0);
        assert_eq!(exit_code(&["strategies", "hex", "--ranks", "4"]), 0);
        assert_eq!(exit_code(&["serve", "--bucket", "No Bucket", "--address", "127.0.0.1:0"]), 1);
        assert_eq!(exit_code(&["no-such-command"]), 2);
        assert_eq!(
            exit_code(&["settings", "--region", "us-east-1", "--endpoint-url", "http://127.0.0.1:9"]),
            0
        );
        assert_eq!(exit_code(&["settings", "not-a-uri"]), 2);
        assert_eq!(exit_code(&["strategies", "hex", "--ranks", "0"]), 2);
        assert_eq!(exit_code(&["strategies", "numeric", "--ranks", "4"]), 2);
        assert_eq!(exit_code(&["tree", "not-a-uri"]), 2);
        assert_eq!(exit_code(&["prune", "not-a-uri"]), 2);
        assert_eq!(exit_code(&["inspect", "not-a-uri"]), 2);
        assert_eq!(exit_code(&["inspect", ".", "a*["]), 2);
        assert_eq!(exit_code(&["verify", "."]), 1);
        assert_eq!(exit_code(&["verify", ".", "--quick", "--resume", "file"]), 2);
        assert_eq!(exit_code(&["diff", ".", "."]), 3);
        assert_eq!(exit_code(&["diff", "."]), 2);
        assert_eq!(exit_code(&["bench", "."]), 2);
        assert_eq!(exit_code(&["bench", "s3://bucket/path", "--connections", "0"]), 2);
        assert_eq!(exit_code(&["plan", "--ranks", "8", "--bytes-per-rank", "64MiB"]), 0);
        assert_eq!(exit_code(&["plan", "--ranks", "0", "--bytes-per-rank", "64MiB"]), 2);
        assert_eq!(exit_code(&["plan", "--ranks", "8", "--bytes-per-rank", "64MiB", "--rounds", "2"]), 2);
        assert_eq!(exit_code(&["simulate", "--ranks", "8", "--bytes-per-rank", "64MiB"]), 0);
        assert_eq!(exit_code(&["simulate", "--ranks", "8", "--bytes-per-rank", "a lot"]), 2);
        let load = ["simulate", "--load", "--ranks", "8", "--bytes-per-rank", "64MiB", "--replicas"];
        assert_eq!(exit_code(&[&load[..], &["4", "--pass", "20"]].concat()), 0);
        assert_eq!(exit_code(&[&load[..], &["3"]].concat()), 2);
        assert_eq!(exit_code(&["prune", "s3://bucket/path", "--older-than", "2"]), 2);
    }
}
