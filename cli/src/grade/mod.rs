//! `vmm grade`: grades a course's work. Runs its guests, and prints the points with the evidence for them.

mod driver;
mod kev;
mod points;
mod so2;
#[cfg_attr(not(has_kvm), path = "student_absent.rs")]
mod student;
mod student_args;
mod target;

use crate::args::{LayoutArg, Timeout, parse_timeout};
use crate::processor::{self, VcpuArg};
use crate::status::{self, Failure, HasStatus};
use crate::streams::{print_stderr, print_stdout, report_error};
use crate::summary::ending;
use crate::target::{RunTarget, is_unreadable, name_error};
use clap::{Args, ValueEnum};
use guest::{End, GUESTS, Guest};
use points::{Evidence, Task, as_text, wrong};
use std::ffi::OsString;
use std::io;
use std::time::Duration;
use vmm::device::{Layout, Transport};
use vmm::exit::Stop;
use vmm::machine::Processor;
use vmm::profile::Count;
use vmm::{Builder, Captured, Error, Input, Output, Report};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm grade --vmm ./my-vmm                     a student's VMM for SO2
  vmm grade --vmm ./my-vmm --seed 7            the same texts each time
  vmm grade --make ./project                   make, then its kvm-hello-world
  vmm grade --run real='./vmm16 -x'            a command for one task
  vmm grade kev --vmm ./my-vmm                 a student's VMM for KeV
  vmm grade --guest16 my.bin                   a real-mode guest for SO2
  vmm grade --simvirtio my.bin@0x1000:64       a SIMVIRTIO driver
  vmm grade --guest16 a --guest64 b --simvirtio c    three guests
  vmm grade kev --guest kev-msr=my.bin@0x1000  a guest for KeV
  vmm grade --reference                        the built-in guests of SO2
  vmm grade kev --reference --vcpu soft        on the software processor

so2 has five tasks: a 16-bit guest (30 points), a 32-bit or a 64-bit guest (20), SIMVIRTIO (30), polling (10), and \
counting of exits (10). Of guests, only the tasks with an image are graded: --simvirtio has the points of SIMVIRTIO and of \
polling, and counting is a part of --reference. A VMM is graded in all five tasks: docs/grading.md has the contract. kev \
has 20 checks of 5 points each; `vmm guests` describes their guests. Seven of them have a meaning for a VMM.

In the result, + marks a check that passed, and - a check that failed, with the reason. A failed check costs all points \
of its task, unless it says how many. The last line has the points of all tasks that were graded.

An IMAGE is an ELF executable, or a flat binary as FILE[@ADDR][:MODE] with the mode real, protected or long.

Exit status: 0 for all points, 111 for fewer, 110 for a usage error, 115 if the host failed, 116 if an image cannot be \
read or a VMM not observed, 117 if interrupted. Only 0 and 111 have a result.")]
pub struct GradeArgs {
    /// Course whose work is graded
    #[arg(value_enum, default_value_t = Course::So2)]
    course: Course,

    /// Grade IMAGE in the check of kev with the built-in guest NAME: it must end, print and exit like NAME; can be repeated
    /// for other guests [default mode: the mode of NAME]
    #[arg(long, value_name = "NAME=IMAGE")]
    guest: Vec<OsString>,

    /// Image for the real-mode task of so2; it must leave 42 in AX and at 0x400 [default mode: real]
    #[arg(long, value_name = "IMAGE")]
    guest16: Option<OsString>,

    /// Image for the 32/64-bit task of so2; it must print "Hello, world!" [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    guest64: Option<OsString>,

    /// Image for the SIMVIRTIO and polling tasks of so2; it must send a message that contains "Ana are mere"
    /// [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    simvirtio: Option<OsString>,

    /// Layout that the driver of --simvirtio is for, or that the VMM has [default: table; for a VMM: found out]
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,

    /// Grade the built-in guests, and this program's counting, instead of a submission
    #[arg(long, conflicts_with_all = ["guest", "guest16", "guest64", "simvirtio", "vmm", "vmm_polling", "run", "make"])]
    reference: bool,

    /// Processor that runs the guests [default: kvm where it can be used, otherwise soft]
    #[arg(long, value_enum)]
    vcpu: Option<VcpuArg>,

    /// Time limit of each run in seconds, such as 10 or 0.5; 0 means no limit
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout)]
    timeout: Timeout,

    /// Wall-clock limit of each run in seconds; time spent waiting for input counts; 0 means no limit [default: six
    /// times --timeout; 60 with --timeout 0]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    wall_timeout: Option<Timeout>,

    #[command(flatten)]
    vmm: student_args::VmmArgs,
}

/// The wall-clock limit of a run by default, as a multiple of its time limit.
const WALL_TIMES: u32 = 6;
/// The wall-clock limit of a run by default, if it has no time limit.
const WALL_ALONE: Duration = Duration::from_secs(60);

/// The settings of each run: its processor, its device, and its time limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    processor: Option<Processor>,
    /// The layout of the SIMVIRTIO device, for the driver of a submission.
    layout: Layout,
    timeout: Option<Duration>,
    wall: Option<Duration>,
}

impl GradeArgs {
    fn settings(&self) -> Settings {
        let Timeout(timeout) = self.timeout;
        let default = timeout.map_or(WALL_ALONE, |timeout| timeout.saturating_mul(WALL_TIMES));
        let processor = self.vcpu.map(Into::into);
        Settings {
            processor,
            layout: self.layout.map_or(Layout::Table, Into::into),
            timeout,
            wall: self.wall_timeout.map_or(Some(default), |limit| limit.0),
        }
    }

    /// Returns true if the task of an image is graded.
    fn grades(&self, image: Option<&OsString>) -> bool {
        self.reference || image.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Course {
    /// the assignment of the operating systems course SO2
    So2,
    /// project 2 of the KeV course, about VM exits
    Kev,
}

/// Grades and prints the result. Returns the exit status.
pub fn main(arguments: &GradeArgs) -> u8 {
    vmm::host::catch_interrupts();
    let images = match images(arguments) {
        Ok(images) => images,
        Err(error) => return report_error(&error),
    };
    let grade = match tasks(arguments, &images) {
        Ok(grade) if !vmm::host::interrupted() => grade,
        Ok(_) => return interrupted(),
        Err(_) if vmm::host::interrupted() => return interrupted(),
        Err(error) => return failed(&error),
    };
    let (tasks, remark) = (grade.tasks, grade.remark);
    let earned: u32 = tasks.iter().map(Task::earned).sum();
    let points: u32 = tasks.iter().map(|task| task.points).sum();
    let printed = print_stdout(&as_text(&tasks, earned, points));
    print_stderr(&remark);
    match printed {
        status::OK if earned == points => status::OK,
        status::OK => status::WRONG_RESULT,
        failed => failed,
    }
}

/// Runs what is to be graded. The remark goes to stderr.
fn tasks(arguments: &GradeArgs, images: &[kev::Replacement]) -> Result<student::Grade, Failure> {
    let settings = arguments.settings();
    if arguments.vmm.grades() {
        let prepared = student::prepare(arguments.course, &arguments.vmm, arguments.layout.map(Into::into))?;
        if matches!(arguments.vcpu, Some(VcpuArg::Soft)) {
            return Err(Error::Config("a student's VMM runs on KVM: leave --vcpu out".into()).into());
        }
        check_host(Settings { processor: Some(Processor::Kvm), ..settings })?;
        return prepared.grade(&arguments.vmm, settings.timeout);
    }
    check_host(settings)?;
    let missing = |missing| format!("vmm: not graded, because there is no image: {missing}\n");
    Ok(match arguments.course {
        Course::So2 => student::Grade {
            tasks: so2::tasks(arguments)?,
            remark: so2::missing(arguments).map(missing).unwrap_or_default(),
        },
        Course::Kev => student::Grade { tasks: kev::tasks(arguments, images)?, remark: String::new() },
    })
}

/// Prints an error. A host that fails gives no grade. Returns the exit status.
fn failed(error: &Failure) -> u8 {
    if error.status() == status::HOST_ERROR {
        print_stderr("vmm: the host failed, so this run gives no grade\n");
    }
    report_error(error)
}

/// Runs a built-in guest, so that a failure of the host costs no points.
///
/// # Errors
/// The guest did not end as it should.
fn check_host(settings: Settings) -> Result<(), Error> {
    let Some(guest) = GUESTS.iter().find(|guest| guest.end == End::FortyTwo) else { return Ok(()) };
    let run = Run::embedded(guest, None, settings)?;
    if run.passed() {
        return Ok(());
    }
    let source = io::Error::other(format!("the built-in guest {}: {}", run.name, ending(&run.report)));
    Err(Error::Host { operation: "checking the host", source })
}

/// Returns true if an error is the fault of an image. Otherwise the image cannot be graded.
fn is_bad_guest(error: &Error) -> bool {
    match error {
        Error::Image(error) => !is_unreadable(error),
        Error::Config(_) => true,
        _ => false,
    }
}

/// Checks the options for images, and that their files can be read. This needs no KVM. Returns the replacements of
/// [`Course::Kev`].
///
/// # Errors
/// Nothing is to be graded. Or: an option belongs to the other course, names an unknown guest or one that another option names, or names a file that
/// cannot be read.
fn images(arguments: &GradeArgs) -> Result<Vec<kev::Replacement>, Error> {
    let of_so2 = [&arguments.guest16, &arguments.guest64, &arguments.simvirtio];
    let of_vmm = arguments.vmm.grades();
    arguments.vmm.check()?;
    if arguments.layout.is_some() && arguments.simvirtio.is_none() && !of_vmm {
        return Err(Error::Config(
            "--layout is for a driver or a VMM: give --simvirtio IMAGE or --vmm PROGRAM".into(),
        ));
    }
    match arguments.course {
        Course::So2 if !arguments.guest.is_empty() => {
            return Err(Error::Config("--guest is for `vmm grade kev`: leave it out, or grade kev".into()));
        }
        Course::Kev if of_so2.into_iter().any(Option::is_some) => {
            return Err(Error::Config(
                "--guest16, --guest64 and --simvirtio are for `vmm grade so2`: for kev, give --guest NAME=IMAGE"
                    .into(),
            ));
        }
        _ if of_vmm && (of_so2.into_iter().any(Option::is_some) || !arguments.guest.is_empty()) => {
            return Err(Error::Config(
                "one grade is for images or for a VMM: give --vmm and its options, or images, not both"
                    .into(),
            ));
        }
        _ if of_vmm => {}
        Course::So2 if !of_so2.into_iter().any(|image| arguments.grades(image.as_ref())) => {
            return Err(nothing("--guest16, --guest64 or --simvirtio IMAGE"));
        }
        Course::Kev if arguments.guest.is_empty() && !arguments.reference => {
            return Err(nothing("--guest NAME=IMAGE"));
        }
        _ => {}
    }
    let replacements = kev::replacements(&arguments.guest)?;
    let files = of_so2.into_iter().flatten().chain(replacements.iter().map(|(_, image)| image));
    files.into_iter().try_for_each(|file| RunTarget::check_file(file))?;
    Ok(replacements)
}

fn nothing(images: &str) -> Error {
    Error::Config(format!(
        "there is nothing to grade: give {images} of a submission, --vmm PROGRAM to grade a VMM, or --reference to grade the built-in guests"
    ))
}

fn interrupted() -> u8 {
    print_stderr("vmm: grading was interrupted; the result is invalid\n");
    status::INTERRUPTED
}

/// A run of a guest: its report and its output.
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
        settings: Settings,
    ) -> Result<Self, Error> {
        let (output, captured) = Output::captured();
        let builder = target
            .builder()
            .transport(transport)
            .queue_len(queue_len)
            .cpuid(target.embedded.is_none_or(|guest| guest.cpuid))
            .input(Input::bytes(target.embedded.map_or(b"", |guest| guest.input.as_bytes())))
            .output(output);
        let is_submission = target.embedded.is_none() && transport.is_some();
        let builder = match is_submission {
            true => builder.layout(settings.layout).trace(Some(driver::RECORDED)),
            false => builder,
        };
        Self::of(target.name.clone(), builder, captured, settings)
    }

    /// Builds the machine and runs it. `captured` receives its output.
    ///
    /// # Errors
    /// The machine cannot be built, or the host failed.
    fn of(name: String, builder: Builder, captured: Captured, settings: Settings) -> Result<Self, Error> {
        let builder =
            builder.processor(settings.processor).timeout(settings.timeout).wall_timeout(settings.wall);
        let mut machine = builder.verify(true).kernel_counters(true).build().map_err(name_error(&name))?;
        processor::announce(&machine);
        let report = machine.run()?;
        if let Some(error) = report.host_failure() {
            return Err(error);
        }
        Ok(Self { name, report, output: captured.bytes() })
    }

    /// Runs a built-in guest that ends.
    ///
    /// # Errors
    /// The host failed, or is too slow for the time limit.
    fn embedded(
        guest: &'static Guest,
        transport: Option<Transport>,
        settings: Settings,
    ) -> Result<Self, Error> {
        let run = Self::new(&RunTarget::embedded(guest)?, transport, guest.queue_len, settings)?;
        let option = match run.report.stop {
            Stop::Timeout(_) => "--timeout",
            Stop::WallTimeout(_) => "--wall-timeout",
            _ => return Ok(run),
        };
        Err(Error::Config(format!(
            "{option} is too short for this host: the built-in guest {} did not end within it, so this run gives no \
             grade: give a longer time",
            run.name
        )))
    }

    /// The first thing that a run lacks which should have [`passed`](Self::passed).
    fn required(&self) -> &'static str {
        match (&self.report.stop, self.report.verdict) {
            (Stop::Halted, Some(verdict)) if verdict.passed() => "must do its work without a doubt",
            (Stop::Halted, _) => "must leave 42 as its result",
            _ => "must halt, and leave 42 as its result",
        }
    }

    /// Returns true if the guest halted, left 42 in both places, and there is no doubt about it.
    fn passed(&self) -> bool {
        matches!(self.report.stop, Stop::Halted) && self.report.verified() == Some(true)
    }

    /// The number of exits of all vCPUs.
    fn total(&self) -> Count {
        self.report.profile.as_ref().map(|profile| profile.total()).unwrap_or_default()
    }

    fn exits(&self) -> u64 {
        self.total().exits
    }

    /// The name of the guest, and how the run ended.
    fn ending(&self) -> String {
        format!("{}: {}", self.name, ending(&self.report))
    }

    /// Returns evidence that passes if all conditions are met. Its text is the end of the run, `details` and `success`.
    /// Otherwise the evidence fails, and its text begins with the first condition that is not met.
    fn require(&self, details: &str, success: &str, conditions: &[(bool, String)]) -> Evidence {
        let success = if success.is_empty() { String::new() } else { format!("; {success}") };
        match conditions.iter().find(|(met, _)| !met) {
            None => Evidence::new(true, format!("{}{details}{success}", self.ending())),
            Some((_, missing)) => self.lacks(missing, details),
        }
    }

    /// Evidence that a run failed: what is missing, and then how the run ended. `details` follow in the text.
    fn lacks(&self, missing: &str, details: &str) -> Evidence {
        wrong(format!("{}: {missing} ({}{details})", self.name, ending(&self.report)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_a_wall_clock_limit_unless_it_is_switched_off() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            grade: GradeArgs,
        }
        let settings = |line: &str| {
            let command = <Command as clap::Parser>::try_parse_from(line.split(' ')).unwrap();
            let Settings { timeout, wall, .. } = command.grade.settings();
            [timeout, wall].map(|limit| limit.map(|limit| limit.as_secs()))
        };
        assert_eq!(settings("grade"), [Some(10), Some(60)]);
        assert_eq!(settings("grade --timeout 2"), [Some(2), Some(12)]);
        assert_eq!(settings("grade --timeout 0"), [None, Some(60)]);
        assert_eq!(settings("grade --timeout 0 --wall-timeout 0"), [None, None]);
        assert_eq!(settings("grade --timeout 0 --wall-timeout 7"), [None, Some(7)]);
        assert_eq!(settings("grade --wall-timeout 0"), [Some(10), None]);
    }
}
