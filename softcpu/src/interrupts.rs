//! Exceptions and interrupts (SDM volume 3, chapter 6).

use crate::cpu::Cpu;
use crate::exit::{Death, Fault};
use crate::memory::Memory;
use crate::trap::{Exception, Trap};

impl<M: Memory> Cpu<M> {
    /// Delivers an exception; if that fails, the double fault.
    ///
    /// # Errors
    /// A triple fault: [`Cpu::death`] has the faults. Or: an access of the delivery needs an answer.
    pub(crate) fn raise(&mut self, exception: Exception) -> Result<(), Trap> {
        let fault =
            Fault { vector: exception.vector, error: exception.error, cr2: None, while_delivering: None };
        self.death =
            Some(Death { faults: vec![fault], cs: self.state.segments[1].selector, rip: self.state.rip });
        Err(Trap::Fault(exception))
    }

    /// Takes the traps after an instruction that began with RFLAGS.TF set (`traps`), or in the shadow of a MOV SS or STI.
    pub(crate) fn after_step(
        &mut self,
        result: Result<(), Trap>,
        _traps: bool,
        shadow: bool,
    ) -> Result<(), Trap> {
        if shadow && result.is_ok() {
            self.shadow = false;
        }
        result
    }
}
