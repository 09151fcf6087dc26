//! A report as JSON, for programs. `docs/formats.md` has its shape.

use crate::view::table::{Row, Table, View};
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// Writes one object; each row of a table is on a line of its own.
pub(super) fn write(to: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    let mut head = Map::new();
    head.insert("format".into(), json!("vmm-report"));
    head.insert("version".into(), json!(1));
    head.insert("kind".into(), json!(view.kind));
    head.insert("title".into(), json!(view.title));
    head.insert("subtitle".into(), json!(view.subtitle));
    for (key, _, value) in &view.facts {
        head.insert((*key).into(), value.json());
    }
    head.insert("headline".into(), json!(view.headline));
    head.insert("notes".into(), json!(view.notes));
    let mut before = "{";
    for (key, value) in &head {
        writeln!(to, "{before}{}: {}", json!(key), printable(value))?;
        before = ",";
    }
    for table in &view.tables {
        write!(to, ",{}: [", json!(table.key))?;
        for (index, row) in table.rows().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(to, "{comma}\n{}", printable(&object(table, &row)))?;
        }
        writeln!(to, "]")?;
    }
    writeln!(to, "}}")
}

fn object(table: &Table<'_>, row: &Row) -> Value {
    let members = table.columns.iter().zip(row).map(|(column, cell)| (column.key.to_owned(), cell.json()));
    Value::Object(members.collect())
}

/// The JSON of a value, in which also those characters are escaped that JSON leaves as they are but a terminal does
/// not: such as U+009B, and those that change the direction of writing.
fn printable(value: &Value) -> String {
    let plain = |c: char| c.is_ascii() && c != '\u{7f}' || c.escape_debug().len() == 1;
    let mut text = String::new();
    for c in value.to_string().chars() {
        if plain(c) {
            text.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| text += &format!("\\u{unit:04x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_the_same() {
        let value = json!({"name": "\u{9b}2J \u{1b} \u{202e}é\u{7f}\u{e0001}\""});
        let text = printable(&value);
        assert_eq!(text, r#"{"name":"\u009b2J \u001b \u202eé\u007f\udb40\udc01\""}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
