//! What a subcommand tells: a table for a person, or JSON for a program.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use crate::report::Failure;

/// How to tell it.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Write JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

impl Output {
    /// Writes the record as JSON, or what `tell` writes of it for a person. Colours go to terminals alone.
    pub(crate) fn show<T: Serialize>(
        &self,
        record: impl FnOnce() -> T,
        tell: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(anstream::stdout().lock());
        let written = if self.json {
            serde_json::to_writer_pretty(&mut out, &record())
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        } else {
            tell(&mut out)
        };
        written.and_then(|()| out.flush()).map_err(Failure::output)
    }

    /// Writes what a person reads before the end, where the record alone says it to a program.
    pub(crate) fn tell(&self, tell: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
        if self.json { Ok(()) } else { self.show(|| (), tell) }
    }
}

/// A column of a table.
pub(crate) enum Column {
    /// Of words: its cells begin at the left.
    Words(&'static str),
    /// Of numbers: its cells end at the right.
    Numbers(&'static str),
}

/// Lines of columns under their names; nothing where there are none. As many as a checkpoint has items, 100,000 say, are
/// written at once.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    if rows.is_empty() {
        return String::new();
    }
    let names = columns.iter().map(|column| match column {
        Column::Words(name) | Column::Numbers(name) => (*name).to_owned(),
    });
    let names: Vec<String> = names.collect();
    let mut widths = vec![0; columns.len()];
    for row in rows.iter().chain([&names]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = width_of(cell).max(*width);
        }
    }
    let mut text = String::new();
    for row in [&names].into_iter().chain(&rows) {
        for (place, ((column, cell), &width)) in columns.iter().zip(row).zip(&widths).enumerate() {
            let room = width - width_of(cell);
            let last = place + 1 == columns.len();
            let (before, after) = match column {
                Column::Numbers(_) => (room, 2),
                Column::Words(_) => (0, room + 2),
            };
            let after = if last { 0 } else { after };
            text.push_str(&" ".repeat(before));
            text.push_str(cell);
            text.push_str(&" ".repeat(after));
        }
        text.push('\n');
    }
    text
}

/// Columns of a terminal that a text takes.
fn width_of(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// What is as it should be.
pub(crate) fn good(text: impl Display) -> String {
    painted(AnsiColor::Green.on_default(), text)
}

/// What is not.
pub(crate) fn bad(text: impl Display) -> String {
    painted(AnsiColor::Red.on_default().bold(), text)
}

/// What matters less.
pub(crate) fn faint(text: impl Display) -> String {
    painted(Style::new().dimmed(), text)
}

fn painted(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// `1 file`, `2 files`: a number with its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
