//! Guests of two instructions, which check that a kind of processor runs guests.

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::exit::Stop;
use crate::lab::check::{Check, CheckOutcome};
use crate::machine::{Machine, Processor};
use crate::memory::Gpa;
use crate::x86::modes::Mode;
use std::time::Duration;

/// nop; hlt
const TWO_INSTRUCTIONS: &[u8] = &[0x90, 0xf4];
/// nop; out 0xf4, al. Ring 3 cannot execute hlt.
const TWO_INSTRUCTIONS_IN_RING_3: &[u8] = &[0x90, 0xe6, 0xf4];

/// Runs a guest of two instructions in `mode` on this kind of processor.
pub(super) fn run_two_instructions(mode: Mode, processor: Processor) -> Check {
    let what = format!("{mode} mode");
    let run = || {
        let code = if mode == Mode::User { TWO_INSTRUCTIONS_IN_RING_3 } else { TWO_INSTRUCTIONS };
        let image = Image::flat(code, mode, Gpa(0x1000))?;
        let machine =
            Machine::builder(image).processor(Some(processor)).timeout(Some(Duration::from_secs(5)));
        machine.output(Output::captured().0).input(Input::bytes(b"")).build()?.run()
    };
    match run() {
        Ok(report) if matches!(report.stop, Stop::Halted | Stop::Exited(0)) => {
            Check::of(what, Ok("ran two instructions".into()))
        }
        Ok(report) => {
            if let Some(error) = report.host_failure() {
                return Check::of(what, Err(error));
            }
            let found = format!(
                "a guest of two instructions ended with: {}; {processor} on this host cannot run guests in this mode: look for its \
                 messages (dmesg | grep -i kvm)",
                report.stop
            );
            Check { what, outcome: CheckOutcome::Bad, found }
        }
        Err(error) => Check::of(what, Err(error)),
    }
}

/// Checks that the software processor runs guests in all modes.
pub(super) fn run_without_kvm() -> Check {
    let modes = [Mode::Real, Mode::Protected, Mode::Long, Mode::User];
    let failed = modes.map(|mode| run_two_instructions(mode, Processor::Soft));
    let failed = failed.into_iter().find(|check| check.outcome != CheckOutcome::Good);
    let found = "runs small guests without KVM (--vcpu soft)".into();
    let good = Check { what: String::new(), outcome: CheckOutcome::Good, found };
    Check { what: "software processor".into(), ..failed.unwrap_or(good) }
}
