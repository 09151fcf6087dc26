//! The vCPU of KVM.

use super::counters::KvmCounters;
use crate::controller::VcpuState;
use crate::controller::vcpu::{Entry, Location, Vcpu};
use crate::error::Error;
use crate::exit::{Arrival, Exit};
use crate::host::Kicker;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::{Start, VcpuIndex};
use crate::x86::registers::{CpuidEntry, Regs, Sregs};
use std::io;
use std::sync::Mutex;

/// A vCPU of KVM.
#[derive(Debug)]
pub(crate) enum KvmVcpu {}

impl KvmVcpu {
    pub(crate) fn set_cpuid(&mut self, _leaves: &[CpuidEntry]) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn set_start(&mut self, _start: &Start, _tables: Gpa, _index: VcpuIndex) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn remember_lapic(&mut self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn hand_on_coalesced(&mut self) {
        match *self {}
    }

    pub(crate) fn with_kicks<R>(&mut self, _body: impl FnOnce(&mut Self, Kicker) -> R) -> Result<R, Error> {
        match *self {}
    }

    pub(crate) fn with_shared_kicks<R>(
        _vcpu: &Mutex<&mut Self>,
        _body: impl FnOnce(Kicker) -> R,
    ) -> Result<R, Error> {
        Err(Error::Config("this host has no KVM".into()))
    }

    pub(crate) fn leave_at_once(&self) {
        match *self {}
    }

    pub(crate) fn tell_clock_of_stop(&self) {
        match *self {}
    }

    pub(crate) fn complete_access(&mut self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn debug_again(&mut self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn location(&mut self, _after_shutdown: bool) -> Result<Location, Error> {
        match *self {}
    }

    pub(crate) fn start_of_stack(&self) -> Option<(u64, u64)> {
        match *self {}
    }

    pub(crate) fn is_unstarted(&self) -> bool {
        match *self {}
    }

    pub(crate) fn counters(&self) -> io::Result<KvmCounters> {
        match *self {}
    }

    pub(crate) fn interrupt_exits(&mut self) -> Option<u64> {
        match *self {}
    }

    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        match *self {}
    }
}

impl Vcpu for KvmVcpu {
    fn enter(&mut self, _entry: Entry) -> Result<(Exit, Arrival), Error> {
        match *self {}
    }
}

impl VcpuState for KvmVcpu {
    fn id(&self) -> u32 {
        match *self {}
    }

    fn regs(&mut self) -> Result<Regs, Error> {
        match *self {}
    }

    fn set_regs(&mut self, _regs: &Regs) -> Result<(), Error> {
        match *self {}
    }

    fn sregs(&mut self) -> Result<Sregs, Error> {
        match *self {}
    }

    fn set_sregs(&mut self, _sregs: &Sregs) -> Result<(), Error> {
        match *self {}
    }

    fn msr(&mut self, _index: u32) -> Option<u64> {
        match *self {}
    }

    fn set_msr(&mut self, _index: u32, _data: u64) -> bool {
        match *self {}
    }

    fn memory(&self) -> &GuestMemory {
        match *self {}
    }
}
