//! Finds out what a debugger can use on a host: a guest of two instructions for each facility.
//!
//! KVM hosts differ. Some step in ring 0 only, ignore breakpoints or watchpoints, or cannot stop at `int3`. None says so: the
//! call succeeds, and the guest runs on or dies. The software processor has everything.

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::controller::{DebugControl, DebugPoint, ExitController, VcpuState};
use crate::error::Error;
use crate::exit::{DebugStop, Exit, Outcome, PointKind, Stop};
use crate::machine::{Machine, Processor};
use crate::memory::Gpa;
use crate::x86::modes::Mode;
use std::ops::ControlFlow;
use std::time::Duration;

/// The address of the guests.
const START: u64 = 0x1000;
/// The address that a guest writes to.
const DATA: u64 = 0x2000;
/// nop; hlt
const STEP: &[u8] = &[0x90, 0xf4];
/// nop; out 0xf4, al. Ring 3 cannot execute hlt.
const STEP_IN_RING_3: &[u8] = &[0x90, 0xe6, 0xf4];
/// mov [0x2000], al; hlt, in long mode.
const WRITE: &[u8] = &[0x88, 0x04, 0x25, 0x00, 0x20, 0, 0, 0xf4];
/// out 0xe6, al; hlt
const OUTPUT: &[u8] = &[0xe6, 0xe6, 0xf4];
/// int3; hlt
const INT3: &[u8] = &[0xcc, 0xf4];

/// The facilities for a debugger that work with a kind of processor on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugFacilities {
    /// Single steps in real mode.
    pub step_real: bool,
    /// Single steps in protected mode, in ring 0.
    pub step_protected: bool,
    /// Single steps in long mode, in ring 0.
    pub step_long: bool,
    /// Single steps in long mode, in ring 3.
    pub step_user: bool,
    /// Breakpoints at instructions ([`PointKind::Execute`]).
    pub breakpoints: bool,
    /// Watchpoints ([`PointKind::Write`]).
    pub watchpoints: bool,
    /// Stops at `int3` ([`DebugControl::software`]).
    pub software: bool,
    /// Exits at the `out` of a breakpoint in memory ([`Planted::Out`](crate::machine::debug::Planted::Out)), in ring 0.
    pub output: bool,
}

impl DebugFacilities {
    /// The facilities of the software processor.
    const ALL: Self = Self {
        step_real: true,
        step_protected: true,
        step_long: true,
        step_user: true,
        breakpoints: true,
        watchpoints: true,
        software: true,
        output: true,
    };

    /// True if single steps work in this mode.
    pub fn steps_in(&self, mode: Mode) -> bool {
        match mode {
            Mode::Real => self.step_real,
            Mode::Protected => self.step_protected,
            Mode::Long => self.step_long,
            Mode::User => self.step_user,
        }
    }
}

/// Finds out which facilities work. With KVM this runs a guest for each of them, which takes a few milliseconds.
///
/// # Errors
/// KVM cannot be used.
pub fn probe_debugging(processor: Processor) -> Result<DebugFacilities, Error> {
    match processor {
        Processor::Kvm => probe(processor),
        Processor::Soft => Ok(DebugFacilities::ALL),
    }
}

/// Tries each facility.
fn probe(processor: Processor) -> Result<DebugFacilities, Error> {
    let leaves = |mode, code, control, wanted, rips| stops(processor, mode, code, control, wanted, rips);
    let stops = |mode, code, control, wanted, rip| leaves(mode, code, control, Exit::Debug(wanted), [rip; 2]);
    let point = |address, kind| DebugControl {
        points: vec![DebugPoint { address, len: 1, kind }],
        ..DebugControl::default()
    };
    let step = |mode, code| stops(mode, code, DebugControl::step(), DebugStop::Step, START + 1);
    let breakpoint = START + 1;
    Ok(DebugFacilities {
        step_real: step(Mode::Real, STEP)?,
        step_protected: step(Mode::Protected, STEP)?,
        step_long: step(Mode::Long, STEP)?,
        step_user: step(Mode::User, STEP_IN_RING_3)?,
        breakpoints: stops(
            Mode::Long,
            STEP,
            point(breakpoint, PointKind::Execute),
            DebugStop::Breakpoint(breakpoint),
            breakpoint,
        )?,
        watchpoints: stops(
            Mode::Long,
            WRITE,
            point(DATA, PointKind::Write),
            DebugStop::Watchpoint(DATA, PointKind::Write),
            START + 7,
        )?,
        software: stops(
            Mode::Long,
            INT3,
            DebugControl { software: true, ..DebugControl::default() },
            DebugStop::Software,
            START,
        )?,
        // RIP is at the instruction or behind it: that depends on the host.
        output: leaves(
            Mode::Long,
            OUTPUT,
            DebugControl::default(),
            Exit::PioOut { port: 0xe6, size: 1, data: 0 },
            [START, START + 2],
        )?,
    })
}

/// The controller of a probe. It ends the run at the first stop, with [`STOPPED`] if it is the wanted one.
struct Probe {
    control: DebugControl,
    wanted: Exit,
    /// RIP has one of these values.
    rips: [u64; 2],
}

/// The code of a run that stopped as it should.
const STOPPED: u64 = 77;

impl ExitController for Probe {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        if !matches!(exit, Exit::Debug(_)) && *exit != self.wanted {
            return Outcome::Unclaimed;
        }
        let is_there = vcpu.regs().is_ok_and(|regs| self.rips.contains(&regs.rip));
        Outcome::Stop(Stop::Exited(if *exit == self.wanted && is_there { STOPPED } else { 0 }))
    }

    fn begin(&mut self, vcpu: &mut dyn VcpuState) -> ControlFlow<Stop> {
        match vcpu.set_debug(&self.control) {
            Ok(()) => ControlFlow::Continue(()),
            // The host does not have the facility.
            Err(_) => ControlFlow::Break(Stop::Exited(0)),
        }
    }
}

/// True if the guest stops as it should, with one of these values of RIP.
fn stops(
    processor: Processor,
    mode: Mode,
    code: &'static [u8],
    control: DebugControl,
    wanted: Exit,
    rips: [u64; 2],
) -> Result<bool, Error> {
    let image = Image::flat(code, mode, Gpa(START))?;
    let machine = Machine::builder(image)
        .processor(Some(processor))
        .timeout(Some(Duration::from_secs(2)))
        .output(Output::captured().0)
        .input(Input::bytes(b""))
        .controller(move |_| Probe { control: control.clone(), wanted, rips });
    let report = machine.build()?.run()?;
    match report.host_failure() {
        // KVM_RUN may fail because of the probe.
        Some(_) => Ok(false),
        None => Ok(matches!(report.stop, Stop::Exited(STOPPED))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_software_processor_has_every_facility() {
        assert_eq!(probe(Processor::Soft).unwrap(), DebugFacilities::ALL);
    }
}
