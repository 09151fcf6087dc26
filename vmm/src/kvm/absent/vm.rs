//! `/dev/kvm` and its virtual machines.

use super::irqchip::Irqchip;
use super::vcpu::KvmVcpu;
use crate::error::Error;
use crate::host::EventFd;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::registers::CpuidEntry;

/// `/dev/kvm`.
#[derive(Debug)]
pub(crate) enum System {}

/// A virtual machine.
#[derive(Debug)]
pub(crate) enum Vm {}

impl System {
    /// # Errors
    /// Always.
    pub(crate) fn create_vm(_tss: u64) -> Result<(Self, Vm), Error> {
        Err(Error::NoKvm)
    }

    /// # Errors
    /// Always.
    pub(crate) fn open() -> Result<Self, Error> {
        Err(Error::NoKvm)
    }

    pub(crate) fn has_tsc_deadline(&self) -> bool {
        match *self {}
    }

    pub(crate) fn require_classic(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, Error> {
        match *self {}
    }
}

impl Vm {
    pub(crate) fn has_read_only_slots(&self) -> bool {
        match *self {}
    }

    pub(crate) fn set_identity_map(&self, _address: u64) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn create_vcpu(&self, _id: u32, _memory: &GuestMemory) -> Result<KvmVcpu, Error> {
        match *self {}
    }

    pub(crate) fn add_memory(&self, _memory: &GuestMemory) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn log_changes(&self, _memory: &GuestMemory) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn changed_pages(&self, _memory: &GuestMemory) -> Result<Vec<Gpa>, Error> {
        match *self {}
    }

    pub(crate) fn filter_msrs(&self, _filtered: &[u32]) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn connect_doorbell(&self, _bell: &EventFd) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn coalesce_tx_head(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn create_pit(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn mask_legacy_controllers(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn connect_interrupt(&self, _line: &EventFd, _irq: u32) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn create_irqchip(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn irqchip(&self) -> Result<Irqchip, Error> {
        match *self {}
    }

    pub(crate) fn set_irqchip(&self, _state: &Irqchip) -> Result<(), Error> {
        match *self {}
    }
}
