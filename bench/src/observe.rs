//! The cost of an observation: an exit of a VMM in C under `vmm observe`, compared with the same program alone.
//!
//! The program (`tests/support/observed.c`) measures itself. What the observer does on another CPU is not in the CPU time.

use crate::row::{Baseline, Goal, Row, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys::{self, Cost};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const SOURCE: &str = include_str!("../../tests/support/observed.c");
/// The number of exits of a batch.
const EXITS: &str = "5000";

/// Measures `rounds` batches of each kind.
///
/// # Errors
/// gcc is missing, or a program does not run.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    // Dynamically linked, because the loader of a static program does not preload libraries.
    let program = compile(&scratch, "observed", SOURCE, &["-pthread"])?;
    let output = scratch.file("output", b"")?;
    let alone = || {
        let mut command = Command::new(&program);
        command.args(["measure", EXITS]);
        command
    };
    let observed = || {
        let mut command = Command::new(vmm);
        command
            .args(["observe", "--quiet", "--engine", "preload", "--"])
            .arg(&program)
            .args(["measure", EXITS]);
        command
    };
    let costs = interleave(rounds, &[true, false], |is_observed| {
        run_once(if *is_observed { observed() } else { alone() }, &output)
    })?;
    let [ours, other] = costs.as_slice() else { return Ok(Vec::new()) };
    let pair = cpu(ours, other);
    let ratio = pair.ratios().map(|ratio| Goal {
        what: "exit of an observed program (preload), relative to the program alone",
        unit: Unit::Ratio,
        limit: 1.02,
        value: ratio.median,
        error: ratio.error,
    });
    let difference = pair.differences().map(|difference| Goal {
        what: "time that the preloaded library adds to an exit",
        unit: Unit::Nanoseconds,
        limit: 100.0,
        value: difference.median,
        error: difference.error,
    });
    Ok(vec![Row {
        id: "observe-preload".into(),
        title: "PIO write in an observed program (preload)".into(),
        other: "the program alone",
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how: "mean of 5,000 exits of a VMM in C, by its own clock",
        wall: wall(ours, other),
        goals: ratio.into_iter().chain(difference).collect(),
        pair,
    }])
}

/// Runs the program once. It prints the CPU time and the wall time of an exit.
fn run_once(mut command: Command, output: &Path) -> Result<Cost, String> {
    let to = fs::File::create(output).map_err(|error| error.to_string())?;
    let ran = sys::run(command.stdin(Stdio::null()).stdout(to).stderr(Stdio::null()))?;
    let printed = fs::read_to_string(output).map_err(|error| error.to_string())?;
    let mut numbers = printed.split_whitespace().map(str::parse);
    match (ran.status.success(), numbers.next(), numbers.next()) {
        (true, Some(Ok(cpu)), Some(Ok(wall))) => Ok(Cost { cpu, wall }),
        _ => Err(format!("{command:?} ended with {}", ran.status)),
    }
}
