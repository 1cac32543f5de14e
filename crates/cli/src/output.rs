//! What a subcommand tells: a table for a person, or JSON for a program.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::sync::LazyLock;

use anstream::{AutoStream, ColorChoice};
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
    /// Writes the record as JSON, or what `tell` writes of it for a person.
    pub(crate) fn show<T: Serialize>(
        &self,
        record: impl FnOnce() -> T,
        tell: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(io::stdout().lock());
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

impl Column {
    fn name(&self) -> &'static str {
        match self {
            Column::Words(name) | Column::Numbers(name) => name,
        }
    }
}

/// Lines of columns under their names; nothing where there are none. As many as a checkpoint has items, 100,000 say, are
/// written at once: the cells stand in one text.
pub(crate) struct Table<'a> {
    columns: &'a [Column],
    /// What the widest cell of each column takes.
    widths: Vec<usize>,
    cells: String,
    /// Where each cell ends.
    ends: Vec<usize>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(columns: &'a [Column]) -> Table<'a> {
        let names = columns.iter().map(Column::name);
        Table { columns, widths: names.map(width_of).collect(), cells: String::new(), ends: Vec::new() }
    }

    /// Adds the next cell: rows are filled from the left.
    pub(crate) fn cell(&mut self, text: &str) {
        let width = &mut self.widths[self.ends.len() % self.columns.len()];
        *width = width_of(text).max(*width);
        self.cells.push_str(text);
        self.ends.push(self.cells.len());
    }
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.ends.is_empty() {
            return Ok(());
        }
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let cells = starts.zip(&self.ends).map(|(start, &end)| &self.cells[start..end]);
        let names = self.columns.iter().map(|column| -> &str { column.name() });
        let columns = self.columns.iter().zip(&self.widths).enumerate().cycle();
        for (cell, (place, (column, &width))) in names.chain(cells).zip(columns) {
            let room = width - width_of(cell);
            let is_last = place + 1 == self.columns.len();
            match column {
                Column::Numbers(_) => {
                    blanks(f, room)?;
                    f.write_str(cell)?;
                }
                Column::Words(_) if is_last => f.write_str(cell)?,
                Column::Words(_) => {
                    f.write_str(cell)?;
                    blanks(f, room)?;
                }
            }
            f.write_str(if is_last { "\n" } else { "  " })?;
        }
        Ok(())
    }
}

fn blanks(f: &mut Formatter<'_>, count: usize) -> fmt::Result {
    const BLANKS: &str = "                                ";
    match BLANKS.get(..count) {
        Some(blanks) => f.write_str(blanks),
        None => write!(f, "{:count$}", ""),
    }
}

/// A [`Table`] of these rows.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new(columns);
    rows.into_iter().flatten().for_each(|cell| table.cell(&cell));
    table.to_string()
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

/// Whether standard output takes colours: a terminal does, unless its user has said otherwise.
static TAKES_COLOURS: LazyLock<bool> =
    LazyLock::new(|| AutoStream::choice(&io::stdout()) != ColorChoice::Never);

fn painted(style: Style, text: impl Display) -> String {
    if *TAKES_COLOURS { format!("{style}{text}{style:#}") } else { text.to_string() }
}

/// `1 file`, `2 files`: a number with its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
