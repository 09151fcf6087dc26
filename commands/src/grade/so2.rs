//! The five tasks of the SO2 assignment, with their points and evidence.
//!
//! A submission is one to three images: only their tasks are graded. The reference grade runs the built-in guests in all
//! tasks. Its last task checks how this program counts exits.

use crate::grade::courses;
use crate::grade::target::{built_in, student, wrong_mode};
use crate::grade::{Evidence, GradeArgs, Run, Task, driver, is_bad_guest, wrong};
use crate::target::RunTarget;
use guest::{End, Exits, GUESTS};
use report::view::plural;
use simvirtio::abi;
use std::ffi::OsString;
use vmm::device::Transport;
use vmm::machine::Processor;
use vmm::memory::PLAIN_RAM;
use vmm::profile::Count;
use vmm::x86::Mode;
use vmm::{Error, KvmCounters};

/// Runs the guests of the tasks that were handed in, or the built-in ones of all tasks, and checks the results.
///
/// # Errors
/// The host failed.
pub(super) fn tasks(arguments: &GradeArgs) -> Result<Vec<Task>, Error> {
    let mut tasks = Vec::new();
    let mut drivers = None;
    for spec in &courses::so2()?.tasks {
        let helper = spec.helper.as_deref().unwrap_or_default();
        let (image, is_reference) = match helper {
            "so2-real" => (arguments.guest16.as_ref(), false),
            "so2-wide" => (arguments.guest64.as_ref(), false),
            "so2-simvirtio" | "so2-polling" => (arguments.simvirtio.as_ref(), false),
            "so2-counting" => (None, true),
            _ => return Err(courses::no_helper(spec)),
        };
        if !arguments.grades(image) || (is_reference && !arguments.reference) {
            continue;
        }
        let evidence = match helper {
            "so2-real" => real_mode(arguments)?,
            "so2-wide" => wide_modes(arguments, courses::text(spec, "text"))?,
            "so2-counting" => counting(arguments)?,
            _ => {
                // Both tasks look at the same runs.
                let ran = match drivers.take() {
                    Some(ran) => ran,
                    None => driver::runs(simvirtio_targets(arguments), arguments.settings())?,
                };
                let evidence = driver::evidence(&ran, spec)?;
                drivers = Some(ran);
                evidence
            }
        };
        tasks.push(courses::graded(spec, evidence));
    }
    Ok(tasks)
}

/// Names the tasks that a submission lacks, each with its option; `None` if it has all images.
///
/// # Errors
/// The course of this program is damaged.
pub(super) fn missing(arguments: &GradeArgs) -> Result<Option<String>, Error> {
    let title = |helper| courses::task(courses::so2()?, helper).map(|task| task.name.as_str());
    let images = [
        (title("so2-real")?, "--guest16", &arguments.guest16),
        (title("so2-wide")?, "--guest64", &arguments.guest64),
        ("SIMVIRTIO and polling", "--simvirtio", &arguments.simvirtio),
    ];
    let missing: Vec<_> = images
        .iter()
        .filter(|(_, _, image)| !arguments.grades(image.as_ref()))
        .map(|(title, option, _)| format!("{title} ({option})"))
        .collect();
    Ok((!missing.is_empty()).then(|| missing.join(", ")))
}

/// Returns true if `bytes` contains `text`.
fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Returns the student's image, which must lie below the address `limit`, or the built-in guests of a task.
fn targets(
    image: Option<&OsString>,
    mode: Mode,
    limit: u64,
    builtin: &[&str],
) -> Vec<Result<RunTarget, Error>> {
    let embedded = |name: &&str| match guest::find(name) {
        Some(guest) => built_in(guest),
        None => Err(Error::Config(format!("this build lacks the guest {name}"))),
    };
    match image {
        Some(image) => vec![student(image, mode, limit)],
        None => builtin.iter().map(embedded).collect(),
    }
}

fn simvirtio_targets(arguments: &GradeArgs) -> Vec<Result<RunTarget, Error>> {
    targets(arguments.simvirtio.as_ref(), Mode::Long, abi::RAM_SIZE, &["simvirtio", "simvirtio-c"])
}

/// Collects the evidence of each target. A target that cannot be run fails its check.
///
/// # Errors
/// The host failed, or a file can no longer be read.
fn check_each(
    targets: Vec<Result<RunTarget, Error>>,
    check: impl Fn(&RunTarget) -> Result<Evidence, Error>,
) -> Result<Vec<Evidence>, Error> {
    let checked = targets.into_iter().map(|target| match target.and_then(|target| check(&target)) {
        Err(error) if is_bad_guest(&error) => Ok(wrong(error.to_string())),
        evidence => evidence,
    });
    checked.collect()
}

fn real_mode(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let targets = targets(arguments.guest16.as_ref(), Mode::Real, PLAIN_RAM, &["real16-42", "real16-hello"]);
    check_each(targets, |target| {
        if target.image.mode() != Mode::Real {
            return Ok(wrong_mode(target, "real", Mode::Real));
        }
        let run = Run::new(target, None, None, arguments.settings())?;
        Ok(Evidence::new(run.passed(), run.ending()))
    })
}

fn wide_modes(arguments: &GradeArgs, greeting: &str) -> Result<Vec<Evidence>, Error> {
    let targets =
        targets(arguments.guest64.as_ref(), Mode::Long, PLAIN_RAM, &["prot32-hello", "long64-hello"]);
    check_each(targets, |target| {
        if target.image.mode() == Mode::Real {
            return Ok(wrong_mode(target, "protected or long", Mode::Long));
        }
        let run = Run::new(target, None, None, arguments.settings())?;
        Ok(run.require(
            "",
            &format!("prints {greeting:?}"),
            &[
                (run.passed(), run.required().into()),
                (contains(&run.output, greeting), format!("must print {greeting:?}")),
            ],
        ))
    })
}

/// Compares the exits of the built-in guests with the catalogue, and with KVM's own counter.
fn counting(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let mut evidence = Vec::new();
    let mut kernel = KernelCounts::default();
    let (mut runs, mut is_soft) = (0u64, false);
    for guest in GUESTS.iter().filter(|guest| guest.end != End::Never) {
        let by_exit = (guest.exits, guest.polling_exits.map(|_| Transport::Exit));
        let by_polling = guest.polling_exits.map(|exits| (exits, Some(Transport::Polling)));
        for (expected, transport) in [Some(by_exit), by_polling].into_iter().flatten() {
            if expected == Exits::Unspecified {
                continue;
            }
            let run = Run::embedded(guest, transport, arguments.settings())?;
            runs += 1;
            is_soft |= run.report.processor == Processor::Soft;
            evidence.extend(miscounted(&run.name, run.total(), expected));
            kernel.compare(&run.name, run.exits(), run.report.kernel.as_ref().and_then(KvmCounters::exits));
        }
    }
    if evidence.is_empty() {
        let text = format!("{} made exactly the exits that `vmm guests` lists", plural(runs, "run"));
        evidence.push(Evidence::new(runs > 0, text));
    }
    // Without KVM there is no other count.
    if !is_soft {
        evidence.push(kernel.evidence());
    }
    Ok(evidence)
}

/// Compares a count with the expected one. Returns evidence if they differ.
fn miscounted(name: &str, total: Count, expected: Exits) -> Option<Evidence> {
    let (counted, expected) = match expected {
        Exits::Exactly(expected) => (total.exits, expected),
        Exits::Elements(expected) => (total.elements, expected),
        Exits::Unspecified => return None,
    };
    (counted != expected)
        .then(|| wrong(format!("{name}: {counted} counted, but `vmm guests` lists {expected}")))
}

/// Compares KVM's counter `exits` with this program's count. KVM also counts exits that it handles itself, so its count
/// may be larger, but not smaller.
#[derive(Default)]
struct KernelCounts {
    compared: u64,
    ours: u64,
    theirs: u64,
    too_few: Vec<String>,
}

impl KernelCounts {
    fn compare(&mut self, name: &str, ours: u64, theirs: Option<u64>) {
        let Some(theirs) = theirs.filter(|count| *count > 0) else { return };
        self.compared += 1;
        self.ours = self.ours.saturating_add(ours);
        self.theirs = self.theirs.saturating_add(theirs);
        if theirs < ours {
            self.too_few.push(format!("{name}: {ours} counted, but KVM counted {theirs}"));
        }
    }

    fn evidence(self) -> Evidence {
        let Self { compared, ours, theirs, too_few } = self;
        if compared == 0 {
            let text =
                "not compared with KVM's own counter of exits, which this host lacks (KVM_GET_STATS_FD)";
            return Evidence::new(true, text);
        }
        match too_few.as_slice() {
            [] => Evidence::new(
                true,
                format!(
                    "KVM's own counter in {}: {theirs}; {ours} counted here, and KVM handled the rest itself",
                    plural(compared, "run")
                ),
            ),
            wrongs => wrong(wrongs.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: Count = Count { exits: 2, elements: 17 };

    #[test]
    fn a_wrong_count_fails() {
        let text =
            |expected| miscounted("guest", TOTAL, expected).map(|evidence| (evidence.right, evidence.text));
        assert_eq!(text(Exits::Exactly(2)), None);
        assert_eq!(text(Exits::Elements(17)), None);
        let wrong = "guest: 2 counted, but `vmm guests` lists 3".to_string();
        assert_eq!(text(Exits::Exactly(3)), Some((false, wrong)));
        let wrong = "guest: 17 counted, but `vmm guests` lists 16".to_string();
        assert_eq!(text(Exits::Elements(16)), Some((false, wrong)));
    }

    #[test]
    fn kvm_may_count_more_exits_but_not_fewer() {
        let compare = |counts: &[(u64, Option<u64>)]| {
            let mut kernel = KernelCounts::default();
            counts.iter().for_each(|(ours, theirs)| kernel.compare("guest", *ours, *theirs));
            let evidence = kernel.evidence();
            (evidence.right, evidence.text)
        };
        assert!(compare(&[(2, None), (2, Some(0))]).1.contains("which this host lacks"));
        let (right, text) = compare(&[(2, Some(2)), (3, Some(5))]);
        assert!(right && text.starts_with("KVM's own counter in 2 runs: 7; 5 counted here"), "{text}");
        assert_eq!(compare(&[(3, Some(2))]), (false, "guest: 3 counted, but KVM counted 2".into()));
    }
}
