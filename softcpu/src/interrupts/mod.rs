//! Exceptions and interrupts (SDM volume 3, chapter 6).

mod deliver;

use crate::cpu::Cpu;
use crate::exit::{Death, Fault};
use crate::memory::Memory;
use crate::op::Op;
use crate::state::{flag, seg};
use crate::trap::{DB, DE, DF, Exception, GP, NP, PF, SS, TS, Trap};
pub(crate) use deliver::Event;

/// The bits of DR6 and DR7 (SDM volume 3, sections 18.2.3 and 18.2.4).
pub(crate) mod debug {
    /// The breakpoints that were met.
    pub(crate) const BREAKPOINTS: u64 = 0xf;
    /// The bits that read as one.
    pub(crate) const ALWAYS: u64 = 0xffff_0ff0;
    pub(crate) const SINGLE_STEP: u64 = 1 << 14;
    /// Accesses to the debug registers raise #DB.
    pub(crate) const GENERAL_DETECT: u64 = 1 << 13;
}

/// The most exceptions that are delivered for one instruction. #AC is not contributory, so it and others can raise each other
/// for ever, and the instruction is then started again, as often as the run has instructions left.
const MAX_DELIVERIES: usize = 8;

/// True if an exception with the vector `second`, raised while `first` was delivered, is a double fault (SDM volume 3, table
/// 6-5).
pub(crate) const fn is_double_fault(first: u8, second: u8) -> bool {
    const fn is_contributory(vector: u8) -> bool {
        matches!(vector, DE | TS | NP | SS | GP)
    }
    is_contributory(second) && (is_contributory(first) || first == PF) || first == PF && second == PF
}

impl Exception {
    /// True for the trap after an instruction, which is complete.
    pub(crate) fn is_single_step(&self) -> bool {
        self.vector == DB && self.address & debug::SINGLE_STEP != 0
    }
}

impl<M: Memory> Cpu<M> {
    /// Delivers an exception, or the one that its delivery raises.
    ///
    /// # Errors
    /// A triple fault: [`Cpu::death`] has the faults, and RF is set. Or: an access of the delivery needs an answer. The
    /// other registers are unchanged, except for CR2, DR6 and DR7.
    pub(crate) fn raise(&mut self, exception: Exception) -> Result<(), Trap> {
        let mut current = exception;
        let mut faults = Vec::new();
        loop {
            self.note(&current);
            let raised = match self.deliver(&self.event_of(&current)) {
                Ok(()) => {
                    self.state.rip = self.next_rip;
                    return Ok(());
                }
                Err(Trap::Fault(raised)) => raised,
                Err(other) => return Err(other),
            };
            if faults.len() == MAX_DELIVERIES {
                return Err(Trap::Again);
            }
            if current.vector == DF {
                self.note(&raised);
                faults.push(self.fault_of(&raised));
                let cs = self.state.segments[seg::CS].selector;
                self.death = Some(Death { faults, cs, rip: self.state.rip });
                self.state.rflags |= flag::RF;
                return Err(Trap::Fault(raised));
            }
            faults.push(self.fault_of(&current));
            if is_double_fault(current.vector, raised.vector) {
                self.note(&raised);
                faults.push(self.fault_of(&raised));
                current = Exception { vector: DF, error: Some(0), address: 0, during: Some(current.vector) };
            } else {
                current = raised;
            }
        }
    }

    /// Stores the address of a page fault, or the reason of a debug exception. A page fault sets CR2 even if it becomes a
    /// double fault (SDM volume 3, section 6.15).
    fn note(&mut self, exception: &Exception) {
        match exception.vector {
            PF => self.state.cr2 = exception.address,
            DB => self.note_debug(exception.address),
            _ => {}
        }
    }

    /// Stores the reason of a debug exception.
    pub(crate) fn note_debug(&mut self, bits: u64) {
        let dr = &mut self.state.dr;
        dr[6] = dr[6] & !debug::BREAKPOINTS | debug::ALWAYS | bits;
        dr[7] &= !debug::GENERAL_DETECT;
    }

    /// The event that delivers an exception.
    fn event_of(&self, exception: &Exception) -> Event {
        let resume = if exception.is_single_step() { 0 } else { flag::RF };
        Event {
            vector: exception.vector,
            error: exception.error.map(u32::from),
            is_software: false,
            flags: self.state.rflags | resume,
            rip: self.state.rip,
            during: exception.during,
        }
    }

    /// The description of an exception. In real mode, exceptions have no error codes.
    fn fault_of(&self, exception: &Exception) -> Fault {
        Fault {
            vector: exception.vector,
            error: exception.error.filter(|_| self.state.is_protected()).map(u32::from),
            cr2: (exception.vector == PF).then_some(exception.address),
            while_delivering: exception.during,
        }
    }

    /// Executes an instruction with RFLAGS.TF or RF set, or after a load of SS or STI. Takes the trap after it (SDM volume
    /// 3, sections 6.8.3 and 18.3.1.4).
    #[cold]
    pub(crate) fn execute_stepped(&mut self, op: &Op<M>) -> Result<(), Trap> {
        let (flags, shadow) = (self.state.rflags, self.shadow);
        self.state.rflags &= !flag::RF;
        self.skip_single_step = false;
        let result = self.execute_plain(op);
        if shadow {
            // An instruction that is executed again still is in the shadow.
            self.shadow = matches!(result, Err(Trap::Exit));
        }
        let traps = flags & flag::TF != 0 && !self.skip_single_step;
        match result {
            Ok(()) if traps => Err(Trap::debug(debug::SINGLE_STEP)),
            Err(Trap::Again) if traps => {
                // Between two iterations of a string instruction.
                self.state.rflags |= flag::RF;
                Err(Trap::debug(debug::SINGLE_STEP))
            }
            Err(Trap::Halted) => {
                if traps && let Trap::Fault(exception) = Trap::debug(debug::SINGLE_STEP) {
                    self.undelivered = Some(exception);
                }
                result
            }
            Err(_) => {
                self.state.rflags |= flags & flag::RF;
                result
            }
            Ok(()) => result,
        }
    }
}
