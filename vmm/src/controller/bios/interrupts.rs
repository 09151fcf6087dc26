//! Interrupts of a machine without interrupt controllers, and the end of a guest that is idle.

use super::call::INTERRUPTS;
use super::{Bios, chips, stubs, time};
use crate::controller::VcpuState;
use crate::controller::vcpu::Activity;
use crate::error::Error;
use crate::exit::{Outcome, Stop};
use crate::host;
use crate::x86::modes::CR0_PE;
use crate::x86::probe::Probe;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Bios {
    /// Handles a HLT of a machine without interrupt controllers: waits for the next interrupt.
    pub(super) fn halted(&mut self, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        if !chips::takes_interrupts(vcpu)? {
            return Ok(Outcome::Unclaimed);
        }
        let linear = vcpu.sregs()?.cs.base.wrapping_add(vcpu.regs()?.rip);
        let is_ours = stubs::contains(linear);
        let is_plain = chips::has_no_handler(vcpu.memory());
        if !is_ours && is_plain && chips::is_idle(vcpu, linear, true) {
            return Ok(Outcome::Unclaimed);
        }
        // Another halt than that of the stub is no wait for a key.
        let awaits_key = is_ours && self.awaits_key.is_some();
        self.next_interrupt(vcpu, awaits_key)
    }

    /// Waits for the next interrupt, or for a key, at most until the end of the run.
    fn next_interrupt(&mut self, vcpu: &mut dyn VcpuState, awaits_key: bool) -> Result<Outcome, Error> {
        loop {
            if self.take_key() {
                chips::interrupt(vcpu, stubs::KEYBOARD)?;
                return Ok(Outcome::Resume);
            }
            let start = awaits_key.then(Instant::now);
            let left = self.chips.until_tick(self.now());
            match left {
                Some(Duration::ZERO) => {
                    self.chips.take_tick(self.now());
                    chips::interrupt(vcpu, stubs::TIMER)?;
                    return Ok(Outcome::Resume);
                }
                // Nothing can wake the guest.
                None if !self.has_keys && !self.input.has_next() && !self.input.may_wait() => {
                    return Ok(Outcome::Unclaimed);
                }
                _ => {}
            }
            let pause = left.unwrap_or(time::TICK);
            if awaits_key && self.input.may_wait() {
                if let Err(error) = self.input.fetch(Some(pause)) {
                    return Ok(Outcome::Stop(Stop::InputFailed(Arc::new(error))));
                }
                if self.input.has_next() {
                    return Ok(Outcome::Resume);
                }
            } else if let Some(keyboard) = &self.keyboard {
                let _ = host::wait_any([Some(host::borrow(keyboard))], Some(pause.min(time::TICK)));
            }
            self.extend_limit(start);
            if let Some(stop) = self.deadline.must_end() {
                return Ok(Outcome::Stop(stop));
            }
        }
    }

    /// Ends a run that can only repeat a halt or a jump to itself. Interrupts a guest that runs, if a tick is due and the machine has
    /// no timer.
    pub(super) fn interrupted(&mut self, vcpu: &mut dyn VcpuState) -> Result<Outcome, Error> {
        let now = self.now();
        let is_due = !self.has_controllers && self.chips.until_tick(now) == Some(Duration::ZERO);
        let sregs = vcpu.sregs()?;
        let linear = sregs.cs.base.wrapping_add(vcpu.regs()?.rip);
        let takes = chips::takes_interrupts(vcpu)?;
        let halted = vcpu.activity() == Activity::Halted;
        if self.has_controllers && !stubs::contains(linear) {
            // The guest does something else meanwhile.
            self.awaits_key = None;
        }
        // In protected mode, a handler may be anywhere.
        let may_leave = match sregs.cr0 & CR0_PE {
            0 => takes && !chips::has_no_handler(vcpu.memory()),
            _ => vcpu.regs()?.rflags & u64::from(INTERRUPTS) != 0,
        };
        let place = Probe::new(&self.memory, sregs).translate_linear(linear);
        if !may_leave && place.is_ok_and(|place| chips::is_idle(vcpu, place.gpa.0, halted)) {
            return Ok(Outcome::Stop(Stop::Halted));
        }
        if is_due && takes {
            self.chips.take_tick(now);
            chips::interrupt(vcpu, stubs::TIMER)?;
        } else if takes && self.take_key() {
            chips::interrupt(vcpu, stubs::KEYBOARD)?;
        }
        Ok(Outcome::Unclaimed)
    }

    /// Interrupts the guest of a machine without interrupt controllers at the end of a call, if its caller takes interrupts: `flags`
    /// are those of the caller. A guest that makes one call after the other is in a stub, with interrupts off, nearly whenever
    /// its time slice ends. The BIOS of a PC has interrupts on during a call.
    pub(super) fn interrupt_after_call(
        &mut self,
        vcpu: &mut dyn VcpuState,
        vector: u8,
        flags: u16,
    ) -> Result<(), Error> {
        let is_call = !matches!(vector, stubs::TIMER | stubs::KEYBOARD | stubs::BOOTSTRAP);
        if self.has_controllers || !is_call || flags & INTERRUPTS == 0 {
            return Ok(());
        }
        let now = self.now();
        let source = if self.chips.until_tick(now) == Some(Duration::ZERO) {
            self.chips.take_tick(now);
            stubs::TIMER
        } else if self.take_key() {
            stubs::KEYBOARD
        } else {
            return Ok(());
        };
        // The handler returns to the instruction after the `out`, which is done.
        let mut regs = vcpu.regs()?;
        regs.rip = stubs::after_out(regs.rip);
        vcpu.set_regs(&regs)?;
        chips::interrupt(vcpu, source)
    }

    /// True if a key interrupts the guest now. A byte of the keyboard interrupts once.
    fn take_key(&mut self) -> bool {
        self.key_waits |= self.keyboard.as_ref().is_some_and(|line| line.read().is_ok());
        let takes = self.key_waits && self.chips.takes_keys();
        self.key_waits &= !takes;
        takes
    }
}
