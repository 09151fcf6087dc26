//! What an exit costs: the loop of `vmm::run_vcpu` with its whole chain of controllers, next to a bare KVM_RUN loop.

use crate::bare::{Bare, START};
use crate::loops::{self, ADDRESS, Access, MARK, MSR, PORT, UNROLLED, WARM_UP};
use crate::row::{Against, Goal, Pair, Row, Summary, Unit, cpu, interleave, wall};
use crate::sys::{Cost, Moment};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vmm::boot::Image;
use vmm::device::Device;
use vmm::exit::Stop;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

/// Passes of the guest's loop in one batch, so 640 exits: a few milliseconds, so that what else happens on the host meets
/// all contestants alike, and spoils few batches. Each batch has a machine of its own: where its memory happens to lie
/// is chance, too.
const PASSES: u32 = 10;
/// Exits of a batch.
const EXITS: f64 = (PASSES * UNROLLED) as f64;

/// Who runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    /// The bare loop.
    Bare,
    /// The bare loop once more: what of a difference is noise.
    Again,
    /// This VMM, without counting.
    Plain,
    /// This VMM as it is used.
    Profiled,
}

/// What the guest reads and writes: one value.
#[derive(Debug)]
struct Latch(u64);

impl Device for Latch {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(self.0)
    }
    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.0 = data;
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> &'static str {
        "latch"
    }
}

/// The port on which the guest says when the measured part begins and ends.
#[derive(Debug, Default)]
struct Marks(Vec<Moment>);

impl Device for Marks {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(0)
    }
    fn write(&mut self, _: u64, _: u8, _: u64) -> ControlFlow<Stop> {
        self.0.push(Moment::now());
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> &'static str {
        "mark"
    }
}

/// One batch by this VMM.
fn ours(code: &[u8], profile: bool) -> Result<Cost, String> {
    let told = |error: vmm::Error| error.to_string();
    let image = Image::flat(code.to_vec(), Mode::Long, Gpa(START)).map_err(|error| error.to_string())?;
    let (latch, marks) = (Arc::new(Mutex::new(Latch(0))), Arc::new(Mutex::new(Marks::default())));
    let machine = Machine::builder(image)
        .port_device(PORT.into(), 1, latch.clone())
        .and_then(|builder| builder.mmio_device(ADDRESS.into(), 4, latch.clone()))
        .and_then(|builder| builder.msr_device(MSR, latch.clone()))
        .and_then(|builder| builder.port_device(MARK.into(), 1, marks.clone()))
        .map_err(told)?;
    let machine = machine.output(Output::captured().0).timeout(Some(Duration::from_secs(60)));
    let report = machine.profile(profile).build().and_then(Machine::run).map_err(told)?;
    if !matches!(report.stop, Stop::Halted) {
        return Err(report.stop.to_string());
    }
    if let Some(profile) = report.profile {
        // The two loops, two marks and the halt.
        let expected = u64::from((WARM_UP + PASSES) * UNROLLED) + 3;
        if profile.total().exits != expected {
            return Err(format!("{} exits were counted, and {expected} were made", profile.total().exits));
        }
    }
    match marks.lock().unwrap_or_else(PoisonError::into_inner).0.as_slice() {
        [start, end] => Ok(end.since(start)),
        _ => Err("the guest halted before its work was done".into()),
    }
}

/// The cost of one exit.
fn per_exit(cost: Cost) -> Cost {
    Cost { cpu: cost.cpu / EXITS, wall: cost.wall / EXITS }
}

fn batch(runner: Runner, code: &[u8]) -> Result<Cost, String> {
    let cost = match runner {
        Runner::Bare | Runner::Again => Bare::new(code)?.run(),
        Runner::Plain => ours(code, false),
        Runner::Profiled => ours(code, true),
    };
    cost.map(per_exit)
}

const RUNNERS: [Runner; 4] = [Runner::Bare, Runner::Again, Runner::Plain, Runner::Profiled];

/// How the numbers are taken.
const HOW: &str = "CPU time of the vCPU's thread, per exit";

/// Measures `rounds` batches of each access and runner.
///
/// # Errors
/// A guest did not do its work.
pub fn run(rounds: usize) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for access in Access::ALL {
        let code = loops::long(access, PASSES);
        let costs = interleave(rounds, &RUNNERS, |runner| {
            batch(*runner, &code).map_err(|error| format!("{}, {runner:?}: {error}", access.name()))
        })?;
        rows.extend(rows_of(access, &costs));
        if vmm::host::interrupted() {
            break;
        }
    }
    Ok(rows)
}

/// The lines of one access; `costs` are in the order of [`RUNNERS`].
fn rows_of(access: Access, costs: &[Vec<Cost>]) -> Vec<Row> {
    let of = |runner| {
        let place = RUNNERS.iter().position(|one| *one == runner);
        place.and_then(|place| costs.get(place)).map_or(&[][..], Vec::as_slice)
    };
    let row = |id: &str, title: &str, (ours, other), against, named| Row {
        id: format!("exit-{}{id}", access.id()),
        title: format!("{}{title}", access.name()),
        other: named,
        against,
        unit: Unit::Nanoseconds,
        how: HOW,
        pair: cpu(of(ours), of(other)),
        wall: wall(of(ours), of(other)),
        goals: Vec::new(),
    };
    let pairs = [
        ("", "", (Runner::Profiled, Runner::Bare), Against::Floor, "bare loop"),
        ("-plain", ", without the profile", (Runner::Plain, Runner::Bare), Against::Itself, "bare loop"),
        (
            "-profile",
            ", what the profile adds",
            (Runner::Profiled, Runner::Plain),
            Against::Itself,
            "without it",
        ),
        (
            "-control",
            ", the bare loop and itself",
            (Runner::Again, Runner::Bare),
            Against::Itself,
            "bare loop",
        ),
    ];
    let mut rows = pairs.map(|(id, title, pair, against, named)| row(id, title, pair, against, named));
    let [counted, _, profile, _] = &mut rows;
    counted.goals = goals_over_bare(&counted.pair);
    profile.goals = profile.pair.added().map(goal_of_profile).into_iter().collect();
    rows.into()
}

fn goals_over_bare(pair: &Pair) -> Vec<Goal> {
    let (Some(ratio), Some(added)) = (pair.ratios(), pair.added()) else { return Vec::new() };
    vec![
        Goal {
            what: "CPU per exit over the bare loop, profile on",
            unit: Unit::Ratio,
            limit: 1.03,
            value: ratio.median,
            error: ratio.error,
        },
        Goal {
            what: "CPU added to an exit, profile on",
            unit: Unit::Nanoseconds,
            limit: 100.0,
            value: added.median,
            error: added.error,
        },
    ]
}

fn goal_of_profile(added: Summary) -> Goal {
    let (value, error) = (added.median, added.error);
    Goal { what: "of that, counts and latencies", unit: Unit::Nanoseconds, limit: 60.0, value, error }
}
