//! The host's terminal as the keyboard of a PC.

use crate::progress::Progress;
use std::io::{self, IsTerminal};
use vmm::host::RawTerminal;
use vmm::machine::MachineKind;
use vmm::machine::debug::Debugger;
use vmm::{Error, Machine, Report};

/// Returns true if standard input is a terminal.
pub fn is_keyboard() -> bool {
    io::stdin().is_terminal()
}

/// Runs a machine, under a debugger if there is one. The terminal, if there is one, is the keyboard of a PC: it is in raw mode,
/// so that each key goes to the guest, and is restored before the summary is printed. Until the guest prints, stderr shows how long
/// `name` runs, unless the run is `quiet`.
///
/// # Errors
/// The terminal cannot be made raw, or the host failed before the guest ran.
pub fn run(
    machine: &mut Machine,
    debugger: Option<&mut dyn Debugger>,
    name: &str,
    quiet: bool,
) -> Result<Report, Error> {
    let is_pc = machine.kind() != Some(MachineKind::Bare);
    let raw = match is_pc && is_keyboard() {
        true => {
            let raw = RawTerminal::enter();
            Some(raw.map_err(|source| Error::Host { operation: "making the terminal raw", source })?)
        }
        false => None,
    };
    let quiet = quiet || debugger.is_some();
    let progress = Progress::begin(quiet, || format!("{name} runs, and has printed nothing"));
    let report = match debugger {
        Some(debugger) => machine.run_debugged(debugger),
        None => machine.run(),
    };
    drop(progress);
    drop(raw);
    report
}
