//! What a subcommand tells: a table for a person, or JSON for a program.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

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

/// Lines of columns under their names; nothing where there are none.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match column {
        Column::Words(name) | Column::Numbers(name) => *name,
    }));
    for (number, column) in columns.iter().enumerate() {
        if let Some(place) = table.column_mut(number) {
            place.set_padding((0, 2));
            if matches!(column, Column::Numbers(_)) {
                place.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return String::new();
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
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
