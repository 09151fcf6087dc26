//! The random values of a task: `random = { a = [1, 9], word = { letters = [5, 12] } }`.

use super::fields::Fields;
use crate::template::Range;
use crate::toml::{Node, Problem, Value};

/// The keys of a random text.
pub const TEXT_KEYS: [&str; 1] = ["letters"];
/// The most random values of a task.
const MAX_RANDOM: usize = 64;
/// The most letters of a random text.
const MAX_LETTERS: i64 = 4096;

/// Reads the ranges by their names.
pub fn read(fields: &Fields, problems: &mut Vec<Problem>) -> Vec<(String, Range)> {
    let mut ranges = Vec::new();
    let Some((table, at)) = fields.table("random", problems) else { return ranges };
    if table.entries.len() > MAX_RANDOM {
        problems.push(Problem::new(at, format!("give at most {MAX_RANDOM} random values")));
    }
    for entry in table.entries.iter().take(MAX_RANDOM) {
        let is_name = entry.key.starts_with(|c: char| c.is_ascii_alphabetic())
            && entry.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            problems.push(Problem::new(entry.at, "the name of a random value has letters, digits and _"));
        }
        let range = match &entry.node.value {
            Value::Table(table) => {
                let fields = Fields::new(table, entry.node.at, &TEXT_KEYS, problems);
                let pair = fields.get("letters").and_then(|entry| pair(&entry.node));
                pair.filter(|(min, max)| *min >= 1 && *max <= MAX_LETTERS)
                    .map(|(min, max)| Range::Letters(min, max))
                    .ok_or("give the least and the largest number of letters, 1 to 4096, such as { letters = [5, 12] }")
            }
            _ => pair(&entry.node)
                .map(|(min, max)| Range::Numbers(min, max))
                .ok_or("give the least and the largest number, such as [1, 999], or { letters = [5, 12] } for a text"),
        };
        match range {
            Ok(range) => ranges.push((entry.key.clone(), range)),
            Err(message) => problems.push(Problem::new(entry.node.at, message)),
        }
    }
    ranges
}

/// Two numbers, of which the second is not the smaller one.
fn pair(node: &Node) -> Option<(i64, i64)> {
    let Value::Array(nodes) = &node.value else { return None };
    match nodes.as_slice() {
        [Node { value: Value::Integer(min), .. }, Node { value: Value::Integer(max), .. }] if min <= max => {
            Some((*min, *max))
        }
        _ => None,
    }
}
