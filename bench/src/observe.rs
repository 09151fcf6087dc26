//! The cost of an observation: an exit of a VMM in C under `vmm observe`, compared with the same program alone.
//!
//! The program (`tests/support/observed.c`) measures itself. What the observer does on another CPU is not in the CPU time. The
//! engine `ptrace` lets the program wait, so its rows have the wall time.

use crate::row::{Baseline, Goal, Pair, Row, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys::{self, Cost};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The program, and its headers, which are in the folder `observed` beside it.
const SOURCE: &str = include_str!("../../tests/support/observed.c");
const HEADERS: [(&str, &str); 4] = [
    ("machine.h", include_str!("../../tests/support/observed/machine.h")),
    ("signals.h", include_str!("../../tests/support/observed/signals.h")),
    ("wrong.h", include_str!("../../tests/support/observed/wrong.h")),
    ("filters.h", include_str!("../../tests/support/observed/filters.h")),
];
const STOPS: &str = include_str!("../bare/stops.c");
/// The number of exits of a batch.
const EXITS: &str = "5000";

/// The programs that take turns.
#[derive(Clone, Copy, Debug)]
enum Candidate {
    /// The program alone.
    Alone,
    /// The program under `vmm observe` with this engine.
    Observed(&'static str),
    /// The program under a tracer that only lets it go on.
    BareTracer,
    /// Two stops of that tracer, without KVM.
    TwoStops,
}

const CANDIDATES: [Candidate; 5] = [
    Candidate::Observed("preload"),
    Candidate::Alone,
    Candidate::Observed("ptrace"),
    Candidate::BareTracer,
    Candidate::TwoStops,
];

/// Measures `rounds` batches of each kind.
///
/// # Errors
/// gcc is missing, or a program does not run.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    // Dynamically linked, because the loader of a static program does not preload libraries.
    for (name, text) in HEADERS {
        scratch.file(&format!("observed/{name}"), text.as_bytes())?;
    }
    let program = compile(&scratch, "program", SOURCE, &["-pthread"])?;
    let stops = compile(&scratch, "stops", STOPS, &[])?;
    let output = scratch.file("output", b"")?;
    let costs = interleave(rounds, &CANDIDATES, |candidate| {
        let mut command = Command::new(match candidate {
            Candidate::Alone => &program,
            Candidate::Observed(_) => vmm,
            Candidate::BareTracer | Candidate::TwoStops => &stops,
        });
        match candidate {
            Candidate::Alone | Candidate::TwoStops => {}
            Candidate::Observed(engine) => {
                command.args(["observe", "--quiet", "--engine", engine, "--"]).arg(&program);
            }
            Candidate::BareTracer => {
                command.arg(&program);
            }
        }
        if !matches!(candidate, Candidate::TwoStops) {
            command.arg("measure");
        }
        command.arg(EXITS);
        run_once(command, &output)
    })?;
    let [preload, alone, ptrace, tracer, stops] = costs.as_slice() else { return Ok(Vec::new()) };
    Ok(vec![preload_row(preload, alone), ptrace_row(ptrace, tracer), stops_row(stops)])
}

/// The row of the engine `preload`, beside the program alone.
fn preload_row(ours: &[Cost], alone: &[Cost]) -> Row {
    let pair = cpu(ours, alone);
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
    Row {
        id: "observe-preload".into(),
        title: "PIO write in an observed program (preload)".into(),
        other: "the program alone",
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how: "mean of 5,000 exits of a VMM in C, by its own clock",
        wall: wall(ours, alone),
        goals: ratio.into_iter().chain(difference).collect(),
        pair,
    }
}

/// The row of the engine `ptrace`, beside a tracer that does nothing else.
fn ptrace_row(ours: &[Cost], tracer: &[Cost]) -> Row {
    let pair = wall(ours, tracer);
    let ratio = pair.ratios().map(|ratio| Goal {
        what: "exit of an observed program (ptrace), relative to the program under a bare tracer",
        unit: Unit::Ratio,
        limit: 1.25,
        value: ratio.median,
        error: ratio.error,
    });
    Row {
        id: "observe-ptrace".into(),
        title: "PIO write in an observed program (ptrace), wall time".into(),
        other: "the program under a bare tracer",
        baseline: Baseline::Detail,
        unit: Unit::Nanoseconds,
        how: "mean of 5,000 exits of a VMM in C, by its own clock; wall time",
        wall: Pair::default(),
        goals: ratio.into_iter().collect(),
        pair,
    }
}

/// The row of two stops, without KVM.
fn stops_row(stops: &[Cost]) -> Row {
    Row {
        id: "observe-stops".into(),
        title: "two stops of a bare tracer, wall time".into(),
        other: "",
        baseline: Baseline::Detail,
        unit: Unit::Nanoseconds,
        how: "mean of 5,000 calls of getppid, by its own clock; wall time",
        wall: Pair::default(),
        goals: Vec::new(),
        pair: wall(stops, &[]),
    }
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
