//! `vmm doctor`: checks if this host can run guests, with KVM and without it, and prints the checks as a list or as JSON.

use crate::status;
use crate::streams::print_stdout;
use clap::Args;
use serde_json::json;
use std::fmt::Write as _;
use vmm::lab::{Check, CheckOutcome, examine};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm doctor           a line for each check, with advice if it fails
  vmm doctor --json    the same for a program

The outcome of a check is good, missing (a feature does not work) or bad (guests cannot run with KVM).

Exit status: 0 if guests can run with KVM, 115 if they cannot.")]
pub struct DoctorArgs {
    /// Print JSON: {"good": bool, "checks": [{"check", "outcome": "good" | "missing" | "bad", "found"}]}
    #[arg(long)]
    json: bool,
}

/// Checks the host and prints the result. Returns the exit status.
pub fn main(arguments: &DoctorArgs) -> u8 {
    let mut checks = examine();
    checks.extend(crate::jail::checks());
    let good = checks.iter().all(|check| check.outcome != CheckOutcome::Bad);
    let text = if arguments.json { as_json(good, &checks) } else { as_text(good, &checks) };
    match print_stdout(&text) {
        status::OK if good => status::OK,
        status::OK => status::HOST_ERROR,
        failed => failed,
    }
}

fn word(outcome: CheckOutcome) -> &'static str {
    match outcome {
        CheckOutcome::Good => "good",
        CheckOutcome::Missing => "missing",
        CheckOutcome::Bad => "bad",
    }
}

fn as_text(good: bool, checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<8} {:<26} {}", word(check.outcome), check.what, check.found);
    }
    let complete = checks.iter().all(|check| check.outcome == CheckOutcome::Good);
    text += match (good, complete) {
        (true, true) => "This host can run guests.\n",
        (true, false) => {
            "This host can run guests. Some features do not work: see the lines marked missing.\n"
        }
        (false, _) => {
            "This host cannot run guests with KVM: see the lines marked bad. Small guests run without it.\n"
        }
    };
    text
}

fn as_json(good: bool, checks: &[Check]) -> String {
    let checks: Vec<_> = checks
        .iter()
        .map(|check| json!({ "check": check.what, "outcome": word(check.outcome), "found": check.found }))
        .collect();
    format!("{:#}\n", json!({ "good": good, "checks": checks }))
}
