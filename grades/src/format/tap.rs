//! The Test Anything Protocol, version 13: a test for each check. Readers of version 14 take it, too.

use crate::clean::{NAME, TEXT, clean};
use crate::format::json::quoted;
use crate::{Grade, Options, view};
use std::fmt::Write as _;

/// The first line.
pub const HEADER: &str = "TAP version 13\n";

/// The last line.
pub fn plan(tests: u64) -> String {
    format!("1..{tests}\n")
}

/// The tests of a grade.
pub fn tests(grade: &Grade, options: Options, count: &mut u64) -> String {
    let mut text = String::new();
    let submission = escaped(&grade.submission);
    let mut test = |passed: bool, name: &str, message: &str| {
        *count = count.saturating_add(1);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {count} - {submission}: {name}", if passed { "ok" } else { "not ok" });
        if !passed {
            let _ = writeln!(text, "  ---\n  message: {}\n  ...", quoted(message, TEXT));
        }
    };
    for (task, checks) in view::tasks(grade) {
        for (name, check) in view::checks(checks) {
            let name = format!("{}: {}", escaped(&task), escaped(&name));
            test(check.passed, &name, &options.sentence(check));
        }
    }
    if let Some(error) = options.error(grade) {
        test(false, "grading", &error);
    }
    text
}

/// A part of a description. A `#` would begin a directive, such as SKIP.
fn escaped(text: &str) -> String {
    clean(text, NAME).replace('\\', "\\\\").replace('#', "\\#")
}
