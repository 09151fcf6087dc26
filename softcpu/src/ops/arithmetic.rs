//! Addition, subtraction and logic (SDM volume 1, sections 5.1.2 and 5.1.4).

use crate::cpu::Cpu;
use crate::flags;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::operands::mask;
use crate::shape::{Operation, Source, Target, binary, unary};
use crate::state::flag;
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Add => binary::<M, Add>(insn),
        Mnemonic::Adc => binary::<M, Adc>(insn),
        Mnemonic::Sub => binary::<M, Sub>(insn),
        Mnemonic::Sbb => binary::<M, Sbb>(insn),
        Mnemonic::Cmp => binary::<M, Cmp>(insn),
        Mnemonic::And => binary::<M, And>(insn),
        Mnemonic::Or => binary::<M, Or>(insn),
        Mnemonic::Xor => binary::<M, Xor>(insn),
        Mnemonic::Test => binary::<M, Test>(insn),
        Mnemonic::Inc => unary::<M, Inc>(insn),
        Mnemonic::Dec => unary::<M, Dec>(insn),
        Mnemonic::Neg => unary::<M, Neg>(insn),
        Mnemonic::Not => unary::<M, Not>(insn),
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

impl<B: Binary> Operation for B {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        let size = T::size(op);
        let b = S::get(cpu, op, 1)? & mask(size);
        if !B::WRITES {
            let a = T::get(cpu, op, 0)?;
            let (_, status) = B::apply(a, b, cpu.state.rflags, size);
            cpu.set_status(status);
            return Ok(());
        }
        T::update(cpu, op, |a, rflags| {
            let (result, status) = B::apply(a, b, rflags, size);
            (result, flags::merge(rflags, flag::STATUS, status))
        })
    }
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

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Operation for Inc {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        let size = T::size(op);
        T::update(cpu, op, |a, rflags| {
            let (result, status) = sum(a, 1, 0, size);
            (result, flags::merge(rflags, flag::STATUS & !flag::CF, status))
        })
    }
}

impl Operation for Dec {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        let size = T::size(op);
        T::update(cpu, op, |a, rflags| {
            let (result, status) = difference(a, 1, 0, size);
            (result, flags::merge(rflags, flag::STATUS & !flag::CF, status))
        })
    }
}

impl Operation for Neg {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        let size = T::size(op);
        T::update(cpu, op, |a, rflags| {
            let (result, status) = difference(0, a, 0, size);
            (result, flags::merge(rflags, flag::STATUS, status))
        })
    }
}

impl Operation for Not {
    #[inline]
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
        T::update(cpu, op, |a, rflags| (!a, rflags))
    }
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
