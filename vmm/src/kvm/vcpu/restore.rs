//! Putting a vCPU back to its start.
#![allow(unsafe_code)]

use super::KvmVcpu;
use crate::controller::VcpuState;
use crate::controller::vcpu::Entry;
use crate::error::Error;
use crate::x86::registers::{Regs, Sregs};
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use std::io;

/// The registers of a vCPU at its start.
#[derive(Debug)]
pub(super) struct Start {
    /// The segment and control registers that KVM gives a new vCPU.
    pub(super) reset: Sregs,
    pub(super) sregs: Sregs,
    pub(super) regs: Regs,
    /// The local APIC of a new vCPU. `None` without in-kernel interrupt controllers.
    pub(super) lapic: Option<kvm_lapic_state>,
}

/// The maximum number of accesses that are completed before a vCPU is put back. KVM emulates a repeated string
/// instruction for up to 1024 elements before it enters the guest again. CMPS reads two operands for each, and an
/// operand that crosses a page is two accesses.
const MAX_ACCESSES: u32 = 4 * 1024;

/// The model-specific registers whose values after a reset are known, and these values (Intel SDM volume 3, table 9-1,
/// "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT"; for those of KVM: Linux
/// `Documentation/virt/kvm/x86/msr.rst`). The others keep the values that the guest has set.
const MSRS: [(u32, u64); 24] = [
    (0x174, 0),                     // IA32_SYSENTER_CS
    (0x175, 0),                     // IA32_SYSENTER_ESP
    (0x176, 0),                     // IA32_SYSENTER_EIP
    (0x277, 0x0007_0406_0007_0406), // IA32_PAT
    (0xc000_0081, 0),               // IA32_STAR
    (0xc000_0082, 0),               // IA32_LSTAR
    (0xc000_0083, 0),               // IA32_CSTAR
    (0xc000_0084, 0),               // IA32_FMASK
    (0xc000_0102, 0),               // IA32_KERNEL_GS_BASE
    (0xc000_0103, 0),               // IA32_TSC_AUX
    (0x03b, 0),                     // IA32_TSC_ADJUST
    (0x048, 0),                     // IA32_SPEC_CTRL
    (0x140, 0),                     // MISC_FEATURES_ENABLES
    (0x17a, 0),                     // IA32_MCG_STATUS
    (0x1d9, 0),                     // IA32_DEBUGCTL
    (0x2ff, 0),                     // IA32_MTRR_DEF_TYPE
    (0x6e0, 0),                     // IA32_TSC_DEADLINE
    (0xda0, 0),                     // IA32_XSS
    // KVM writes to the guest's memory at the addresses in these.
    (0x011, 0),       // MSR_KVM_WALL_CLOCK
    (0x4b56_4d00, 0), // MSR_KVM_WALL_CLOCK_NEW
    (0x4b56_4d01, 0), // MSR_KVM_SYSTEM_TIME_NEW, which is also MSR 0x12
    (0x4b56_4d02, 0), // MSR_KVM_ASYNC_PF_EN
    (0x4b56_4d03, 0), // MSR_KVM_STEAL_TIME
    (0x4b56_4d04, 0), // MSR_KVM_EOI_EN
];

/// The first MTRRs of each kind with the number of them: IA32_MTRR_PHYSBASE0 and the masks, then the fixed ranges. All
/// are 0 after a reset by KVM.
const MTRRS: [(u32, u32); 4] = [(0x200, 16), (0x250, 1), (0x258, 2), (0x268, 8)];

/// The debug registers after a reset.
const DEBUG: kvm_debugregs =
    kvm_debugregs { db: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400, flags: 0, reserved: [0; 9] };
/// XCR0 after a reset.
const XCR0: kvm_xcr = kvm_xcr { xcr: 0, reserved: 0, value: 1 };

/// The x87 control word, and MXCSR, after a reset as KVM does it. Word 0 and word 6 of the XSAVE area's legacy region.
const FCW: u32 = 0x37f;
const MXCSR: u32 = 0x1f80;

impl KvmVcpu {
    /// Puts the vCPU back to its start: general, segment, control and debug registers, x87 and SSE state, pending
    /// exceptions, the local APIC, and the model-specific registers of [`MSRS`] and [`MTRRS`]. Call [`complete_access`](Self::complete_access) first.
    ///
    /// # Errors
    /// The kernel refused, or the vCPU was started for Linux.
    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        self.restore_registers()?;
        self.fd.set_debug_regs(&DEBUG).map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        if let Some(lapic) = self.start.as_ref().and_then(|start| start.lapic.as_ref()) {
            self.fd.set_lapic(lapic).map_err(Error::kvm("KVM_SET_LAPIC"))?;
            let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            self.fd.set_mp_state(runnable).map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        }
        // A vCPU that has completed a HLT has no exception pending. Each call costs several microseconds on some hosts.
        if !self.halted {
            let events = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
            self.fd.set_vcpu_events(&events).map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))?;
        }
        let mut xsave = kvm_xsave::default();
        let [fcw, _, _, _, _, _, mxcsr, ..] = &mut xsave.region;
        (*fcw, *mxcsr) = (FCW, MXCSR);
        // SAFETY: the program never enables XSAVE features that need a larger area than `kvm_xsave`.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))?;
        if self.has_xsave {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = XCR0;
            self.fd.set_xcrs(&xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
        }
        self.restore_msrs()
    }

    /// Puts back the model-specific registers that the guest has changed. KVM's own registers are not written without
    /// need, because KVM then does more than to keep a value.
    ///
    /// # Errors
    /// The kernel refused.
    fn restore_msrs(&mut self) -> Result<(), Error> {
        let wanted = self.restored_msrs.get_or_insert_with(restored_msrs);
        let found = loop {
            let entries: Vec<_> = wanted.iter().map(|(index, _)| entry(*index, 0)).collect();
            let Ok(mut msrs) = Msrs::from_entries(&entries) else { return Ok(()) };
            match self.fd.get_msrs(&mut msrs).map_err(Error::kvm("KVM_GET_MSRS"))? {
                // The first time: KVM stops at a register that this host does not have.
                read if read < wanted.len() => drop(wanted.remove(read)),
                _ => break msrs,
            }
        };
        let changed = found.as_slice().iter().zip(wanted).filter(|(found, (_, start))| found.data != *start);
        let changed: Vec<_> = changed.map(|(_, (index, start))| entry(*index, *start)).collect();
        match Msrs::from_entries(&changed) {
            Ok(msrs) if !changed.is_empty() => {
                self.fd.set_msrs(&msrs).map(drop).map_err(Error::kvm("KVM_SET_MSRS"))
            }
            _ => Ok(()),
        }
    }

    /// Lets KVM complete the access of the last exit, and drops the stores that are still queued. KVM would otherwise
    /// complete the access at the next entry, over registers that are set until then
    /// (`Documentation/virt/kvm/api.rst`, section 5, the note on KVM_EXIT_IO). The instruction may write to the guest's
    /// memory, so this comes before memory is put back.
    ///
    /// # Errors
    /// KVM_RUN failed, or the instruction of the last exit makes accesses without end.
    pub(crate) fn complete_access(&mut self) -> Result<(), Error> {
        self.turn = self.usual_turn();
        for _ in 0..MAX_ACCESSES {
            if !std::mem::take(&mut self.incomplete) {
                while self.next_coalesced()?.is_some() {}
                return Ok(());
            }
            while self.answer(Entry::Resume).is_some() {}
            self.page.set_immediate_exit(1);
            let completed = self.run();
            self.page.set_immediate_exit(0);
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
        self.fd.set_sregs(&start.sregs.into()).map_err(Error::kvm("KVM_SET_SREGS"))?;
        let regs = start.regs;
        // With KVM_CAP_SYNC_REGS, KVM takes these at the next entry, without a call of their own.
        self.set_regs(&regs)
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// The registers that are put back, with their values after a reset.
fn restored_msrs() -> Vec<(u32, u64)> {
    let mtrrs =
        MTRRS.iter().flat_map(|(first, count)| (*first..).zip(0..*count)).map(|(index, _)| (index, 0));
    MSRS.into_iter().chain(mtrrs).collect()
}
