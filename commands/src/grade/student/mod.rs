//! `vmm grade --vmm`: grades a student's VMM by observing it ([the contract](../../../../docs/grading.md)).

pub(super) mod capture;
mod count;
mod describe;
mod driver;
mod entry;
mod job;
mod kev;
mod make;
mod run;
mod score;
#[cfg(test)]
mod tests;
mod watch;

use crate::grade::student_args::VmmArgs;
use crate::grade::{Course, Task, courses};
use crate::jail::JailArgs;
use crate::progress;
use crate::status::Failure;
use count::Pattern;
use job::{Command, Job, Plan};
use observe::{Choice, Ending, Protection};
use run::{Seen, Target};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use vmm::device::Layout;
use vmm::host::printable;

/// The time limit of `make`.
const MAKE_LIMIT: Duration = Duration::from_secs(120);
/// After a run that did not end, the others have this part of the limit: an endless submission costs little more than one limit.
/// A program that did not even make a VM has less.
const LESS: u32 = 5;
const LITTLE: u32 = 20;

/// The grade of a VMM: its tasks, and a line about the seed.
pub(super) struct Grade {
    pub(super) tasks: Vec<Task>,
    pub(super) seed: u64,
    pub(super) remark: String,
}

/// A grade whose programs were found.
pub(super) struct Prepared {
    course: Course,
    /// The programs, in the order of the tasks.
    targets: Vec<Option<Target>>,
    pattern: Pattern,
    seed: u64,
    remark: String,
    /// The jail of the programs.
    jail: JailArgs,
}

/// Builds the project, if there is one, and checks that all programs can be run. This needs no KVM.
///
/// # Errors
/// An option is wrong, `make` failed, or a program cannot be run or observed.
pub(super) fn prepare(
    course: Course,
    arguments: &VmmArgs,
    layout: Option<Layout>,
    jail: JailArgs,
) -> Result<Prepared, Failure> {
    let jobs = match course {
        Course::So2 => Job::SO2.to_vec(),
        Course::Kev => kev::jobs()?,
    };
    let pattern = Pattern::new(arguments.count_pattern.as_deref())?;
    // 32 bits are enough, and are easy to type.
    let seed = arguments.seed.unwrap_or_else(|| RandomState::new().hash_one(0) & u64::from(u32::MAX));
    let commands: Result<Vec<_>, _> = jobs.iter().map(|job| job::command(*job, &jobs, arguments)).collect();
    let commands = commands?;
    if let Some(folder) = &arguments.make {
        make::make(folder, MAKE_LIMIT, jail)?;
        if let Some(program) = job::built(arguments).filter(|program| !program.exists()) {
            return Err(vmm::Error::Config(format!(
                "make built no {}: name the program that it builds with --vmm",
                printable(&program)
            ))
            .into());
        }
    }
    let target = |(job, command): (&Job, Option<Command>)| {
        command
            .map(|command| Target::find(Plan::new(*job, seed, arguments, layout), command, engine(arguments)))
            .transpose()
    };
    let targets: Result<Vec<_>, _> = jobs.iter().zip(commands).map(target).collect();
    let remark = if arguments.own_guests {
        "vmm: graded with the VMM's own guests\n".into()
    } else {
        format!("vmm: graded with hidden guests; --seed {seed} repeats this grade\n")
    };
    Ok(Prepared { course, targets: targets?, pattern, seed, remark, jail })
}

/// The engine to begin with. Under `preload` a program can write into what it shares with the observer.
fn engine(arguments: &VmmArgs) -> Choice {
    arguments.engine.map_or(Choice::Ptrace, Into::into)
}

impl Prepared {
    /// Runs the programs.
    ///
    /// # Errors
    /// The host failed, or a signal ended the grade.
    pub(super) fn grade(self, arguments: &VmmArgs, timeout: Option<Duration>) -> Result<Grade, Failure> {
        if let Some(source) = observe::memory_refusal() {
            let operation = "reading the memory of programs (process_vm_readv(2)), as a grade does,";
            return Err(vmm::Error::Host { operation, source }.into());
        }
        // A submission has the rights of this process, but cannot read the seed from its memory, or change it.
        observe::hide_this_process();
        let finished = courses::text(Job::Real.task()?, "end");
        let finished = arguments.finished.as_deref().unwrap_or(finished);
        let (mut limit, mut engine, mut remark) = (timeout, engine(arguments), self.remark);
        let mut runs: Vec<Option<Seen>> = Vec::new();
        for target in &self.targets {
            let Some(target) = target else {
                runs.push(None);
                continue;
            };
            progress::say(|| format!("grading, {} runs", printable(target.program.path())));
            let run = |engine| target.run(engine, limit, self.jail, finished, &self.pattern);
            let mut ran = run(engine);
            if let Err(Failure::Observe(observe::Error::Unfit { what, .. })) = &ran
                && arguments.engine.is_none()
                && engine == Choice::Ptrace
                && Choice::Preload.check(&target.program).is_ok()
            {
                // The advice of the error is what happens now.
                let what = what.split("; --engine").next().unwrap_or(what);
                remark += &format!("vmm: a program can deceive the engine preload, which was used: {what}\n");
                engine = Choice::Preload;
                ran = run(engine);
            }
            let ran = ran?;
            if matches!(ran.ending, Ending::Timeout(_)) {
                let part = if ran.machines == 0 { LITTLE } else { LESS };
                limit = timeout.and_then(|limit| limit.checked_div(part)).min(limit);
            }
            runs.push(Some(ran));
        }
        let protections = || runs.iter().flatten().map(|ran| ran.protection);
        if protections().any(|one| one == Protection::None) {
            remark += "vmm: this system permits no PID namespace and no seccomp filter, so the program could have stopped or ended \
                       the grade\n";
        } else if protections().any(|one| one == Protection::Filter) {
            remark += "vmm: this system permits no PID namespace, so the program could have signalled other processes than vmm\n";
        }
        if let Some(missing) = runs.iter().flatten().map(|ran| &ran.missing).find(|parts| !parts.is_empty()) {
            remark += &missing.iter().map(|part| format!("vmm: jail: {}\n", part.text())).collect::<String>();
        }
        let tasks = match self.course {
            Course::So2 => score::tasks(&runs)?,
            Course::Kev => kev::tasks(&runs)?,
        };
        Ok(Grade { tasks, seed: self.seed, remark })
    }
}
