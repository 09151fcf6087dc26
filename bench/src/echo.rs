//! The polling echo in ring 3: one byte to the device and back through shared memory. The baseline is a bare poller
//! (`bench/bare/echo.c`) that runs the same image.
//!
//! The guest measures the times with the time-stamp counter. The guest and the device are busy all the time, so the
//! median has no meaning on a host with fewer than two free CPUs.

use crate::row::{Baseline, Goal, Pair, Row, Summary, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys::{self, Cost};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use vmm::lab::{ComparisonError, Ring, Variant, Workload, percentile, run_echoes, run_handshake};

/// The source of the bare poller.
const BARE: &str = include_str!("../bare/echo.c");
/// The work of one batch, for both candidates.
const WORKLOAD: Workload = Workload { bytes: 0, messages: 5000, echo: 1, queue_len: 256 };

/// The program that runs the image.
enum Runner {
    Vmm,
    Bare,
}

/// Measures `rounds` batches of each candidate.
///
/// # Errors
/// gcc is missing, a guest ends in an unexpected way, or an echo is wrong.
pub fn run(rounds: usize) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let bare = compile(&scratch, "echo", BARE, &["-static", "-pthread"])?;
    let image = scratch.file("image", guest::COMPARE)?;
    let output = scratch.file("output", b"")?;
    let mut exits = Vec::new();
    let costs = interleave(rounds, &[Runner::Vmm, Runner::Bare], |runner| match runner {
        Runner::Vmm => run_in_vmm(&mut exits),
        Runner::Bare => run_in_bare_poller(&bare, &image, &output),
    })?;
    let [ours, bare] = costs.as_slice() else { return Ok(Vec::new()) };
    let pair = cpu(ours, bare);
    let ratio_goal = pair.ratios().map(|ratio| {
        Goal::of_median(
            "polling echo from ring 3, relative to the bare poller, median of batches",
            Unit::Ratio,
            1.2,
            ratio,
        )
    });
    let echo = Row {
        id: "echo".into(),
        title: "polling echo of a byte, ring 3".into(),
        other: "bare poller",
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how: "median round trip in a batch of 5,000, by the guest's clock",
        wall: wall(ours, bare),
        goals: ratio_goal.into_iter().collect(),
        pair,
    };
    let exits_goal = Summary::of(&exits).map(|exits| Goal {
        what: "exits per polling echo",
        unit: Unit::Count,
        limit: 0.0,
        value: exits.max,
        error: 0.0,
    });
    let echo_exits = Row {
        id: "echo-exits".into(),
        title: "exits per polling echo".into(),
        other: "",
        baseline: Baseline::Detail,
        unit: Unit::Count,
        how: "exits of a batch minus exits of a run that only makes the handshake, per echo",
        pair: Pair { ours: exits, other: Vec::new() },
        wall: Pair::default(),
        goals: exits_goal.into_iter().collect(),
    };
    Ok(vec![echo, echo_exits])
}

/// Runs one batch in this VMM. Returns the median round trip as the CPU time, and the mean as the wall time.
fn run_in_vmm(exits: &mut Vec<f64>) -> Result<Cost, String> {
    let text = |failure: ComparisonError| failure.to_string();
    let handshake_exits = run_handshake(Variant::Polling, Ring::Three, WORKLOAD).map_err(text)?;
    let echoes = run_echoes(Variant::Polling, Ring::Three, WORKLOAD).map_err(text)?;
    let count = f64::from(WORKLOAD.messages);
    exits.push((echoes.exits as f64 - handshake_exits as f64) / count);
    let sum: u64 = echoes.round_trips.iter().sum();
    Ok(Cost { cpu: percentile(&echoes.round_trips, 0.5), wall: sum as f64 / count })
}

/// Runs one batch in the bare poller, which prints the median and the mean.
fn run_in_bare_poller(bare: &Path, image: &Path, output: &Path) -> Result<Cost, String> {
    let to = fs::File::create(output).map_err(|error| error.to_string())?;
    let mut command = Command::new(bare);
    command.arg(image).arg(WORKLOAD.messages.to_string()).stdin(Stdio::null()).stdout(to);
    let ran = sys::run(&mut command)?;
    let printed = fs::read_to_string(output).map_err(|error| error.to_string())?;
    let mut numbers = printed.split_whitespace().map(str::parse);
    match (ran.status.success(), numbers.next(), numbers.next()) {
        (true, Some(Ok(cpu)), Some(Ok(wall))) => Ok(Cost { cpu, wall }),
        _ => Err(format!("the bare poller ended with {}", ran.status)),
    }
}
