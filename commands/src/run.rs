//! `vmm run`: runs one guest. Its output goes to stdout, the summary to stderr.

use crate::args::{
    CpuidArg, DebugExitArg, MachineArg, RunArgs, TERMINAL_OUTPUT_LIMIT, check_queue_len, output_limit,
};
use crate::boot_files::DiskFile;
use crate::core_file::{CoreFile, LiveCores};
use crate::jail::{Jail, Rights};
use crate::names::Names;
use crate::outcome::{GuestText, Ran, run_and_report};
use crate::status::Failure;
use crate::step::Trace;
use crate::target::{RunTarget, name_error};
use crate::{boot_files, debugger, modules, processor, screen, terminal};
use guest::Map;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vmm::boot::Image;
use vmm::device::Transport;
use vmm::host::{is_shortage, printable};
use vmm::machine::MachineKind;
use vmm::x86::CpuidOverride;
use vmm::{Builder, Error, Input, Machine, Report};

/// Runs the guest. Returns the exit status.
pub fn main(arguments: &RunArgs) -> u8 {
    let jail = arguments.jail.prepare(false);
    let step = arguments.step.file();
    run_and_report(&arguments.measure, step, || inputs(arguments), |output| run(arguments, jail, output))
}

/// The files that the run reads.
fn inputs(arguments: &RunArgs) -> Vec<PathBuf> {
    let guest = arguments.guest.as_ref().and_then(|guest| crate::target::file(guest));
    let image = guest.or_else(|| arguments.rom.clone());
    let modules = modules::files(&arguments.module).map(Into::into);
    let disks = arguments.disk.iter().map(|text| DiskFile::new(text).path.into());
    let expected = arguments.measure.expect.input();
    let files = image.into_iter().chain(expected).chain(arguments.input.clone()).chain(modules).chain(disks);
    files.chain(arguments.measure.results.symbol_file()).collect()
}

/// Opens the file of `--input`, or standard input.
///
/// # Errors
/// It cannot be opened.
pub fn input(path: Option<&Path>) -> Result<Input, Error> {
    let file = match path {
        Some(path) => open_input(path).map_err(|error| match is_shortage(&error) {
            true => Error::Read { path: printable(path), source: error },
            false => Error::Config(format!(
                "cannot open {} for --input: {error}: give a file that can be read",
                printable(path)
            )),
        })?,
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            stdin.map_err(|source| Error::Host { operation: "opening standard input", source })?.into()
        }
    };
    Ok(Input::new(file))
}

fn open_input(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a pipe waits for a writer, and the guest may never read its input.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // A directory can be opened, but not read.
    if file.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
}

fn run(arguments: &RunArgs, jail: Option<Jail>, mut text: GuestText) -> Result<Ran, Failure> {
    let guest = arguments.guest.as_ref().and_then(|guest| crate::target::file(guest));
    let names = Names::of(&arguments.measure.results, guest.clone())?;
    let trace = Trace::open(&arguments.step, || inputs(arguments))?;
    let core = CoreFile::open(&arguments.measure, || inputs(arguments))?;
    let limit = arguments.mem.unwrap_or(vmm::memory::PLAIN_RAM);
    let target = find(arguments, limit)?;
    let target = RunTarget { image: entered(target.image, arguments, limit)?, ..target };
    let bases: Vec<_> = target.image.ranges().iter().map(|range| range.start).collect();
    let cpuid = shows_cpuid(arguments, &target)?;
    let queue_len = arguments.queue_len.map(check_queue_len).transpose()?;
    // A driver cannot work without its device. Asking for a transport makes the builder report the conflict with
    // --mem before the guest runs.
    let default_transport = if crate::cli::polls() { Transport::Polling } else { Transport::Exit };
    let needed_transport = target.drives_simvirtio().then_some(default_transport);
    let memory = match target.map() {
        Some(Map::Plain) => Some(arguments.mem.unwrap_or(vmm::memory::PLAIN_RAM)),
        _ => arguments.mem,
    };
    let builder = with_changes(arguments, target.builder());
    let disks = boot_files::open_disks(guest.as_deref(), &[], &arguments.disk)?;
    let builder = disks.into_iter().fold(builder, Builder::disk);
    let builder = trace.iter().fold(builder, |builder, trace| trace.apply(builder));
    let is_stopped = arguments.gdb.is_given() || arguments.step.is_given();
    let mut live = LiveCores::of(&arguments.measure, is_stopped, || inputs(arguments));
    let builder = text.after.watch(builder, &text.output);
    let builder = with_machine(arguments.measure.apply(builder), arguments)
        .core_key(LiveCores::key(live.as_ref()))
        .screen_on_terminal(text.is_terminal)
        .memory(memory)
        .transport(arguments.transport.map(Into::into).or(needed_transport))
        .default_transport(default_transport)
        .queue_len(queue_len.or(target.queue_len()))
        .cpuid(cpuid)
        .verify(arguments.verify || target.promises_result())
        .output(match text.is_terminal && !arguments.raw_output {
            true => text.output.with_visible_controls(),
            false => text.output,
        })
        .output_limit(output_limit(arguments.output_limit, text.is_terminal.then_some(TERMINAL_OUTPUT_LIMIT)))
        .input(input(arguments.input.as_deref())?);
    let mut machine = builder.build().map_err(name_error(&target.name))?;
    screen::check(machine.kind(), arguments.measure.screen.as_deref())?;
    screen::check_input(machine.kind(), arguments.console.is_some())?;
    text.after.check(&machine)?;
    processor::announce(&machine);
    let own_names = || Names::of(&arguments.measure.results, guest.clone());
    arguments.measure.sample.begin(&mut machine, &bases, own_names)?;
    if let Some(trace) = &trace {
        trace.begin(&mut machine, own_names()?, &bases)?;
    }
    let width = debugger::width_of(arguments.measure.results.symbol_file().or(guest.clone()).as_deref());
    let mut server = arguments.gdb.server(&machine, width, guest.as_deref())?;
    enter(jail, arguments, &machine)?;
    let debugger = debugger::of(&mut server).or_else(|| LiveCores::debugger(live.as_mut(), &machine));
    let report = terminal::run(&mut machine, debugger, &target.name, arguments.measure.results.quiet)?;
    trace.map_or(Ok(()), Trace::finish)?;
    warn_of_unread_input(arguments, &machine, &report);
    let core = core.map(|core| core.write(&mut machine, &report));
    let checked = text.after.finish(&mut machine, &report)?;
    Ok(Ran { core, checked, debugger: server, ..names.ran(target.name, report, machine.memory()) })
}

/// Enters the jail, if there is to be one.
///
/// # Errors
/// It is required, and a part is missing.
fn enter(jail: Option<Jail>, arguments: &RunArgs, machine: &Machine) -> Result<(), Error> {
    let Some(jail) = jail else { return Ok(()) };
    let guest = arguments.guest.as_ref().and_then(|guest| crate::target::file(guest));
    let read = guest.into_iter().chain(arguments.measure.results.symbol_file()).collect();
    let any_size = !arguments.disk.is_empty();
    let rights = Rights::of(&arguments.measure, arguments.step.file(), &arguments.gdb, read, any_size)?;
    jail.enter(&rights, Some(machine))
}

/// Warns of input for a machine that has none.
fn warn_of_unread_input(arguments: &RunArgs, machine: &Machine, report: &Report) {
    let has_no_input = report.simvirtio.is_none() && machine.kind() == Some(MachineKind::Bare);
    if let Some(path) = arguments.input.as_ref().filter(|_| has_no_input) {
        log::warn!(
            "--input {} was not read: without a SIMVIRTIO device the machine has no input",
            printable(path)
        );
    }
}

/// Sets the options of the machine that do not depend on the guest.
fn with_machine(builder: Builder, arguments: &RunArgs) -> Builder {
    builder
        .machine(arguments.machine.map(Into::into))
        .keyboard(terminal::is_keyboard)
        .input_device(arguments.console.map(Into::into))
        .qemu_exit(matches!(arguments.debug_exit, DebugExitArg::Qemu))
        .processor(arguments.vcpu.map(Into::into))
        .timeout(arguments.timeout.0)
        .wall_timeout(arguments.wall_timeout.and_then(|limit| limit.0))
}

/// Finds the guest, or the ROM.
///
/// # Errors
/// It cannot be read, or the options do not suit it.
fn find(arguments: &RunArgs, limit: u64) -> Result<RunTarget, Error> {
    if let Some(rom) = &arguments.rom {
        return RunTarget::rom(rom);
    }
    let guest = arguments.guest.as_deref().unwrap_or_default();
    let bios = arguments.machine.map(|machine| matches!(machine, MachineArg::Bios));
    RunTarget::find(guest, arguments.mode.map(Into::into), arguments.load_at, limit, bios)
}

/// Changes the machine that suits the guest as the user asks.
fn with_changes(arguments: &RunArgs, builder: Builder) -> Builder {
    let builder = cpuid_changes(arguments).fold(builder, Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let builder = match arguments.cpus {
        Some(cpus) => builder.cpus(cpus),
        None => builder,
    };
    let builder = if arguments.kev { builder.kev(true) } else { builder };
    match arguments.layout {
        Some(layout) => builder.layout(layout.into()),
        None => builder,
    }
}

/// The image with the registers, the command line and the modules that the user gave.
///
/// # Errors
/// The image has no use for one of them, or a file cannot be read.
fn entered(image: Image, arguments: &RunArgs, limit: u64) -> Result<Image, Error> {
    let modules = modules::read(&arguments.module, limit)?;
    let command_line = arguments.cmdline.as_deref().unwrap_or_default();
    image.with_registers(&arguments.set)?.with_boot_data(command_line, modules)
}

/// The changes to CPUID that the user asked for.
fn cpuid_changes(arguments: &RunArgs) -> impl Iterator<Item = CpuidOverride> {
    arguments.cpuid.iter().filter_map(|cpuid| match cpuid {
        CpuidArg::Change(change) => Some(*change),
        CpuidArg::Host | CpuidArg::None => None,
    })
}

/// Returns true if CPUID shows the guest what KVM supports. Without an option, it does so for files, and for the built-in
/// guests that need it.
///
/// # Errors
/// `--cpuid none` contradicts another option.
fn shows_cpuid(arguments: &RunArgs, target: &RunTarget) -> Result<bool, Error> {
    let base = arguments.cpuid.iter().rev().find(|cpuid| !matches!(cpuid, CpuidArg::Change(_)));
    let cpus = arguments.cpus.or(target.embedded.map(|guest| guest.cpus)).unwrap_or(1);
    if [CpuidArg::Host, CpuidArg::None].iter().all(|cpuid| arguments.cpuid.contains(cpuid)) {
        let what = "--cpuid host and --cpuid none contradict each other: give only one of them";
        return Err(Error::Config(what.into()));
    }
    match (base, target.embedded) {
        (Some(CpuidArg::None), _) if cpuid_changes(arguments).next().is_some() => Err(Error::Config(
            "--cpuid none excludes changes to CPUID: leave out --cpuid none, or the changes".into(),
        )),
        (Some(CpuidArg::None), _) if cpus > 1 => Err(Error::Config(format!(
            "--cpuid none needs a single vCPU, not {cpus}, because vCPUs read their number from CPUID: leave out \
             --cpuid none, or give --cpus 1"
        ))),
        (Some(base), _) => Ok(*base == CpuidArg::Host),
        (None, Some(guest)) => Ok(guest.cpuid),
        (None, None) => Ok(true),
    }
}
