//! `vmm doctor`: whether this host can run guests, as a list or as JSON.

use crate::say::print;
use crate::status;
use clap::Args;
use serde_json::json;
use std::fmt::Write as _;
use vmm::lab::{Check, CheckOutcome, examine};

/// Options of `vmm doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 where guests can run, 115 where they cannot.")]
pub struct DoctorArgs {
    /// Print JSON: {"good": bool, "checks": [{"check", "outcome": "good" | "missing" | "bad", "found"}]}
    #[arg(long)]
    json: bool,
}

/// Examines the host, prints, and answers with the exit status.
pub fn main(arguments: &DoctorArgs) -> u8 {
    let checks = examine();
    let good = checks.iter().all(|check| check.outcome != CheckOutcome::Bad);
    let text = if arguments.json { as_json(good, &checks) } else { as_text(good, &checks) };
    match print(&text) {
        status::OK if good => status::OK,
        _ => status::HOST_ERROR,
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
    // Writing to a String cannot fail.
    for check in checks {
        let _ = writeln!(text, "{:<8} {:<26} {}", word(check.outcome), check.what, check.found);
    }
    text += if good { "This host can run guests.\n" } else { "This host cannot run guests.\n" };
    text
}

fn as_json(good: bool, checks: &[Check]) -> String {
    let checks: Vec<_> = checks
        .iter()
        .map(|check| json!({ "check": check.what, "outcome": word(check.outcome), "found": check.found }))
        .collect();
    format!("{:#}\n", json!({ "good": good, "checks": checks }))
}
