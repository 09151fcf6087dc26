//! A trial of an exercise: a guest that halts at once runs on the machine of each task. It shows mistakes of the exercise that
//! would cost every submission its points.

use super::with_settings;
use crate::target::RunTarget;
use ::exercise::file::Task;
use ::exercise::{Check, Exercise, Expectation, Facts};
use vmm::machine::{MachineKind, Processor};
use vmm::memory::Gpa;
use vmm::{Error, Machine, Output};

/// A seed for the random numbers.
const SEED: u64 = 1;

/// The mistakes of an exercise, as sentences.
pub fn mistakes(exercise: &Exercise) -> Vec<String> {
    let of_task = |task: &Task| {
        let found = of_task(task).unwrap_or_else(|error| vec![error.to_string()]);
        let name = vmm::host::printable_text(&task.name).to_string();
        found.into_iter().map(move |what| format!("the task {name:?}: {what}")).collect::<Vec<_>>()
    };
    exercise.tasks.iter().flat_map(of_task).collect()
}

/// The mistakes of a task.
///
/// # Errors
/// The machine cannot be built. That is a mistake, too.
fn of_task(task: &Task) -> Result<Vec<String>, Error> {
    let settings = &task.settings;
    let bios = settings.machine.map(|kind| kind == MachineKind::Bios);
    let target = RunTarget::stand_in(settings.mode, settings.address, bios)?;
    let numbers = task.numbers(SEED);
    let registers = task.registers(&numbers).map_err(Error::Config)?;
    let image = target.image.with_registers(&registers)?;
    // The software processor needs no KVM. The transport is left out, because not every processor has each of them.
    let builder = with_settings(Machine::builder(image), settings).transport(None);
    let builder = builder.processor(Some(Processor::Soft)).output(Output::captured().0);
    let mut machine = builder.build()?;
    let mut found = Vec::new();
    if let Some(address) = task.input_at {
        let input = task.input(&numbers).map_err(Error::Config)?.len().saturating_add(1);
        let is_memory = machine.memory().read(Gpa(address), &mut vec![0; input]);
        if !is_memory {
            found.push(format!(
                "input_at = {address:#x}: the guest has no memory there for an input of {input} bytes: give another address, or \
                 more memory"
            ));
        }
    }
    let report = machine.run()?;
    let facts = Facts::of(&mut machine, &report, &[], 0)?;
    // Without a mode and an address, the file of a submission may choose another machine, with other devices.
    let is_open = settings.mode.is_none() && settings.address.is_none() && settings.machine.is_none();
    for (number, spec) in (1..).zip(&task.checks) {
        let conditions = spec.expectations(&numbers).map_err(Error::Config)?;
        let relevant = |one: &&Expectation| !is_open || matches!(one, Expectation::Memory(_));
        let checks = conditions.iter().filter(relevant).map(|one| one.check(&facts));
        let sentence =
            |check: Check| format!("check {number} cannot be met: {} {}", check.subject, check.seen);
        found.extend(checks.filter(|check| !check.possible).map(sentence));
    }
    Ok(found)
}
