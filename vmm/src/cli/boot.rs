//! `vmm boot`: Linux, with its console on stdin and stdout, and the rest on stderr.

use super::{BootArgs, run};
use std::io::{self, IsTerminal};
use vmm::pc::Linux;
use vmm::{Builder, Error, Machine, Output, RawTerminal, Report};

/// Boots the kernel and answers with the exit status.
pub fn main(arguments: &BootArgs) -> u8 {
    run::run_and_report(arguments.quiet, |output| boot(arguments, output))
}

fn boot(arguments: &BootArgs, output: Output) -> Result<(String, Report), Error> {
    let keyboard = io::stdin().is_terminal();
    let linux = Linux::open(&arguments.kernel)?
        .initrd(arguments.initrd.as_deref())
        .command_line(arguments.cmdline.as_deref())
        .marker(arguments.marker.as_deref())
        .keyboard(keyboard);
    let builder = Machine::linux(linux);
    let builder = arguments.cpuid.iter().copied().fold(builder, Builder::cpuid_override);
    let rules = arguments.msr.iter();
    let builder = rules.fold(builder, |builder, (index, rule)| builder.msr_rule(*index, *rule));
    let machine = builder
        .memory(Some(arguments.mem))
        .cpus(arguments.cpus)
        .timeout(arguments.timeout.0)
        .profile(!arguments.no_profile)
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
    Ok((vmm::boot::printable(&arguments.kernel), report?))
}
