//! Addition, subtraction and logic (SDM volume 1, sections 5.1.2 and 5.1.4).

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Add => form::<M, Add>(insn),
        Mnemonic::Adc => form::<M, Adc>(insn),
        Mnemonic::Sub => form::<M, Sub>(insn),
        Mnemonic::Sbb => form::<M, Sbb>(insn),
        Mnemonic::Cmp => form::<M, Cmp>(insn),
        Mnemonic::And => form::<M, And>(insn),
        Mnemonic::Or => form::<M, Or>(insn),
        Mnemonic::Xor => form::<M, Xor>(insn),
        Mnemonic::Test => form::<M, Test>(insn),
        Mnemonic::Inc => inc,
        Mnemonic::Dec => dec,
        Mnemonic::Neg => neg,
        Mnemonic::Not => not,
        Mnemonic::Adcx => adcx,
        Mnemonic::Adox => adox,
        _ => return None,
    })
}

/// An instruction that sets all status flags from two operands.
trait Binary {
    /// True if the result replaces the first operand.
    const WRITES: bool = true;

    /// The result and the status flags for operands of `size` bytes.
    fn apply(a: u64, b: u64, rflags: u64, size: u8) -> (u64, u64);
}

struct Add;
struct Adc;
struct Sub;
struct Sbb;
struct Cmp;
struct And;
struct Or;
struct Xor;
struct Test;

#[inline]
fn sum(a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    (result, flags::of_add(a, b, result, size))
}

#[inline]
fn difference(a: u64, b: u64, borrow: u64, size: u8) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    (result, flags::of_sub(a, b, result, size))
}

#[inline]
fn logic(result: u64, size: u8) -> (u64, u64) {
    (result, flags::of_result(result, size))
}

impl Binary for Add {
    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        sum(a, b, 0, size)
    }
}

impl Binary for Adc {
    #[inline]
    fn apply(a: u64, b: u64, rflags: u64, size: u8) -> (u64, u64) {
        sum(a, b, rflags & flag::CF, size)
    }
}

impl Binary for Sub {
    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        difference(a, b, 0, size)
    }
}

impl Binary for Sbb {
    #[inline]
    fn apply(a: u64, b: u64, rflags: u64, size: u8) -> (u64, u64) {
        difference(a, b, rflags & flag::CF, size)
    }
}

impl Binary for Cmp {
    const WRITES: bool = false;

    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        difference(a, b, 0, size)
    }
}

impl Binary for And {
    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        logic(a & b, size)
    }
}

impl Binary for Or {
    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        logic(a | b, size)
    }
}

impl Binary for Xor {
    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        logic(a ^ b, size)
    }
}

impl Binary for Test {
    const WRITES: bool = false;

    #[inline]
    fn apply(a: u64, b: u64, _: u64, size: u8) -> (u64, u64) {
        logic(a & b, size)
    }
}

/// The function for an instruction with these operands. The commonest forms have their own.
fn form<M: Memory, B: Binary>(insn: &Instruction) -> Handler<M> {
    let is_register = |register: Register| register.is_gpr32() || register.is_gpr64();
    if !is_register(insn.op0_register()) {
        return binary::<M, B>;
    }
    match (insn.op1_kind(), insn.op0_register().is_gpr64()) {
        (OpKind::Register, false) => registers::<M, B, 4>,
        (OpKind::Register, true) => registers::<M, B, 8>,
        (OpKind::Memory, _) => binary::<M, B>,
        (_, false) => with_immediate::<M, B, 4>,
        (_, true) => with_immediate::<M, B, 8>,
    }
}

/// Operands of all kinds and sizes.
fn binary<M: Memory, B: Binary>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = if B::WRITES { cpu.get_for_update(op, 0)? } else { cpu.get(op, 0)? };
    let b = cpu.get(op, 1)? & mask(op.size);
    let (result, status) = B::apply(a, b, cpu.state.rflags, op.size);
    if B::WRITES {
        cpu.set(op, 0, result)?;
    }
    cpu.set_status(status);
    Ok(())
}

/// Two registers of `SIZE` bytes.
fn registers<M: Memory, B: Binary, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let b = cpu.gpr(op.operands[1].index.into(), SIZE);
    with_register::<M, B, SIZE>(cpu, op, b);
    Ok(())
}

/// A register of `SIZE` bytes, and an immediate value.
fn with_immediate<M: Memory, B: Binary, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    with_register::<M, B, SIZE>(cpu, op, op.immediate & mask(SIZE));
    Ok(())
}

/// Executes an instruction whose first operand is a register of `SIZE` bytes, and whose second has the value `b`.
#[inline]
fn with_register<M: Memory, B: Binary, const SIZE: u8>(cpu: &mut Cpu<M>, op: &Op<M>, b: u64) {
    let index = op.operands[0].index.into();
    let (result, status) = B::apply(cpu.gpr(index, SIZE), b, cpu.state.rflags, SIZE);
    if B::WRITES {
        cpu.set_gpr(index, SIZE, result);
    }
    cpu.set_status(status);
}

impl<M: Memory> Cpu<M> {
    /// Replaces the status flags.
    #[inline]
    pub(crate) fn set_status(&mut self, new: u64) {
        self.state.rflags = flags::merge(self.state.rflags, flag::STATUS, new);
    }

    /// Replaces the flags in `which` by those in `new`.
    #[inline]
    pub(crate) fn set_flags(&mut self, which: u64, new: u64) {
        self.state.rflags = flags::merge(self.state.rflags, which, new);
    }
}

fn inc<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    let (result, status) = sum(a, 1, 0, op.size);
    cpu.set(op, 0, result)?;
    cpu.set_flags(flag::STATUS & !flag::CF, status);
    Ok(())
}

fn dec<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    let (result, status) = difference(a, 1, 0, op.size);
    cpu.set(op, 0, result)?;
    cpu.set_flags(flag::STATUS & !flag::CF, status);
    Ok(())
}

fn neg<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    let (result, status) = difference(0, a, 0, op.size);
    cpu.set(op, 0, result)?;
    cpu.set_status(status);
    Ok(())
}

fn not<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let a = cpu.get_for_update(op, 0)?;
    cpu.set(op, 0, !a)
}

/// Adds with a carry in, and out to, `carry`.
#[inline]
fn add_with<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, carry: u64) -> Result<(), Trap> {
    let (a, b) = (cpu.get(op, 0)?, cpu.get(op, 1)?);
    let (result, status) = sum(a, b, u64::from(cpu.state.has(carry)), op.size);
    cpu.set(op, 0, result)?;
    cpu.set_flags(carry, if status & flag::CF != 0 { carry } else { 0 });
    Ok(())
}

fn adcx<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    add_with(cpu, op, flag::CF)
}

fn adox<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    add_with(cpu, op, flag::OF)
}

#[cfg(test)]
#[path = "../tests/integer.rs"]
mod tests;
