//! `vmm boot`: Linux, with its console on stdin and stdout, and the rest on stderr.

use crate::args::{BootArgs, ConsoleArg};
use crate::run;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vmm::device::Disk;
use vmm::host::RawTerminal;
use vmm::machine::{ConsoleKind, Linux};
use vmm::{Builder, Error, Machine, Output, Report};

/// Boots the kernel and answers with the exit status.
pub fn main(arguments: &BootArgs) -> u8 {
    run::run_and_report(&arguments.report, |output| boot(arguments, output))
}

fn boot(arguments: &BootArgs, output: Output) -> Result<(String, Report), Error> {
    let keyboard = io::stdin().is_terminal();
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
    let linux = disks.into_iter().fold(linux, Linux::disk);
    let builder = Machine::linux(linux);
    let builder = arguments.cpuid.iter().copied().fold(builder, Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let mut machine = arguments
        .report
        .apply(builder)
        .memory(Some(arguments.mem))
        .cpus(arguments.cpus)
        .timeout(arguments.timeout.0)
        .output(output)
        .output_limit(arguments.output_limit)
        .input(run::input(None)?)
        .build()?;
    // Each key goes to the guest, from now on and until it has ended.
    let raw = match keyboard {
        true => {
            let raw = RawTerminal::enter();
            Some(raw.map_err(|source| Error::Host { operation: "making the terminal raw", source })?)
        }
        false => None,
    };
    let report = machine.run();
    drop(raw);
    Ok((vmm::host::printable(&arguments.kernel), report?))
}

/// The disk that `FILE[,ro]` names. A file that has the whole text as its name is that file.
fn disk(text: &OsStr) -> Result<Disk, Error> {
    let file = text.as_bytes().strip_suffix(b",ro").filter(|_| !Path::new(text).exists());
    match file {
        Some(file) => Disk::open(Path::new(OsStr::from_bytes(file)), true),
        None => Disk::open(Path::new(text), false),
    }
}
