//! Putting a vCPU back to its start.
#![allow(unsafe_code)]

use super::KvmVcpu;
use crate::controller::VcpuState;
use crate::controller::vcpu::Entry;
use crate::error::Error;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xsave};
use std::io;

/// The registers of a vCPU at its start.
#[derive(Debug)]
pub(super) struct Start {
    /// The segment and control registers that KVM gives a new vCPU.
    pub(super) reset: kvm_sregs,
    pub(super) sregs: kvm_sregs,
    pub(super) regs: kvm_regs,
}

/// The maximum number of accesses that are completed before a vCPU is put back. KVM emulates a repeated string
/// instruction for up to 1024 elements before it enters the guest again. CMPS reads two operands for each, and an
/// operand that crosses a page is two accesses.
const MAX_ACCESSES: u32 = 4 * 1024;

/// The model-specific registers that a guest may use without CPUID leaves, and their values after a reset (Intel SDM
/// volume 3, table 9-1, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT"). The others keep the
/// values that the guest has set.
const MSRS: [(u32, u64); 9] = [
    (0x174, 0),                     // IA32_SYSENTER_CS
    (0x175, 0),                     // IA32_SYSENTER_ESP
    (0x176, 0),                     // IA32_SYSENTER_EIP
    (0x277, 0x0007_0406_0007_0406), // IA32_PAT
    (0xc000_0081, 0),               // IA32_STAR
    (0xc000_0082, 0),               // IA32_LSTAR
    (0xc000_0083, 0),               // IA32_CSTAR
    (0xc000_0084, 0),               // IA32_FMASK
    (0xc000_0102, 0),               // IA32_KERNEL_GS_BASE
];

/// The x87 control word, and MXCSR, after a reset as KVM does it. Word 0 and word 6 of the XSAVE area's legacy region.
const FCW: u32 = 0x37f;
const MXCSR: u32 = 0x1f80;

impl KvmVcpu {
    /// Puts the vCPU back to its start: general, segment and control registers, x87 and SSE state, pending exceptions, and
    /// the model-specific registers of [`MSRS`]. Call [`complete_access`](Self::complete_access) first.
    ///
    /// # Errors
    /// The kernel refused, or the vCPU was started for Linux.
    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        self.restore_registers()?;
        // A vCPU that has completed a HLT has no exception pending. Each call costs several microseconds on some hosts.
        if !self.halted {
            let events = kvm_vcpu_events::default();
            self.fd.set_vcpu_events(&events).map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))?;
        }
        let mut xsave = kvm_xsave::default();
        let [fcw, _, _, _, _, _, mxcsr, ..] = &mut xsave.region;
        (*fcw, *mxcsr) = (FCW, MXCSR);
        // SAFETY: the program never enables XSAVE features that need a larger area than `kvm_xsave`.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))?;
        let entries = MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
        if let Ok(msrs) = Msrs::from_entries(&entries) {
            self.fd.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
        }
        Ok(())
    }

    /// Lets KVM complete the access of the last exit, and drops the stores that are still queued. KVM would otherwise
    /// complete the access at the next entry, over registers that are set until then
    /// (`Documentation/virt/kvm/api.rst`, section 5, the note on KVM_EXIT_IO). The instruction may write to the guest's
    /// memory, so this comes before memory is put back.
    ///
    /// # Errors
    /// KVM_RUN failed, or the instruction of the last exit makes accesses without end.
    pub(crate) fn complete_access(&mut self) -> Result<(), Error> {
        self.held = None;
        for _ in 0..MAX_ACCESSES {
            if !std::mem::take(&mut self.incomplete) {
                while self.next_coalesced()?.is_some() {}
                return Ok(());
            }
            while self.answer(Entry::Resume).is_some() {}
            self.fd.set_kvm_immediate_exit(1);
            let completed = self.run();
            self.fd.set_kvm_immediate_exit(0);
            match completed {
                // The instruction has a further access.
                Ok(()) => drop(self.decode()),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::kvm("KVM_RUN")(error)),
            }
        }
        let source = io::Error::other("it makes accesses without end");
        Err(Error::Host { operation: "completing an instruction", source })
    }

    /// Sets the registers that the guest starts with.
    ///
    /// # Errors
    /// The kernel refused, or the vCPU was started for Linux.
    fn restore_registers(&mut self) -> Result<(), Error> {
        let Some(start) = &self.start else {
            return Err(Error::Config("a Linux machine cannot be reset: build a new machine".into()));
        };
        self.fd.set_sregs(&start.sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        let regs = start.regs;
        // With KVM_CAP_SYNC_REGS, KVM takes these at the next entry, without a call of their own.
        self.set_regs(&regs)
    }
}
