//! The calls that built the machine of an observed VMM.

use super::{Check, Output, output};
use crate::facts::Facts;
use regex_lite::Regex;

/// The most bytes of the calls in which a pattern is looked for.
const SEARCHED: usize = 256 << 10;

/// A line that the calls of a VMM must have: those that `vmm observe --setup` shows.
#[derive(Clone, Debug)]
pub struct SetupLine {
    pattern: Regex,
    /// The pattern in quotes.
    name: String,
}

impl SetupLine {
    /// Parses a regular expression for a line.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        Ok(Self { pattern: output::regex(pattern)?, name: Output::shown(pattern) })
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let found = facts.setup.as_deref().and_then(|text| self.find(text));
        Check {
            passed: found.is_some(),
            subject: "the calls to KVM".into(),
            expected: format!("must have a line that matches {}", self.name),
            seen: match found {
                Some(line) => format!("have the line {}", Output::shown(line)),
                None => "have none (`vmm observe --setup -- PROGRAM` shows them)".into(),
            },
            possible: true,
        }
    }

    /// The first line with a match.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        let lines = text.get(..SEARCHED).unwrap_or(text).lines().map(str::trim);
        lines.into_iter().find(|line| self.pattern.is_match(line))
    }
}
