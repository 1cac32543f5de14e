//! What a subcommand says when it fails, and with which exit code.

use std::fmt;
use std::io::{self, Write as _};

/// Why a subcommand ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An argument makes no sense: exit code 2.
    Usage(String),
    /// It went wrong: exit code 1.
    Failed(String),
    /// The output says what it found, or this text why it found nothing out: this exit code.
    Told(Option<String>, i32),
    /// Whoever read the output has gone, as `head` does: no failure.
    OutputClosed,
}

impl Failure {
    pub(crate) fn usage(error: impl fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// For errors of writing to standard output.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::OutputClosed } else { Self::failed(error) }
    }

    /// Tells the user and gives the exit code.
    pub(crate) fn report(self) -> i32 {
        let (message, code) = match self {
            Self::Usage(message) => (message, 2),
            Self::Failed(message) => (message, 1),
            Self::Told(Some(message), code) => (message, code),
            Self::Told(None, code) => return code,
            Self::OutputClosed => return 0,
        };
        // Nowhere is left to tell if this fails.
        let _told = writeln!(io::stderr(), "error: {message}");
        code
    }
}
