//! The deaths of observed guests, after the table of exits.

use observe::{Death, Deaths, Observation};
use report::view::plural;
use std::fmt::Write;

/// A line for each death, and its details unless `quiet` is set.
pub(super) fn text(name: &str, observation: &Observation, deaths: &Deaths, quiet: bool) -> String {
    let mut text = String::new();
    for death in deaths.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "vmm: {name}: {}: {death}{}",
            observation.name_of(death.vcpu),
            others(death, deaths.later(death))
        );
        if !quiet {
            text += &death.details();
        }
    }
    if deaths.more() > 0 {
        let _ = writeln!(text, "vmm: {name}: {} not shown", plural(deaths.more(), "more death"));
    }
    text
}

/// The numbers of the deaths of the vCPU before and after this one.
fn others(death: &Death, later: u64) -> String {
    let what = if death.is_refusal() { "refusal" } else { "death" };
    match (death.earlier, later) {
        (0, 0) => String::new(),
        (times, 0) => format!(" (and {} before)", plural(times, what)),
        (0, times) => format!(" (and {} after)", plural(times, what)),
        (times, later) => format!(" (and {} before, and {later} after)", plural(times, what)),
    }
}
