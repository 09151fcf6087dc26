//! A batch of `vmm grade`: submissions with three tasks, each in a process of its own. The floor is a bare loop that runs the same
//! guests, in new VMs of one process, with a thread for each CPU.

use crate::row::{Baseline, Goal, Row, Unit, cpu, interleave, wall};
use crate::scratch::Scratch;
use crate::sys::{Cost, Moment, run_silently};
use guest::Guest;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use vmm::boot::Image;
use vmm::device::Transport;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::{Input, Machine, Output};

/// The guests of the tasks: those of SO2's assignment.
const GUESTS: [&str; 3] = ["real16-hello", "long64-hello", "simvirtio"];
/// The submissions of a batch.
const SUBMISSIONS: usize = 100;
/// The time limit of a run.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The two programs.
enum Candidate {
    Grade(PathBuf, Vec<String>),
    Loop(Vec<&'static Guest>),
}

/// Grades a batch `rounds` times.
///
/// # Errors
/// A guest or the program fails.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let find = |name: &&str| guest::find(name).ok_or_else(|| format!("there is no guest {name}"));
    let guests = GUESTS.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let scratch = Scratch::new()?;
    let arguments = batch(&scratch, &guests)?;
    let candidates = [Candidate::Grade(scratch.copy(vmm)?, arguments), Candidate::Loop(guests)];
    let costs = interleave(rounds, &candidates, |candidate| {
        let cost = match candidate {
            Candidate::Grade(program, arguments) => {
                run_silently(program, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?
            }
            Candidate::Loop(guests) => run_all(guests)?,
        };
        let each = |time: f64| time / SUBMISSIONS as f64;
        Ok(Cost { cpu: each(cost.cpu), wall: each(cost.wall) })
    })?;
    let [ours, floor] = costs.as_slice() else { return Err("a measurement is missing".into()) };
    // On a host that does other work, the wall time depends on the number of processes. With all CPUs busy, the CPU time is what
    // counts.
    let pair = cpu(ours, floor);
    let what = "CPU time of a submission of a batch, relative to a bare loop over new VMs";
    let goal = pair.ratios().map(|ratio| Goal::of_median(what, Unit::Ratio, 1.5, ratio));
    Ok(vec![Row {
        id: "batch".into(),
        title: "a submission of a batch".into(),
        other: "bare loop",
        baseline: Baseline::LowerBound,
        unit: Unit::Nanoseconds,
        how: "`vmm grade` of 100 submissions with three tasks, per submission; the floor runs the same guests in new VMs of one process",
        goals: goal.into_iter().collect(),
        pair,
        wall: wall(ours, floor),
    }])
}

/// Writes the exercise and the submissions. Returns the arguments of the program.
///
/// # Errors
/// A file cannot be written.
fn batch(scratch: &Scratch, guests: &[&Guest]) -> Result<Vec<String>, String> {
    let mut exercise = "version = 1\nname = \"SO2\"\n".to_string();
    for guest in guests {
        // Writing to a String cannot fail. Debug writes a TOML string for these texts.
        let _ = write!(
            exercise,
            "[[task]]\nname = \"{0}\"\npoints = 10\nfile = \"{0}\"\nmode = \"{1}\"\naddress = {2}\ninput = {3:?}\n\
             check = [{{ expect = \"end=halt\" }}]\n",
            guest.name, guest.mode, guest.load_at, guest.input
        );
    }
    let exercise = scratch.file("batch.toml", exercise.as_bytes())?;
    let mut arguments = vec!["grade".to_string(), exercise.display().to_string()];
    for number in 0..SUBMISSIONS {
        for guest in guests {
            let file = scratch.file(&format!("submissions/{number}/{}", guest.name), guest.image)?;
            if let (true, Some(folder)) = (guest.name == GUESTS[0], file.parent()) {
                arguments.push(folder.display().to_string());
            }
        }
    }
    arguments.extend(["--vcpu", "kvm", "--seed", "1"].map(Into::into));
    Ok(arguments)
}

/// Runs all guests of all submissions, with a thread for each CPU.
///
/// # Errors
/// A guest fails.
fn run_all(guests: &[&'static Guest]) -> Result<Cost, String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let start = Moment::now();
    let costs = thread::scope(|scope| {
        let share = |number: usize| (number..SUBMISSIONS).step_by(threads);
        let started: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    let start = Moment::now();
                    for _ in share(number) {
                        guests.iter().try_for_each(|guest| run_guest(guest))?;
                    }
                    Ok(Moment::now().since(&start).cpu)
                })
            })
            .collect();
        let ended =
            started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread failed".into())));
        ended.collect::<Result<Vec<f64>, String>>()
    })?;
    Ok(Cost { cpu: costs.iter().sum(), wall: Moment::now().since(&start).wall })
}

/// Runs a guest in a new VM.
///
/// # Errors
/// The machine cannot be built, or the guest does not halt.
fn run_guest(guest: &Guest) -> Result<(), String> {
    let text = |error: vmm::Error| error.to_string();
    let image =
        Image::flat(guest.image, guest.mode, Gpa(guest.load_at)).map_err(|error| error.to_string())?;
    let mut machine = Machine::builder(image)
        .cpuid(true)
        .processor(Some(Processor::Kvm))
        .transport(Some(Transport::Exit))
        .timeout(Some(TIMEOUT))
        .input(Input::bytes(guest.input.as_bytes()))
        .output(Output::captured().0)
        .build()
        .map_err(text)?;
    let report = machine.run().map_err(text)?;
    match report.stop {
        vmm::exit::Stop::Halted => Ok(()),
        other => Err(format!("the guest {} ended: {other}", guest.name)),
    }
}
