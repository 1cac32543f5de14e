//! `s3dcp completions` and `s3dcp man`: what a shell and `man` know of the command.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::report::Failure;

/// Write what a shell needs to complete the command
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp completions bash > ~/.local/share/bash-completion/completions/s3dcp\n  s3dcp completions zsh > \"${fpath[1]}/_s3dcp\"\n  s3dcp completions fish > ~/.config/fish/completions/s3dcp.fish"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write a page for `man` for the command and each of its subcommands
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  s3dcp man ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// The folder that they go to
    folder: PathBuf,
}

pub(crate) fn complete(arguments: &Completions, mut command: Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "s3dcp", &mut text);
    io::Write::write_all(&mut io::stdout().lock(), &text).map_err(Failure::output)
}

pub(crate) fn man(arguments: &Man, command: Command) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let failed = |error: io::Error| Failure::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)
}
