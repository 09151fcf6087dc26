//! The five tasks of the SO2 assignment, each with its points and its evidence.
//!
//! A student's image takes the place of the built-in guests of its task. The last task is about this
//! program's own counting, and always runs the built-in guests.

use crate::grade::{Evidence, GradeArgs, Run, Task, wrong};
use crate::summary::{ending, shown};
use crate::target::RunTarget;
use guest::{End, Exits, GUESTS};
use report::view::plural;
use simvirtio::abi;
use simvirtio::device::State;
use std::ffi::OsString;
use vmm::device::Transport;
use vmm::exit::Reason;
use vmm::profile::Count;
use vmm::x86::Mode;
use vmm::{Error, KvmCounters};

/// The text that the driver of the assignment sends.
const MESSAGE: &str = "Ana are mere";
/// The text that the extended guest prints.
const GREETING: &str = "Hello, world!";
/// A queue that the message does not fit into, so that a driver has to wrap its index and to wait, in bytes.
const SHORT_QUEUE: u16 = 8;

/// Runs all that there is to run, and judges it.
///
/// # Errors
/// The host failed.
pub(super) fn tasks(arguments: &GradeArgs) -> Result<Vec<Task>, Error> {
    Ok(vec![
        Task { title: "a 16-bit guest in real mode", points: 30, evidence: real_mode(arguments)? },
        Task { title: "a 32-bit and a 64-bit guest", points: 20, evidence: wide_modes(arguments)? },
        Task { title: "SIMVIRTIO", points: 30, evidence: simvirtio(arguments)? },
        Task { title: "polling instead of exits", points: 10, evidence: polling(arguments)? },
        Task { title: "exits counted", points: 10, evidence: counting(arguments)? },
    ])
}

/// What there is to say of SIMVIRTIO.
impl Run {
    /// What the device received.
    fn message(&self) -> String {
        let device = self.report.simvirtio.as_ref();
        device.map(|device| String::from_utf8_lossy(&device.message).into_owned()).unwrap_or_default()
    }

    /// Whether the device went through the handshake and got the assignment's message.
    fn spoke_the_protocol(&self) -> bool {
        let shook_hands = self.report.simvirtio.as_ref().is_some_and(|device| {
            let history = device.history;
            device.state == State::Ready && history.resets > 0 && history.configs > 0 && history.readies > 0
        });
        shook_hands && self.message().contains(MESSAGE)
    }

    /// The beginning of the message, for a line of evidence.
    fn shown(&self) -> String {
        shown(&self.message())
    }

    /// What the device received: how much, and the digest of it all.
    fn received(&self) -> Option<(u64, u64)> {
        self.report.simvirtio.as_ref().map(|device| (device.history.received, device.digest))
    }

    /// How it ended, and with which message.
    fn outcome(&self) -> String {
        format!("{}, and the message is {}", ending(&self.report), self.shown())
    }

    /// Exits at SIMVIRTIO's window.
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

/// Whether `text` is somewhere in `bytes`.
fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The student's image, or the built-in guests of a task.
fn targets(image: Option<&OsString>, mode: Mode, builtin: &[&str]) -> Vec<Result<RunTarget, Error>> {
    match image {
        Some(image) => vec![RunTarget::find_file(image, mode)],
        None => builtin.iter().filter_map(|name| guest::find(name)).map(RunTarget::embedded).collect(),
    }
}

/// Evidence from one run of each target. A target that cannot be run is evidence against; a failure of the
/// host is nobody's fault but its own, and ends the grade.
fn judge_each(
    targets: Vec<Result<RunTarget, Error>>,
    judge: impl Fn(&RunTarget) -> Result<Evidence, Error>,
) -> Result<Vec<Evidence>, Error> {
    let judged = targets.into_iter().map(|target| match target.and_then(|target| judge(&target)) {
        Err(error @ (Error::Image(_) | Error::Config(_))) => Ok(wrong(error.to_string())),
        evidence => evidence,
    });
    judged.collect()
}

fn real_mode(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let targets = targets(arguments.guest16.as_ref(), Mode::Real, &["real16-42", "real16-hello"]);
    judge_each(targets, |target| {
        if target.image.mode() != Mode::Real {
            return Ok(wrong(format!(
                "{}: this task is for a guest in real mode, and this one is not",
                target.name
            )));
        }
        let run = Run::new(target, None, None, arguments.timeout)?;
        Ok(Evidence { right: run.passed(), text: run.ending() })
    })
}

fn wide_modes(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let targets = targets(arguments.guest64.as_ref(), Mode::Long, &["prot32-hello", "long64-hello"]);
    judge_each(targets, |target| {
        if target.image.mode() == Mode::Real {
            return Ok(wrong(format!("{}: this task is for a guest in protected or long mode", target.name)));
        }
        let run = Run::new(target, None, None, arguments.timeout)?;
        let greeted = holds(&run.output, GREETING);
        let printed =
            if greeted { format!("prints {GREETING:?}") } else { format!("does not print {GREETING:?}") };
        Ok(Evidence { right: run.passed() && greeted, text: format!("{}; {printed}", run.ending()) })
    })
}

fn simvirtio_targets(arguments: &GradeArgs) -> Vec<Result<RunTarget, Error>> {
    targets(arguments.simvirtio.as_ref(), Mode::Long, &["simvirtio", "simvirtio-c"])
}

fn simvirtio(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    judge_each(simvirtio_targets(arguments), |target| {
        let run = Run::new(target, Some(Transport::Exit), None, arguments.timeout)?;
        let short = Run::new(target, Some(Transport::Exit), Some(SHORT_QUEUE), arguments.timeout)?;
        let Some(device) = &run.report.simvirtio else { return Ok(wrong("the machine had no device")) };
        let text = format!(
            "{}; state {} after {}, {}, {}; message {}",
            run.ending(),
            device.state,
            plural(device.history.resets, "reset"),
            plural(device.history.configs, "config"),
            plural(device.history.readies, "handshake"),
            run.shown()
        );
        Ok(demand(
            text,
            &format!("also through a queue of {SHORT_QUEUE} bytes"),
            &[
                (run.passed(), "it should halt with 42".into()),
                (
                    run.spoke_the_protocol(),
                    format!("it should end in Ready with a message that holds {MESSAGE:?}"),
                ),
                (
                    short.passed() && short.received() == run.received(),
                    format!("through {SHORT_QUEUE} bytes: {}", short.outcome()),
                ),
            ],
        ))
    })
}

/// The same image over both transports: same message, same verdict, and polling makes just those exits
/// that have nothing to do with the device.
fn polling(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    judge_each(simvirtio_targets(arguments), |target| {
        let by_exit = Run::new(target, Some(Transport::Exit), None, arguments.timeout)?;
        let by_polling = Run::new(target, Some(Transport::Polling), None, arguments.timeout)?;
        let short = Run::new(target, Some(Transport::Polling), Some(SHORT_QUEUE), arguments.timeout)?;
        let saved = by_exit.window_exits();
        let left = by_exit.exits().saturating_sub(saved);
        let text = format!(
            "{}; {} by exits ({saved} at the device), {} by polling",
            by_polling.ending(),
            plural(by_exit.exits(), "exit"),
            by_polling.exits(),
        );
        Ok(demand(
            text,
            "same message",
            &[
                (by_exit.passed() && by_polling.passed(), "it should halt with 42 both ways".into()),
                (
                    by_polling.spoke_the_protocol(),
                    format!("it should end in Ready with a message that holds {MESSAGE:?}"),
                ),
                (
                    by_exit.received() == by_polling.received(),
                    format!("by polling the message is {}", by_polling.shown()),
                ),
                (by_exit.output == by_polling.output, "it should print the same both ways".into()),
                (saved > 0, "by exits it should reach the device".into()),
                (by_polling.exits() == left, format!("polling should leave {left}")),
                (
                    short.passed() && short.received() == by_exit.received(),
                    format!("through {SHORT_QUEUE} bytes: {}", short.outcome()),
                ),
            ],
        ))
    })
}

/// Evidence for a run if all demands are met, and otherwise against it, with the first that is not.
fn demand(text: String, praise: &str, demands: &[(bool, String)]) -> Evidence {
    match demands.iter().find(|(met, _)| !met) {
        None => Evidence { right: true, text: format!("{text}; {praise}") },
        Some((_, missing)) => wrong(format!("{text}: {missing}")),
    }
}

/// The counts of the built-in guests against the catalogue, and against KVM's own counter.
fn counting(arguments: &GradeArgs) -> Result<Vec<Evidence>, Error> {
    let mut evidence = Vec::new();
    let mut kernel = KernelCounts::default();
    let mut runs = 0u64;
    for guest in GUESTS.iter().filter(|guest| guest.end != End::Never) {
        let by_exit = (guest.exits, guest.polling_exits.map(|_| Transport::Exit));
        let by_polling = guest.polling_exits.map(|exits| (exits, Some(Transport::Polling)));
        for (expected, transport) in [Some(by_exit), by_polling].into_iter().flatten() {
            if expected == Exits::Unspecified {
                continue;
            }
            let run = Run::embedded(guest, transport, arguments.timeout)?;
            runs += 1;
            evidence.extend(miscounted(&run.name, run.total(), expected));
            kernel.compare(&run.name, run.exits(), run.report.kernel.as_ref().and_then(KvmCounters::exits));
        }
    }
    if evidence.is_empty() {
        let text = format!("{} made just the exits that the catalogue says", plural(runs, "run"));
        evidence.push(Evidence { right: runs > 0, text });
    }
    evidence.push(kernel.evidence());
    Ok(evidence)
}

/// Evidence against a count that is not the expected one.
fn miscounted(name: &str, total: Count, expected: Exits) -> Option<Evidence> {
    let (counted, expected) = match expected {
        Exits::Exactly(expected) => (total.exits, expected),
        Exits::Elements(expected) => (total.elements, expected),
        Exits::Unspecified => return None,
    };
    (counted != expected)
        .then(|| wrong(format!("{name}: {counted} counted, and the catalogue says {expected}")))
}

/// KVM's counter `exits` beside this program's. KVM also counts exits that it handles by itself, so its
/// count may be the larger, never the smaller.
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
            self.too_few.push(format!("{name}: {ours} counted, and KVM counted {theirs}"));
        }
    }

    fn evidence(self) -> Evidence {
        let Self { compared, ours, theirs, too_few } = self;
        if compared == 0 {
            let text = "KVM's own counter of exits: this host has none (KVM_GET_STATS_FD)";
            return Evidence { right: true, text: text.into() };
        }
        match too_few.as_slice() {
            [] => Evidence {
                right: true,
                text: format!(
                    "KVM's own counter in {}: {theirs}, and {ours} counted here (the rest KVM handled by itself)",
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
    fn a_wrong_count_is_evidence_against() {
        let text =
            |expected| miscounted("guest", TOTAL, expected).map(|evidence| (evidence.right, evidence.text));
        assert_eq!(text(Exits::Exactly(2)), None);
        assert_eq!(text(Exits::Elements(17)), None);
        let wrong = "guest: 2 counted, and the catalogue says 3".to_string();
        assert_eq!(text(Exits::Exactly(3)), Some((false, wrong)));
        let wrong = "guest: 17 counted, and the catalogue says 16".to_string();
        assert_eq!(text(Exits::Elements(16)), Some((false, wrong)));
    }

    #[test]
    fn kvm_may_count_more_but_not_less() {
        let compare = |counts: &[(u64, Option<u64>)]| {
            let mut kernel = KernelCounts::default();
            counts.iter().for_each(|(ours, theirs)| kernel.compare("guest", *ours, *theirs));
            let evidence = kernel.evidence();
            (evidence.right, evidence.text)
        };
        assert!(compare(&[(2, None), (2, Some(0))]).1.contains("this host has none"));
        let (right, text) = compare(&[(2, Some(2)), (3, Some(5))]);
        assert!(right && text.starts_with("KVM's own counter in 2 runs: 7, and 5 counted here"), "{text}");
        assert_eq!(compare(&[(3, Some(2))]), (false, "guest: 3 counted, and KVM counted 2".into()));
    }
}
