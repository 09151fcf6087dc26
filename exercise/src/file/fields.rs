//! The typed fields of a table, with messages about mistakes.

use crate::toml::{Entry, Node, Problem, Table, Value};
use std::time::Duration;
use vmm::host::{format_size, parse_size, printable_text};

/// The most texts of an array.
const MAX_TEXTS: usize = 64;

/// A table with known keys, and the mistakes that were found in it.
pub struct Fields<'a> {
    table: &'a Table,
    /// The offset of the table, for what is missing in it.
    at: usize,
}

impl<'a> Fields<'a> {
    /// Begins to read a table. A key that is not `known` is a mistake.
    pub fn new(table: &'a Table, at: usize, known: &[&str], problems: &mut Vec<Problem>) -> Self {
        for entry in table.entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            problems.push(unknown(entry, known));
        }
        Self { table, at }
    }

    /// The entry with this key.
    pub fn get(&self, key: &str) -> Option<&'a Entry> {
        self.table.get(key)
    }

    /// A text.
    pub fn text(&self, key: &str, problems: &mut Vec<Problem>) -> Option<(&'a str, usize)> {
        let entry = self.get(key)?;
        match &entry.node.value {
            Value::Text(text) => Some((text.as_str(), entry.node.at)),
            other => wrong(&entry.node, format!("{key} must be a text, not {}", other.kind()), problems),
        }
    }

    /// A text that must be there.
    pub fn needed_text(&self, key: &str, problems: &mut Vec<Problem>) -> Option<(&'a str, usize)> {
        if self.get(key).is_none() {
            problems.push(Problem::new(self.at, format!("{key} is missing here")));
        }
        let text = self.text(key, problems)?;
        if text.0.is_empty() {
            problems.push(Problem::new(text.1, format!("{key} is empty")));
        }
        Some(text)
    }

    /// A text, or an array of texts.
    pub fn texts(&self, key: &str, problems: &mut Vec<Problem>) -> Vec<(&'a str, usize)> {
        let Some(entry) = self.get(key) else { return Vec::new() };
        let nodes = match &entry.node.value {
            Value::Array(nodes) => nodes.as_slice(),
            _ => std::slice::from_ref(&entry.node),
        };
        if nodes.len() > MAX_TEXTS {
            problems.push(Problem::new(entry.at, format!("give at most {MAX_TEXTS} texts in {key}")));
        }
        let mut texts = Vec::new();
        for node in nodes.iter().take(MAX_TEXTS) {
            match &node.value {
                Value::Text(text) => texts.push((text.as_str(), node.at)),
                other => problems.push(Problem::new(
                    node.at,
                    format!("{key} must be a text, or an array of texts, not {}", other.kind()),
                )),
            }
        }
        texts
    }

    /// A whole number within a range.
    pub fn number(&self, key: &str, min: u64, max: u64, problems: &mut Vec<Problem>) -> Option<u64> {
        let entry = self.get(key)?;
        let number = match &entry.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Some(number),
            None => wrong(&entry.node, format!("{key} must be a number from {min} to {max}"), problems),
        }
    }

    /// A number with at most two decimals, in hundredths.
    pub fn hundredths(&self, key: &str, min: u64, max: u64, problems: &mut Vec<Problem>) -> Option<u64> {
        let entry = self.get(key)?;
        let number = match &entry.node.value {
            Value::Integer(number) => u64::try_from(*number).ok().and_then(|number| number.checked_mul(100)),
            Value::Float(number) => whole(number * 100.0),
            _ => None,
        };
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Some(number),
            None => {
                let [min, max] = [min, max].map(grades::Points::from_hundredths);
                let message =
                    format!("{key} must be a number from {min} to {max}, with at most two decimals");
                wrong(&entry.node, message, problems)
            }
        }
    }

    /// A size in bytes: a number, or a text such as "64K".
    pub fn size(&self, key: &str, min: u64, max: u64, problems: &mut Vec<Problem>) -> Option<u64> {
        let entry = self.get(key)?;
        let size = match &entry.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(text) => parse_size(text).ok(),
            _ => None,
        };
        match size.filter(|size| (min..=max).contains(size)) {
            Some(size) => Some(size),
            None => {
                let message = format!(
                    "{key} must be a size from {} to {}, such as \"1M\"",
                    format_size(min),
                    format_size(max)
                );
                wrong(&entry.node, message, problems)
            }
        }
    }

    /// A time in seconds, of at most `max`.
    pub fn seconds(&self, key: &str, max: f64, problems: &mut Vec<Problem>) -> Option<Duration> {
        let entry = self.get(key)?;
        let seconds = match &entry.node.value {
            #[allow(clippy::cast_precision_loss, reason = "large numbers are refused")]
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            _ => f64::NAN,
        };
        let time =
            if seconds > 0.0 && seconds <= max { Duration::try_from_secs_f64(seconds).ok() } else { None };
        match time {
            Some(time) => Some(time),
            None => wrong(
                &entry.node,
                format!("{key} must be a number of seconds, more than 0 and at most {max}"),
                problems,
            ),
        }
    }

    /// One of several names.
    pub fn choice<T: Copy>(&self, key: &str, names: &[(&str, T)], problems: &mut Vec<Problem>) -> Option<T> {
        let (text, at) = self.text(key, problems)?;
        let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            let hint = similar(text, &all).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            let message = format!("{key} must be one of {}{hint}", all.join(", "));
            problems.push(Problem::new(at, message));
        }
        found
    }

    /// A table.
    pub fn table(&self, key: &str, problems: &mut Vec<Problem>) -> Option<(&'a Table, usize)> {
        let entry = self.get(key)?;
        match &entry.node.value {
            Value::Table(table) => Some((table, entry.at)),
            other => wrong(&entry.node, format!("{key} must be a table, not {}", other.kind()), problems),
        }
    }

    /// An array of tables.
    pub fn tables(&self, key: &str, problems: &mut Vec<Problem>) -> Vec<(&'a Table, usize)> {
        let Some(entry) = self.get(key) else { return Vec::new() };
        let Value::Array(nodes) = &entry.node.value else {
            problems
                .push(Problem::new(entry.at, format!("{key} must be an array of tables: write [[{key}]]")));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for node in nodes {
            match &node.value {
                Value::Table(table) => tables.push((table, node.at)),
                _ => problems.push(Problem::new(
                    node.at,
                    format!("{key} must be an array of tables: write [[{key}]]"),
                )),
            }
        }
        tables
    }
}

/// The whole number that a number with a fraction almost is.
fn whole(number: f64) -> Option<u64> {
    /// The inexactness of a fraction in binary, with a margin.
    const INEXACT: f64 = 1e-6;
    let rounded = number.round();
    let is_whole = (0.0..1e12).contains(&rounded) && (number - rounded).abs() < INEXACT;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    is_whole.then_some(rounded as u64)
}

fn wrong<T>(node: &Node, message: String, problems: &mut Vec<Problem>) -> Option<T> {
    problems.push(Problem::new(node.at, message));
    None
}

fn unknown(entry: &Entry, known: &[&str]) -> Problem {
    let name = printable_text(&entry.key);
    let advice = match similar(&entry.key, known) {
        Some(similar) => format!("did you mean {similar}?"),
        None => format!("the keys here are {}", known.join(", ")),
    };
    Problem::new(entry.at, format!("there is no key {name} here: {advice}"))
}

/// The most similar of several names; `None` if none is similar.
fn similar<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    /// A similarity of 1 is equality.
    const SIMILAR: f64 = 0.8;
    // The comparison takes a time that grows with the square of the length.
    let name = name.get(..64).unwrap_or(name);
    let similarities = known.iter().map(|known| (strsim::jaro_winkler(known, name), *known));
    let (similarity, known) = similarities.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (similarity > SIMILAR).then_some(known)
}
