//! RET far and IRET (SDM volume 2).

use crate::cpu::Cpu;
use crate::descriptors::{error_code, gp, is_null, rpl};
use crate::exit::Missing;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::state::{Segment, flag, seg};
use crate::trap::{GP, NP, Trap};
use iced_x86::{Code, Instruction};

/// The flags that IRET loads in any case.
const FLAGS: u64 = flag::STATUS | flag::TF | flag::DF | flag::NT;
/// The flags that IRET loads if its operand size is not 16 bits.
const UPPER_FLAGS: u64 = flag::RF | flag::AC | flag::ID;
/// The flags that IRET loads at CPL 0 if its operand size is not 16 bits.
const VIRTUAL_FLAGS: u64 = flag::VIF | flag::VIP;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => retf::<M, 2>,
        Code::Retfd | Code::Retfd_imm16 => retf::<M, 4>,
        Code::Retfq | Code::Retfq_imm16 => retf::<M, 8>,
        Code::Iretw => iret::<M, 2>,
        Code::Iretd => iret::<M, 4>,
        Code::Iretq => iret::<M, 8>,
        _ => return None,
    })
}

/// The values that a return takes from the stack.
struct Frame {
    rip: u64,
    code: Segment,
    /// The new stack, with its pointer, if the return loads it.
    stack: Option<(Segment, u64)>,
    /// The number of bytes that the return takes from a stack that it keeps.
    bytes: u64,
}

impl<M: Memory> Cpu<M> {
    /// CS after a return. Its selector has the new privilege.
    ///
    /// # Errors
    /// #GP or #NP.
    fn returned_code(&mut self, selector: u16) -> Result<Segment, Trap> {
        if is_null(selector) {
            return Err(Trap::gp());
        }
        let descriptor = self.read_descriptor(selector)?.ok_or(gp(selector))?;
        let rpl = rpl(selector);
        let allowed = match descriptor.is_conforming() {
            true => descriptor.dpl() <= rpl,
            false => descriptor.dpl() == rpl,
        };
        let is_valid = descriptor.is_code() && allowed && rpl >= self.state.cpl();
        if !is_valid || self.is_mixed_code(descriptor) {
            return Err(gp(selector));
        }
        if !descriptor.is_present() {
            return Err(Trap::coded(NP, error_code(selector)));
        }
        self.code_segment(descriptor, selector, rpl)
    }

    /// SS after a return to `code`.
    fn returned_stack(&mut self, selector: u16, code: &Segment) -> Result<Segment, Trap> {
        let cpl = rpl(code.selector);
        if !is_null(selector) {
            return self.stack_segment(selector, cpl, GP, 0);
        }
        let allowed = self.state.is_long() && code.long && cpl < 3 && rpl(selector) == cpl;
        if !allowed {
            return Err(Trap::gp());
        }
        Ok(self.state.segments[seg::SS].null(selector, cpl))
    }

    /// Reads and checks what a return takes from the stack in protected mode: `count` values of `size` bytes, of which RIP
    /// and CS are the first, then `skipped` bytes of parameters, then RSP and SS if the privilege changes or `always`.
    fn protected_frame(&mut self, size: u8, count: u64, skipped: u64, always: bool) -> Result<Frame, Trap> {
        let step = u64::from(size);
        let rip = self.peek(size, 0)?;
        let selector = self.peek(size, step)? as u16;
        let code = self.returned_code(selector)?;
        let is_outer = rpl(selector) > self.state.cpl();
        let stack = if is_outer || always {
            let pointer = self.peek(size, count * step + skipped)?;
            let selector = self.peek(size, (count + 1) * step + skipped)? as u16;
            Some((self.returned_stack(selector, &code)?, pointer.wrapping_add(skipped)))
        } else {
            None
        };
        self.check_target(&code, rip, 0)?;
        Ok(Frame { rip, code, stack, bytes: count * step + skipped })
    }

    /// Loads CS, RIP and the stack of a return.
    fn return_to(&mut self, frame: &Frame) {
        let old_cpl = self.state.cpl();
        if frame.stack.is_none() {
            self.drop_stack(frame.bytes);
        }
        self.state.segments[seg::CS] = frame.code;
        self.next_rip = frame.rip;
        let Some((segment, pointer)) = frame.stack else { return };
        self.set_returned_stack(segment, pointer);
        if self.state.cpl() > old_cpl {
            self.drop_inner_segments();
        }
    }

    /// Unloads the data segments that code of the current privilege must not use.
    pub(super) fn drop_inner_segments(&mut self) {
        let cpl = self.state.cpl();
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.state.segments[index];
            if segment.unusable || segment.dpl < cpl && !segment.is_conforming() {
                *segment = Segment { base: segment.base, ..segment.null(0, 0) };
            }
        }
    }

    /// Reads IP, or EIP, and CS from the stack in real mode.
    fn real_frame(&mut self, size: u8, bytes: u64) -> Result<Frame, Trap> {
        let rip = self.peek(size, 0)?;
        let selector = self.peek(size, size.into())? as u16;
        let code = self.real_code_segment(selector);
        self.check_target(&code, rip, 0)?;
        Ok(Frame { rip, code, stack: None, bytes })
    }
}

fn retf<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let skipped = if op.insn.op_count() == 0 { 0 } else { op.insn.immediate16().into() };
    let frame = match cpu.state.is_protected() {
        true => cpu.protected_frame(SIZE, 2, skipped, false)?,
        false => cpu.real_frame(SIZE, 2 * u64::from(SIZE) + skipped)?,
    };
    cpu.return_to(&frame);
    Ok(())
}

fn iret<M: Memory, const SIZE: u8>(cpu: &mut Cpu<M>, _: &Op<M>) -> Result<(), Trap> {
    let step = u64::from(SIZE);
    if !cpu.state.is_protected() {
        let new = cpu.peek(SIZE, 2 * step)?;
        let frame = cpu.real_frame(SIZE, 3 * step)?;
        cpu.return_to(&frame);
        let upper = if SIZE == 2 { 0 } else { UPPER_FLAGS };
        cpu.load_flags(FLAGS | flag::IF | flag::IOPL | upper, new);
        return Ok(());
    }
    if cpu.state.has(flag::NT) {
        // A return from a nested task, which long mode does not have.
        return Err(if cpu.state.is_long() { Trap::gp() } else { Trap::Unsupported(Missing::TaskSwitch) });
    }
    let new = cpu.peek(SIZE, 2 * step)?;
    let cpl = cpu.state.cpl();
    let is_virtual = SIZE == 4 && new & flag::VM != 0 && cpl == 0;
    if is_virtual && !cpu.state.is_long() {
        return Err(Trap::Unsupported(Missing::Virtual8086));
    }
    let frame = cpu.protected_frame(SIZE, 3, 0, cpu.state.is_64())?;
    let mut loaded = FLAGS;
    if SIZE != 2 {
        loaded |= UPPER_FLAGS;
    }
    if u64::from(cpl) <= (cpu.state.rflags & flag::IOPL) >> 12 {
        loaded |= flag::IF;
    }
    if cpl == 0 {
        loaded |= flag::IOPL | if SIZE == 2 { 0 } else { VIRTUAL_FLAGS };
    }
    cpu.return_to(&frame);
    cpu.load_flags(loaded, new);
    Ok(())
}

impl<M: Memory> Cpu<M> {
    /// Replaces the flags in `which` by those in `new`.
    fn load_flags(&mut self, which: u64, new: u64) {
        self.state.rflags = self.state.rflags & !which | new & which;
    }
}
