//! How commands write: as a stream, so that ten thousand rows take no more memory than one, and so that a reader who has
//! seen enough (`| head`) ends the command without a complaint.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::thread;

use serde::Serialize;

use super::table::Table;
use super::{Output, Reading};
use crate::pins::PinRoot;

/// Clears the screen and goes to its first line.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Answers once, or again and again where `--watch` asks for it. Nothing but text goes to what is no terminal.
///
/// # Errors
/// Those of `answer`; a reader that has gone is none.
pub(super) fn answer(
    reading: &Reading,
    mut answer: impl FnMut(&PinRoot, &mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let root = reading.root()?;
    let is_terminal = io::stdout().is_terminal();
    let mut is_first = true;
    loop {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let separator: &[u8] = match (reading.watch, reading.output, is_first) {
            (None, ..) | (_, Output::Json, _) => b"",
            _ if is_terminal => CLEAR,
            (_, _, true) => b"",
            _ => b"\n",
        };
        let written = out.write_all(separator).map_err(anyhow::Error::from);
        let written = written.and_then(|()| answer(&root, &mut out)).and_then(|()| Ok(out.flush()?));
        match written {
            Err(error) if is_reader_gone(&error) => return Ok(()),
            written => written?,
        }
        let Some(seconds) = reading.watch else { return Ok(()) };
        thread::sleep(seconds);
        is_first = false;
    }
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let of_system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let of_json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        of_system.or(of_json) == Some(ErrorKind::BrokenPipe)
    })
}

/// One JSON document: for people to read, but on one line where others follow (`--watch`).
///
/// # Errors
/// When it cannot be written.
pub(super) fn document(out: &mut dyn Write, reading: &Reading, value: &impl Serialize) -> anyhow::Result<()> {
    if reading.watch.is_some() {
        serde_json::to_writer(&mut *out, value)?;
    } else {
        serde_json::to_writer_pretty(&mut *out, value)?;
    }
    Ok(out.write_all(b"\n")?)
}

/// What a listing has many of.
pub(super) trait Row: Serialize {
    /// Column heads of the table, without spaces.
    fn heads(wide: Wide) -> Vec<&'static str>;

    /// The cells under them; only the last one may hold spaces.
    fn cells(&self, wide: Wide) -> Vec<String>;
}

/// Whether a table is wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wide {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// Rows as they come.
pub(super) enum Listing<'a> {
    /// As columns.
    Table(Table<'a>, Wide),
    /// As a JSON array, one row a line (all on one line under `--watch`).
    Json {
        /// Where to.
        out: &'a mut dyn Write,
        /// Before the next row.
        before: &'static str,
        /// Between rows, and at the end.
        parts: [&'static str; 2],
    },
}

impl<'a> Listing<'a> {
    /// Begins a listing of `R`.
    pub fn begin<R: Row>(out: &'a mut dyn Write, reading: &Reading) -> Self {
        match reading.output {
            Output::Table => Self::Table(Table::new(out, &R::heads(Wide::No)), Wide::No),
            Output::Wide => Self::Table(Table::new(out, &R::heads(Wide::Yes)), Wide::Yes),
            Output::Json if reading.watch.is_some() => Self::Json { out, before: "[", parts: [",", "]\n"] },
            Output::Json => Self::Json { out, before: "[\n", parts: [",\n", "\n]\n"] },
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn row<R: Row>(&mut self, row: &R) -> anyhow::Result<()> {
        match self {
            Self::Table(table, wide) => table.row(row.cells(*wide))?,
            Self::Json { out, before, parts } => {
                out.write_all(before.as_bytes())?;
                serde_json::to_writer(&mut *out, row)?;
                *before = parts[0];
            }
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(self) -> anyhow::Result<()> {
        match self {
            Self::Table(table, _) => table.end()?,
            // Without rows.
            Self::Json { out, before, .. } if before.starts_with('[') => out.write_all(b"[]\n")?,
            Self::Json { out, parts, .. } => out.write_all(parts[1].as_bytes())?,
        }
        Ok(())
    }
}
