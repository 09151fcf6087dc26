//! `vmm run`: one guest, its text on stdout, the rest on stderr.

use crate::args::{CpuidArg, RunArgs};
use crate::measure::{Files, MeasureArgs};
use crate::say::{complain, say};
use crate::target::RunTarget;
use crate::{status, summary};
use guest::Map;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use vmm::device::Transport;
use vmm::{Builder, Error, Input, Output, Report};

/// Runs the guest and answers with the exit status.
pub fn main(arguments: &RunArgs) -> u8 {
    run_and_report(&arguments.report, |output| run(arguments, output))
}

/// Runs a guest, whose text goes to standard output, says how it went, and answers with the exit status.
pub fn run_and_report(
    arguments: &MeasureArgs,
    run: impl FnOnce(Output) -> Result<(String, Report), Error>,
) -> u8 {
    let last = Arc::new(AtomicU8::new(b'\n'));
    vmm::host::catch_interrupts();
    let ran = || {
        let output = output(last.clone())?;
        let files = Files::open(arguments)?;
        let (name, report) = run(output)?;
        Ok::<_, status::Failure>((files, name, report))
    };
    let (files, name, report) = match ran() {
        Ok(ran) => ran,
        Err(error) => return complain(&error),
    };
    // A guest's last line may have no end; the report begins on a line of its own all the same.
    if last.load(Ordering::Relaxed) != b'\n' && same_place() {
        say("\n");
    }
    let text = summary::text(&name, &report);
    match text.split_inclusive('\n').next() {
        Some(first) if arguments.quiet => say(first),
        _ => say(&text),
    }
    files.fill(&name, &report, status::of_report(&report))
}

/// Standard output: line by line, but for somebody who watches byte by byte.
fn output(last: Arc<AtomicU8>) -> Result<Output, Error> {
    let stdout = io::stdout();
    let file = stdout.as_fd().try_clone_to_owned();
    let file = file.map_err(|source| Error::Host { operation: "opening standard output", source })?;
    Ok(Output::new(Stdout { file: file.into(), last }, !stdout.is_terminal()))
}

/// The file of `--input`, or standard input.
pub fn input(path: Option<&Path>) -> Result<Input, Error> {
    let file = match path {
        // Opening a pipe would wait for its writer; the guest may never ask for it.
        Some(path) => {
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
                Error::Config(format!("cannot open {} for --input: {error}", vmm::host::printable(path)))
            })?
        }
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            stdin.map_err(|source| Error::Host { operation: "opening standard input", source })?.into()
        }
    };
    Ok(Input::new(file))
}

fn run(arguments: &RunArgs, output: Output) -> Result<(String, Report), Error> {
    let limit = arguments.mem.unwrap_or(vmm::memory::PLAIN_RAM);
    let target = RunTarget::find(&arguments.guest, arguments.mode.map(Into::into), arguments.load_at, limit)?;
    let shown = arguments.cpuid.iter().rev().find(|what| !matches!(what, CpuidArg::Change(_)));
    let changes = arguments.cpuid.iter().filter_map(|what| match what {
        CpuidArg::Change(change) => Some(*change),
        _ => None,
    });
    let cpuid = match (shown, target.embedded) {
        (Some(CpuidArg::None), _) if changes.clone().next().is_some() => {
            return Err(Error::Config(
                "--cpuid none shows nothing that could be changed: leave it out, or the changes".into(),
            ));
        }
        (Some(CpuidArg::None), _) if arguments.cpus.is_some_and(|cpus| cpus > 1) => {
            return Err(Error::Config(
                "several vCPUs find out by CPUID which is which: leave out --cpuid none, or --cpus".into(),
            ));
        }
        (Some(what), _) => *what == CpuidArg::Host,
        (None, Some(guest)) => guest.cpuid,
        (None, None) => true,
    };
    // A driver without its device could only fail: say that it cannot be, instead.
    let needs_window = target.drives_simvirtio().then(Transport::default);
    let memory = match target.map() {
        Some(Map::Plain) => Some(arguments.mem.unwrap_or(vmm::memory::PLAIN_RAM)),
        _ => arguments.mem,
    };
    let builder = changes.fold(target.builder(), Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let builder = match arguments.cpus {
        Some(cpus) => builder.cpus(cpus),
        None => builder,
    };
    let builder = if arguments.kev { builder.kev(true) } else { builder };
    let mut machine = arguments
        .report
        .apply(builder)
        .memory(memory)
        .transport(arguments.transport.map(Into::into).or(needs_window))
        .queue_len(arguments.queue_len.or(target.queue_len()))
        .timeout(arguments.timeout.0)
        .cpuid(cpuid)
        .verify(arguments.verify || target.promises_result())
        .output(output)
        .output_limit(arguments.output_limit)
        .input(input(arguments.input.as_deref())?)
        .build()?;
    Ok((target.name, machine.run()?))
}

/// Whether stdout and stderr are one terminal, file or pipe.
fn same_place() -> bool {
    let identity = |stream: BorrowedFd<'_>| {
        let metadata = File::from(stream.try_clone_to_owned().ok()?).metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let stdout = identity(stdout.as_fd());
    stdout.is_some() && stdout == identity(stderr.as_fd())
}

/// Standard output as a file, which does not retry what a signal interrupts, and the last byte that went
/// there.
struct Stdout {
    file: File,
    last: Arc<AtomicU8>,
}

impl Write for Stdout {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        if let Some(last) = written.checked_sub(1).and_then(|at| data.get(at)) {
            self.last.store(*last, Ordering::Relaxed);
        }
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
