//! A report as JSON, for programs. `docs/formats.md` specifies it.

use crate::view::table::{Row, Table, View};
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// Writes one object. Each row of a table is on its own line.
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
    let mut object = Map::new();
    for (column, cell) in table.columns.iter().zip(row) {
        object.insert(column.key.into(), cell.json());
    }
    Value::Object(object)
}

/// Returns the JSON of a value. It also escapes the characters that JSON need not escape but a terminal obeys, such as
/// U+009B and those that change the direction of writing.
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
    use crate::profile::SavedMark;
    use crate::trace::Record;
    use crate::view::{Format, Source};
    use crate::{Saved, SavedTrace};
    use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
    use std::collections::HashSet;
    use std::fmt;
    use vmm::exit::Reason;

    #[test]
    fn terminal_control_characters_are_escaped_and_read_back() {
        let value = json!({"name": "\u{9b}2J \u{1b} \u{202e}é\u{7f}\u{e0001}\""});
        let text = printable(&value);
        assert_eq!(text, r#"{"name":"\u009b2J \u001b \u202eé\u007f\udb40\udc01\""}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    /// JSON that is an error if an object has the same key twice. `Value` would keep the last one.
    struct Unique;

    impl<'de> Deserialize<'de> for Unique {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_any(UniqueVisitor)
        }
    }

    struct UniqueVisitor;

    impl<'de> Visitor<'de> for UniqueVisitor {
        type Value = Unique;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON without duplicate keys")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut from: M) -> Result<Unique, M::Error> {
            let mut keys = HashSet::new();
            while let Some((key, Unique)) = from.next_entry::<String, Unique>()? {
                if let Some(key) = keys.replace(key) {
                    return Err(M::Error::custom(format!("the key {key:?} occurs twice")));
                }
            }
            Ok(Unique)
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut from: S) -> Result<Unique, S::Error> {
            while from.next_element::<Unique>()?.is_some() {}
            Ok(Unique)
        }

        fn visit_unit<E>(self) -> Result<Unique, E> {
            Ok(Unique)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
            Ok(Unique)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
            Ok(Unique)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
            Ok(Unique)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
            Ok(Unique)
        }

        fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
            Ok(Unique)
        }
    }

    /// A trace of two vCPUs, and the same as a profile with every optional table.
    fn samples() -> [Source; 2] {
        let record = Record {
            when: 1000,
            place: Some(0xe9),
            value: Some(0x41),
            rip: Some(0x1004),
            in_kvm: 4000,
            in_vmm: 250,
            vcpu: 1,
            reason: Reason::PioOut,
            width: 1,
            next_element: false,
            fault: false,
        };
        let further = Record { when: 2000, next_element: true, ..record };
        let trace = SavedTrace { vcpus: 2, seen: 9, records: vec![record, further], ..SavedTrace::default() };
        let mut profile = trace.profile();
        profile.machine.kernel = Some([("exits".to_owned(), 2), ("mmio_exits".to_owned(), 1)].into());
        profile.marks = vec![SavedMark { event: "VM ready".into(), at_ns: 5, exits: 0 }];
        [Saved::Trace(trace, None), Saved::Profile(profile.into())]
            .map(|saved| Source::new("x".into(), saved))
    }

    #[test]
    fn no_key_occurs_twice() {
        let error = serde_json::from_str::<Unique>(r#"[{"a": [{"b": 1, "b": null}]}]"#).err().unwrap();
        assert!(error.to_string().starts_with("the key \"b\" occurs twice"), "{error}");
        let [trace, profile] = &samples();
        for (a, b) in [(trace, None), (profile, None), (profile, Some(trace))] {
            let mut report = Vec::new();
            crate::view::write(&mut report, Format::Json, a, b).unwrap();
            if let Err(error) = serde_json::from_slice::<Unique>(&report) {
                panic!("{error}: {}", String::from_utf8_lossy(&report));
            }
        }
    }
}
