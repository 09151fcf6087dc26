//! The five tasks of the SO2 assignment, with their points and evidence.
//!
//! A student's image replaces the built-in guests of its task. The last task checks how this program counts exits, and
//! always runs the built-in guests.

use crate::grade::target::{built_in, student, wrong_mode};
use crate::grade::{Evidence, GradeArgs, Run, Task, is_bad_guest, wrong};
use crate::summary::{ending, excerpt};
use crate::target::RunTarget;
use guest::{End, Exits, GUESTS};
use report::view::plural;
use simvirtio::abi;
use simvirtio::device::State;
use std::ffi::OsString;
use vmm::device::Transport;
use vmm::exit::Reason;
use vmm::machine::Processor;
use vmm::memory::PLAIN_RAM;
use vmm::profile::Count;
use vmm::x86::Mode;
use vmm::{Error, KvmCounters};

/// The text that the driver of the assignment must send.
const MESSAGE: &str = "Ana are mere";
/// The text that the 32-bit or 64-bit guest must print.
const GREETING: &str = "Hello, world!";
/// The length of a queue that is shorter than the message, in bytes. The driver must wrap its index, and wait for space.
const SHORT_QUEUE: u16 = 8;

/// Runs the guests of all tasks, and checks the results.
///
/// # Errors
/// The host failed.
pub(super) fn tasks(arguments: &GradeArgs) -> Result<Vec<Task>, Error> {
    Ok(vec![
        Task { title: "a 16-bit guest in real mode", points: 30, evidence: real_mode(arguments)? },
        Task { title: "a 32-bit and a 64-bit guest", points: 20, evidence: wide_modes(arguments)? },
        Task { title: "SIMVIRTIO", points: 30, evidence: simvirtio(arguments)? },
        Task { title: "polling instead of exits", points: 10, evidence: polling(arguments)? },
        Task { title: "counting of exits", points: 10, evidence: counting(arguments)? },
    ])
}

/// The parts of a run that concern SIMVIRTIO.
impl Run {
    /// The beginning of the message that the device received.
    fn message(&self) -> String {
        let device = self.report.simvirtio.as_ref();
        device.map(|device| String::from_utf8_lossy(&device.message).into_owned()).unwrap_or_default()
    }

    /// Returns true if the device is in state Ready after a handshake, and received the assignment's message.
    fn sent_the_message(&self) -> bool {
        let is_ready = self.report.simvirtio.as_ref().is_some_and(|device| {
            let history = device.history;
            device.state == State::Ready && history.resets > 0 && history.configs > 0 && history.readies > 0
        });
        is_ready && self.message().contains(MESSAGE)
    }

    /// An excerpt of the message, in quotes.
    fn excerpt(&self) -> String {
        excerpt(&self.message())
    }

    /// The number of bytes that the device received, and their digest.
    fn received(&self) -> Option<(u64, u64)> {
        self.report.simvirtio.as_ref().map(|device| (device.history.received, device.digest))
    }

    /// Describes how the run ended, and the message.
    fn outcome(&self) -> String {
        format!("{}; message {}", ending(&self.report), self.excerpt())
    }

    /// The number of exits in the device's window.
    fn window_exits(&self) -> u64 {
        let sites = self.report.profile.iter().flat_map(|profile| profile.sites());
        let at_window = sites.filter(|(site, _)| {
            let window = abi::WINDOW..abi::WINDOW + abi::WINDOW_SIZE;
            matches!(site.reason, Reason::MmioRead | Reason::MmioWrite)
                && site.place.is_some_and(|(address, _)| window.contains(&address))
        });
        at_window.map(|(_, count)| count.exits).sum()
    }
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
        Ok(Evidence { right: run.passed(), text: run.ending() })
    })
}

fn wide_modes(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let targets =
        targets(arguments.guest64.as_ref(), Mode::Long, PLAIN_RAM, &["prot32-hello", "long64-hello"]);
    check_each(targets, |target| {
        if target.image.mode() == Mode::Real {
            return Ok(wrong_mode(target, "protected or long", Mode::Long));
        }
        let run = Run::new(target, None, None, arguments.settings())?;
        Ok(require(
            &run,
            "",
            &format!("prints {GREETING:?}"),
            &[
                (run.passed(), "must halt with 42".into()),
                (contains(&run.output, GREETING), format!("must print {GREETING:?}")),
            ],
        ))
    })
}

fn simvirtio_targets(arguments: &GradeArgs) -> Vec<Result<RunTarget, Error>> {
    targets(arguments.simvirtio.as_ref(), Mode::Long, abi::RAM_SIZE, &["simvirtio", "simvirtio-c"])
}

fn simvirtio(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    check_each(simvirtio_targets(arguments), |target| {
        let run = Run::new(target, Some(Transport::Exit), None, arguments.settings())?;
        let short = Run::new(target, Some(Transport::Exit), Some(SHORT_QUEUE), arguments.settings())?;
        let Some(device) = &run.report.simvirtio else {
            return Ok(wrong(format!("{}: the machine has no SIMVIRTIO device", run.name)));
        };
        let details = format!(
            "; state {} after {}, {}, {}; message {}",
            device.state,
            plural(device.history.resets, "reset"),
            plural(device.history.configs, "config"),
            plural(device.history.readies, "handshake"),
            run.excerpt()
        );
        Ok(require(
            &run,
            &details,
            &format!("same message through queues of {SHORT_QUEUE} bytes"),
            &[
                (run.passed(), "must halt with 42".into()),
                (
                    run.sent_the_message(),
                    format!("must end in state Ready, with a message that contains {MESSAGE:?}"),
                ),
                (
                    short.passed() && short.received() == run.received(),
                    format!("through queues of {SHORT_QUEUE} bytes: {}", short.outcome()),
                ),
            ],
        ))
    })
}

/// Runs the same image over both transports. Message and verdict must be the same, and polling must avoid exactly the exits
/// in the device's window.
fn polling(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    check_each(simvirtio_targets(arguments), |target| {
        let by_exit = Run::new(target, Some(Transport::Exit), None, arguments.settings())?;
        let by_polling = Run::new(target, Some(Transport::Polling), None, arguments.settings())?;
        let short = Run::new(target, Some(Transport::Polling), Some(SHORT_QUEUE), arguments.settings())?;
        let saved = by_exit.window_exits();
        let left = by_exit.exits().saturating_sub(saved);
        let details = format!(
            "; {} with transport exit ({saved} at the device), {} with polling",
            plural(by_exit.exits(), "exit"),
            by_polling.exits(),
        );
        Ok(require(
            &by_polling,
            &details,
            "same message",
            &[
                (by_exit.passed() && by_polling.passed(), "must halt with 42 over both transports".into()),
                (
                    by_polling.sent_the_message(),
                    format!("must end in state Ready, with a message that contains {MESSAGE:?}"),
                ),
                (
                    by_exit.received() == by_polling.received(),
                    format!("with polling the message is {}", by_polling.excerpt()),
                ),
                (by_exit.output == by_polling.output, "must print the same text over both transports".into()),
                (saved > 0, "must access the device with transport exit".into()),
                (by_polling.exits() == left, format!("must make {} with polling", plural(left, "exit"))),
                (
                    short.passed() && short.received() == by_exit.received(),
                    format!("through queues of {SHORT_QUEUE} bytes: {}", short.outcome()),
                ),
            ],
        ))
    })
}

/// Returns evidence that passes if all conditions are met. Its text is the end of the run, `details` and `success`.
/// Otherwise the evidence fails, and its text begins with the first condition that is not met.
fn require(run: &Run, details: &str, success: &str, conditions: &[(bool, String)]) -> Evidence {
    match conditions.iter().find(|(met, _)| !met) {
        None => Evidence { right: true, text: format!("{}{details}; {success}", run.ending()) },
        Some((_, missing)) => run.lacks(missing, details),
    }
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
        evidence.push(Evidence { right: runs > 0, text });
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
            return Evidence { right: true, text: text.into() };
        }
        match too_few.as_slice() {
            [] => Evidence {
                right: true,
                text: format!(
                    "KVM's own counter in {}: {theirs}; {ours} counted here, and KVM handled the rest itself",
                    plural(compared, "run")
                ),
            },
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
