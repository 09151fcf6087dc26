//! Stops for a debugger: KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG.
//!
//! Linux `Documentation/virt/kvm/api.rst`, sections 4.87 (KVM_SET_GUEST_DEBUG) and 5; Intel SDM volume 3, section 18.2.
#![allow(unsafe_code)]

use super::{KvmVcpu, Pending};
use crate::controller::vcpu::{Activity, Entry};
use crate::controller::{DebugControl, DebugPoint, VcpuState};
use crate::error::Error;
use crate::exit::{Arrival, DebugStop, Exit, PointKind};
use crate::x86::probe::Probe;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug, kvm_guest_debug_arch,
};
use std::ops::ControlFlow;

/// The way in which a vCPU is entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// KVM_RUN.
    Run,
    /// An access is completed before the next instruction.
    Step,
    /// KVM_RUN has returned this, after stores that the kernel had queued.
    Held(Result<(), kvm_ioctls::Error>),
}

/// The result of an entry: an exit, or what KVM_RUN returned.
pub(super) type Entered = ControlFlow<(Exit, Arrival), Result<(), kvm_ioctls::Error>>;

/// The instruction.
const HLT: u8 = 0xf4;
/// The vector of #BP.
const BREAKPOINT: u32 = 3;

/// The reasons for which the vCPU stops.
#[derive(Debug)]
pub(super) struct Debugging {
    /// They, as KVM has them.
    kernel: kvm_guest_debug,
    step: bool,
    points: Vec<DebugPoint>,
    /// RIP before the step.
    from: u64,
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
        Ok(Self { kernel, step: control.step, points: control.points.clone(), from: 0 })
    }
}

impl KvmVcpu {
    /// Sets the reasons for which the vCPU stops.
    ///
    /// # Errors
    /// The debug registers cannot express them, or the kernel refused.
    pub(super) fn set_debugging(&mut self, control: &DebugControl) -> Result<(), Error> {
        let mut debugging = Debugging::new(control)?;
        self.store_registers()?;
        debugging.from = self.regs()?.rip;
        self.fd.set_guest_debug(&debugging.kernel).map_err(Error::kvm("KVM_SET_GUEST_DEBUG"))?;
        self.debug = control.is_on().then(|| Box::new(debugging));
        if !matches!(self.turn, Turn::Held(_)) {
            self.turn = self.usual_turn();
        }
        Ok(())
    }

    /// The way in which the vCPU is entered if no exit is held.
    pub(super) fn usual_turn(&self) -> Turn {
        let steps = self.debug.as_ref().is_some_and(|debug| debug.step);
        if steps { Turn::Step } else { Turn::Run }
    }

    /// Enters a vCPU that is stepped, or whose exit is held. Returns the result of KVM_RUN, or an exit.
    ///
    /// Some hosts do not stop between the end of an access and the next instruction. With `immediate_exit` KVM completes the
    /// access and returns, so that its instruction is a step.
    ///
    /// # Errors
    /// The kernel refused.
    #[cold]
    pub(super) fn take_other_turn(&mut self, entry: Entry) -> Result<Entered, Error> {
        // A queued store takes no answer. The exit after it is returned next.
        let usual = self.usual_turn();
        if let Turn::Held(result) = std::mem::replace(&mut self.turn, usual) {
            return Ok(ControlFlow::Continue(result));
        }
        let completes = self.incomplete;
        if let Some(element) = self.answer(entry) {
            return Ok(ControlFlow::Break((element, Arrival::NextElement)));
        }
        if completes {
            self.page.set_immediate_exit(1);
        }
        let result = self.run();
        self.regs_in_sync = self.syncs_regs;
        if !completes {
            return Ok(ControlFlow::Continue(result));
        }
        // A kick is repeated.
        self.page.set_immediate_exit(0);
        if result.as_ref().err().is_none_or(|error| error.errno() != libc::EINTR) {
            return Ok(ControlFlow::Continue(result));
        }
        (self.incomplete, self.halted) = (false, false);
        self.debug_again()?;
        Ok(ControlFlow::Break((Exit::Debug(DebugStop::Step), Arrival::FromGuest)))
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
        let from = self.regs()?.rip;
        self.debug.iter_mut().for_each(|debug| debug.from = from);
        self.fd.set_guest_debug(&kernel).map_err(Error::kvm("KVM_SET_GUEST_DEBUG"))
    }

    /// True if the step from this RIP was a HLT that waits for nothing. Some hosts report the step, and not the HLT.
    fn has_halted(&mut self, from: u64) -> bool {
        let is_next = self.regs().is_ok_and(|regs| regs.rip == from.wrapping_add(1));
        let mut byte = [0];
        let is_hlt = is_next
            && self.sregs().is_ok_and(|sregs| {
                let probe = Probe::new(&self.memory, sregs);
                probe.read_linear(probe.linear(sregs.cs.base, from), &mut byte) && byte[0] == HLT
            });
        // With interrupt controllers, KVM waits for an interrupt at the next entry.
        is_hlt && self.activity() == Activity::Running
    }

    /// The exit in `kvm_run`, which is a KVM_EXIT_DEBUG.
    #[cold]
    pub(super) fn debug_exit(&mut self) -> Exit {
        (self.incomplete, self.halted, self.pending) = (false, false, Pending::Nothing);
        // SAFETY: the caller has checked the reason, so the kernel has filled this field of the union. It consists of plain
        // integers, valid with any bits.
        let arch = unsafe { (*self.page.details()).debug }.arch;
        let from = self.debug.as_ref().filter(|debug| debug.step).map(|debug| debug.from);
        if let Err(error) = self.debug_again() {
            log::error!("{error}");
            return Exit::Other(KVM_EXIT_DEBUG);
        }
        if arch.exception == BREAKPOINT {
            return Exit::Debug(DebugStop::Software);
        }
        let points = self.debug.as_ref().map_or(&[][..], |debug| &debug.points);
        let met = (0..).zip(points).find(|(index, _)| arch.dr6 >> index & 1 != 0).map(|(_, point)| *point);
        Exit::Debug(match met {
            Some(point) if point.kind == PointKind::Execute => DebugStop::Breakpoint(point.address),
            Some(point) => DebugStop::Watchpoint(point.address, point.kind),
            None if from.is_some_and(|from| self.has_halted(from)) => {
                self.halted = true;
                return Exit::Hlt;
            }
            None => DebugStop::Step,
        })
    }
}
