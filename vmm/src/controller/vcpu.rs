//! The vCPU, as controllers and the run loop see it.

use super::debug::DebugControl;
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::{self, Mode};
use crate::x86::probe::Probe;
use crate::x86::registers::{FxImage, Regs, Sregs};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The vCPU whose exit a controller handles: its registers and the guest's memory.
pub trait VcpuState {
    /// The vCPU's number, which is also its APIC id.
    fn id(&self) -> u32;

    /// The general registers, RIP and RFLAGS. It depends on the host if RIP is at the instruction that caused the exit, or
    /// already after it.
    ///
    /// # Errors
    /// The kernel refused.
    fn regs(&mut self) -> Result<Regs, Error>;

    /// Changes the general registers. Do not change RIP: KVM completes the instruction that caused the exit when the guest
    /// continues.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error>;

    /// The segment and control registers.
    ///
    /// # Errors
    /// The kernel refused.
    fn sregs(&mut self) -> Result<Sregs, Error>;

    /// Sets the segment and control registers.
    ///
    /// # Errors
    /// The kernel refused: [`Error::RefusedRegisters`] if the registers break rules of the processor.
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error>;

    /// KVM's value of a model-specific register; `None` if KVM does not have the register.
    fn msr(&mut self, index: u32) -> Option<u64>;

    /// Sets KVM's value of a model-specific register. Returns true if KVM accepts it.
    fn set_msr(&mut self, index: u32, data: u64) -> bool;

    /// The x87 and SSE registers. `None` if the vCPU does not show them.
    fn fpu(&mut self) -> Option<FxImage> {
        None
    }

    /// Sets the x87 and SSE registers. Returns true if the vCPU accepts them.
    fn set_fpu(&mut self, _image: &FxImage) -> bool {
        false
    }

    /// The activity of the vCPU. Without KVM it is always running.
    fn activity(&mut self) -> Activity {
        Activity::Running
    }

    /// True if the next instruction completes before an interrupt is taken, because it follows a load of SS or an STI (Intel
    /// SDM volume 3, section 7.8.3).
    fn is_in_shadow(&mut self) -> bool {
        false
    }

    /// True if a non-maskable interrupt is on its way to the vCPU. Without KVM there are none.
    fn nmi_is_pending(&mut self) -> bool {
        false
    }

    /// Translates a linear address with KVM (KVM_TRANSLATE). Tests compare it with [`Probe::translate_linear`].
    fn translate(&mut self, _linear: u64) -> KvmTranslation {
        KvmTranslation::Unavailable
    }

    /// Sets the reasons for which the vCPU stops with [`Exit::Debug`]. They hold until the next call, also after a reset.
    ///
    /// # Errors
    /// The kernel refused, or this kind of vCPU cannot stop for one of the reasons. It then keeps the earlier ones.
    fn set_debug(&mut self, _control: &DebugControl) -> Result<(), Error> {
        Err(Error::Config("this vCPU cannot be debugged".into()))
    }

    /// The guest's memory, by physical address.
    fn memory(&self) -> &GuestMemory;

    /// The guest's memory, by guest virtual address, as this vCPU sees it now.
    ///
    /// # Errors
    /// The kernel refused.
    fn probe(&mut self) -> Result<Probe, Error> {
        let sregs = self.sregs()?;
        Ok(Probe::new(self.memory().clone(), sregs))
    }
}

/// The activity of a vCPU (KVM_GET_MP_STATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// It waits for an interrupt after a HLT. Only with in-kernel interrupt controllers.
    Halted,
    /// It waits for another vCPU to start it.
    NotStarted,
}

impl Activity {
    /// True if the vCPU executes no instructions.
    pub fn is_idle(self) -> bool {
        self != Self::Running
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Halted => "halted",
            Self::NotStarted => "not started",
        })
    }
}

/// KVM's translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmTranslation {
    /// KVM or this vCPU cannot translate addresses.
    Unavailable,
    /// The address is not mapped.
    NotMapped,
    /// The address maps to this guest physical address.
    Mapped(Gpa),
}

/// The answer to the last exit, with which the guest continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// No value. An unclaimed read returns all ones.
    Resume,
    /// The value that the guest reads.
    Value(u64),
    /// #GP for an access to an MSR. For any other exit this is the same as [`Entry::Resume`].
    Fault,
}

/// A vCPU that can run a guest until its next exit: that of KVM, or a scripted one in tests.
pub trait Vcpu: VcpuState {
    /// Enters the guest with `entry` as the answer to the last exit. Returns the next exit.
    ///
    /// # Errors
    /// The host cannot run the vCPU.
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error>;

    /// The guest's RIP at the last exit, if it is known without cost.
    fn rip(&mut self) -> Option<u64> {
        None
    }
}

/// The location of a vCPU in the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// The vCPU is at this address.
    At {
        /// The mode of the vCPU.
        mode: Mode,
        /// The code segment's selector.
        cs: u16,
        /// The instruction pointer.
        rip: u64,
    },
    /// The vCPU has not run: another vCPU starts it with a start-up interrupt, and has not done so.
    NotStarted,
    /// The location is lost. On AMD hosts KVM resets the vCPU at a triple fault.
    Reset,
}

impl Location {
    /// The location of a vCPU with these registers.
    pub fn of(sregs: &Sregs, rip: u64) -> Self {
        let cs = sregs.cs.selector;
        let long = sregs.efer & modes::EFER_LMA != 0 && sregs.cs.l == 1;
        let mode = match (sregs.cr0 & modes::CR0_PE != 0, long) {
            (false, _) => Mode::Real,
            (true, false) => Mode::Protected,
            (true, true) if cs & 3 == 3 => Mode::User,
            (true, true) => Mode::Long,
        };
        Self::At { mode, cs, rip }
    }

    /// True if the vCPU is at an address in none of the ranges. False if its location is not known, or if there are no ranges.
    pub fn is_outside(&self, image: &[Range<u64>]) -> bool {
        match *self {
            Self::At { mode, cs, rip } if !image.is_empty() => {
                let base = if mode == Mode::Real { u64::from(cs) << 4 } else { 0 };
                let place = base.saturating_add(rip);
                !image.iter().any(|range| range.contains(&place))
            }
            Self::At { .. } | Self::Reset | Self::NotStarted => false,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::At { mode: Mode::Real, cs, rip } => write!(f, "in real mode at {cs:04x}:{rip:04x}"),
            Self::At { mode: Mode::Protected, cs, rip } => {
                write!(f, "in protected mode at {cs:04x}:{rip:08x}")
            }
            Self::At { mode: Mode::Long, rip, .. } => write!(f, "in long mode at {rip:#x}"),
            Self::At { mode: Mode::User, rip, .. } => write!(f, "in long mode, ring 3, at {rip:#x}"),
            Self::NotStarted => f.write_str("waiting for another vCPU to start it"),
            Self::Reset => {
                f.write_str("at an unknown address, because this host resets a vCPU that triple-faults")
            }
        }
    }
}

/// A vCPU for tests without KVM. It cannot run: its registers, MSRs and memory have the values that the test sets.
#[derive(Clone, Debug)]
pub struct FakeVcpu {
    /// The vCPU's number.
    pub id: u32,
    /// The general registers.
    pub regs: Regs,
    /// The segment and control registers.
    pub sregs: Sregs,
    /// The model-specific registers that exist, by number.
    pub msrs: BTreeMap<u32, u64>,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The activity.
    pub activity: Activity,
}

/// vCPU 0 with all registers zero, no MSRs, and no memory.
impl Default for FakeVcpu {
    fn default() -> Self {
        Self {
            id: 0,
            regs: Regs::default(),
            sregs: Sregs::default(),
            msrs: BTreeMap::new(),
            memory: GuestMemory::none(),
            activity: Activity::Running,
        }
    }
}

impl VcpuState for FakeVcpu {
    fn id(&self) -> u32 {
        self.id
    }
    fn regs(&mut self) -> Result<Regs, Error> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&mut self) -> Result<Sregs, Error> {
        Ok(self.sregs)
    }
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
        self.sregs = *sregs;
        Ok(())
    }
    fn msr(&mut self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied()
    }
    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        self.msrs.get_mut(&index).map(|value| *value = data).is_some()
    }
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
    fn activity(&mut self) -> Activity {
        self.activity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_the_mode_and_the_address() {
        let at = |mode, cs, rip| Location::At { mode, cs, rip }.to_string();
        assert_eq!(at(Mode::Real, 0, 0x1003), "in real mode at 0000:1003");
        assert_eq!(at(Mode::Protected, 8, 0x1001), "in protected mode at 0008:00001001");
        assert_eq!(at(Mode::Long, 8, 0x1001), "in long mode at 0x1001");
        assert_eq!(at(Mode::User, 0x1b, 0x1001), "in long mode, ring 3, at 0x1001");
    }
}
