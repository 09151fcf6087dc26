//! The modes of the vCPUs at their exits.

use super::Check;
use crate::facts::Facts;
use vmm::x86::Mode;

/// The modes and their names.
const NAMES: [(&str, Mode); 7] = [
    ("real", Mode::Real),
    ("16", Mode::Real),
    ("protected", Mode::Protected),
    ("32", Mode::Protected),
    ("long", Mode::Long),
    ("64", Mode::Long),
    ("user64", Mode::User),
];

/// The mode with this name.
pub(crate) fn named(name: &str) -> Option<Mode> {
    NAMES.iter().find(|(known, _)| *known == name.trim()).map(|(_, mode)| *mode)
}

/// The modes in which vCPUs may be at their exits. Code that makes no exit is not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes(Vec<Mode>);

impl Modes {
    /// Parses names of modes.
    ///
    /// # Errors
    /// One of them is not a mode.
    pub fn parse<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let modes: Option<Vec<_>> = names.map(named).collect();
        let modes = modes.filter(|modes| !modes.is_empty());
        modes.map(Self).ok_or_else(|| "give modes: real (16), protected (32), long (64) or user64".into())
    }

    pub(super) fn check(&self, facts: &Facts) -> Check {
        let seen = facts.modes.as_deref().unwrap_or_default();
        let wrong = seen.iter().find(|mode| !self.0.contains(mode));
        Check {
            passed: facts.modes.is_some() && wrong.is_none(),
            subject: "the mode at each exit".into(),
            expected: format!("must be {}", list(&self.0, " or ")),
            seen: match (&facts.modes, seen) {
                (None, _) => "is not known".into(),
                (_, []) => "is not known, because there was no exit".into(),
                (_, seen) => format!("is {}", list(seen, " and ")),
            },
            possible: true,
        }
    }
}

fn list(modes: &[Mode], separator: &str) -> String {
    let names: Vec<_> = modes.iter().map(ToString::to_string).collect();
    names.join(separator)
}
