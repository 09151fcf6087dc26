//! Delivery of an exception or a software interrupt (SDM volume 3, sections 6.12, 6.14 and 20.1.4).

use crate::cpu::{Cpu, ORIGINS};
use crate::descriptors::{error_code, is_null, system};
use crate::exit::{Delivery, Fault, Missing};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::state::{Segment, flag, gpr, seg};
use crate::trap::{Exception, GP, NP, PF, Trap};

/// The bit of an error code that marks a vector.
const IDT: u32 = 2;
/// The flags that delivery clears in protected mode. An interrupt gate also clears IF.
const CLEARED: u64 = flag::TF | flag::NT | flag::VM | flag::RF;
/// The flags that delivery clears in real mode.
const CLEARED_IN_REAL_MODE: u64 = flag::IF | flag::TF | flag::AC | flag::RF;

/// An exception or interrupt to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    /// The error code to push.
    pub(crate) error: Option<u32>,
    /// INT n, INT3 or INTO.
    pub(crate) is_software: bool,
    /// The value of RFLAGS to push.
    pub(crate) flags: u64,
    /// The value of RIP to push.
    pub(crate) rip: u64,
    /// The vector whose delivery raised the exception.
    pub(crate) during: Option<u8>,
}

impl Event {
    /// The bit EXT of the error code of an exception during the delivery: set unless software has requested the interrupt
    /// (SDM volume 3, section 6.13).
    const fn external(&self) -> u32 {
        !self.is_software as u32
    }

    /// The error code that names the gate.
    fn gate_error(&self) -> u32 {
        u32::from(self.vector) << 3 | IDT | self.external()
    }
}

/// A gate of the IDT.
struct Gate {
    /// The size of the values that are pushed.
    size: u8,
    /// An interrupt gate, not a trap gate.
    clears_if: bool,
    selector: u16,
    offset: u64,
    /// The index in the interrupt stack table, or 0.
    stack: u8,
}

impl<M: Memory> Cpu<M> {
    /// Delivers an exception or interrupt: pushes the state, loads CS and the new stack, and stores the address of the
    /// handler in `next_rip`.
    ///
    /// # Errors
    /// An exception during the delivery. The registers are unchanged.
    pub(crate) fn deliver(&mut self, event: &Event) -> Result<(), Trap> {
        let is_protected = self.state.is_protected();
        let from = (self.state.segments[seg::CS].selector, self.state.rip);
        let result = match is_protected {
            true => self.deliver_protected(event),
            false => self.deliver_real(event),
        };
        if result.is_ok() {
            self.remember(event, from, is_protected);
        }
        result.map_err(|trap| match trap {
            Trap::Fault(exception) => Trap::Fault(Exception { during: Some(event.vector), ..exception }),
            other => other,
        })
    }

    /// Remembers an event whose handler is entered. `from` are CS and RIP of the instruction.
    fn remember(&mut self, event: &Event, from: (u16, u64), is_protected: bool) {
        let is_page_fault = event.vector == PF && !event.is_software && is_protected;
        let code = &self.state.segments[seg::CS];
        let delivery = Delivery {
            fault: Fault {
                vector: event.vector,
                error: event.error.filter(|_| is_protected),
                cr2: is_page_fault.then_some(self.state.cr2),
                while_delivering: event.during,
            },
            is_software: event.is_software,
            cs: from.0,
            rip: from.1,
            instructions: self.instructions(),
            handler_cs: code.selector,
            handler_rip: self.next_rip,
            handler: code.base.wrapping_add(self.next_rip),
        };
        if !is_protected && delivery.handler == 0 {
            self.first_empty.get_or_insert(delivery);
        }
        let is_of_handler = self
            .last_delivery
            .is_some_and(|last| (last.handler_cs, last.handler_rip) == (delivery.cs, delivery.rip));
        if !is_of_handler {
            self.origins[self.next_origin % ORIGINS] = Some(delivery);
            self.next_origin = (self.next_origin + 1) % ORIGINS;
        }
        self.last_delivery = Some(delivery);
    }

    /// Delivers through the interrupt vector table.
    fn deliver_real(&mut self, event: &Event) -> Result<(), Trap> {
        let start = u64::from(event.vector) * 4;
        if start + 3 > self.state.idtr.limit.into() {
            return Err(Trap::coded(GP, event.gate_error()));
        }
        let pointer = self.load_system(self.state.idtr.base.wrapping_add(start), 4)?;
        let stack = self.current_stack(event.external());
        let cs = self.state.segments[seg::CS].selector.into();
        let pointer_after = self.push_all(&stack, 2, &[event.flags, cs, event.rip])?;
        self.set_gpr(gpr::SP, stack.width, pointer_after);
        self.state.segments[seg::CS] = self.real_code_segment((pointer >> 16) as u16);
        self.state.rflags &= !CLEARED_IN_REAL_MODE;
        self.next_rip = pointer & 0xffff;
        Ok(())
    }

    /// Reads the gate of a vector, and checks it.
    fn gate(&mut self, event: &Event) -> Result<Gate, Trap> {
        let error = event.gate_error();
        let is_long = self.state.is_long();
        let size = if is_long { 16 } else { 8 };
        let start = u64::from(event.vector) * size;
        if start + size - 1 > self.state.idtr.limit.into() {
            return Err(Trap::coded(GP, error));
        }
        let address = self.state.idtr.base.wrapping_add(start);
        let raw = self.load_system(address, 8)?;
        // Bit 12 is part of the type: a gate is a system descriptor.
        let kind = (raw >> 40 & 0x1f) as u8;
        let is_16 = matches!(kind, system::INTERRUPT_16 | system::TRAP_16);
        let is_32 = matches!(kind, system::INTERRUPT_32 | system::TRAP_32);
        let is_task = kind == system::TASK;
        if !is_32 && (is_long || !is_16 && !is_task) {
            return Err(Trap::coded(GP, error));
        }
        let dpl = (raw >> 45 & 3) as u8;
        if event.is_software && dpl < self.state.cpl() {
            return Err(Trap::coded(GP, error));
        }
        if raw >> 47 & 1 == 0 {
            return Err(Trap::coded(NP, error));
        }
        if is_task {
            return Err(Trap::Unsupported(Missing::TaskSwitch));
        }
        let low = raw & 0xffff;
        let offset = match (is_long, is_16) {
            (true, _) => {
                let upper = self.load_system(address.wrapping_add(8), 8)?;
                upper << 32 | raw >> 32 & 0xffff_0000 | low
            }
            (false, true) => low,
            (false, false) => raw >> 32 & 0xffff_0000 | low,
        };
        Ok(Gate {
            size: if is_long { 8 } else { 2 + 2 * u8::from(is_32) },
            clears_if: matches!(kind, system::INTERRUPT_16 | system::INTERRUPT_32),
            selector: (raw >> 16) as u16,
            offset,
            stack: if is_long { (raw >> 32 & 7) as u8 } else { 0 },
        })
    }

    /// The code segment of a handler. Its selector has the privilege of the handler.
    fn handler_segment(&mut self, gate: &Gate, external: u32) -> Result<Segment, Trap> {
        let selector = gate.selector;
        if is_null(selector) {
            return Err(Trap::coded(GP, external));
        }
        let error = error_code(selector) | external;
        let fault = Trap::coded(GP, error);
        let descriptor = self.read_descriptor(selector)?.ok_or(fault)?;
        let cpl = self.state.cpl();
        let is_valid_long = !self.state.is_long() || descriptor.is_long() && !descriptor.is_big();
        if !descriptor.is_code() || descriptor.dpl() > cpl || !is_valid_long {
            return Err(fault);
        }
        if !descriptor.is_present() {
            return Err(Trap::coded(NP, error));
        }
        let new_cpl = if descriptor.is_conforming() { cpl } else { descriptor.dpl() };
        self.code_segment(descriptor, selector, new_cpl)
    }

    /// The stack of a handler.
    fn handler_stack(&mut self, gate: &Gate, cpl: u8, external: u32) -> Result<Stack, Trap> {
        let is_inner = cpl < self.state.cpl();
        let is_long = self.state.is_long();
        let mut stack = match is_inner {
            true if gate.stack == 0 => self.inner_stack(cpl, is_long, external)?,
            true => Stack { segment: self.null_stack(cpl), cpl, ..self.current_stack(external) },
            false => self.current_stack(external),
        };
        if is_long {
            if gate.stack != 0 {
                stack.pointer = self.interrupt_stack(gate.stack, external)?;
            }
            stack.width = 8;
            stack.pointer &= !15;
        }
        Ok(stack)
    }

    /// Delivers through a gate of the IDT.
    fn deliver_protected(&mut self, event: &Event) -> Result<(), Trap> {
        let external = event.external();
        let gate = self.gate(event)?;
        let code = self.handler_segment(&gate, external)?;
        let cpl = (code.selector & 3) as u8;
        let is_inner = cpl < self.state.cpl();
        let stack = self.handler_stack(&gate, cpl, external)?;
        self.check_target(&code, gate.offset, external)?;
        let selector = |index: usize| u64::from(self.state.segments[index % 6].selector);
        let frame = [
            selector(seg::SS),
            self.state.gpr[gpr::SP],
            event.flags,
            selector(seg::CS),
            event.rip,
            event.error.unwrap_or(0).into(),
        ];
        let first = if is_inner || self.state.is_long() { 0 } else { 2 };
        let last = if event.error.is_some() { 6 } else { 5 };
        let pointer = self.push_all(&stack, gate.size, frame.get(first..last).unwrap_or_default())?;
        self.state.segments[seg::CS] = code;
        self.state.segments[seg::SS] = stack.segment;
        self.state.gpr[gpr::SP] = pointer;
        self.state.rflags &= !(CLEARED | if gate.clears_if { flag::IF } else { 0 });
        self.next_rip = gate.offset;
        Ok(())
    }
}
