//! `vmm boot`: boots Linux. Its console uses stdin and stdout, the summary goes to stderr. A multiboot or PVH kernel runs on
//! the machine of `vmm run`.

use crate::args::{BootArgs, ClockArg, ConsoleArg, DebugExitArg, OnHaltArg, output_limit};
use crate::boot_files::{self, DiskFile};
use crate::core_file::{CoreFile, LiveCores};
use crate::jail::{Jail, Rights};
use crate::names::Names;
use crate::outcome::{GuestText, Ran, run_and_report};
use crate::status::Failure;
use crate::step::Trace;
use crate::target::{RunTarget, name_error};
use crate::{debugger, modules, processor, run, screen, terminal};
use gdb::Width;
use std::path::PathBuf;
use vmm::host::{printable, printable_text};
use vmm::machine::{ClockKind, ConsoleKind, InputDevice, Linux, MachineKind, OnHalt};
use vmm::profile::Event;
use vmm::{Builder, Error, Machine, Report};

/// Boots the kernel. Returns the exit status.
pub fn main(arguments: &BootArgs) -> u8 {
    let jail = arguments.jail.prepare(false);
    let step = arguments.step.file();
    run_and_report(&arguments.measure, step, || inputs(arguments), |text| boot(arguments, jail, text))
}

/// The files that the run reads.
fn inputs(arguments: &BootArgs) -> Vec<PathBuf> {
    let disks = arguments.disk.iter().map(|text| DiskFile::new(text).path.into());
    let modules = modules::files(&arguments.module).map(Into::into);
    let kernel = [arguments.kernel.clone()].into_iter();
    let kernel = kernel.chain(arguments.measure.expect.input());
    let files = kernel.chain(arguments.initrd.clone()).chain(disks).chain(modules);
    files.chain(arguments.measure.results.symbol_file()).collect()
}

fn boot(arguments: &BootArgs, jail: Option<Jail>, mut text: GuestText) -> Result<Ran, Failure> {
    let names = Names::of(&arguments.measure.results, Some(arguments.kernel.clone()))?;
    let core = CoreFile::open(&arguments.measure, || inputs(arguments))?;
    if let Some(target) = RunTarget::find_kernel(&arguments.kernel, arguments.mem)? {
        return run_kernel(arguments, jail, target, text, (names, core));
    }
    if !arguments.module.is_empty() {
        return Err(Error::Config(
            "--module is for multiboot and PVH kernels: give Linux its files with --initrd and --disk".into(),
        )
        .into());
    }
    if let Some(kind) = arguments.machine {
        return Err(Error::Config(format!(
            "--machine is for multiboot and PVH kernels, and {} is Linux, which has a machine of its own: leave out --machine {}",
            printable(&arguments.kernel),
            MachineKind::from(kind)
        ))
        .into());
    }
    if arguments.console == Some(ConsoleArg::Keyboard) {
        return Err(Error::Config(format!(
            "--console keyboard is for multiboot and PVH kernels, and {} is Linux: give --console serial or virtio",
            printable(&arguments.kernel)
        ))
        .into());
    }
    let linux = linux(arguments, terminal::is_keyboard())?;
    if linux.is_linux() {
        screen::check(None, arguments.measure.screen.as_deref())?;
    }
    let mut live = live_cores(arguments);
    let builder = with_options(Machine::linux(linux), arguments).screen_on_terminal(text.is_terminal);
    let builder = builder.core_key(LiveCores::key(live.as_ref()));
    let (builder, trace) = traced(builder, arguments)?;
    let builder = text.after.watch(builder, &text.output);
    let mut machine = builder.output(text.output).input(run::input(None)?).build()?;
    text.after.check(&machine)?;
    // The symbols of a Linux kernel for 64 bits are in its vmlinux.
    let mut server = arguments.gdb.server(&machine, Some(Width::Bits64), Some(&arguments.kernel))?;
    arguments.measure.sample.begin(&mut machine, &[], || Names::of(&arguments.measure.results, None))?;
    let debugger = debugger::of(&mut server).or_else(|| LiveCores::debugger(live.as_mut(), &machine));
    begin(trace.as_ref(), arguments, &mut machine, &[])?;
    enter(jail, arguments, &machine)?;
    let report = terminal::run(
        &mut machine,
        debugger,
        &printable(&arguments.kernel),
        arguments.measure.results.quiet,
    )?;
    trace.map_or(Ok(()), Trace::finish)?;
    if let Some(marker) = arguments.marker.as_deref().filter(|_| !reached_userland(&report)) {
        log::warn!(
            "the console did not show the text of --marker, \"{}\": the boot timeline has no entry for userland",
            printable_text(marker)
        );
    }
    let core = core.map(|core| core.write(&mut machine, &report));
    let names = names.of_linux(arguments.cmdline.as_deref());
    let ran = names.ran(printable(&arguments.kernel), report, machine.memory());
    let checked = text.after.finish(&mut machine, &ran.report)?;
    Ok(Ran { core, checked, debugger: server, ..ran })
}

/// Adds the trace that the user asked for.
fn traced(builder: Builder, arguments: &BootArgs) -> Result<(Builder, Option<Trace>), Failure> {
    let trace = Trace::open(&arguments.step, || inputs(arguments))?;
    Ok((trace.iter().fold(builder, |builder, trace| trace.apply(builder)), trace))
}

/// Prepares the trace of a machine, before it runs. `bases` are the addresses of the parts of the image.
fn begin(
    trace: Option<&Trace>,
    arguments: &BootArgs,
    machine: &mut Machine,
    bases: &[u64],
) -> Result<(), Failure> {
    if let Some(trace) = trace {
        let names = Names::of(&arguments.measure.results, Some(arguments.kernel.clone()))?;
        trace.begin(machine, names, bases)?;
    }
    Ok(())
}

/// Enters the jail, if there is to be one.
///
/// # Errors
/// It is required, and a part is missing.
fn enter(jail: Option<Jail>, arguments: &BootArgs, machine: &Machine) -> Result<(), Error> {
    let Some(jail) = jail else { return Ok(()) };
    let read =
        [arguments.kernel.clone()].into_iter().chain(arguments.measure.results.symbol_file()).collect();
    let any_size = !arguments.disk.is_empty();
    let rights = Rights::of(&arguments.measure, arguments.step.file(), &arguments.gdb, read, any_size)?;
    jail.enter(&rights, Some(machine))
}

/// The cores of the running guest, which the user asks for at the keyboard.
fn live_cores(arguments: &BootArgs) -> Option<LiveCores> {
    let is_stopped = arguments.gdb.is_given() || arguments.step.is_given();
    LiveCores::of(&arguments.measure, is_stopped, || inputs(arguments))
}

/// The builder of a machine with the options that all kernels have in common.
fn with_options(builder: Builder, arguments: &BootArgs) -> Builder {
    let builder = arguments.cpuid.iter().copied().fold(builder, Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let builder = arguments.measure.apply(builder);
    builder
        .processor(arguments.vcpu.map(Into::into))
        .memory(Some(arguments.mem))
        .cpus(arguments.cpus)
        .qemu_exit(matches!(arguments.debug_exit, DebugExitArg::Qemu))
        .timeout(arguments.timeout.0)
        .wall_timeout(arguments.wall_timeout.and_then(|limit| limit.0))
        .output_limit(output_limit(arguments.output_limit, None))
}

/// Runs a multiboot or PVH kernel.
///
/// # Errors
/// An option is for Linux only, a module cannot be read, or the host failed.
fn run_kernel(
    arguments: &BootArgs,
    jail: Option<Jail>,
    target: RunTarget,
    mut text: GuestText,
    (names, core): (Names, Option<CoreFile>),
) -> Result<Ran, Failure> {
    let only_linux = [
        (!arguments.initrd.is_empty(), "--initrd", "give the file as a module (--module FILE)"),
        (arguments.marker.is_some(), "--marker", "leave it out"),
        (arguments.console == Some(ConsoleArg::Virtio), "--console virtio", "leave it out"),
        (matches!(arguments.on_halt, OnHaltArg::Wait), "--on-halt wait", "leave it out"),
        (!matches!(arguments.clock, ClockArg::Auto), "--clock", "leave it out"),
    ];
    if let Some((_, option, step)) = only_linux.into_iter().find(|(given, ..)| *given) {
        let name = &target.name;
        return Err(
            Error::Config(format!("{option} is for Linux, and {name} is another kernel: {step}")).into()
        );
    }
    let modules = modules::read(&arguments.module, arguments.mem)?;
    let image = target.image.with_boot_data(arguments.cmdline.as_deref().unwrap_or_default(), modules)?;
    let bases: Vec<_> = image.ranges().iter().map(|range| range.start).collect();
    let builder = with_options(Machine::builder(image).cpuid(true), arguments);
    let builder = text.after.watch(builder, &text.output).output(text.output);
    let builder = builder.screen_on_terminal(text.is_terminal);
    let disks = boot_files::open_disks(Some(&arguments.kernel), &[], &arguments.disk)?;
    let builder = disks.into_iter().fold(builder, Builder::disk);
    let input_device = arguments.console.map(|console| match console {
        ConsoleArg::Keyboard => InputDevice::Keyboard,
        _ => InputDevice::Serial,
    });
    let builder = builder.machine(arguments.machine.map(Into::into)).keyboard(terminal::is_keyboard);
    let mut live = live_cores(arguments);
    let builder = builder.input_device(input_device).core_key(LiveCores::key(live.as_ref()));
    let (builder, trace) = traced(builder, arguments)?;
    let mut machine = builder.input(run::input(None)?).build().map_err(name_error(&target.name))?;
    screen::check(machine.kind(), arguments.measure.screen.as_deref())?;
    screen::check_input(machine.kind(), input_device.is_some())?;
    text.after.check(&machine)?;
    processor::announce(&machine);
    let symbols = arguments.measure.results.symbol_file();
    let symbols = symbols.as_deref().unwrap_or(&arguments.kernel);
    let mut server =
        arguments.gdb.server(&machine, debugger::width_of(Some(symbols)), Some(&arguments.kernel))?;
    let own_names = || Names::of(&arguments.measure.results, Some(arguments.kernel.clone()));
    arguments.measure.sample.begin(&mut machine, &bases, own_names)?;
    let debugger = debugger::of(&mut server).or_else(|| LiveCores::debugger(live.as_mut(), &machine));
    begin(trace.as_ref(), arguments, &mut machine, &bases)?;
    enter(jail, arguments, &machine)?;
    let report = terminal::run(
        &mut machine,
        debugger,
        &printable(&arguments.kernel),
        arguments.measure.results.quiet,
    )?;
    trace.map_or(Ok(()), Trace::finish)?;
    let core = core.map(|core| core.write(&mut machine, &report));
    let checked = text.after.finish(&mut machine, &report)?;
    Ok(Ran { core, checked, debugger: server, ..names.ran(target.name, report, machine.memory()) })
}

/// Opens the kernel, its initial RAM disk and its disks.
///
/// # Errors
/// One of the files cannot be used.
fn linux(arguments: &BootArgs, keyboard: bool) -> Result<Linux, Error> {
    let linux = Linux::open(&arguments.kernel)?;
    let linux = arguments
        .initrd
        .iter()
        .fold(linux, |linux, path| linux.initrd(Some(path)))
        .command_line(arguments.cmdline.as_deref())
        .marker(arguments.marker.as_deref())
        .console(match arguments.console {
            Some(ConsoleArg::Virtio) => ConsoleKind::Virtio,
            _ => ConsoleKind::Serial,
        })
        .on_halt(match arguments.on_halt {
            OnHaltArg::Exit => OnHalt::Exit,
            OnHaltArg::Wait => OnHalt::Wait,
        })
        .clock(match arguments.clock {
            ClockArg::Auto => ClockKind::Auto,
            ClockArg::Kvm => ClockKind::Kvm,
            ClockArg::Pit => ClockKind::Pit,
        })
        .keyboard(keyboard);
    let disks = boot_files::open_disks(Some(&arguments.kernel), &arguments.initrd, &arguments.disk)?;
    Ok(disks.into_iter().fold(linux, Linux::disk))
}

/// Returns true if the boot timeline has an entry for userland. A full timeline drops only entries of port 0x80.
fn reached_userland(report: &Report) -> bool {
    report.boot.as_ref().is_some_and(|boot| boot.marks.iter().any(|mark| mark.event == Event::Userland))
}
