//! A TOML document as a tree, with the place of each key and value in the text.
//!
//! The crate `toml_parser` splits the text into keys and values. This file builds the tables.

use std::borrow::Cow;
use toml_parser::decoder::ScalarKind;
use toml_parser::parser::{Event, EventKind, RecursionGuard, parse_document};
use toml_parser::{ParseError, Source};

/// The deepest nesting of arrays and inline tables.
const MAX_DEPTH: u32 = 16;
/// The most parts of a key, such as 2 of `a.b`.
const MAX_PARTS: usize = 8;
/// The most mistakes that are reported.
const MAX_PROBLEMS: usize = 20;

/// A mistake in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The offset in the text, in bytes.
    pub at: usize,
    /// The description.
    pub message: String,
}

impl Problem {
    /// Creates a problem.
    pub fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

/// A value, and its offset in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The offset.
    pub at: usize,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Table),
}

impl Value {
    /// The kind of the value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a number with a fraction",
            Self::Bool(_) => "true or false",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The entries, in the order of the text.
    pub entries: Vec<Entry>,
    /// The table has its own header or braces, and cannot have another one.
    defined: bool,
}

/// An entry of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The offset of the key in the text.
    pub at: usize,
    /// The value.
    pub node: Node,
}

impl Table {
    /// The entry with this key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The table with this key, which is created if it is missing. Of an array of tables, it is the last one.
    fn child(&mut self, key: &str, at: usize) -> Result<&mut Table, Problem> {
        let place = self.entries.iter().position(|entry| entry.key == key);
        let place = place.unwrap_or_else(|| {
            let node = Node { at, value: Value::Table(Table::default()) };
            self.entries.push(Entry { key: key.into(), at, node });
            self.entries.len().saturating_sub(1)
        });
        let not_a_table = || Problem::new(at, format!("{key} has a value already, and is not a table"));
        match self.entries.get_mut(place).map(|entry| &mut entry.node.value) {
            Some(Value::Table(table)) => Ok(table),
            Some(Value::Array(nodes)) => match nodes.last_mut().map(|node| &mut node.value) {
                Some(Value::Table(table)) => Ok(table),
                _ => Err(not_a_table()),
            },
            _ => Err(not_a_table()),
        }
    }

    fn insert(&mut self, key: Key, node: Node) -> Result<(), Problem> {
        if self.get(&key.name).is_some() {
            return Err(Problem::new(key.at, format!("{} is given twice", key.name)));
        }
        self.entries.push(Entry { key: key.name, at: key.at, node });
        Ok(())
    }
}

/// A key, and its offset in the text.
#[derive(Clone, Debug)]
struct Key {
    name: String,
    at: usize,
}

/// Parses a document.
///
/// # Errors
/// It has mistakes. At least one of them is returned.
pub fn parse(text: &str) -> Result<Table, Vec<Problem>> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut events: Vec<Event> = Vec::new();
    let mut errors: Vec<ParseError> = Vec::new();
    let mut keep = |event: Event| {
        if !matches!(event.kind(), EventKind::Whitespace | EventKind::Comment | EventKind::Newline) {
            events.push(event);
        }
    };
    parse_document(&tokens, &mut RecursionGuard::new(&mut keep, MAX_DEPTH), &mut errors);
    let mut reader = Reader { source, events: &events, next: 0, errors };
    let parsed = if reader.errors.is_empty() { reader.document() } else { Ok(Table::default()) };
    // Each deeper level is a mistake, and so is each end of one.
    let errors = match reader.errors.iter().find(|error| is_too_deep(error)) {
        Some(first) => std::slice::from_ref(first),
        None => &reader.errors,
    };
    let mut problems: Vec<Problem> = errors.iter().map(|error| problem(error, text)).collect();
    let table = parsed.unwrap_or_else(|problem| {
        problems.push(problem);
        Table::default()
    });
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(table) } else { Err(problems) }
}

fn problem(error: &ParseError, text: &str) -> Problem {
    let at = error.unexpected().or(error.context()).map_or(text.len(), |span| span.start());
    if is_too_deep(error) {
        return Problem::new(at, format!("arrays and inline tables are nested at most {MAX_DEPTH} deep"));
    }
    Problem::new(at, format!("this is not TOML: {}", error.description()))
}

/// True for the mistake that a [`RecursionGuard`] finds.
fn is_too_deep(error: &ParseError) -> bool {
    error.description().starts_with("cannot recurse")
}

struct Reader<'a> {
    source: Source<'a>,
    events: &'a [Event],
    next: usize,
    errors: Vec<ParseError>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Event> {
        let event = self.events.get(self.next).copied();
        self.next = self.next.saturating_add(1);
        event
    }

    fn document(&mut self) -> Result<Table, Problem> {
        let mut root = Table::default();
        let mut path: Vec<Key> = Vec::new();
        while let Some(event) = self.next() {
            match event.kind() {
                EventKind::StdTableOpen => {
                    path = self.keys(EventKind::StdTableClose)?;
                    let table = find(&mut root, &path)?;
                    if std::mem::replace(&mut table.defined, true) {
                        return Err(twice(&path));
                    }
                }
                EventKind::ArrayTableOpen => {
                    path = self.keys(EventKind::ArrayTableClose)?;
                    push_table(&mut root, &path)?;
                }
                EventKind::SimpleKey => {
                    self.next = self.next.saturating_sub(1);
                    self.pair(find(&mut root, &path)?)?;
                }
                _ => {}
            }
        }
        Ok(root)
    }

    /// Reads a key and its value into a table.
    fn pair(&mut self, table: &mut Table) -> Result<(), Problem> {
        let mut keys = self.keys(EventKind::KeyValSep)?;
        let Some(last) = keys.pop() else { return Ok(()) };
        let node = self.value(last.at)?;
        let table = find(table, &keys)?;
        if table.defined && !keys.is_empty() {
            return Err(twice(&keys));
        }
        table.insert(last, node)
    }

    /// Reads the parts of a key, as far as an event of this kind.
    ///
    /// # Errors
    /// There are too many.
    fn keys(&mut self, end: EventKind) -> Result<Vec<Key>, Problem> {
        let mut keys = Vec::new();
        while let Some(event) = self.next() {
            if event.kind() == end {
                break;
            }
            if event.kind() == EventKind::SimpleKey
                && let Some(raw) = self.source.get(event)
            {
                let mut name = Cow::Borrowed("");
                raw.decode_key(&mut name, &mut self.errors);
                let at = event.span().start();
                keys.push(Key { name: name.into_owned(), at });
                if keys.len() > MAX_PARTS {
                    return Err(Problem::new(at, format!("a key has at most {MAX_PARTS} parts")));
                }
            }
        }
        Ok(keys)
    }

    /// Reads a value after its key at `at`.
    fn value(&mut self, at: usize) -> Result<Node, Problem> {
        let Some(event) = self.next() else { return Err(Problem::new(at, "a value is missing")) };
        let at = event.span().start();
        let value = match event.kind() {
            EventKind::Scalar => self.scalar(event)?,
            EventKind::ArrayOpen => {
                let mut nodes = Vec::new();
                while let Some(event) = self.next() {
                    match event.kind() {
                        EventKind::ArrayClose => break,
                        EventKind::ValueSep => {}
                        _ => {
                            self.next = self.next.saturating_sub(1);
                            nodes.push(self.value(at)?);
                        }
                    }
                }
                Value::Array(nodes)
            }
            EventKind::InlineTableOpen => {
                let mut table = Table::default();
                while let Some(event) = self.next() {
                    match event.kind() {
                        EventKind::InlineTableClose => break,
                        EventKind::SimpleKey => {
                            self.next = self.next.saturating_sub(1);
                            self.pair(&mut table)?;
                        }
                        _ => {}
                    }
                }
                table.defined = true;
                Value::Table(table)
            }
            _ => return Err(Problem::new(at, "a value is missing")),
        };
        Ok(Node { at, value })
    }

    fn scalar(&mut self, event: Event) -> Result<Value, Problem> {
        let at = event.span().start();
        let wrong = |message: &str| Problem::new(at, message);
        let raw = self.source.get(event).ok_or_else(|| wrong("a value is missing"))?;
        let mut text = Cow::Borrowed("");
        let kind = raw.decode_scalar(&mut text, &mut self.errors);
        match kind {
            ScalarKind::String => Ok(Value::Text(text.into_owned())),
            ScalarKind::Boolean(value) => Ok(Value::Bool(value)),
            ScalarKind::Integer(radix) => i64::from_str_radix(&text, radix.value())
                .map(Value::Integer)
                .map_err(|_| wrong("a number has at most 63 bits and a sign")),
            ScalarKind::Float => text.parse().map(Value::Float).map_err(|_| wrong("this is not a number")),
            ScalarKind::DateTime => Err(wrong("a date is not used here: write it as a text, in quotes")),
        }
    }
}

/// The table at a path, whose parts are created if they are missing.
fn find<'a>(root: &'a mut Table, path: &[Key]) -> Result<&'a mut Table, Problem> {
    path.iter().try_fold(root, |table, key| table.child(&key.name, key.at))
}

fn push_table(root: &mut Table, path: &[Key]) -> Result<(), Problem> {
    let Some((last, parents)) = path.split_last() else { return Ok(()) };
    let parent = find(root, parents)?;
    let node = Node { at: last.at, value: Value::Table(Table { defined: true, ..Table::default() }) };
    let place = parent.entries.iter().position(|entry| entry.key == last.name);
    match place.and_then(|place| parent.entries.get_mut(place)) {
        None => {
            let array = Node { at: last.at, value: Value::Array(vec![node]) };
            parent.insert(last.clone(), array)
        }
        Some(Entry { node: Node { value: Value::Array(nodes), .. }, .. })
            if nodes.iter().all(|node| matches!(&node.value, Value::Table(_))) =>
        {
            nodes.push(node);
            Ok(())
        }
        Some(_) => Err(Problem::new(last.at, format!("{} is not an array of tables", last.name))),
    }
}

fn twice(path: &[Key]) -> Problem {
    let names: Vec<_> = path.iter().map(|key| key.name.as_str()).collect();
    Problem::new(
        path.first().map_or(0, |key| key.at),
        format!("the table {} is given twice", names.join(".")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_arrays_and_places_are_read() {
        let text = "a = 1\nb.c = \"x\"\n[t]\nd = [1.5, true, { e = 0x10 }]\n[[u]]\nf = -2\n[u.v]\n[[u]]\ng = '''\nh'''\n";
        let root = parse(text).unwrap();
        let keys: Vec<_> = root.entries.iter().map(|entry| (entry.key.as_str(), entry.at)).collect();
        assert_eq!(keys, [("a", 0), ("b", 6), ("t", 17), ("u", 52)]);
        let Value::Array(u) = &root.get("u").unwrap().node.value else { panic!() };
        let Value::Table(second) = &u[1].value else { panic!() };
        assert_eq!(second.get("g").unwrap().node.value, Value::Text("h".into()));
        let Value::Table(t) = &root.get("t").unwrap().node.value else { panic!() };
        let Value::Array(d) = &t.get("d").unwrap().node.value else { panic!() };
        assert_eq!((d.len(), &d[0].value, d[1].at), (3, &Value::Float(1.5), 30));
        let Value::Table(inline) = &d[2].value else { panic!() };
        assert_eq!(inline.get("e").unwrap().node.value, Value::Integer(16));
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, at, message) in [
            ("a = 1\na = 2\n", 6, "a is given twice"),
            ("[a]\n[a]\n", 5, "the table a is given twice"),
            ("a = 1\n[a]\n", 7, "a has a value already"),
            ("a = { b = 1 }\na.c = 2\n", 14, "the table a is given twice"),
            ("a = [1]\n[[a]]\n", 10, "a is not an array of tables"),
            ("a = 9223372036854775808\n", 4, "at most 63 bits"),
            ("a = 2026-11-29\n", 4, "write it as a text"),
            ("a = \n", 4, "not TOML"),
            ("a = \"x\n", 4, "not TOML"),
            ("= 1\n", 0, "not TOML"),
        ] {
            let problems = parse(text).unwrap_err();
            assert!(problems[0].message.contains(message), "{text}: {problems:?}");
            assert!(problems[0].at.abs_diff(at) <= 3, "{text}: {problems:?}");
        }
        let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
        // One message, and not one for each level.
        let nested = |problems: Vec<Problem>| {
            problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>()
        };
        let expected = ["arrays and inline tables are nested at most 16 deep"];
        assert_eq!(nested(parse(&deep).unwrap_err()), expected);
        let deep = format!("a = {}1{}", "{ a = ".repeat(10_000), " }".repeat(10_000));
        assert_eq!(nested(parse(&deep).unwrap_err()), expected);
        assert_eq!(nested(parse(&format!("a = {}", "[\n".repeat(40))).unwrap_err()), expected);
        let keys = format!("a{} = 1", ".a".repeat(50_000));
        assert!(parse(&keys).unwrap_err()[0].message.contains("at most 8 parts"));
        let tables = "a.a.a.a.a.a.a = { b = 1 }\n".repeat(3);
        assert!(parse(&tables).unwrap_err()[0].message.contains("is given twice"));
    }
}
