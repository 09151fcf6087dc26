//! The steps that bare machines and PCs have in common when they are built.

use crate::controller::kev::{self, MmioPrinter};
use crate::device::debugcon::{self, Debugcon};
use crate::device::exit_port::{self, ExitPort};
use crate::device::serial::{self, Serial};
use crate::error::Error;
use crate::host::sort_by_key;
use crate::kvm::vcpu::KvmVcpu;
use crate::kvm::vm::{System, Vm};
use crate::machine::background::Background;
use crate::machine::builder::Builder;
use crate::machine::processors::Processors;
use crate::machine::restore::Restore;
use crate::machine::screen::GuestScreen;
use crate::machine::{Machine, MachineKind, VcpuControllers};
use crate::memory::GuestMemory;
use crate::profile::clock::Clock;
use crate::soft;
use crate::soft::vcpu::SoftVcpu;
use crate::x86::cpuid::{self, CpuidContext};
use crate::x86::modes::{Mode, VcpuIndex};
use crate::x86::registers::CpuidEntry;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The parts of a machine that depend on the kind of its guest.
pub(super) struct Parts {
    pub(super) processors: Processors,
    /// The reason why the machine does not use KVM, if it would by default.
    pub(super) kvm_error: Option<Error>,
    pub(super) memory: GuestMemory,
    /// The mode in which the guest starts.
    pub(super) mode: Mode,
    pub(super) background: Background,
    /// The text screen of a classic PC.
    pub(super) screen: Option<GuestScreen>,
    /// `None` for the PC of Linux.
    pub(super) kind: Option<MachineKind>,
    /// The size of RAM, in bytes.
    pub(super) ram: u64,
    /// The addresses of the loaded image.
    pub(super) image: Vec<Range<u64>>,
    /// `None` if the machine cannot be reset.
    pub(super) restore: Option<Restore>,
}

impl Builder {
    /// Puts the parts together.
    pub(super) fn assemble(self, parts: Parts) -> Machine {
        let Parts { processors, kvm_error, memory, mode, background, screen, kind, ram, image, restore } =
            parts;
        let ids = (self.first_vcpu..).take(processors.len());
        let counted = self.profile || self.trace.is_some();
        Machine {
            clock: counted.then(|| Clock::new(processors.tsc_khz())),
            controllers: ids.map(|id| self.vcpu_controllers(id)).collect(),
            processors,
            kvm_error,
            memory,
            mode,
            background,
            screen,
            kind,
            ram,
            image: image.into(),
            restore,
            devices: Arc::new(self.devices),
            msrs: Arc::new(self.msrs),
            kev: self.kev,
            has_bios: false,
            timeout: self.timeout,
            wall_timeout: self.wall_timeout,
            timer: None,
            trace: self.trace,
            by_address: self.by_address,
            sampling: None,
            verify: self.verify,
            loses_stores: self.loses_stores,
            kernel_counters: self.kernel_counters,
            output: self.output,
            output_limit: self.output_limit,
            result_place: self.result_place,
        }
    }

    /// The controllers of vCPU `id` that keep their state from run to run.
    fn vcpu_controllers(&self, id: u32) -> VcpuControllers {
        VcpuControllers {
            callers: self.controllers.for_vcpu(id),
            printer: self.kev.then(|| MmioPrinter::new(self.output.clone())),
            bios: None,
        }
    }

    /// Creates the vCPUs of KVM. `enter` sets the registers with which each one starts.
    pub(super) fn create_vcpus(
        &self,
        system: &System,
        vm: &Vm,
        memory: &GuestMemory,
        enter: impl Fn(&mut KvmVcpu, VcpuIndex) -> Result<(), Error>,
    ) -> Result<Vec<KvmVcpu>, Error> {
        let supported = self.shows_cpuid().then(|| system.supported_cpuid()).transpose()?;
        let mut vcpus = Vec::new();
        for index in self.vcpu_indices() {
            let mut vcpu = vm.create_vcpu(index.id, memory)?;
            if let Some(supported) = &supported {
                let leaves = self.cpuid_leaves(supported, index, self.irqchip && system.has_tsc_deadline());
                vcpu.set_cpuid(&leaves).map_err(|error| self.blame_cpuid(error))?;
            }
            enter(&mut vcpu, index).map_err(|error| self.blame_cpuid(error))?;
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }

    /// Creates the software processors, which run `slice` instructions at a time. `enter` sets the registers with which
    /// each one starts.
    pub(super) fn create_soft_vcpus(
        &self,
        memory: &GuestMemory,
        slice: u64,
        enter: impl Fn(&mut SoftVcpu, VcpuIndex),
    ) -> Result<Vec<SoftVcpu>, Error> {
        let supported = self.shows_cpuid().then(soft::cpuid::supported);
        // Without KVM's filter, the register of KeV is one that the processor does not have.
        let filtered = self.filtered_msrs();
        let create = |index: VcpuIndex| {
            let mut vcpu = SoftVcpu::new(index.id, memory, slice)?;
            if let Some(supported) = &supported {
                vcpu.set_cpuid(&self.cpuid_leaves(supported, index, false));
            }
            vcpu.filter_msrs(&filtered);
            enter(&mut vcpu, index);
            Ok(vcpu)
        };
        self.vcpu_indices().map(create).collect()
    }

    /// True if CPUID shows the guest what the processor supports. If there are several vCPUs, the guest needs CPUID to tell
    /// them apart.
    fn shows_cpuid(&self) -> bool {
        self.cpuid || !self.cpuid_changes.is_empty() || self.cpus > 1 || self.first_vcpu != 0
    }

    /// The CPUID leaves of a vCPU.
    fn cpuid_leaves(&self, supported: &[CpuidEntry], vcpu: VcpuIndex, tsc_deadline: bool) -> Vec<CpuidEntry> {
        let context = CpuidContext { id: vcpu.id, count: vcpu.of, tsc_deadline };
        cpuid::for_vcpu(supported, context, &self.cpuid_changes)
    }

    /// The vCPUs, in their order.
    fn vcpu_indices(&self) -> impl Iterator<Item = VcpuIndex> {
        let (first, of) = (self.first_vcpu, self.cpus);
        (0..of).map(move |index| VcpuIndex { index, of, id: first.saturating_add(index) })
    }

    /// Turns a failure of KVM into a mistake of the user's if `--cpuid` may be the cause.
    fn blame_cpuid(&self, error: Error) -> Error {
        match error {
            Error::Kvm { .. } if !self.cpuid_changes.is_empty() => Error::Config(format!(
                "KVM refuses the CPUID leaves that --cpuid asks for ({error}): change other bits"
            )),
            error => error,
        }
    }

    /// Attaches the devices that every machine has: the debug console, the serial port, the exit port, and KeV's devices
    /// if they are wanted.
    pub(super) fn attach_ports(&mut self, serial: Arc<Mutex<Serial>>) -> Result<(), Error> {
        let ports = &mut self.devices.ports;
        let debugcon = Debugcon::new(self.output.clone());
        ports.attach(debugcon::PORT.into(), 1, Arc::new(Mutex::new(debugcon)))?;
        ports.attach(serial::PORT.into(), serial::PORTS.into(), serial)?;
        match self.qemu_exit {
            true => ports.attach(
                exit_port::PORT.into(),
                exit_port::QEMU_PORTS.into(),
                Arc::new(Mutex::new(exit_port::QemuExit)),
            )?,
            false => ports.attach(exit_port::PORT.into(), 1, Arc::new(Mutex::new(ExitPort)))?,
        }
        if self.kev {
            kev::attach(&mut self.devices)?;
        }
        Ok(())
    }

    /// The model-specific registers for which KVM's filter is needed. KeV's register is not among them: KVM does not
    /// have it, so its accesses exit without a filter.
    pub(super) fn filtered_msrs(&self) -> Vec<u32> {
        let filtered = self.msrs.registers().chain(self.devices.msr_numbers());
        let mut filtered: Vec<u32> = filtered.filter(|index| !self.kev || *index != kev::FIFO_MSR).collect();
        sort_by_key(&mut filtered, |index| *index);
        filtered.dedup();
        filtered
    }
}
