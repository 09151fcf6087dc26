//! Far jumps and calls through call gates (SDM volume 3, sections 5.8.3 to 5.8.5).

use crate::cpu::Cpu;
use crate::descriptors::{Descriptor, error_code, gp, is_null, rpl, system};
use crate::exit::Missing;
use crate::memory::Memory;
use crate::state::{Segment, gpr, seg};
use crate::trap::{NP, Trap};

/// The most parameters of a gate.
const PARAMETERS: usize = 31;

/// A call gate.
struct Gate {
    /// The size of the values that are pushed.
    size: u8,
    selector: u16,
    offset: u64,
    /// The number of parameters that are copied to a new stack.
    parameters: u8,
}

impl<M: Memory> Cpu<M> {
    /// Reads and checks a call gate.
    fn call_gate(&mut self, descriptor: Descriptor, selector: u16) -> Result<Gate, Trap> {
        let is_long = self.state.is_long();
        let kind = descriptor.kind();
        let is_gate = match kind {
            system::CALL_32 => true,
            system::CALL_16 => !is_long,
            _ => false,
        };
        if !is_gate {
            return Err(self.task_fault(descriptor, selector));
        }
        let upper = if is_long { self.read_upper_descriptor(selector)?.ok_or(gp(selector))? } else { 0 };
        self.check_gate(descriptor, selector)?;
        let raw = descriptor.raw;
        let low = raw & 0xffff;
        let is_16 = kind == system::CALL_16;
        Ok(Gate {
            size: if is_long { 8 } else { 4 - 2 * u8::from(is_16) },
            selector: (raw >> 16) as u16,
            offset: if is_16 { low } else { upper << 32 | raw >> 32 & 0xffff_0000 | low },
            parameters: if is_long { 0 } else { (raw >> 32 & 31) as u8 },
        })
    }

    /// Checks the privilege and the presence of a gate or TSS.
    fn check_gate(&self, descriptor: Descriptor, selector: u16) -> Result<(), Trap> {
        if descriptor.dpl() < self.state.cpl().max(rpl(selector)) {
            return Err(gp(selector));
        }
        if !descriptor.is_present() {
            return Err(Trap::coded(NP, error_code(selector)));
        }
        Ok(())
    }

    /// The fault of a far transfer to a system descriptor that is no call gate. Task switches are not implemented.
    fn task_fault(&self, descriptor: Descriptor, selector: u16) -> Trap {
        let is_task = matches!(descriptor.kind(), system::TSS_16 | system::TSS_32 | system::TASK);
        if !is_task || self.state.is_long() {
            return gp(selector);
        }
        self.check_gate(descriptor, selector).err().unwrap_or(Trap::Unsupported(Missing::TaskSwitch))
    }

    /// The descriptor of a gate's code segment.
    fn gate_target(&mut self, gate: &Gate) -> Result<Descriptor, Trap> {
        let selector = gate.selector;
        if is_null(selector) {
            return Err(Trap::gp());
        }
        let descriptor = self.read_descriptor(selector)?.ok_or(gp(selector))?;
        let is_valid_long = !self.state.is_long() || descriptor.is_long() && !descriptor.is_big();
        if !descriptor.is_code() || descriptor.dpl() > self.state.cpl() || !is_valid_long {
            return Err(gp(selector));
        }
        Ok(descriptor)
    }

    /// Jumps through a system descriptor.
    ///
    /// # Errors
    /// #GP or #NP. A task switch is not supported.
    pub(super) fn jump_through(&mut self, descriptor: Descriptor, selector: u16) -> Result<(), Trap> {
        let gate = self.call_gate(descriptor, selector)?;
        let target = self.gate_target(&gate)?;
        let cpl = self.state.cpl();
        if !target.is_conforming() && target.dpl() != cpl {
            return Err(gp(gate.selector));
        }
        let code = self.gate_segment(&gate, target, cpl)?;
        self.enter(code, gate.offset);
        Ok(())
    }

    /// CS after a transfer through a gate, if the privilege does not change.
    fn gate_segment(&mut self, gate: &Gate, target: Descriptor, cpl: u8) -> Result<Segment, Trap> {
        if !target.is_present() {
            return Err(Trap::coded(NP, error_code(gate.selector)));
        }
        self.check_target(&target.segment(gate.selector), gate.offset, 0)?;
        self.code_segment(target, gate.selector, cpl)
    }

    /// Calls through a system descriptor.
    ///
    /// # Errors
    /// #GP, #NP, #TS, #SS or #PF. A task switch is not supported.
    pub(super) fn call_through(&mut self, descriptor: Descriptor, selector: u16) -> Result<(), Trap> {
        let gate = self.call_gate(descriptor, selector)?;
        let target = self.gate_target(&gate)?;
        let cpl = self.state.cpl();
        if !target.is_conforming() && target.dpl() < cpl {
            return self.call_inner(&gate, target);
        }
        let code = self.gate_segment(&gate, target, cpl)?;
        let mut stack = self.current_stack(0);
        if self.state.is_long() {
            stack.width = 8;
        }
        let cs = self.state.segments[seg::CS].selector.into();
        let pointer = self.push_all(&stack, gate.size, &[cs, self.next_rip])?;
        self.state.gpr[gpr::SP] = pointer;
        self.enter(code, gate.offset);
        Ok(())
    }

    /// Calls through a gate to code of more privilege, on a new stack.
    fn call_inner(&mut self, gate: &Gate, target: Descriptor) -> Result<(), Trap> {
        if !target.is_present() {
            return Err(Trap::coded(NP, error_code(gate.selector)));
        }
        let stack = self.inner_stack(target.dpl(), self.state.is_long(), 0)?;
        let code = self.gate_segment(gate, target, target.dpl())?;
        let mut values = [0; PARAMETERS + 4];
        let count = usize::from(gate.parameters).min(PARAMETERS);
        values[0] = self.state.segments[seg::SS].selector.into();
        values[1] = self.state.gpr[gpr::SP];
        // The parameter at the top of the stack is pushed last.
        for index in 0..gate.parameters {
            let value = self.peek(gate.size, u64::from(index) * u64::from(gate.size))?;
            if let Some(slot) = values.get_mut(1 + count - usize::from(index)) {
                *slot = value;
            }
        }
        values[2 + count] = self.state.segments[seg::CS].selector.into();
        values[3 + count] = self.next_rip;
        let pointer = self.push_all(&stack, gate.size, values.get(..4 + count).unwrap_or_default())?;
        self.state.segments[seg::SS] = stack.segment;
        self.state.gpr[gpr::SP] = pointer;
        self.enter(code, gate.offset);
        Ok(())
    }
}
