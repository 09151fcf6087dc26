//! `vmm boot`: boots Linux. Its console uses stdin and stdout, the summary goes to stderr.

use crate::args::{BootArgs, ConsoleArg, output_limit};
use crate::run;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vmm::device::Disk;
use vmm::host::{RawTerminal, printable, printable_text};
use vmm::machine::{ConsoleKind, Linux};
use vmm::profile::Event;
use vmm::{Builder, Error, Machine, Output, Report};

/// Boots the kernel. Returns the exit status.
pub fn main(arguments: &BootArgs) -> u8 {
    let inputs = || {
        let disks = arguments.disk.iter().map(|text| disk_file(text).0.into());
        [arguments.kernel.clone()].into_iter().chain(arguments.initrd.clone()).chain(disks).collect()
    };
    run::run_and_report(&arguments.measure, inputs, |text| boot(arguments, text.output))
}

fn boot(arguments: &BootArgs, output: Output) -> Result<(String, Report), Error> {
    let keyboard = io::stdin().is_terminal();
    let builder = Machine::linux(linux(arguments, keyboard)?);
    let builder = arguments.cpuid.iter().copied().fold(builder, Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let mut machine = arguments
        .measure
        .apply(builder)
        .memory(Some(arguments.mem))
        .cpus(arguments.cpus)
        .timeout(arguments.timeout.0)
        .wall_timeout(arguments.wall_timeout.and_then(|limit| limit.0))
        .output(output)
        .output_limit(output_limit(arguments.output_limit, None))
        .input(run::input(None)?)
        .build()?;
    // In raw mode each key goes to the guest. The terminal is restored before the summary is printed.
    let raw = match keyboard {
        true => {
            let raw = RawTerminal::enter();
            Some(raw.map_err(|source| Error::Host { operation: "making the terminal raw", source })?)
        }
        false => None,
    };
    let report = machine.run();
    drop(raw);
    let report = report?;
    if let Some(marker) = arguments.marker.as_deref().filter(|_| !reached_userland(&report)) {
        log::warn!(
            "the console did not show the text of --marker, \"{}\": the boot timeline has no entry for userland",
            printable_text(marker)
        );
    }
    Ok((printable(&arguments.kernel), report))
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
        .keyboard(keyboard);
    let disks = arguments.disk.iter().map(|text| disk(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(disks.into_iter().fold(linux, Linux::disk))
}

/// Returns true if the boot timeline has an entry for userland. A full timeline drops only entries of port 0x80.
fn reached_userland(report: &Report) -> bool {
    report.boot.as_ref().is_some_and(|boot| boot.marks.iter().any(|mark| mark.event == Event::Userland))
}

/// Opens the disk that `FILE[,ro]` names.
fn disk(text: &OsStr) -> Result<Disk, Error> {
    let (file, read_only) = disk_file(text);
    Disk::open(file, read_only)
}

/// Splits `FILE[,ro]` into the file, and true if the disk is read-only. If a file has the whole text as its name, it is
/// that file.
fn disk_file(text: &OsStr) -> (&Path, bool) {
    match text.as_bytes().strip_suffix(b",ro").filter(|_| !Path::new(text).exists()) {
        Some(file) => (Path::new(OsStr::from_bytes(file)), true),
        None => (Path::new(text), false),
    }
}
