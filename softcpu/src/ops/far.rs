//! Far jumps and calls (SDM volume 2, JMP and CALL; volume 3, section 5.8).

use crate::cpu::Cpu;
use crate::descriptors::{Descriptor, error_code, gp, is_null, rpl};
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{Segment, gpr, seg};
use crate::trap::{NP, Trap};
use iced_x86::{Code, Instruction};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => jmp_direct,
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => jmp_indirect,
        Code::Call_ptr1616 | Code::Call_ptr1632 => call_direct,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => call_indirect,
        _ => return None,
    })
}

/// A far pointer that is the operand of a jump or call.
#[derive(Clone, Copy)]
struct Target {
    /// The size of the offset in bytes, which is also the size of the values that a call pushes.
    size: u8,
    offset: u64,
    selector: u16,
}

fn direct<M: Memory>(op: &Op<M>) -> Target {
    let is_16 = matches!(op.insn.code(), Code::Jmp_ptr1616 | Code::Call_ptr1616);
    let (size, offset) = match is_16 {
        true => (2, op.insn.far_branch16().into()),
        false => (4, op.insn.far_branch32().into()),
    };
    Target { size, offset, selector: op.insn.far_branch_selector() }
}

fn indirect<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<Target, Trap> {
    let size = match op.insn.code() {
        Code::Jmp_m1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    };
    let (offset, selector) = cpu.load_far_pointer(op, size)?;
    Ok(Target { size, offset, selector })
}

fn jmp_direct<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    jmp(cpu, direct(op))
}

fn jmp_indirect<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let target = indirect(cpu, op)?;
    jmp(cpu, target)
}

fn call_direct<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    call(cpu, direct(op))
}

fn call_indirect<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let target = indirect(cpu, op)?;
    call(cpu, target)
}

impl<M: Memory> Cpu<M> {
    /// Reads and checks the descriptor of a far transfer's selector, and decides between a code segment and a gate or TSS.
    ///
    /// # Errors
    /// #GP or #NP.
    fn far_descriptor(&mut self, selector: u16) -> Result<Descriptor, Trap> {
        if is_null(selector) {
            return Err(Trap::gp());
        }
        let descriptor = self.read_descriptor(selector)?.ok_or(gp(selector))?;
        if !descriptor.is_code_or_data() {
            return Ok(descriptor);
        }
        let cpl = self.state.cpl();
        let allowed = match descriptor.is_conforming() {
            true => descriptor.dpl() <= cpl,
            false => rpl(selector) <= cpl && descriptor.dpl() == cpl,
        };
        if !descriptor.is_code() || !allowed || self.is_mixed_code(descriptor) {
            return Err(gp(selector));
        }
        if !descriptor.is_present() {
            return Err(Trap::coded(NP, error_code(selector)));
        }
        Ok(descriptor)
    }

    /// True for code that is both 64-bit and 32-bit, which long mode does not allow.
    pub(super) fn is_mixed_code(&self, descriptor: Descriptor) -> bool {
        self.state.is_long() && descriptor.is_long() && descriptor.is_big()
    }

    /// Pushes CS and the address behind this instruction. Returns the new value of RSP.
    ///
    /// # Errors
    /// #SS or #PF.
    pub(super) fn push_return(&mut self, size: u8) -> Result<u64, Trap> {
        let stack = self.current_stack(0);
        let cs = self.state.segments[seg::CS].selector.into();
        self.push_all(&stack, size, &[cs, self.next_rip])
    }

    /// Continues in another code segment.
    pub(super) fn enter(&mut self, code: Segment, offset: u64) {
        self.state.segments[seg::CS] = code;
        self.next_rip = offset;
    }
}

/// The code segment of a target in real mode.
fn real_target<M: Memory>(cpu: &Cpu<M>, target: Target) -> Result<Segment, Trap> {
    let code = cpu.real_code_segment(target.selector);
    cpu.check_target(&code, target.offset, 0)?;
    Ok(code)
}

fn jmp<M: Memory>(cpu: &mut Cpu<M>, target: Target) -> Result<(), Trap> {
    let code = if cpu.state.is_protected() {
        let descriptor = cpu.far_descriptor(target.selector)?;
        if !descriptor.is_code_or_data() {
            return cpu.jump_through(descriptor, target.selector);
        }
        let cpl = cpu.state.cpl();
        cpu.check_target(&descriptor.segment(target.selector), target.offset, 0)?;
        cpu.code_segment(descriptor, target.selector, cpl)?
    } else {
        real_target(cpu, target)?
    };
    cpu.enter(code, target.offset);
    Ok(())
}

fn call<M: Memory>(cpu: &mut Cpu<M>, target: Target) -> Result<(), Trap> {
    let code = if cpu.state.is_protected() {
        let descriptor = cpu.far_descriptor(target.selector)?;
        if !descriptor.is_code_or_data() {
            return cpu.call_through(descriptor, target.selector);
        }
        let cpl = cpu.state.cpl();
        cpu.check_target(&descriptor.segment(target.selector), target.offset, 0)?;
        cpu.code_segment(descriptor, target.selector, cpl)?
    } else {
        real_target(cpu, target)?
    };
    let pointer = cpu.push_return(target.size)?;
    cpu.set_gpr(gpr::SP, 8, pointer);
    cpu.enter(code, target.offset);
    Ok(())
}
