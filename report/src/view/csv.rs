//! A report's main table as CSV (RFC 4180), for spreadsheets.

use crate::view::table::{Cell, View};
use std::io::{self, Write};

/// Writes the names of the columns, then one line for each row.
pub(super) fn write(to: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    let Some(table) = view.tables.iter().find(|table| table.key == view.main) else { return Ok(()) };
    let names = table.columns.iter().map(|column| column.key.to_owned());
    write_line(to, names)?;
    table.rows().try_for_each(|row| write_line(to, row.iter().map(field)))
}

fn write_line(to: &mut impl Write, fields: impl Iterator<Item = String>) -> io::Result<()> {
    let fields: Vec<_> = fields.collect();
    write!(to, "{}\r\n", fields.join(","))
}

/// Returns a cell as a field. A text that a spreadsheet would take for a formula gets an apostrophe before it.
fn field(cell: &Cell) -> String {
    let raw = cell.raw();
    let safe = match cell {
        Cell::Text(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{raw}"),
        _ => raw,
    };
    match safe.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", safe.replace('"', "\"\"")),
        false => safe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_formulas_are_disabled() {
        for (text, expected) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1,2)", "\"'@SUM(A1,2)\""),
            ("\t=1", "'\\t=1"),
            ("a\r\nb", "a\\r\\nb"),
        ] {
            assert_eq!(field(&Cell::text(text)), expected);
        }
        assert_eq!(field(&Cell::Delta(-3)), "-3", "a number stays a number");
        assert_eq!(field(&Cell::Nothing), "");
    }
}
