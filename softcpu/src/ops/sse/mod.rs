//! SSE and SSE2 (SDM volume 1, chapters 10 and 11).
//!
//! The instructions on MMX registers are not supported, for example MOVQ2DQ and CVTPI2PS: CPUID does not show MMX.

mod convert;
mod float;
mod integer;
mod lanes;
mod moves;
mod multiply;
mod shuffle;
mod state;

use crate::cpu::Cpu;
use crate::float::Env;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::operands::mask;
use crate::state::{cr0, cr4};
use crate::trap::{NM, Trap, XM};
use iced_x86::{Code, Instruction};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    if let Some(found) = state::handler(insn) {
        return Some(found);
    }
    // The string instructions MOVSD and CMPSD have the names of SSE instructions.
    let is_string = matches!(insn.code(), Code::Movsd_m32_m32 | Code::Cmpsd_m32_m32);
    if is_string || insn.op0_register().is_mm() || insn.op1_register().is_mm() {
        return None;
    }
    moves::handler(insn)
        .or_else(|| float::handler(insn))
        .or_else(|| integer::handler(insn))
        .or_else(|| multiply::handler(insn))
        .or_else(|| shuffle::handler(insn))
        .or_else(|| convert::handler(insn))
}

impl<M: Memory> Cpu<M> {
    /// Checks that SSE instructions can be executed (SDM volume 3, table 2-2 and section 13.1).
    #[inline]
    fn check_sse(&self) -> Result<(), Trap> {
        let state = &self.state;
        if state.cr0 & (cr0::EM | cr0::TS) == 0 && state.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        Err(if state.cr0 & cr0::EM != 0 || state.cr4 & cr4::OSFXSR == 0 {
            Trap::ud()
        } else {
            Trap::fault(NM)
        })
    }

    /// The XMM register of operand `number`.
    #[inline]
    fn xmm(&self, op: &Op<M>, number: usize) -> u128 {
        self.state.xmm[usize::from(op.operands[number & 3].index & 15)]
    }

    #[inline]
    fn set_xmm(&mut self, op: &Op<M>, number: usize, value: u128) {
        self.state.xmm[usize::from(op.operands[number & 3].index & 15)] = value;
    }

    /// Reads operand `number`: a whole XMM register, memory, or a general register. 16 bytes of memory must be aligned. What
    /// is narrower is zero-extended.
    #[inline]
    fn sse_source(&mut self, op: &Op<M>, number: usize) -> Result<u128, Trap> {
        let operand = op.operands[number & 3];
        match operand.kind {
            Kind::Xmm => Ok(self.xmm(op, number)),
            Kind::Memory if operand.size == 16 => {
                let offset = self.effective_address(op);
                self.load_wide(op.address.segment.into(), offset, true)
            }
            _ => self.get(op, number).map(u128::from),
        }
    }

    /// Ends a floating-point instruction: notes its exceptions in MXCSR.
    ///
    /// # Errors
    /// An exception is not masked (SDM volume 1, section 11.5.2).
    #[inline]
    fn end_float(&mut self, env: &Env) -> Result<(), Trap> {
        let exceptions = env.exceptions();
        self.state.mxcsr |= exceptions;
        if exceptions & env.unmasked() == 0 {
            return Ok(());
        }
        Err(if self.state.cr4 & cr4::OSXMMEXCPT != 0 { Trap::fault(XM) } else { Trap::ud() })
    }
}

/// The low `size` bytes of an operand.
#[inline]
fn low(value: u128, size: u8) -> u64 {
    value as u64 & mask(size)
}

/// Replaces the low `size` bytes.
#[inline]
fn replace_low(whole: u128, size: u8, value: u64) -> u128 {
    let bits = u128::from(mask(size));
    whole & !bits | u128::from(value) & bits
}

/// Executes an instruction that combines its first operand, a register, with its second one.
#[inline]
fn combine<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, result: impl Fn(u128, u128) -> u128) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    cpu.set_xmm(op, 0, result(a, b));
    Ok(())
}

/// As [`combine`], with the immediate operand.
#[inline]
fn combine_immediate<M: Memory>(
    cpu: &mut Cpu<M>,
    op: &Op<M>,
    result: impl Fn(u128, u128, u8) -> u128,
) -> Result<(), Trap> {
    cpu.check_sse()?;
    let (a, b) = (cpu.xmm(op, 0), cpu.sse_source(op, 1)?);
    cpu.set_xmm(op, 0, result(a, b, op.insn.immediate8()));
    Ok(())
}

#[cfg(test)]
#[path = "../../tests/sse.rs"]
mod tests;
