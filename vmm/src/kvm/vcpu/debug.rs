//! Stops for a debugger: KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG.
//!
//! Linux `Documentation/virt/kvm/api.rst`, sections 4.87 (KVM_SET_GUEST_DEBUG) and 5; Intel SDM volume 3, section 18.2.
#![allow(unsafe_code)]

use super::{KvmVcpu, Pending};
use crate::controller::{DebugControl, DebugPoint};
use crate::error::Error;
use crate::exit::{DebugStop, Exit, PointKind};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug, kvm_guest_debug_arch,
};

/// The vector of #BP.
const BREAKPOINT: u32 = 3;

/// The reasons for which the vCPU stops.
#[derive(Debug)]
pub(super) struct Debugging {
    /// They, as KVM has them.
    kernel: kvm_guest_debug,
    step: bool,
    points: Vec<DebugPoint>,
}

impl Debugging {
    fn new(control: &DebugControl) -> Result<Self, Error> {
        let ([dr0, dr1, dr2, dr3], dr7) = control.debug_registers()?;
        let mut flags = 0;
        for (bits, wanted) in [
            (KVM_GUESTDBG_ENABLE, control.is_on()),
            (KVM_GUESTDBG_SINGLESTEP, control.step),
            (KVM_GUESTDBG_USE_SW_BP, control.software),
            (KVM_GUESTDBG_USE_HW_BP, !control.points.is_empty()),
        ] {
            flags |= if wanted { bits } else { 0 };
        }
        let arch = kvm_guest_debug_arch { debugreg: [dr0, dr1, dr2, dr3, 0, 0, 0, dr7] };
        let kernel = kvm_guest_debug { control: flags, pad: 0, arch };
        Ok(Self { kernel, step: control.step, points: control.points.clone() })
    }
}

impl KvmVcpu {
    /// Sets the reasons for which the vCPU stops.
    ///
    /// # Errors
    /// The debug registers cannot express them, or the kernel refused.
    pub(super) fn set_debugging(&mut self, control: &DebugControl) -> Result<(), Error> {
        let debugging = Debugging::new(control)?;
        self.store_registers()?;
        self.fd.set_guest_debug(&debugging.kernel).map_err(Error::kvm("KVM_SET_GUEST_DEBUG"))?;
        self.debug = control.is_on().then(|| Box::new(debugging));
        Ok(())
    }

    /// Gives KVM the registers in `kvm_run`. KVM steps from the address that it knows when stepping is switched on.
    fn store_registers(&mut self) -> Result<(), Error> {
        if !self.regs_in_sync {
            return Ok(());
        }
        self.fd.set_regs(&self.page.registers().into()).map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Repeats the call after a change of registers, or after a step: an instruction such as POPF or IRET may have cleared
    /// the flag with which KVM steps (RFLAGS.TF).
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn debug_again(&mut self) -> Result<(), Error> {
        let Some(kernel) = self.debug.as_ref().filter(|debug| debug.step).map(|debug| debug.kernel) else {
            return Ok(());
        };
        self.store_registers()?;
        self.fd.set_guest_debug(&kernel).map_err(Error::kvm("KVM_SET_GUEST_DEBUG"))
    }

    /// The exit in `kvm_run`, which is a KVM_EXIT_DEBUG.
    #[cold]
    pub(super) fn debug_exit(&mut self) -> Exit {
        (self.incomplete, self.halted, self.pending) = (false, false, Pending::Nothing);
        // SAFETY: the caller has checked the reason, so the kernel has filled this field of the union. It consists of plain
        // integers, valid with any bits.
        let arch = unsafe { (*self.page.details()).debug }.arch;
        if let Err(error) = self.debug_again() {
            log::error!("{error}");
            return Exit::Other(KVM_EXIT_DEBUG);
        }
        if arch.exception == BREAKPOINT {
            return Exit::Debug(DebugStop::Software);
        }
        let points = self.debug.as_ref().map_or(&[][..], |debug| &debug.points);
        let met = (0..).zip(points).find(|(index, _)| arch.dr6 >> index & 1 != 0);
        Exit::Debug(match met {
            Some((_, point)) if point.kind == PointKind::Execute => DebugStop::Breakpoint(point.address),
            Some((_, point)) => DebugStop::Watchpoint(point.address, point.kind),
            None => DebugStop::Step,
        })
    }
}
