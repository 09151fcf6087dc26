//! A report as text, for a terminal.

use crate::view::table::{Cell, Column, Table, View};
use std::fmt::Write as _;
use std::io::{self, Write};
use vmm::host::printable_text;

/// The number of rows that set the widths of the columns. A trace can have millions of rows.
const MEASURED: usize = 1000;
/// The gap before each column, in characters.
const GAP: usize = 2;

/// Writes the whole report.
pub(super) fn write(to: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    let title = Cell::text(&view.title).shown();
    match view.subtitle.as_str() {
        "" => writeln!(to, "{title}")?,
        subtitle => writeln!(to, "{title}: {}", Cell::text(subtitle).shown())?,
    }
    let facts = view.facts.iter().map(|(_, name, value)| (*name, value.shown()));
    let facts: Vec<_> = facts.filter(|(_, value)| !value.is_empty()).collect();
    let widest = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        writeln!(to, "  {name:<widest$}  {value}")?;
    }
    if !view.headline.is_empty() {
        writeln!(to, "{}", printable_text(&view.headline))?;
    }
    for table in &view.tables {
        writeln!(to)?;
        write_table(to, table)?;
    }
    if !view.notes.is_empty() {
        writeln!(to)?;
    }
    view.notes.iter().try_for_each(|note| writeln!(to, "note: {}", printable_text(note)))
}

fn write_table(to: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
    writeln!(to, "{}:", table.title)?;
    write_rows(to, table)
}

/// Writes the heads and the rows of a table, without its title.
pub(super) fn write_rows(to: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
    let least = |column: &Column| if column.width == 0 { column.head.len() } else { column.width };
    let mut widths: Vec<_> = table.columns.iter().map(least).collect();
    for row in table.rows().take(MEASURED).chain(table.rows_from(table.len.saturating_sub(1))) {
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.shown().chars().count());
        }
    }
    widen_for_groups(table, &mut widths);
    write_groups(to, table, &widths)?;
    let heads = table.columns.iter().map(|column| column.head.to_owned());
    write_row(to, table, &widths, heads)?;
    table.rows().try_for_each(|row| write_row(to, table, &widths, row.iter().map(Cell::shown)))
}

fn write_row(
    to: &mut impl Write,
    table: &Table<'_>,
    widths: &[usize],
    cells: impl Iterator<Item = String>,
) -> io::Result<()> {
    let mut line = String::new();
    for ((cell, column), width) in cells.zip(&table.columns).zip(widths) {
        // Writing to a String cannot fail.
        let _ = match column.number {
            // The gap belongs to the cell, so that a head may use one character of it.
            true => write!(line, "{cell:>full$}", full = width.saturating_add(GAP)),
            false => write!(line, "{:GAP$}{cell:<width$}", ""),
        };
    }
    writeln!(to, "{}", line.trim_end())
}

/// Returns the name and the number of columns of each group, in order.
fn groups<'a>(table: &'a Table<'_>) -> impl Iterator<Item = (&'static str, usize)> + 'a {
    table
        .columns
        .chunk_by(|one, next| one.group == next.group)
        .map(|columns| (columns.first().map_or("", |column| column.group), columns.len()))
}

/// Widens the first column of each group so that the name of the group fits above.
fn widen_for_groups(table: &Table<'_>, widths: &mut [usize]) {
    let mut rest = widths;
    for (name, columns) in groups(table) {
        let (group, after) = std::mem::take(&mut rest).split_at_mut(columns);
        let missing = name.len().saturating_sub(width_of(group));
        if let Some(first) = group.first_mut() {
            *first = first.saturating_add(missing);
        }
        rest = after;
    }
}

/// Returns the width of columns with the gaps between them.
fn width_of(widths: &[usize]) -> usize {
    widths
        .iter()
        .fold(0usize, |sum, width| sum.saturating_add(*width).saturating_add(GAP))
        .saturating_sub(GAP)
}

/// Writes the line with the names of the groups, if a column has a group.
fn write_groups(to: &mut impl Write, table: &Table<'_>, widths: &[usize]) -> io::Result<()> {
    if table.columns.iter().all(|column| column.group.is_empty()) {
        return Ok(());
    }
    let mut line = String::new();
    let mut rest = widths;
    for (name, columns) in groups(table) {
        let (group, after) = rest.split_at_checked(columns).unwrap_or((rest, &[]));
        let width = width_of(group);
        match name {
            "" => line += &format!("{:GAP$}{:width$}", "", ""),
            name => line += &format!("{:GAP$}{:-^width$}", "", format!(" {name} ")),
        }
        rest = after;
    }
    writeln!(to, "{}", line.trim_end())
}
