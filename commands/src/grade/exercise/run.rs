//! One run of a submission's file for a task.

use crate::exercise::with_settings;
use crate::grade::is_bad_guest;
use crate::summary::ending;
use crate::target::{RunTarget, is_unreadable, name_error};
use crate::{processor, status};
use ::exercise::file::Task;
use ::exercise::{Check, Expectation, Facts, ModeWatch};
use std::path::Path;
use vmm::machine::{MachineKind, Processor};
use vmm::memory::{Gpa, PLAIN_RAM};
use vmm::{Captured, Error, ImageError, Input, Machine, Output, Report};

/// The results of a run.
pub struct Results {
    /// The end of the run. `None` if a check of the task is about it.
    pub end: Option<Check>,
    /// For each check of the task, its conditions.
    pub checks: Vec<Vec<Check>>,
}

/// The reason why a task has no results.
pub enum Failed {
    /// The submission's file cannot be run. The message is for the student.
    Submission(String),
    /// There is no grade.
    Grade(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Grade(error)
    }
}

/// A mistake of the exercise.
fn mistake(task: &Task, what: &str) -> Failed {
    let name = vmm::host::printable_text(&task.name);
    Failed::Grade(Error::Config(format!("the task {name:?} of the exercise: {what}")))
}

/// Runs a file, and checks the run.
///
/// # Errors
/// The file cannot be run, the host failed, or the exercise does not suit its machine.
pub fn results(task: &Task, file: &Path, seed: u64, processor: Option<Processor>) -> Result<Results, Failed> {
    let numbers = task.numbers(seed);
    let of_task = |error: String| mistake(task, &error);
    let specs = task.checks.iter().map(|check| check.expectations(&numbers)).collect::<Result<Vec<_>, _>>();
    let specs = specs.map_err(of_task)?;
    let all = || specs.iter().flatten();
    let modes = all().any(|one| matches!(one, Expectation::Modes(_))).then(ModeWatch::default);
    let has_end = all().any(|one| matches!(one, Expectation::End(_)));

    let input = task.input(&numbers).map_err(of_task)?;
    let (mut machine, captured) = build(task, file, seed, processor, modes.as_ref())?;
    if let Some(address) = task.input_at {
        let ended = [&input[..], &[0]].concat();
        let written = machine.memory().write(Gpa(address), &ended);
        written.map_err(|error| mistake(task, &format!("input_at {address:#x}: {error}")))?;
    }
    processor::announce(&machine);
    let report = machine.run()?;
    if let Some(error) = report.host_failure() {
        return Err(Failed::Grade(error));
    }
    let output = captured.bytes();
    let mut facts = Facts::of(&mut machine, &report, &output, captured.total())?;
    facts.modes = modes.as_ref().map(ModeWatch::modes);
    let mut checks = Vec::new();
    for spec in &specs {
        // A search in a long output takes a while.
        if vmm::host::interrupted() {
            return Err(Error::Interrupted.into());
        }
        checks.push(spec.iter().map(|one| one.check(&facts)).collect());
    }
    Ok(Results { end: (!has_end).then(|| end(&report)), checks })
}

/// Builds the machine of a task for a file.
fn build(
    task: &Task,
    file: &Path,
    seed: u64,
    processor: Option<Processor>,
    modes: Option<&ModeWatch>,
) -> Result<(Machine, Captured), Failed> {
    let of_guest = |error: Error| match error {
        Error::Image(ImageError::TooLarge { path, size, limit }) => Failed::Submission(format!(
            "{path} is too large: it has {size} bytes, and at most {limit} fit into the guest's memory"
        )),
        Error::Image(error) if is_unreadable(&error) => Failed::Submission(error.to_string()),
        error if is_bad_guest(&error) => Failed::Submission(error.to_string()),
        error => Failed::Grade(error),
    };
    let numbers = task.numbers(seed);
    let registers = task.registers(&numbers).map_err(|error| mistake(task, &error))?;
    let settings = &task.settings;
    let bios = settings.machine.map(|kind| kind == MachineKind::Bios);
    let limit = settings.memory.unwrap_or(PLAIN_RAM);
    let target = RunTarget::path(file, settings.mode, settings.address, limit, bios).map_err(of_guest)?;
    let image = target.image.with_registers(&registers).map_err(of_guest)?;
    let (output, captured) = Output::captured();
    let input = match task.input_at {
        None => task.input(&numbers).map_err(|error| mistake(task, &error))?,
        Some(_) => Vec::new(),
    };
    let builder = with_settings(Machine::builder(image), settings)
        .processor(processor)
        .input(Input::bytes(&input))
        .output(output);
    let builder = match modes {
        Some(modes) => modes.apply(builder),
        None => builder,
    };
    let machine = builder.build().map_err(name_error(&target.name)).map_err(of_guest)?;
    Ok((machine, captured))
}

/// The check that a run has ended by itself.
fn end(report: &Report) -> Check {
    Check {
        passed: status::of_report(report) == status::OK,
        subject: "the run".into(),
        expected: "must end by itself (a halt, exit code 0, or a power-off)".into(),
        seen: format!("ended: {}", ending(report)),
        possible: true,
    }
}
