//! The calls that built the machine of an observed VMM.

use super::{Check, Output, output};
use crate::facts::Facts;
use regex_lite::Regex;

/// The most bytes of the calls in which a pattern is looked for.
const SEARCHED: usize = 256 << 10;

/// The words in the line of a call that failed.
const FAILED: &str = "; failed, ";

/// A line that the calls of a VMM must have: those that `vmm observe --setup` shows.
#[derive(Clone, Debug)]
pub struct SetupLine {
    pattern: Regex,
    /// True if the pattern is about a call that failed. Otherwise such a call is not enough.
    has_failed: bool,
    /// The pattern in quotes.
    name: String,
}

impl SetupLine {
    /// Parses a regular expression for a line.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let has_failed = pattern.contains("failed");
        Ok(Self { pattern: output::regex(pattern)?, has_failed, name: Output::shown(pattern) })
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
        let mut counted = lines.filter(|line| self.has_failed || !line.contains(FAILED));
        counted.find(|line| self.pattern.is_match(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_counts_only_if_the_pattern_is_about_one() {
        let text = "vmm: calls on VM 0:\n  KVM_SET_REGS; failed, EINVAL: why\n  KVM_CREATE_VM\n";
        let found = |pattern| SetupLine::parse(pattern).unwrap().find(text).map(String::from);
        assert_eq!(found("KVM_CREATE_VM$").as_deref(), Some("KVM_CREATE_VM"));
        assert_eq!(found("KVM_SET_REGS"), None);
        assert!(found("KVM_SET_REGS.*failed, EINVAL").is_some());
    }
}
