//! The state of a vCPU: registers, CPUID, its location in the guest's code, and KVM's counters.

use super::KvmVcpu;
use super::restore::Start;
use crate::controller::vcpu::{Activity, KvmTranslation, Location};
use crate::controller::{DebugControl, VcpuState, msr};
use crate::error::Error;
use crate::kvm::counters::{self, KvmCounters, OneCounter};
use crate::memory::{Gpa, GuestMemory, pc};
use crate::x86::cpuid;
use crate::x86::modes::{self, Mode, VcpuIndex};
use crate::x86::registers::{CpuidEntry, FxImage, Regs, Sregs};
use crate::x86::state_check::{self, Kind, Snapshot};
use kvm_bindings::{CpuId, KVM_MP_STATE_HALTED, Msrs, kvm_msr_entry};
use std::io;

/// CPUID leaf 1, ECX: the processor has XSAVE.
const CPUID_XSAVE: u32 = 1 << 26;

impl KvmVcpu {
    /// Sets the CPUID leaves that the guest sees (KVM_SET_CPUID2). Call it before the first entry.
    ///
    /// # Errors
    /// There are more leaves than KVM takes, or the kernel refused.
    pub(crate) fn set_cpuid(&mut self, leaves: &[CpuidEntry]) -> Result<(), Error> {
        self.has_xsave = leaves.iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_XSAVE != 0);
        let entries: Vec<_> = leaves.iter().map(|leaf| (*leaf).into()).collect();
        let cpuid = CpuId::from_entries(&entries)
            .map_err(|_| Error::Config("--cpuid adds more leaves than KVM takes: change fewer".into()))?;
        self.fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))
    }

    /// Sets the registers of an image's start, and remembers them for [`restore`](Self::restore).
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_start(&mut self, start: &modes::Start, tables: Gpa, index: VcpuIndex) -> Result<(), Error> {
        let (reset, lapic) = match &self.start {
            Some(start) => (start.reset, start.lapic),
            None => (self.sregs()?, None),
        };
        let sregs = start.sregs(reset, tables, index);
        let regs = start.regs(index);
        self.start = Some(Box::new(Start { reset, sregs, regs, lapic }));
        self.fd.set_sregs(&sregs.into()).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs.into()).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Remembers the state of the local APIC for [`restore`](Self::restore). Call it before the first entry, if the VM has
    /// in-kernel interrupt controllers.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn remember_lapic(&mut self) -> Result<(), Error> {
        let lapic = self.fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
        if let Some(start) = &mut self.start {
            start.lapic = Some(lapic);
        }
        Ok(())
    }

    /// Sets the registers to enter a Linux kernel at `entry`, in long or protected mode. The tables are at the addresses of the PC memory map.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn set_linux(&mut self, entry: Gpa, mode: Mode) -> Result<(), Error> {
        let sregs = modes::linux_sregs(self.sregs()?, mode, pc::GDT, pc::PAGE_TABLES);
        self.fd.set_sregs(&sregs.into()).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&modes::linux_regs(entry, pc::BOOT_PARAMS).into())
            .map_err(Error::kvm("KVM_SET_REGS"))?;
        Ok(())
    }

    /// Sets the model-specific registers that Linux expects firmware to set.
    pub(crate) fn set_boot_msrs(&mut self) {
        for (index, bits) in msr::LINUX_BOOT {
            let data = self.msr(index).unwrap_or(0) | bits;
            if !self.set_msr(index, data) {
                log::debug!("KVM refused the value {data:#x} for MSR {index:#x}");
            }
        }
    }

    /// The vCPU's location in the guest's code. Set `after_shutdown` after a triple fault, because some hosts then reset
    /// the vCPU.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn location(&mut self, after_shutdown: bool) -> Result<Location, Error> {
        // The first vCPU always starts by itself.
        if self.id != 0 && self.is_unstarted() {
            return Ok(Location::NotStarted);
        }
        let sregs = self.sregs()?;
        let rip = self.regs()?.rip;
        let protected = sregs.cr0 & modes::CR0_PE != 0;
        if after_shutdown && !protected && sregs.cs.selector == 0xf000 && rip == 0xfff0 {
            return Ok(Location::Reset);
        }
        Ok(Location::of(&sregs, rip))
    }

    /// The error for registers that KVM refuses, with the rules that they break.
    fn explain_refusal(&mut self, source: io::Error, sregs: &Sregs) -> Error {
        let Ok(regs) = self.regs() else { return Error::kvm("KVM_SET_SREGS")(source) };
        let state = Snapshot {
            regs: &regs,
            sregs,
            physical_bits: cpuid::physical_bits(cpuid::host_leaf(cpuid::ADDRESS_SIZES).as_ref()),
            entry: None,
            memory: &|gpa, bytes| self.memory.read(gpa, bytes),
        };
        let refused =
            state_check::check(&state).into_iter().filter(|finding| finding.rule.kind == Kind::Refused);
        let broken: Vec<_> = refused.map(|finding| finding.to_string()).collect();
        match broken.is_empty() {
            true => Error::kvm("KVM_SET_SREGS")(source),
            false => Error::RefusedRegisters { source, broken },
        }
    }

    /// The base of SS and RSP at the start. `None` for a vCPU that starts Linux.
    pub(crate) fn start_of_stack(&self) -> Option<(u64, u64)> {
        self.start.as_ref().map(|start| (start.sregs.ss.base, start.regs.rsp))
    }

    /// KVM's own counters of this vCPU.
    ///
    /// # Errors
    /// The kernel does not show its counters.
    pub fn counters(&self) -> io::Result<KvmCounters> {
        counters::kvm_counters(&self.fd)
    }

    /// The number of times that an interrupt of the host made the vCPU leave its guest (`irq_exits` of KVM's counters). `None`
    /// if the kernel does not count it.
    pub(crate) fn interrupt_exits(&mut self) -> Option<u64> {
        let fd = &self.fd;
        let counter =
            self.interrupt_counter.get_or_insert_with(|| OneCounter::open(fd, "irq_exits").ok().flatten());
        counter.as_ref()?.read().ok()
    }

    /// The frequency of the guest's time-stamp counter in kHz, which by default is that of the host. `None` if KVM does
    /// not know it.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }
}

impl VcpuState for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn regs(&mut self) -> Result<Regs, Error> {
        if self.regs_in_sync {
            return Ok(self.page.registers());
        }
        self.fd.get_regs().map(Regs::from).map_err(Error::kvm("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), Error> {
        if self.regs_in_sync {
            self.page.set_registers(regs);
        } else {
            self.fd.set_regs(&(*regs).into()).map_err(Error::kvm("KVM_SET_REGS"))?;
        }
        self.debug_again()
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Error> {
        self.set_debugging(control)
    }

    fn sregs(&mut self) -> Result<Sregs, Error> {
        self.fd.get_sregs().map(Sregs::from).map_err(Error::kvm("KVM_GET_SREGS"))
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Error> {
        self.fd.set_sregs(&(*sregs).into()).map_err(|error| self.explain_refusal(error.into(), sregs))
    }

    fn fpu(&mut self) -> Option<FxImage> {
        let xsave = self.fd.get_xsave().ok()?;
        let mut image: FxImage = [0; 512];
        for (place, word) in image.chunks_exact_mut(4).zip(xsave.region) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        Some(image)
    }

    /// The other parts of the XSAVE area stay. KVM_SET_FPU has no effect on some hosts.
    fn set_fpu(&mut self, image: &FxImage) -> bool {
        /// The words of XSTATE_BV, and its bits for x87 and SSE (Intel SDM volume 1, section 13.4.2).
        const PRESENT: usize = 512 / 4;
        const X87_AND_SSE: u32 = 3;
        let Ok(mut xsave) = self.fd.get_xsave() else { return false };
        for (word, bytes) in xsave.region.iter_mut().zip(image.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        if let Some(present) = xsave.region.get_mut(PRESENT) {
            *present |= X87_AND_SSE;
        }
        // SAFETY: the program never enables XSAVE features that need a larger area than `kvm_xsave`.
        unsafe { self.fd.set_xsave(&xsave) }.is_ok()
    }

    fn is_in_shadow(&mut self) -> bool {
        self.fd.get_vcpu_events().is_ok_and(|events| events.interrupt.shadow != 0)
    }

    fn msr(&mut self, index: u32) -> Option<u64> {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
        (self.fd.get_msrs(&mut msrs) == Ok(1)).then(|| msrs.as_slice().first().map(|msr| msr.data))?
    }

    fn set_msr(&mut self, index: u32, data: u64) -> bool {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
        msrs.is_ok_and(|msrs| self.fd.set_msrs(&msrs) == Ok(1))
    }

    fn activity(&mut self) -> Activity {
        match self.fd.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_HALTED) => Activity::Halted,
            _ if self.is_unstarted() => Activity::NotStarted,
            _ => Activity::Running,
        }
    }

    fn nmi_is_pending(&mut self) -> bool {
        self.fd.get_vcpu_events().is_ok_and(|events| events.nmi.pending != 0 || events.nmi.injected != 0)
    }

    fn translate(&mut self, linear: u64) -> KvmTranslation {
        match self.fd.translate_gva(linear) {
            Ok(answer) if answer.valid != 0 => KvmTranslation::Mapped(Gpa(answer.physical_address)),
            Ok(_) => KvmTranslation::NotMapped,
            Err(_) => KvmTranslation::Unavailable,
        }
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}
