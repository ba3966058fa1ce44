//! Columns for people, and for `awk`: no cell is empty, and none but the last of a row holds spaces.

use std::io::{self, Write};

/// Rows whose widths decide those of the columns; what comes after them is written as it comes.
const MEASURED: usize = 1000;

/// Rows under a heading, each column as wide as the widest cell of the first rows.
pub struct Table<'a> {
    out: &'a mut dyn Write,
    widths: Vec<usize>,
    waiting: Vec<Vec<String>>,
    is_streaming: bool,
}

impl<'a> Table<'a> {
    /// A table with these column heads.
    pub fn new(out: &'a mut dyn Write, heads: &[&str]) -> Self {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Self { out, widths: Vec::new(), waiting: vec![heads], is_streaming: false }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn row(&mut self, mut cells: Vec<String>) -> io::Result<()> {
        cells.iter_mut().filter(|cell| cell.is_empty()).for_each(|cell| cell.push('-'));
        if self.is_streaming {
            return self.write(&cells);
        }
        self.waiting.push(cells);
        if self.waiting.len() > MEASURED { self.stream() } else { Ok(()) }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(mut self) -> io::Result<()> {
        if self.is_streaming { Ok(()) } else { self.stream() }
    }

    fn stream(&mut self) -> io::Result<()> {
        self.is_streaming = true;
        let rows = std::mem::take(&mut self.waiting);
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        self.widths = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        rows.iter().try_for_each(|row| self.write(row))
    }

    fn write(&mut self, row: &[String]) -> io::Result<()> {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let width = self.widths.get(column).copied().unwrap_or(0);
                let padding = width.saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', padding));
            }
        }
        line.push('\n');
        self.out.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rows: impl Iterator<Item = [&'static str; 3]>) -> io::Result<String> {
        let mut out = Vec::new();
        let mut table = Table::new(&mut out, &["A", "LONG", "C"]);
        for row in rows {
            table.row(row.map(str::to_owned).to_vec())?;
        }
        table.end()?;
        String::from_utf8(out).map_err(io::Error::other)
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_cell_is_empty() -> io::Result<()> {
        let text = shown([["1234", "x", "the last"], ["1", "ä", ""]].into_iter())?;
        assert_eq!(text, "A     LONG  C\n1234  x     the last\n1     ä     -\n");
        Ok(())
    }

    #[test]
    fn a_long_table_is_not_kept_and_loses_nothing() -> io::Result<()> {
        let rows = std::iter::repeat_n(["1", "2", "3"], 2 * MEASURED).chain([["wider than all", "2", "3"]]);
        let text = shown(rows)?;
        assert_eq!(text.lines().count(), 2 * MEASURED + 2);
        assert!(text.ends_with("\nwider than all  2     3\n"));
        Ok(())
    }
}
