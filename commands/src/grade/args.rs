//! The options of `vmm grade`, and the settings of its runs.

use crate::args::{LayoutArg, Timeout, parse_timeout};
use crate::grade::batch::BatchArgs;
use crate::grade::output::OutputArgs;
use crate::grade::student_args;
use crate::jail::JailArgs;
use crate::processor::VcpuArg;
use clap::Args;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::device::Layout;
use vmm::host::printable_text;
use vmm::machine::Processor;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm grade so2 ./my-vmm                       a student's VMM for SO2
  vmm grade so2 ./my-vmm --seed 7              the same texts each time
  vmm grade --make ./project                   make, then its kvm-hello-world
  vmm grade --run real='./vmm16 -x'            a command for one task
  vmm grade sum.toml ./submission              an exercise of yours
  vmm grade sum.toml ./submission --format junit=out.xml   also as JUnit XML
  vmm grade sum.toml submissions/* --format csv=grades.csv    a class
  vmm grade sum.toml submissions/* --seed 7 --results r.jsonl --resume
  vmm grade sum.toml --from list --seed 7 --shard 2/4 --results 2.jsonl
  vmm grade merge [1-4].jsonl --feedback feedback    the shards of a class
  vmm grade kev ./my-vmm                       a student's VMM for KeV
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

An exercise in a file has its own tasks: docs/exercises.md. PROGRAM is then the submission, a directory or a file, and --seed draws \
the same random numbers again. Several submissions are a batch, each with a process of its own: docs/grading.md.

An IMAGE is an ELF executable, or a flat binary as FILE[@ADDR][:MODE] with the mode real, protected or long.

Exit status: 0 for all points, 111 for fewer, 110 for a usage error, such as an image that cannot be read, 115 if the host \
failed, 116 if a VMM cannot be observed or a results file is of another batch, 117 if interrupted. Only 0 and 111 have a result.")]
pub struct GradeArgs {
    /// Course whose work is graded: so2, the assignment of the operating systems course, or kev, project 2 of the KeV
    /// course about VM exits; or an exercise, a file FILE.toml (docs/exercises.md)
    #[arg(value_name = "COURSE|EXERCISE", value_parser = parse_subject, default_value = "so2")]
    pub(super) subject: Subject,

    /// Grade IMAGE in the check of kev with the built-in guest NAME: it must end, print and exit like NAME; can be repeated
    /// for other guests [default mode: the mode of NAME]
    #[arg(long, value_name = "NAME=IMAGE")]
    pub(super) guest: Vec<OsString>,

    /// Image for the real-mode task of so2; it must leave 42 in AX and at 0x400 [default mode: real]
    #[arg(long, value_name = "IMAGE")]
    pub(super) guest16: Option<OsString>,

    /// Image for the 32/64-bit task of so2; it must print "Hello, world!" [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    pub(super) guest64: Option<OsString>,

    /// Image for the SIMVIRTIO and polling tasks of so2; it must send a message that contains "Ana are mere"
    /// [default mode: long]
    #[arg(long, value_name = "IMAGE")]
    pub(super) simvirtio: Option<OsString>,

    /// Layout that the driver of --simvirtio is for, or that the VMM has [default: table; for a VMM: found out]
    #[arg(long, value_enum)]
    pub(super) layout: Option<LayoutArg>,

    /// Grade the built-in guests, and this program's counting, instead of a submission
    #[arg(long, conflicts_with_all = ["guest", "guest16", "guest64", "simvirtio", "program", "vmm", "vmm_polling", "run", "make"])]
    pub(super) reference: bool,

    /// Processor that runs the guests [default: kvm where it can be used, otherwise soft]
    #[arg(long, value_enum)]
    pub(super) vcpu: Option<VcpuArg>,

    /// Time limit of each run in seconds, such as 10 or 0.5; 0 means no limit [default: 10, or that of the exercise]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub(super) timeout: Option<Timeout>,

    /// Wall-clock limit of each run in seconds; time spent waiting for input counts; 0 means no limit [default: six
    /// times --timeout; 60 with --timeout 0]
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub(super) wall_timeout: Option<Timeout>,

    #[command(flatten)]
    pub(super) jail: JailArgs,

    #[command(flatten)]
    pub(super) vmm: student_args::VmmArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,

    #[command(flatten)]
    pub(super) batch: BatchArgs,
}

/// The wall-clock limit of a run by default, as a multiple of its time limit.
const WALL_TIMES: u32 = 6;
/// The wall-clock limit of a run by default, if it has no time limit.
const WALL_ALONE: Duration = Duration::from_secs(60);

/// The settings of each run: its processor, its device, and its time limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) processor: Option<Processor>,
    /// The layout of the SIMVIRTIO device, for the driver of a submission.
    pub(super) layout: Layout,
    pub(super) timeout: Option<Duration>,
    pub(super) wall: Option<Duration>,
}

impl GradeArgs {
    pub(super) fn settings(&self) -> Settings {
        let Timeout(timeout) = self.timeout.unwrap_or_default();
        let default = timeout.map_or(WALL_ALONE, |timeout| timeout.saturating_mul(WALL_TIMES));
        let processor = self.vcpu.map(Into::into);
        Settings {
            processor,
            layout: self.layout.map_or(Layout::Table, Into::into),
            timeout,
            wall: self.wall_timeout.map_or(Some(default), |limit| limit.0),
        }
    }

    /// The course, if the work of one is graded.
    pub(super) fn course(&self) -> Course {
        match self.subject {
            Subject::Course(course) => course,
            Subject::Exercise(_) | Subject::Merge => Course::So2,
        }
    }

    /// An option that was given, and that has no meaning for an exercise in a file.
    pub(super) fn foreign_to_exercises(&self) -> Option<&'static str> {
        let options = [
            ("--guest", !self.guest.is_empty()),
            ("--guest16", self.guest16.is_some()),
            ("--guest64", self.guest64.is_some()),
            ("--simvirtio", self.simvirtio.is_some()),
            ("--layout", self.layout.is_some()),
            ("--reference", self.reference),
            ("--timeout", self.timeout.is_some()),
            ("--wall-timeout", self.wall_timeout.is_some()),
        ];
        let given = options.into_iter().find(|(_, given)| *given).map(|(option, _)| option);
        given.or_else(|| self.vmm.foreign_to_exercises())
    }

    /// The files and programs of a submission, as far as they are given.
    fn parts(&self) -> impl Iterator<Item = &OsString> {
        let images = [&self.guest16, &self.guest64, &self.simvirtio];
        self.vmm.parts().chain(images.into_iter().flatten()).chain(&self.guest)
    }

    /// The name of the submission in results.
    pub(super) fn submission(&self) -> String {
        let first = self.parts().next().map(|part| printable_text(&part.to_string_lossy()));
        first.unwrap_or_else(|| "the built-in guests".into())
    }

    /// The files that no result may replace.
    pub(super) fn inputs(&self) -> Vec<&Path> {
        let exercise = match &self.subject {
            Subject::Exercise(file) => Some(file.as_path()),
            Subject::Course(_) | Subject::Merge => None,
        };
        let more = self.batch.more.iter().map(PathBuf::as_path);
        let lists = self.batch.from.as_deref().into_iter().chain(self.batch.results.as_deref());
        exercise.into_iter().chain(self.parts().map(Path::new)).chain(more).chain(lists).collect()
    }

    /// Returns true if the task of an image is graded.
    pub(super) fn grades(&self, image: Option<&OsString>) -> bool {
        self.reference || image.is_some()
    }
}

/// The submission or guests to grade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The work of a course.
    Course(Course),
    /// A submission for an exercise in this file.
    Exercise(PathBuf),
    /// The results files of shards.
    Merge,
}

fn parse_subject(text: &str) -> Result<Subject, String> {
    match Path::new(text).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
        true => Ok(Subject::Exercise(text.into())),
        false if text == "merge" => Ok(Subject::Merge),
        false => parse_course(text).map(Subject::Course),
    }
}

impl Course {
    /// The name of the course.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::So2 => "so2",
            Self::Kev => "kev",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// The assignment of the operating systems course SO2.
    So2,
    /// Project 2 of the KeV course, about VM exits.
    Kev,
}

fn parse_course(text: &str) -> Result<Course, String> {
    match text.to_ascii_lowercase().as_str() {
        "so2" => Ok(Course::So2),
        "kev" => Ok(Course::Kev),
        _ => Err("the courses are so2 and kev, and an exercise is a file FILE.toml; a VMM is graded with `vmm grade so2 PROGRAM`".into()),
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

    #[test]
    fn the_error_for_a_course_has_the_right_command() {
        assert_eq!((parse_course("so2"), parse_course("KEV")), (Ok(Course::So2), Ok(Course::Kev)));
        assert!(parse_course("./vmm").unwrap_err().contains("vmm grade so2 PROGRAM"));
    }
}
