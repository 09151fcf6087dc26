//! The processors of a machine: vCPUs of KVM, or software processors.

use crate::controller::VcpuState;
use crate::controller::vcpu::Location;
use crate::error::Error;
use crate::kvm::counters::KvmCounters;
use crate::kvm::vcpu::KvmVcpu;
use crate::kvm::vm::Vm;
use crate::memory::Gpa;
use crate::soft;
use crate::soft::vcpu::SoftVcpu;
use crate::x86::cpuid;
use crate::x86::modes::{Start, VcpuIndex};
use crate::x86::registers::CpuidEntry;
use std::fmt;

/// The kind of processor that runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// The host's processor, through KVM.
    Kvm,
    /// The processor in software, which needs no KVM. It is for small guests.
    Soft,
}

impl Processor {
    /// The name of the vendor that CPUID shows on this kind of processor on this host. `None` if the host has none of them.
    pub fn vendor(self) -> Option<[u8; 12]> {
        self.leaf(0).as_ref().map(cpuid::vendor)
    }

    /// The number of bits of a guest physical address on this host.
    pub(super) fn physical_bits(self) -> u32 {
        cpuid::physical_bits(self.leaf(cpuid::ADDRESS_SIZES).as_ref())
    }

    /// A CPUID leaf of this kind of processor on this host.
    fn leaf(self, function: u32) -> Option<CpuidEntry> {
        match self {
            Self::Kvm => cpuid::host_leaf(function),
            Self::Soft => soft::cpuid::supported().into_iter().find(|leaf| leaf.function == function),
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Soft => "the software processor",
        })
    }
}

/// The vCPUs of a machine. All are of one kind.
#[derive(Debug)]
pub(super) enum Processors {
    Kvm {
        // The vCPUs are dropped before the VM.
        vcpus: Vec<KvmVcpu>,
        vm: Vm,
    },
    Soft(Vec<SoftVcpu>),
}

impl Processors {
    /// The kind of the vCPUs.
    pub(super) fn kind(&self) -> Processor {
        match self {
            Self::Kvm { .. } => Processor::Kvm,
            Self::Soft(_) => Processor::Soft,
        }
    }

    /// The virtual machine. `None` without KVM.
    pub(super) fn vm(&self) -> Option<&Vm> {
        match self {
            Self::Kvm { vm, .. } => Some(vm),
            Self::Soft(_) => None,
        }
    }

    /// The number of vCPUs.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Kvm { vcpus, .. } => vcpus.len(),
            Self::Soft(vcpus) => vcpus.len(),
        }
    }

    /// The vCPU at `index`.
    pub(super) fn get(&self, index: usize) -> Option<&dyn MachineVcpu> {
        match self {
            Self::Kvm { vcpus, .. } => vcpus.get(index).map(|vcpu| vcpu as _),
            Self::Soft(vcpus) => vcpus.get(index).map(|vcpu| vcpu as _),
        }
    }

    /// The vCPU at `index`.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut dyn MachineVcpu> {
        self.iter_mut().nth(index)
    }

    /// The vCPUs, in their order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut dyn MachineVcpu> {
        let (kvm, soft): (&mut [KvmVcpu], &mut [SoftVcpu]) = match self {
            Self::Kvm { vcpus, .. } => (vcpus, &mut []),
            Self::Soft(vcpus) => (&mut [], vcpus),
        };
        let kvm = kvm.iter_mut().map(|vcpu| vcpu as &mut dyn MachineVcpu);
        kvm.chain(soft.iter_mut().map(|vcpu| vcpu as &mut dyn MachineVcpu))
    }

    /// The frequency of the guest's time-stamp counter, in kHz. `None` if KVM does not know it, and without KVM.
    pub(super) fn tsc_khz(&self) -> Option<u32> {
        match self {
            Self::Kvm { vcpus, .. } => vcpus.first().and_then(KvmVcpu::tsc_khz),
            Self::Soft(_) => None,
        }
    }
}

/// The operations of a machine on one of its vCPUs, between two runs.
pub(super) trait MachineVcpu: VcpuState {
    /// Sets the registers of an image's start, and remembers them for [`restore`](Self::restore).
    ///
    /// # Errors
    /// The kernel refused.
    fn set_start(&mut self, start: &Start, tables: Gpa, index: VcpuIndex) -> Result<(), Error>;

    /// Completes or forgets the access of the last exit, so that it does not change registers that are set until the next
    /// entry.
    ///
    /// # Errors
    /// KVM failed.
    fn complete_access(&mut self) -> Result<(), Error>;

    /// Puts the vCPU back to its start.
    ///
    /// # Errors
    /// The kernel refused, or the vCPU was started for Linux.
    fn restore(&mut self) -> Result<(), Error>;

    /// The location in the guest's code. Set `after_shutdown` after a triple fault.
    ///
    /// # Errors
    /// The kernel refused.
    fn location(&mut self, after_shutdown: bool) -> Result<Location, Error>;

    /// The base of SS and RSP at the start. `None` for a vCPU that starts Linux.
    fn start_of_stack(&self) -> Option<(u64, u64)>;

    /// True if the vCPU waits for another vCPU to start it.
    fn is_unstarted(&self) -> bool;

    /// KVM's own counters. `None` if there are none.
    fn counters(&self) -> Option<KvmCounters>;

    /// The software processor, if it is one.
    fn soft(&self) -> Option<&SoftVcpu> {
        None
    }
}

impl MachineVcpu for KvmVcpu {
    fn set_start(&mut self, start: &Start, tables: Gpa, index: VcpuIndex) -> Result<(), Error> {
        self.set_start(start, tables, index)
    }
    fn complete_access(&mut self) -> Result<(), Error> {
        self.complete_access()
    }
    fn restore(&mut self) -> Result<(), Error> {
        self.restore()?;
        self.debug_again()
    }
    fn location(&mut self, after_shutdown: bool) -> Result<Location, Error> {
        self.location(after_shutdown)
    }
    fn start_of_stack(&self) -> Option<(u64, u64)> {
        self.start_of_stack()
    }
    fn is_unstarted(&self) -> bool {
        self.is_unstarted()
    }
    fn counters(&self) -> Option<KvmCounters> {
        self.counters().ok()
    }
}

impl MachineVcpu for SoftVcpu {
    fn set_start(&mut self, start: &Start, tables: Gpa, index: VcpuIndex) -> Result<(), Error> {
        self.set_start(start, tables, index);
        Ok(())
    }
    fn complete_access(&mut self) -> Result<(), Error> {
        self.forget_exit();
        Ok(())
    }
    fn restore(&mut self) -> Result<(), Error> {
        self.restore();
        Ok(())
    }
    fn location(&mut self, _: bool) -> Result<Location, Error> {
        Ok(SoftVcpu::location(self))
    }
    fn start_of_stack(&self) -> Option<(u64, u64)> {
        self.start_of_stack()
    }
    fn is_unstarted(&self) -> bool {
        false
    }
    fn counters(&self) -> Option<KvmCounters> {
        None
    }
    fn soft(&self) -> Option<&SoftVcpu> {
        Some(self)
    }
}
