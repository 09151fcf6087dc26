//! The vCPU as controllers and the loop see it.

use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::Mode;
use crate::x86::probe::Probe;
use kvm_bindings::{kvm_regs, kvm_sregs};
use std::collections::BTreeMap;
use std::fmt;

/// What a controller sees of the vCPU whose exit it handles.
pub trait VcpuState {
    /// The vCPU's number, which is also its APIC id.
    fn id(&self) -> u32;

    /// The general registers, RIP and RFLAGS. Where they stand in the instruction that made the exit depends
    /// on the host: RIP may be at it or behind it.
    ///
    /// # Errors
    /// The kernel refused.
    fn regs(&mut self) -> Result<kvm_regs, Error>;

    /// Changes the general registers. RIP is best left as it is: the instruction that made the exit is
    /// completed when the guest goes on.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error>;

    /// The segment and control registers.
    ///
    /// # Errors
    /// The kernel refused.
    fn sregs(&mut self) -> Result<kvm_sregs, Error>;

    /// Sets the segment and control registers.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), Error>;

    /// The value that KVM has for a model-specific register; `None` where it has none.
    fn msr(&mut self, index: u32) -> Option<u64>;

    /// Gives KVM a value for a model-specific register. Returns whether it took it.
    fn set_msr(&mut self, index: u32, data: u64) -> bool;

    /// Where the processor itself says that a linear address leads, if that can be asked (KVM_TRANSLATE): a
    /// guest physical address, or nowhere. A second opinion on [`Probe::translate_linear`].
    fn translate(&mut self, _linear: u64) -> Option<Option<Gpa>> {
        None
    }

    /// The guest's memory, by physical address.
    fn memory(&self) -> &GuestMemory;

    /// The guest's memory, by virtual address, as this vCPU sees it now.
    ///
    /// # Errors
    /// The kernel refused.
    fn probe(&mut self) -> Result<Probe, Error> {
        let sregs = self.sregs()?;
        Ok(Probe::new(self.memory().clone(), sregs))
    }
}

/// With what the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing to tell it. A read that nobody answered gives all ones.
    Resume,
    /// The value that it reads.
    Value(u64),
    /// #GP, for its access to an MSR. Any other exit goes on as with [`Entry::Resume`].
    Fault,
}

/// Something that runs a guest until its next exit: KVM's vCPU, or a script in a test.
pub trait Vcpu: VcpuState {
    /// Goes on with `entry` as the answer to the last exit, until the next one.
    ///
    /// # Errors
    /// The host cannot run the vCPU.
    fn enter(&mut self, entry: Entry) -> Result<(Exit, Arrival), Error>;

    /// The guest's RIP at the last exit, where it is known at no cost.
    fn rip(&mut self) -> Option<u64> {
        None
    }
}

/// Where a vCPU is in its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this place in the guest's code.
    At {
        /// The mode that the CPU is in.
        mode: Mode,
        /// The code segment's selector.
        cs: u16,
        /// The instruction pointer.
        rip: u64,
    },
    /// Lost: on AMD hosts KVM resets the vCPU at a triple fault.
    Reset,
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
            Self::Reset => {
                f.write_str("at an unknown place, since this host resets a CPU that triple-faults")
            }
        }
    }
}

/// A vCPU that stands still, to try controllers without KVM: registers, MSRs and memory as they are set.
#[derive(Clone, Debug)]
pub struct FakeVcpu {
    /// Its number.
    pub id: u32,
    /// Its general registers.
    pub regs: kvm_regs,
    /// Its segment and control registers.
    pub sregs: kvm_sregs,
    /// The model-specific registers that it has.
    pub msrs: BTreeMap<u32, u64>,
    /// The guest's memory.
    pub memory: GuestMemory,
}

/// Number 0, all registers zero, and no memory.
impl Default for FakeVcpu {
    fn default() -> Self {
        Self {
            id: 0,
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            msrs: BTreeMap::new(),
            memory: GuestMemory::none(),
        }
    }
}

impl VcpuState for FakeVcpu {
    fn id(&self) -> u32 {
        self.id
    }
    fn regs(&mut self) -> Result<kvm_regs, Error> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), Error> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&mut self) -> Result<kvm_sregs, Error> {
        Ok(self.sregs)
    }
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), Error> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_reads_as_one_would_say_it() {
        let at = |mode, cs, rip| Location::At { mode, cs, rip }.to_string();
        assert_eq!(at(Mode::Real, 0, 0x1003), "in real mode at 0000:1003");
        assert_eq!(at(Mode::Protected, 8, 0x1001), "in protected mode at 0008:00001001");
        assert_eq!(at(Mode::Long, 8, 0x1001), "in long mode at 0x1001");
        assert_eq!(at(Mode::User, 0x1b, 0x1001), "in long mode, ring 3, at 0x1001");
    }
}
