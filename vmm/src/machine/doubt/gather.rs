//! Gathers what a run left behind, and looks for doubts in it.

use super::{Doubt, Ended, Remains, ends_inside, missing_handler};
use crate::boot::Image;
use crate::error::Error;
use crate::exit::Stop;
use crate::machine::Machine;
use crate::machine::background::Background;
use crate::machine::processors::MachineVcpu;
use crate::machine::totals::Totals;
use crate::machine::trap_vectors::Trap;
use crate::x86::modes::Mode;
use crate::x86::probe::Probe;

/// The first byte of `int n`.
const INT: u8 = 0xcd;
/// RFLAGS: interrupts are on.
const INTERRUPTS_ON: u64 = 1 << 9;

/// The devices with which the guest did something.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct UsedDevices {
    pub(in crate::machine) simvirtio: bool,
    /// The text screen of a PC.
    pub(in crate::machine) screen: bool,
}

impl Machine {
    /// The doubts about a run that ended with `stop`. `stops` has the stop of each vCPU, and `trap` a
    /// call or a return that led to one of the machine's own vectors. Empty for Linux.
    ///
    /// # Errors
    /// The kernel refused.
    pub(in crate::machine) fn doubts(
        &mut self,
        stop: &Stop,
        stops: &[Stop],
        totals: &Totals,
        used: UsedDevices,
        trap: Option<Trap>,
    ) -> Result<Vec<Doubt>, Error> {
        let Some(image) = self.restore.as_ref().map(|restore| restore.image()) else { return Ok(Vec::new()) };
        if !matches!(stop, Stop::Halted | Stop::Exited(0)) {
            return Ok(Vec::new());
        }
        let calls = image.mode() == Mode::Real
            && !image.loads_itself()
            && image.contents().any(|(_, bytes)| bytes.contains(&INT));
        let ended = |stop: &Stop| stop.parks() || matches!(stop, Stop::Exited(_));
        let called = trap.and_then(|trap| match trap {
            Trap::Call(vector) => Some(vector),
            Trap::Return => None,
        });
        let mut vcpus = Vec::new();
        let (mut missing, mut waits, mut stacks) = (called, false, Vec::new());
        let may_be_unstarted = stops.len() > 1 && matches!(self.background, Background::Classic(_));
        for (vcpu, stop) in self.processors.iter_mut().zip(stops).filter(|(_, stop)| ended(stop)) {
            // The guest starts the other vCPUs of a PC, in code that it has put below 1 MiB, or not at all.
            if may_be_unstarted && vcpu.id() != 0 {
                continue;
            }
            waits |= matches!(stop, Stop::Halted) && vcpu.regs()?.rflags & INTERRUPTS_ON != 0;
            vcpus.extend(outside(vcpu, image)?);
            stacks.push(vcpu.regs()?.rsp);
            if calls && missing.is_none() {
                missing = missing_handler(image, &self.memory, vcpu.sregs()?.ss.base, vcpu.regs()?.rsp);
            }
        }
        let remains = Remains {
            stop,
            image,
            memory: &self.memory,
            result_place: self.result_place,
            vcpus: &vcpus,
            missing_handler: missing,
            entry_returned: trap == Some(Trap::Return),
            waits_for_interrupt: waits,
            printed: self.output.printed(),
            is_readable: self.output.printed_text() || used.screen,
            failed_calls: totals.failed_calls,
            stacks: &stacks,
            open_bus: &totals.open_bus,
            loses_stores: self.loses_stores,
            profile: totals.profile.as_ref(),
            has_screen: self.screen.is_some(),
            used_devices: used.simvirtio || used.screen,
        };
        Ok(remains.doubts())
    }
}

/// The state of a vCPU, unless its instruction pointer is plainly in the image. The address is first taken for a physical
/// one, because that saves a call to the kernel after most runs.
fn outside(vcpu: &mut dyn MachineVcpu, image: &Image) -> Result<Option<Ended>, Error> {
    let rip = vcpu.regs()?.rip;
    if ends_inside(&image.code_ranges(), Some(rip)) {
        return Ok(None);
    }
    let sregs = vcpu.sregs()?;
    let probe = Probe::new(vcpu.memory().clone(), sregs);
    let gpa = probe.translate_linear(probe.linear(sregs.cs.base, rip)).ok().map(|place| place.gpa.0);
    Ok(Some(Ended { location: vcpu.location(false)?, gpa }))
}
