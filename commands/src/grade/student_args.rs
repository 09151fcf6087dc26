//! The options of `vmm grade --vmm`.

use crate::args::EngineArg;
use clap::Args;
use std::ffi::OsString;
use vmm::Error;

#[derive(Debug, Args)]
#[cfg_attr(not(has_kvm), allow(dead_code, reason = "nothing is graded without KVM"))]
#[command(next_help_heading = "Grading a VMM")]
pub(super) struct VmmArgs {
    /// Student's VMM, which is graded by observing it: it is run as `PROGRAM real`, `PROGRAM long`, `PROGRAM simvirtio` and
    /// `PROGRAM polling`; with an exercise, the submission
    #[arg(value_name = "PROGRAM", conflicts_with = "vmm")]
    program: Option<OsString>,

    /// The same as PROGRAM
    #[arg(long, value_name = "PROGRAM")]
    vmm: Option<OsString>,

    /// VMM for the task polling, such as one that was built with USE_POOLING; run as `PROGRAM polling`
    #[arg(long, value_name = "PROGRAM")]
    pub(super) vmm_polling: Option<OsString>,

    /// Command for a task: real, long, simvirtio or polling; quotes keep words together; can be repeated
    #[arg(long, value_name = "TASK=COMMAND")]
    pub(super) run: Vec<OsString>,

    /// Run `make` in this folder first [default of --vmm: the program kvm-hello-world in it]
    #[arg(long, value_name = "DIR")]
    pub(super) make: Option<OsString>,

    /// Seed of the hidden guests' texts, or of an exercise's random numbers; the report has it, so that a grade can be repeated [default: random]
    #[arg(long, value_name = "N", value_parser = parse_seed)]
    pub(super) seed: Option<u64>,

    /// Run the VMM's own guests, instead of copying hidden ones over them
    #[arg(long)]
    pub(super) own_guests: bool,

    /// Way to see the calls of the VMM [default: ptrace, or preload where the system does not permit ptrace]
    #[arg(long, value_enum)]
    pub(super) engine: Option<EngineArg>,

    /// Text that the VMM prints at its end [default: Finished vmm]
    #[arg(long, value_name = "TEXT")]
    pub(super) finished: Option<String>,

    /// Pattern whose last match in the VMM's output has the number of exits: its first group, or its first number
    /// [default: the last line that contains "exit"]
    #[arg(long, value_name = "REGEX")]
    pub(super) count_pattern: Option<String>,
}

fn parse_seed(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "give a number, such as the one in the last line of a grade")
}

impl VmmArgs {
    /// True if there is a VMM to grade.
    pub(super) fn grades(&self) -> bool {
        self.program().is_some() || self.vmm_polling.is_some() || !self.run.is_empty() || self.make.is_some()
    }

    /// The program of all tasks.
    pub(super) fn program(&self) -> Option<&OsString> {
        self.vmm.as_ref().or(self.program.as_ref())
    }

    /// The programs and the folder of a submission, as far as they are given.
    pub(super) fn parts(&self) -> impl Iterator<Item = &OsString> {
        self.program().into_iter().chain(&self.make).chain(&self.vmm_polling).chain(&self.run)
    }

    /// An option that was given, and that has no meaning for an exercise in a file.
    pub(super) fn foreign_to_exercises(&self) -> Option<&'static str> {
        let options = [
            ("--vmm", self.vmm.is_some()),
            ("--vmm-polling", self.vmm_polling.is_some()),
            ("--run", !self.run.is_empty()),
            ("--make", self.make.is_some()),
            ("--own-guests", self.own_guests),
            ("--finished", self.finished.is_some()),
            ("--count-pattern", self.count_pattern.is_some()),
            ("--engine", self.engine.is_some()),
        ];
        options.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }

    /// Checks that no option is there without a VMM.
    ///
    /// # Errors
    /// There is one.
    pub(super) fn check(&self) -> Result<(), Error> {
        let options = [
            ("--seed", self.seed.is_some()),
            ("--own-guests", self.own_guests),
            ("--count-pattern", self.count_pattern.is_some()),
            ("--engine", self.engine.is_some()),
        ];
        match options.into_iter().find(|(_, given)| *given && !self.grades()) {
            None => Ok(()),
            Some((option, _)) => Err(Error::Config(format!(
                "{option} is for the grade of a VMM: give --vmm PROGRAM, or leave {option} out"
            ))),
        }
    }
}
