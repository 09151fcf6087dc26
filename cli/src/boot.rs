//! `vmm boot`: boots Linux. Its console uses stdin and stdout, the summary goes to stderr. A multiboot or PVH kernel runs on
//! the machine of `vmm run`.

use crate::args::{BootArgs, ClockArg, ConsoleArg, DebugExitArg, output_limit};
use crate::places::Names;
use crate::run::{GuestText, Ran};
use crate::status::Failure;
use crate::target::{RunTarget, name_error};
use crate::{modules, processor, run, screen, terminal};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use vmm::device::Disk;
use vmm::host::{printable, printable_text};
use vmm::machine::{ClockKind, ConsoleKind, Linux, MachineKind};
use vmm::profile::Event;
use vmm::{Builder, Error, Machine, Report};

/// Boots the kernel. Returns the exit status.
pub fn main(arguments: &BootArgs) -> u8 {
    let inputs = || {
        let disks = arguments.disk.iter().map(|text| disk_file(text).0.into());
        let modules = modules::files(&arguments.module).map(Into::into);
        let kernel = [arguments.kernel.clone()].into_iter();
        let files = kernel.chain(arguments.initrd.clone()).chain(disks).chain(modules);
        files.chain(arguments.measure.symbols.clone()).collect()
    };
    run::run_and_report(&arguments.measure, inputs, |text| boot(arguments, text))
}

fn boot(arguments: &BootArgs, text: GuestText) -> Result<Ran, Failure> {
    let names = Names::of(&arguments.measure, Some(arguments.kernel.clone()))?;
    if let Some(target) = RunTarget::find_kernel(&arguments.kernel, arguments.mem)? {
        return run_kernel(arguments, target, text, names);
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
    let builder = with_options(Machine::linux(linux(arguments, terminal::is_keyboard())?), arguments);
    let mut machine = builder.output(text.output).input(run::input(None)?).build()?;
    screen::check(&machine, arguments.measure.screen.as_deref())?;
    let report = terminal::run(&mut machine)?;
    if let Some(marker) = arguments.marker.as_deref().filter(|_| !reached_userland(&report)) {
        log::warn!(
            "the console did not show the text of --marker, \"{}\": the boot timeline has no entry for userland",
            printable_text(marker)
        );
    }
    let places = names.places(&report, machine.memory());
    Ok(Ran { name: printable(&arguments.kernel), report, places })
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
    target: RunTarget,
    text: GuestText,
    names: Names,
) -> Result<Ran, Failure> {
    let only_linux = [
        (arguments.initrd.is_some(), "--initrd", "give the file as a module (--module FILE)"),
        (arguments.marker.is_some(), "--marker", "leave it out"),
        (matches!(arguments.console, ConsoleArg::Virtio), "--console virtio", "leave it out"),
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
    let builder = with_options(Machine::builder(image).cpuid(true), arguments).output(text.output);
    let builder = builder.screen_on_terminal(text.is_terminal);
    let builder = disks(&arguments.disk)?.into_iter().fold(builder, Builder::disk);
    let builder = builder.machine(arguments.machine.map(Into::into)).keyboard(terminal::is_keyboard());
    let mut machine = builder.input(run::input(None)?).build().map_err(name_error(&target.name))?;
    screen::check(&machine, arguments.measure.screen.as_deref())?;
    processor::announce(&machine);
    let report = terminal::run(&mut machine)?;
    let places = names.places(&report, machine.memory());
    Ok(Ran { name: target.name, report, places })
}

/// Opens the kernel, its initial RAM disk and its disks.
///
/// # Errors
/// One of the files cannot be used.
fn linux(arguments: &BootArgs, keyboard: bool) -> Result<Linux, Error> {
    let linux = Linux::open(&arguments.kernel)?
        .initrd(arguments.initrd.as_deref())
        .command_line(arguments.cmdline.as_deref())
        .marker(arguments.marker.as_deref())
        .console(match arguments.console {
            ConsoleArg::Serial => ConsoleKind::Serial,
            ConsoleArg::Virtio => ConsoleKind::Virtio,
        })
        .clock(match arguments.clock {
            ClockArg::Auto => ClockKind::Auto,
            ClockArg::Kvm => ClockKind::Kvm,
            ClockArg::Pit => ClockKind::Pit,
        })
        .keyboard(keyboard);
    Ok(disks(&arguments.disk)?.into_iter().fold(linux, Linux::disk))
}

/// Returns true if the boot timeline has an entry for userland. A full timeline drops only entries of port 0x80.
fn reached_userland(report: &Report) -> bool {
    report.boot.as_ref().is_some_and(|boot| boot.marks.iter().any(|mark| mark.event == Event::Userland))
}

/// Opens the disks that the options name.
///
/// # Errors
/// A name ends in an unknown option, a disk that a guest may write is given twice, or an image cannot be used.
pub fn disks(texts: &[OsString]) -> Result<Vec<Disk>, Error> {
    check_disks(texts)?;
    texts.iter().map(|text| disk(text)).collect()
}

/// Opens the disk that `FILE[,ro]` names.
fn disk(text: &OsStr) -> Result<Disk, Error> {
    let (file, read_only) = disk_file(text);
    Disk::open(file, read_only)
}

/// Checks the names of all disks.
///
/// # Errors
/// A name ends in an unknown option, or a disk that a guest may write is given twice.
fn check_disks(texts: &[OsString]) -> Result<(), Error> {
    let mut seen: Vec<(u64, u64, bool)> = Vec::new();
    for text in texts {
        let (file, read_only) = disk_file(text);
        let name = file.as_os_str().as_bytes();
        let Ok(metadata) = fs::metadata(file) else {
            let comma = name.iter().rposition(|byte| *byte == b',').and_then(|at| name.split_at_checked(at));
            return match comma.filter(|(file, _)| Path::new(OsStr::from_bytes(file)).is_file()) {
                Some((image, option)) => Err(Error::Config(format!(
                    "{} after the disk image {} is not an option: only ,ro may follow the name",
                    printable_text(&String::from_utf8_lossy(option)),
                    printable(Path::new(OsStr::from_bytes(image))),
                ))),
                // The error of opening the file says more.
                None => Ok(()),
            };
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        let is_same =
            |other: &(u64, u64, bool)| (other.0, other.1) == (device, inode) && !(other.2 && read_only);
        if seen.iter().any(is_same) {
            return Err(Error::Config(format!(
                "the disk image {} is given twice: give it once, or read-only each time (FILE,ro)",
                printable(file)
            )));
        }
        seen.push((device, inode, read_only));
    }
    Ok(())
}

/// Splits `FILE[,ro]` into the file, and true if the disk is read-only. If a file has the whole text as its name, it is
/// that file.
pub fn disk_file(text: &OsStr) -> (&Path, bool) {
    match text.as_bytes().strip_suffix(b",ro").filter(|_| !Path::new(text).exists()) {
        Some(file) => (Path::new(OsStr::from_bytes(file)), true),
        None => (Path::new(text), false),
    }
}
