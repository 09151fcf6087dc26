//! The cost of an exit: the loop of `vmm::run_vcpu` with the full chain of controllers, compared with a bare KVM_RUN loop.

use crate::bare::{Bare, START};
use crate::latch::Latch;
use crate::loops::{self, ADDRESS, Access, MARK, MSR, PORT, UNROLLED, WARM_UP};
use crate::row::{Baseline, Goal, Pair, Row, Summary, Unit, cpu, interleave, wall};
use crate::sys::{Cost, Moment};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vmm::boot::Image;
use vmm::device::{Device, DeviceName};
use vmm::exit::Stop;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Machine, Output};

/// The number of passes of the guest's loop in one batch, which makes 640 exits. A batch takes a few milliseconds, so
/// that other work on the host affects all candidates alike, and few batches. Each batch has its own machine, because
/// the addresses of the machine's memory affect the times too.
const PASSES: u32 = 10;
/// The number of exits in a batch.
const EXITS: f64 = (PASSES * UNROLLED) as f64;

/// The loop that runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    /// The bare loop.
    Bare,
    /// The bare loop again, which shows the noise in a difference.
    BareAgain,
    /// This VMM without the profile.
    ProfileOff,
    /// This VMM with the profile, which is the default.
    ProfileOn,
}

/// The device behind [`MARK`]: records the time of each write.
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
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("mark")
    }
}

/// Runs one batch in this VMM.
fn run_in_vmm(code: &[u8], profile: bool) -> Result<Cost, String> {
    let text = |error: vmm::Error| error.to_string();
    let image = Image::flat(code.to_vec(), Mode::Long, Gpa(START)).map_err(|error| error.to_string())?;
    let (latch, marks) = (Arc::new(Mutex::new(Latch::default())), Arc::new(Mutex::new(Marks::default())));
    let machine = Machine::builder(image)
        .processor(Some(Processor::Kvm))
        .port_device(PORT.into(), 1, latch.clone())
        .and_then(|builder| builder.mmio_device(ADDRESS.into(), 4, latch.clone()))
        .and_then(|builder| builder.msr_device(MSR, latch.clone()))
        .and_then(|builder| builder.port_device(MARK.into(), 1, marks.clone()))
        .map_err(text)?;
    let machine = machine.output(Output::captured().0).timeout(Some(Duration::from_secs(60)));
    let report = machine.profile(profile).build().and_then(|mut machine| machine.run()).map_err(text)?;
    if !matches!(report.stop, Stop::Halted) {
        return Err(report.stop.to_string());
    }
    if let Some(profile) = report.profile {
        // The accesses of both loops, two writes to MARK, and HLT.
        let expected = u64::from((WARM_UP + PASSES) * UNROLLED) + 3;
        if profile.total().exits != expected {
            return Err(format!("the profile has {} exits, not {expected}", profile.total().exits));
        }
    }
    match marks.lock().unwrap_or_else(PoisonError::into_inner).0.as_slice() {
        [start, end] => Ok(end.since(start)),
        _ => Err("the guest halted before the end of the measured part".into()),
    }
}

/// Divides the cost of a batch by its number of exits.
fn per_exit(cost: Cost) -> Cost {
    Cost { cpu: cost.cpu / EXITS, wall: cost.wall / EXITS }
}

fn batch(runner: Runner, code: &[u8]) -> Result<Cost, String> {
    let cost = match runner {
        Runner::Bare | Runner::BareAgain => Bare::new(code)?.run(),
        Runner::ProfileOff => run_in_vmm(code, false),
        Runner::ProfileOn => run_in_vmm(code, true),
    };
    cost.map(per_exit)
}

const RUNNERS: [Runner; 4] = [Runner::Bare, Runner::BareAgain, Runner::ProfileOff, Runner::ProfileOn];

/// The way the numbers are taken.
const HOW: &str = "CPU time of the vCPU's thread, per exit";

/// Measures `rounds` batches for each access and runner.
///
/// # Errors
/// A guest could not run, or ended too early.
pub fn run(rounds: usize) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for access in Access::ALL {
        let code = loops::long_mode_guest(access, PASSES);
        let costs = interleave(rounds, &RUNNERS, |runner| {
            batch(*runner, &code).map_err(|error| format!("{}, {runner:?}: {error}", access.name()))
        })?;
        rows.extend(rows_for(access, &costs));
        if vmm::host::interrupted() {
            break;
        }
    }
    Ok(rows)
}

/// Returns the rows of one access. `costs` is in the order of [`RUNNERS`].
fn rows_for(access: Access, costs: &[Vec<Cost>]) -> Vec<Row> {
    let costs_of = |runner| {
        let place = RUNNERS.iter().position(|one| *one == runner);
        place.and_then(|place| costs.get(place)).map_or(&[][..], Vec::as_slice)
    };
    let row = |id: &str, title: &str, (ours, other), baseline, other_name| Row {
        id: format!("exit-{}{id}", access.id()),
        title: format!("{}{title}", access.name()),
        other: other_name,
        baseline,
        unit: Unit::Nanoseconds,
        how: HOW,
        pair: cpu(costs_of(ours), costs_of(other)),
        wall: wall(costs_of(ours), costs_of(other)),
        goals: Vec::new(),
    };
    let pairs = [
        ("", "", (Runner::ProfileOn, Runner::Bare), Baseline::LowerBound, "bare loop"),
        ("-plain", ", profile off", (Runner::ProfileOff, Runner::Bare), Baseline::Detail, "bare loop"),
        (
            "-profile",
            ", cost of the profile",
            (Runner::ProfileOn, Runner::ProfileOff),
            Baseline::Detail,
            "profile off",
        ),
        (
            "-control",
            ", bare loop compared with itself",
            (Runner::BareAgain, Runner::Bare),
            Baseline::Detail,
            "bare loop",
        ),
    ];
    let mut rows = pairs.map(|(id, title, pair, baseline, other)| row(id, title, pair, baseline, other));
    let [counted, _, profile, _] = &mut rows;
    counted.goals = goals_over_bare(&counted.pair);
    profile.goals = profile.pair.differences().map(goal_of_profile).into_iter().collect();
    rows.into()
}

fn goals_over_bare(pair: &Pair) -> Vec<Goal> {
    let (Some(ratio), Some(added)) = (pair.ratios(), pair.differences()) else { return Vec::new() };
    vec![
        Goal::of_median("CPU time per exit, profile on, relative to the bare loop", Unit::Ratio, 1.02, ratio),
        Goal::of_median("CPU time added to an exit, profile on", Unit::Nanoseconds, 100.0, added),
    ]
}

fn goal_of_profile(added: Summary) -> Goal {
    Goal::of_median("CPU time added to an exit by the profile", Unit::Nanoseconds, 60.0, added)
}
