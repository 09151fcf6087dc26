//! A trial of an exercise: a guest that halts at once runs on the machine of each task. It shows mistakes of the exercise that
//! would cost every submission its points.

use super::{memory, with_settings};
use crate::target::RunTarget;
use exercise::file::{Kind, Settings, Task};
use exercise::toml::Problem;
use exercise::{Exercise, Expectation, Facts};
use simvirtio::abi;
use vmm::device::Transport;
use vmm::machine::{MachineKind, Processor};
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine, Output};

/// The seeds for the random values. Texts have other lengths with other seeds.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;
/// The code of the guest: hlt.
const HALT: u8 = 0xf4;

/// The mistakes of an exercise.
pub fn mistakes(exercise: &Exercise) -> Vec<Problem> {
    let mut found = Vec::new();
    for task in &exercise.tasks {
        let before = found.len();
        of_course(task, &mut found);
        of_settings(task, &mut found);
        if task.settings.kind == Kind::Image && found.len() == before {
            of_machine(task, &mut found);
        }
    }
    found
}

/// The mistake that a task needs a part of the program which only its built-in courses use.
fn of_course(task: &Task, found: &mut Vec<Problem>) {
    if task.helper.is_some() {
        let what = "helper is for the built-in courses: a file of yours has conditions instead";
        found.push(Problem::new(task.at, what));
    }
}

/// The mistakes in settings that do not suit each other.
fn of_settings(task: &Task, found: &mut Vec<Problem>) {
    let Settings { machine, transport, memory, address, mode, cpus, .. } = task.settings;
    let is_pc = matches!(machine, Some(MachineKind::Pc | MachineKind::Bios));
    let has_more = memory.is_some_and(|memory| memory > abi::RAM_SIZE);
    let is_high = address.is_some_and(|address| address >= abi::RAM_SIZE);
    // Without a mode, a guest below 1 MiB starts in real mode.
    let is_real = mode == Some(Mode::Real) || mode.is_none() && !is_high;
    let rules: [(bool, &[&str], &str); 7] = [
        (
            is_real && address.is_some_and(|address| address > 0xffff),
            &["address"],
            "a guest in real mode begins below 0x10000: give another address, or another mode",
        ),
        (
            memory.is_some_and(|memory| !memory.is_multiple_of(4096)),
            &["memory"],
            "memory must be a multiple of 4K, such as \"1M\"",
        ),
        (
            transport.is_some() && is_pc,
            &["transport"],
            "SIMVIRTIO, whose transport this is, is a device of the machine \"bare\": give machine = \"bare\", or leave \
             transport out",
        ),
        (
            transport.is_some() && has_more,
            &["memory"],
            "a guest with SIMVIRTIO has 1 MiB of memory: leave memory out, or transport",
        ),
        (
            transport.is_some() && is_high,
            &["address"],
            "a guest with SIMVIRTIO lies below 1 MiB: give another address, or leave transport out",
        ),
        (
            transport == Some(Transport::Coalesced) && cpus > 1,
            &["cpus"],
            "the transport \"coalesced\" needs one vCPU: give cpus = 1, or another transport",
        ),
        (
            machine == Some(MachineKind::Bios) && (mode.is_some() || address.is_some()),
            &["mode", "address"],
            "the machine \"bios\" starts from a boot disk, which has no mode and no address: leave them out, or give \
             machine = \"bare\"",
        ),
    ];
    for (_, keys, what) in rules.into_iter().filter(|(is_broken, ..)| *is_broken) {
        found.push(Problem::new(task.settings.place(keys).unwrap_or(task.at), what));
    }
}

/// The mistakes that a machine shows.
fn of_machine(task: &Task, found: &mut Vec<Problem>) {
    if let Err(error) = tried(task, found) {
        let place = match &error {
            Error::Image(_) => task.settings.place(&["address", "mode"]),
            _ => task.settings.place(&["machine", "memory", "cpus", "address", "mode"]),
        };
        found.push(Problem::new(place.unwrap_or(task.at), in_keys(&error.to_string())));
    }
}

/// A sentence about options of `vmm run`, with the keys of an exercise instead.
fn in_keys(sentence: &str) -> String {
    const KEYS: [(&str, &str); 7] = [
        ("--machine", "machine"),
        ("--memory", "memory"),
        ("--mem", "memory"),
        ("--cpus", "cpus"),
        ("--transport", "transport"),
        ("--mode", "mode"),
        ("--set ", "registers: "),
    ];
    KEYS.iter().fold(sentence.to_string(), |text, (option, key)| text.replace(option, key))
}

/// Runs the guest.
///
/// # Errors
/// The machine cannot be built. That is a mistake, too.
fn tried(task: &Task, found: &mut Vec<Problem>) -> Result<(), Error> {
    let settings = &task.settings;
    let bios = settings.machine.map(|kind| kind == MachineKind::Bios);
    let name = "a guest of this task";
    let disk = if bios == Some(true) { vec![HALT; 512] } else { vec![HALT] };
    let target = RunTarget::bytes(name, disk, settings.mode, settings.address, bios)?;
    let values = task.values(*SEEDS.start());
    let registers = task.registers(&values).map_err(Error::Config)?;
    let image = target.image.with_registers(&registers)?;
    let (memory, entry) = (memory(settings, &image), image.entry().0);
    // The software processor needs no KVM. The transport is left out, because not every processor has each of them.
    let builder = with_settings(Machine::builder(image), settings).memory(memory).transport(None);
    let builder = builder.processor(Some(Processor::Soft)).output(Output::captured().0);
    let mut machine = builder.build()?;
    if let Some(address) = task.input_at {
        let problem = input(task, address, entry, &machine)?;
        found.extend(problem.map(|what| Problem::new(task.input_at_place, what)));
    }
    let report = machine.run()?;
    let facts = Facts::of(&mut machine, &report, &[], 0)?;
    // Without a mode and an address, the file of a submission may choose another machine, with other devices.
    let is_open = settings.mode.is_none() && settings.address.is_none() && settings.machine.is_none();
    for spec in &task.checks {
        let conditions = spec.expectations(&values).map_err(Error::Config)?;
        for (number, one) in conditions.iter().enumerate() {
            let is_relevant = !is_open || matches!(one, Expectation::Memory(_));
            let check = one.check(&facts);
            if is_relevant && !check.possible {
                let what = format!("no submission can meet this: {} {}", check.subject, check.seen);
                found.push(Problem::new(spec.place(number), what));
            }
        }
    }
    Ok(())
}

/// The mistake in the address of the input, if there is one.
///
/// # Errors
/// The input cannot be made.
fn input(task: &Task, address: u64, entry: u64, machine: &Machine) -> Result<Option<String>, Error> {
    let inputs = SEEDS.map(|seed| task.input(&task.values(seed)).map(|input| input.len()));
    let lens = inputs.collect::<Result<Vec<_>, _>>().map_err(Error::Config)?;
    let len = lens.into_iter().max().unwrap_or(0).saturating_add(1);
    let end = address.saturating_add(len as u64);
    let mut bytes = vec![0; len];
    let is_memory = machine.memory().read(Gpa(address), &mut bytes);
    let what = if !is_memory {
        format!(
            "the guest has no memory there for an input of {len} bytes: give another address, or more memory"
        )
    } else if (address..end).contains(&entry) && task.settings.machine != Some(MachineKind::Bios) {
        format!(
            "the input of {len} bytes would overwrite the code, which begins at {entry:#x}: give another address"
        )
    } else if bytes.iter().any(|byte| *byte != 0) {
        format!(
            "the input of {len} bytes would overwrite tables of the machine, such as page tables: give another address"
        )
    } else {
        return Ok(None);
    };
    Ok(Some(format!("input_at = {address:#x}: {what}")))
}
