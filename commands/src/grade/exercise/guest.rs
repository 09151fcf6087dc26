//! A run of a guest for a task: an image, or a Linux kernel.

use super::run::{Failed, Recorded, mistake};
use crate::exercise::{memory, with_settings};
use crate::grade::is_bad_guest;
use crate::processor;
use crate::target::{RunTarget, is_unreadable, name_error};
use ::exercise::file::{Kind, Task};
use ::exercise::template::Values;
use ::exercise::{Facts, ModeWatch};
use std::path::Path;
use std::time::Duration;
use vmm::boot::{Image, list_ranges};
use vmm::host::{printable, process_cpu_time};
use vmm::machine::{Linux, MachineKind, Processor};
use vmm::memory::{Gpa, PLAIN_RAM};
use vmm::{Builder, Error, ImageError, Input, Machine, Output, Report};

/// The number of exits that are recorded. The check of a limit names the first exit that is too many.
const RECORDED: usize = 4096;

/// The code that runs.
pub enum Code<'a> {
    /// A file of the submission.
    File(&'a Path),
    /// A guest of the teacher's: its name, and its image.
    Reference(&'a str, &'a [u8]),
}

/// A run that has ended.
pub struct GuestRun {
    /// The report.
    pub report: Report,
    /// The time of the processor that the run took.
    pub cpu_time: Duration,
    machine: Machine,
    output: Vec<u8>,
    output_len: u64,
    modes: Option<ModeWatch>,
}

impl GuestRun {
    /// The facts for checks.
    ///
    /// # Errors
    /// The host failed.
    pub fn facts(&mut self) -> Result<Facts<'_>, Error> {
        let mut facts = Facts::of(&mut self.machine, &self.report, &self.output, self.output_len)?;
        facts.modes = self.modes.as_ref().map(ModeWatch::modes);
        Ok(facts)
    }
}

/// Runs the code of a task.
///
/// # Errors
/// It cannot be run, the host failed, or the exercise does not suit its machine.
pub fn run(
    task: &Task,
    code: &Code,
    values: &Values,
    processor: Option<Processor>,
    recorded: Recorded,
) -> Result<GuestRun, Failed> {
    let modes = recorded.modes.then(ModeWatch::default);
    let input = task.input(values).map_err(|error| mistake(task, &error))?;
    let (builder, name) = builder(task, code, values, input.len())?;
    let (output, captured) = Output::captured();
    let device_input = if task.input_at.is_some() { &[][..] } else { &input };
    let builder = with_settings(builder, &task.settings)
        .processor(processor)
        .input(Input::bytes(device_input))
        .output(output)
        .trace(recorded.trace.then_some(RECORDED));
    let builder = match &modes {
        Some(modes) => modes.apply(builder),
        None => builder,
    };
    let mut machine = builder.build().map_err(name_error(&name)).map_err(of_guest)?;
    if let Some(address) = task.input_at {
        let ended = [&input[..], &[0]].concat();
        let written = machine.memory().write(Gpa(address), &ended);
        written.map_err(|error| mistake(task, &format!("input_at {address:#x}: {error}")))?;
    }
    processor::announce(&machine);
    let before = process_cpu_time();
    let report = machine.run()?;
    let cpu_time = process_cpu_time().saturating_sub(before);
    if let Some(error) = report.host_failure() {
        return Err(Failed::Grade(error));
    }
    let (output, output_len) = (captured.bytes(), captured.total());
    Ok(GuestRun { report, cpu_time, machine, output, output_len, modes })
}

/// The builder of the machine for the code of a task, and the code's name. The input has `input` bytes.
///
/// # Errors
/// The code cannot be run.
fn builder(task: &Task, code: &Code, values: &Values, input: usize) -> Result<(Builder, String), Failed> {
    let settings = &task.settings;
    if settings.kind == Kind::Linux {
        let Code::File(file) = code else { return Err(mistake(task, "a reference cannot be Linux")) };
        let linux = Linux::open(file).map_err(|error| of_guest(error.into()))?;
        let linux = linux.initrd(settings.initrd.as_deref()).command_line(settings.cmdline.as_deref());
        return Ok((Machine::linux(linux).memory(settings.memory), printable(file)));
    }
    let registers = task.registers(values).map_err(|error| mistake(task, &error))?;
    let bios = settings.machine.map(|kind| kind == MachineKind::Bios);
    let (mode, address) = (settings.mode, settings.address);
    let target = match *code {
        Code::File(file) => RunTarget::path(file, mode, address, settings.memory.unwrap_or(PLAIN_RAM), bios),
        Code::Reference(name, bytes) => RunTarget::bytes(name, bytes.to_vec(), mode, address, bios),
    };
    let target = target.map_err(of_guest)?;
    let image = target.image.with_registers(&registers).map_err(of_guest)?;
    if let Some(address) = task.input_at {
        check_input(&image, address, input)?;
    }
    let memory = memory(settings, &image);
    Ok((Machine::builder(image).memory(memory), target.name))
}

/// Checks that the input does not overwrite the code.
///
/// # Errors
/// It does.
fn check_input(image: &Image, address: u64, input: usize) -> Result<(), Failed> {
    let end = address.saturating_add(input as u64).saturating_add(1);
    match image.overlaps(address, end) && !image.ranges().is_empty() {
        false => Ok(()),
        true => Err(Failed::Submission(format!(
            "the file lies at {}, and its input is at {address:#x} to {:#x}: make it smaller, or link it elsewhere",
            list_ranges(&image.ranges()),
            end.saturating_sub(1)
        ))),
    }
}

/// The reason why code cannot be run: it is wrong, or the host failed.
fn of_guest(error: Error) -> Failed {
    match error {
        Error::Image(ImageError::TooLarge { path, size, limit }) => Failed::Submission(format!(
            "{path} is too large: it has {size} bytes, and at most {limit} fit into the guest's memory"
        )),
        Error::Image(error) if is_unreadable(&error) => Failed::Submission(error.to_string()),
        error if is_bad_guest(&error) => Failed::Submission(error.to_string()),
        error => Failed::Grade(error),
    }
}
