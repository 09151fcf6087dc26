//! String instructions (SDM volume 1, section 7.3.9).

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::state::{flag, gpr, seg};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    let is_string = insn.is_string_instruction();
    Some(match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq if is_string => movs,
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq if is_string => cmps,
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => scas,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => lods,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => stos,
        _ => return None,
    })
}

/// The elements of a string instruction.
#[derive(Clone, Copy)]
pub(super) struct Elements {
    /// The size of an element, in bytes.
    pub(super) size: u8,
    /// The size of an address, in bytes.
    pub(super) width: u8,
    /// The segment of the source.
    pub(super) source: usize,
    /// The distance from an element to the next.
    pub(super) step: u64,
}

impl Elements {
    #[inline]
    fn new<M: Memory>(cpu: &Cpu<M>, op: &Op<M>) -> Self {
        let size = op.size;
        let step = u64::from(size);
        let width = match op.address.mask {
            0xffff => 2,
            0xffff_ffff => 4,
            _ => 8,
        };
        let step = if cpu.state.has(flag::DF) { step.wrapping_neg() } else { step };
        Self { size, width, source: op.address.segment.into(), step }
    }
}

/// The condition on which a repetition ends early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Never,
    /// REPE: an element is different.
    NotEqual,
    /// REPNE: an element is equal.
    Equal,
}

impl<M: Memory> Cpu<M> {
    /// Advances an address register by `count` elements.
    #[inline]
    pub(super) fn advance(&mut self, register: usize, elements: Elements, count: u64) {
        let value = self.state.gpr[register & 15].wrapping_add(elements.step.wrapping_mul(count));
        self.set_gpr(register, elements.width, value);
    }

    /// Executes `once`, as often as a prefix says. `more` may handle further elements at once, at most the number it is
    /// given, and returns how many.
    #[inline]
    fn repeat(
        &mut self,
        op: &Op<M>,
        until: Until,
        once: impl Fn(&mut Self, Elements) -> Result<(), Trap>,
        more: impl Fn(&mut Self, Elements, u64) -> u64,
    ) -> Result<(), Trap> {
        let elements = Elements::new(self, op);
        if !op.insn.has_rep_prefix() && !op.insn.has_repne_prefix() {
            return once(self, elements);
        }
        let width = elements.width;
        if width == 4 && self.state.is_64() {
            self.clear_upper_halves(op);
        }
        let mut count = self.gpr(gpr::CX, width);
        if count == 0 {
            return Ok(());
        }
        // A repetition that is to be continued leaves the flags as they were (SDM volume 2, REP).
        let rflags = self.state.rflags;
        loop {
            once(self, elements).inspect_err(|_| self.state.rflags = rflags)?;
            count = count.wrapping_sub(1);
            self.set_gpr(gpr::CX, width, count);
            self.commit_answers();
            let is_over = match until {
                Until::Never => false,
                Until::NotEqual => !self.state.has(flag::ZF),
                Until::Equal => self.state.has(flag::ZF),
            };
            if count == 0 || is_over {
                return Ok(());
            }
            self.left = self.left.saturating_sub(1);
            // A store may have changed this instruction.
            if self.left == 0 || self.leave_block || self.state.has(flag::TF) {
                self.state.rflags = rflags;
                return Err(Trap::Again);
            }
            // The last element, and the last of the run, are left to `once`.
            let done = more(self, elements, (count - 1).min(self.left - 1));
            count = count.wrapping_sub(done);
            self.left = self.left.saturating_sub(done);
            self.set_gpr(gpr::CX, width, count);
            if self.leave_block {
                self.state.rflags = rflags;
                return Err(Trap::Again);
            }
        }
    }

    /// A repetition with 32-bit addresses in 64-bit mode first clears the upper halves of RCX, of RDI if it writes, and of
    /// RSI for MOVS, also if the count is 0 or the first access faults, as on processors of Intel.
    fn clear_upper_halves(&mut self, op: &Op<M>) {
        use Mnemonic::{Movsb, Movsd, Movsq, Movsw, Stosb, Stosd, Stosq, Stosw};
        let registers: &[usize] = match op.insn.mnemonic() {
            Movsb | Movsw | Movsd | Movsq => &[gpr::CX, gpr::SI, gpr::DI],
            Stosb | Stosw | Stosd | Stosq => &[gpr::CX, gpr::DI],
            _ => &[gpr::CX],
        };
        for register in registers {
            self.state.gpr[register & 15] &= mask(4);
        }
    }
}

/// No element at once.
fn none<M: Memory>(_: &mut Cpu<M>, _: Elements, _: u64) -> u64 {
    0
}

fn movs<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let once = |cpu: &mut Cpu<M>, elements: Elements| {
        let Elements { size, width, source, .. } = elements;
        let value = cpu.load(source, cpu.gpr(gpr::SI, width), size)?;
        cpu.store(seg::ES, cpu.gpr(gpr::DI, width), size, value)?;
        cpu.advance(gpr::SI, elements, 1);
        cpu.advance(gpr::DI, elements, 1);
        Ok(())
    };
    cpu.repeat(op, Until::Never, once, Cpu::move_elements)
}

fn stos<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let once = |cpu: &mut Cpu<M>, elements: Elements| {
        let Elements { size, width, .. } = elements;
        cpu.store(seg::ES, cpu.gpr(gpr::DI, width), size, cpu.state.gpr[gpr::AX])?;
        cpu.advance(gpr::DI, elements, 1);
        Ok(())
    };
    cpu.repeat(op, Until::Never, once, Cpu::store_elements)
}

fn lods<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let once = |cpu: &mut Cpu<M>, elements: Elements| {
        let Elements { size, width, source, .. } = elements;
        let value = cpu.load(source, cpu.gpr(gpr::SI, width), size)?;
        cpu.set_gpr(gpr::AX, size, value);
        cpu.advance(gpr::SI, elements, 1);
        Ok(())
    };
    cpu.repeat(op, Until::Never, once, none)
}

/// The end of a repetition of CMPS or SCAS.
fn until<M: Memory>(op: &Op<M>) -> Until {
    if op.insn.has_repne_prefix() { Until::Equal } else { Until::NotEqual }
}

/// Sets the flags of `a - b`.
fn compare<M: Memory>(cpu: &mut Cpu<M>, a: u64, b: u64, size: u8) {
    let result = a.wrapping_sub(b) & mask(size);
    cpu.set_status(flags::of_sub(a, b, result, size));
}

fn cmps<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let once = |cpu: &mut Cpu<M>, elements: Elements| {
        let Elements { size, width, source, .. } = elements;
        // Processors of Intel read the second operand first.
        let b = cpu.load(seg::ES, cpu.gpr(gpr::DI, width), size)?;
        let a = cpu.load(source, cpu.gpr(gpr::SI, width), size)?;
        cpu.advance(gpr::SI, elements, 1);
        cpu.advance(gpr::DI, elements, 1);
        compare(cpu, a, b, size);
        Ok(())
    };
    cpu.repeat(op, until(op), once, none)
}

fn scas<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let once = |cpu: &mut Cpu<M>, elements: Elements| {
        let Elements { size, width, .. } = elements;
        let b = cpu.load(seg::ES, cpu.gpr(gpr::DI, width), size)?;
        cpu.advance(gpr::DI, elements, 1);
        let a = cpu.gpr(gpr::AX, size);
        compare(cpu, a, b, size);
        Ok(())
    };
    cpu.repeat(op, until(op), once, none)
}

#[cfg(test)]
#[path = "../tests/string.rs"]
mod tests;
