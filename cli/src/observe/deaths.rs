//! The deaths of observed guests, after the table of exits.

use observe::{Death, Deaths, Observation};
use report::view::plural;
use std::fmt::Write;

/// A line for each death, and its details unless `quiet` is set.
pub(super) fn text(name: &str, observation: &Observation, deaths: &Deaths, quiet: bool) -> String {
    let mut text = String::new();
    for death in deaths.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "vmm: {name}: {}: {death}{}", observation.name_of(death.vcpu), earlier(death));
        if !quiet {
            text += &death.details();
        }
    }
    if deaths.more() > 0 {
        let _ = writeln!(text, "vmm: {name}: {} not shown", plural(deaths.more(), "more death"));
    }
    text
}

fn earlier(death: &Death) -> String {
    match (death.earlier, death.is_refusal()) {
        (0, _) => String::new(),
        (times, true) => format!(" (and {} before)", plural(times, "refusal")),
        (times, false) => format!(" (and {} before)", plural(times, "death")),
    }
}
