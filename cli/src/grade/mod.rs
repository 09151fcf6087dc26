//! `vmm grade`: work of a course, judged by running it: points, and the evidence for them.

mod kev;
mod so2;

use crate::args::{Timeout, parse_timeout};
use crate::say::{complain, print, say};
use crate::status;
use crate::summary::ending;
use crate::target::RunTarget;
use clap::{Args, ValueEnum};
use guest::{GUESTS, Guest};
use std::ffi::OsString;
use std::fmt::Write as _;
use vmm::device::Transport;
use vmm::exit::Stop;
use vmm::profile::Count;
use vmm::{Builder, Captured, Error, Input, Output, Report};

/// Options of `vmm grade`.
#[derive(Debug, Args)]
#[command(after_help = "The courses:
  so2   the SO2 assignment: five tasks, 100 points
  kev   KeV's project 2: twenty traps, 5 points each; --guest puts an image in the place of a built-in guest,
        which `vmm guests` lists

An image is an ELF64 executable, or a flat binary as FILE[@ADDR][:MODE] with mode real, \
protected or long.\nExit status: 0 for 100 of 100 points, 111 for less, 115 where KVM cannot be used.")]
pub struct GradeArgs {
    /// The course whose work is graded
    #[arg(value_enum, default_value_t = Course::So2)]
    course: Course,

    /// Of kev: an image in the place of the built-in guest NAME; may be given again for others
    #[arg(long, value_name = "NAME=IMAGE")]
    guest: Vec<OsString>,

    /// Of so2: the image for the real-mode task [default mode: real]
    #[arg(long, value_name = "IMAGE")]
    guest16: Option<OsString>,

    /// Of so2: the image for the 32/64-bit task; it must print "Hello, world!" [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    guest64: Option<OsString>,

    /// Of so2: the image for the SIMVIRTIO and polling tasks; it must send a text that contains "Ana are mere"
    /// [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    simvirtio: Option<OsString>,

    /// Seconds that each run of a guest may take, 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    timeout: Timeout,
}

/// Whose work is graded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Course {
    /// The assignment of the operating-systems course SO2
    So2,
    /// KeV's project 2: VM exits
    Kev,
}

/// A task's title (or none), its points, and what speaks for or against them.
struct Task {
    title: &'static str,
    points: u32,
    evidence: Vec<Evidence>,
}

/// One thing that was looked at.
struct Evidence {
    right: bool,
    text: String,
}

impl Task {
    fn earned(&self) -> u32 {
        let right = !self.evidence.is_empty() && self.evidence.iter().all(|evidence| evidence.right);
        if right { self.points } else { 0 }
    }
}

/// Grades, prints, and answers with the exit status.
pub fn main(arguments: &GradeArgs) -> u8 {
    vmm::host::catch_interrupts();
    let images = match images(arguments) {
        Ok(images) => images,
        Err(error) => return complain(&error),
    };
    // Without KVM there is nothing to grade; any guest shows it.
    if let Some(Err(error)) = GUESTS.first().map(|guest| Run::embedded(guest, None, arguments.timeout)) {
        say("vmm: nothing can be graded\n");
        return complain(&error);
    }
    let tasks = match arguments.course {
        Course::So2 => so2::tasks(arguments),
        Course::Kev => kev::tasks(arguments, &images),
    };
    let tasks = match tasks {
        Ok(tasks) => tasks,
        Err(_) if vmm::host::interrupted() => return interrupted(),
        Err(error @ Error::Config(_)) => return complain(&error),
        Err(error) => {
            say("vmm: the host failed, and nothing can be graded\n");
            return complain(&error);
        }
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    for task in &tasks {
        let _ = write!(text, "{:>3}/{:<3} {}", task.earned(), task.points, task.title);
        // Without a title the evidence stands in the same line.
        let indent = if task.title.is_empty() { "" } else { "\n        " };
        for evidence in &task.evidence {
            let _ = write!(text, "{indent}{} {}", if evidence.right { "+" } else { "-" }, evidence.text);
        }
        text.push('\n');
    }
    let (earned, points) =
        tasks.iter().fold((0, 0), |sum, task| (sum.0 + task.earned(), sum.1 + task.points));
    let _ = writeln!(text, "{earned:>3}/{points}");
    if vmm::host::interrupted() {
        return interrupted();
    }
    match print(&text) {
        status::OK if earned == points => status::OK,
        status::OK => status::WRONG_RESULT,
        failed => failed,
    }
}

/// Checks the options for images, which needs no KVM. Returns the images of [`Course::Kev`].
///
/// # Errors
/// An option is for the other course, or names an unknown guest.
fn images(arguments: &GradeArgs) -> Result<Vec<kev::Replacement>, Error> {
    let of_so2 =
        [&arguments.guest16, &arguments.guest64, &arguments.simvirtio].into_iter().any(Option::is_some);
    match arguments.course {
        Course::So2 if !arguments.guest.is_empty() => {
            Err(Error::Config("--guest is for `vmm grade kev`: leave it out".into()))
        }
        Course::Kev if of_so2 => {
            Err(Error::Config("for `vmm grade kev` an image is given with --guest NAME=IMAGE".into()))
        }
        _ => arguments.guest.iter().map(|text| kev::image(text)).collect(),
    }
}

fn interrupted() -> u8 {
    say("vmm: interrupted: this grade is of no worth\n");
    status::INTERRUPTED
}

/// A guest that was run, and what it printed.
struct Run {
    name: String,
    report: Report,
    output: Vec<u8>,
}

impl Run {
    fn new(
        target: &RunTarget,
        transport: Option<Transport>,
        queue_len: Option<u16>,
        timeout: Timeout,
    ) -> Result<Self, Error> {
        let (output, captured) = Output::captured();
        let builder = target
            .builder()
            .transport(transport)
            .queue_len(queue_len)
            .cpuid(target.embedded.is_none_or(|guest| guest.cpuid))
            .input(Input::bytes(target.embedded.map_or(b"", |guest| guest.input.as_bytes())))
            .output(output);
        Self::of(target.name.clone(), builder, captured, timeout)
    }

    /// Runs what was built, whose output is `captured`.
    fn of(name: String, builder: Builder, captured: Captured, timeout: Timeout) -> Result<Self, Error> {
        let report = builder.timeout(timeout.0).verify(true).kernel_counters(true).build()?.run()?;
        Ok(Self { name, report, output: captured.bytes() })
    }

    fn embedded(
        guest: &'static Guest,
        transport: Option<Transport>,
        timeout: Timeout,
    ) -> Result<Self, Error> {
        Self::new(&RunTarget::embedded(guest)?, transport, guest.queue_len, timeout)
    }

    /// Whether it halted with 42 in both places.
    fn passed(&self) -> bool {
        matches!(self.report.stop, Stop::Halted)
            && self.report.verdict.is_some_and(|verdict| verdict.passed())
    }

    /// All its exits.
    fn total(&self) -> Count {
        self.report.profile.as_ref().map(|profile| profile.total()).unwrap_or_default()
    }

    fn exits(&self) -> u64 {
        self.total().exits
    }

    fn ending(&self) -> String {
        format!("{}: {}", self.name, ending(&self.report))
    }
}

fn wrong(text: impl Into<String>) -> Evidence {
    Evidence { right: false, text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_without_evidence_earns_nothing() {
        let task = |evidence| Task { title: "", points: 10, evidence };
        assert_eq!(task(vec![]).earned(), 0);
        let right = || Evidence { right: true, text: String::new() };
        assert_eq!(task(vec![right()]).earned(), 10);
        assert_eq!(task(vec![right(), wrong("")]).earned(), 0);
    }
}
