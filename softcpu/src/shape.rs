//! The shapes of operands. The commonest are known when an instruction is decoded, and its function is compiled for each of
//! them, so that it need not look at the operands again.

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::trap::Trap;
use iced_x86::{Instruction, OpKind};

/// An operand that an instruction reads.
pub(crate) trait Source {
    /// Reads operand `number`, zero-extended. An immediate value may have more bits than the instruction uses.
    fn get<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, number: usize) -> Result<u64, Trap>;
}

/// The first operand of an instruction, which it writes.
pub(crate) trait Target: Source {
    /// The size in bytes.
    fn size<M: Memory>(op: &Op<M>) -> u8;

    /// Writes the operand.
    fn set<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, value: u64) -> Result<(), Trap>;

    /// Replaces the operand and RFLAGS by what `change` makes of them. A page that cannot be written faults before anything
    /// is changed.
    fn update<M: Memory>(
        cpu: &mut Cpu<M>,
        op: &Op<M>,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<(), Trap>;
}

/// An operand of any kind and size.
pub(crate) struct Any;
/// A general register of 4 or 8 bytes.
pub(crate) struct Register<const SIZE: u8>;
/// Memory of 4 or 8 bytes.
pub(crate) struct InMemory<const SIZE: u8>;
/// An immediate value.
pub(crate) struct Immediate;

impl Source for Any {
    #[inline]
    fn get<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, number: usize) -> Result<u64, Trap> {
        cpu.get(op, number)
    }
}

impl Target for Any {
    #[inline]
    fn size<M: Memory>(op: &Op<M>) -> u8 {
        op.size
    }

    #[inline]
    fn set<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, value: u64) -> Result<(), Trap> {
        cpu.set(op, 0, value)
    }

    #[inline]
    fn update<M: Memory>(
        cpu: &mut Cpu<M>,
        op: &Op<M>,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<(), Trap> {
        let old = cpu.get_for_update(op, 0)?;
        let (new, rflags) = change(old, cpu.state.rflags);
        cpu.set(op, 0, new)?;
        cpu.state.rflags = rflags;
        Ok(())
    }
}

impl<const SIZE: u8> Source for Register<SIZE> {
    #[inline]
    fn get<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, number: usize) -> Result<u64, Trap> {
        Ok(cpu.gpr(op.operands[number & 3].index.into(), SIZE))
    }
}

impl<const SIZE: u8> Target for Register<SIZE> {
    #[inline]
    fn size<M: Memory>(_: &Op<M>) -> u8 {
        SIZE
    }

    #[inline]
    fn set<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, value: u64) -> Result<(), Trap> {
        cpu.set_gpr(op.operands[0].index.into(), SIZE, value);
        Ok(())
    }

    #[inline]
    fn update<M: Memory>(
        cpu: &mut Cpu<M>,
        op: &Op<M>,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<(), Trap> {
        let index = op.operands[0].index.into();
        let (new, rflags) = change(cpu.gpr(index, SIZE), cpu.state.rflags);
        cpu.set_gpr(index, SIZE, new);
        cpu.state.rflags = rflags;
        Ok(())
    }
}

impl<const SIZE: u8> Source for InMemory<SIZE> {
    #[inline]
    fn get<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, _: usize) -> Result<u64, Trap> {
        let offset = cpu.effective_address(op);
        if op.address.is_flat
            && let Some(page) = cpu.page_to_read(offset, SIZE)
        {
            return Ok(cpu.load_from_page(page, offset, SIZE));
        }
        cpu.load(op.address.segment.into(), offset, SIZE)
    }
}

impl<const SIZE: u8> Target for InMemory<SIZE> {
    #[inline]
    fn size<M: Memory>(_: &Op<M>) -> u8 {
        SIZE
    }

    #[inline]
    fn set<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, value: u64) -> Result<(), Trap> {
        let offset = cpu.effective_address(op);
        if op.address.is_flat
            && let Some(page) = cpu.page_to_write(offset, SIZE)
        {
            cpu.store_to_page(page, offset, SIZE, value);
            return Ok(());
        }
        cpu.store(op.address.segment.into(), offset, SIZE, value)
    }

    #[inline]
    fn update<M: Memory>(
        cpu: &mut Cpu<M>,
        op: &Op<M>,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<(), Trap> {
        let offset = cpu.effective_address(op);
        if op.address.is_flat
            && let Some(page) = cpu.page_to_write(offset, SIZE)
        {
            let (new, rflags) = change(cpu.load_from_page(page, offset, SIZE), cpu.state.rflags);
            cpu.store_to_page(page, offset, SIZE, new);
            cpu.state.rflags = rflags;
            return Ok(());
        }
        Any::update(cpu, op, change)
    }
}

impl Source for Immediate {
    #[inline]
    fn get<M: Memory>(_: &mut Cpu<M>, op: &Op<M>, _: usize) -> Result<u64, Trap> {
        Ok(op.immediate)
    }
}

/// An instruction that changes its first operand. It has at most one operand in memory.
pub(crate) trait Operation {
    /// Executes the instruction.
    fn run<M: Memory, T: Target, S: Source>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap>;
}

/// The kind of an operand, as far as functions are compiled for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Any,
    Register,
    Memory,
    Immediate,
}

/// The shape of operand `number`, which has the same size as the first, and this size.
fn shape(insn: &Instruction, number: u32) -> (Shape, usize) {
    if number >= insn.op_count() {
        return (Shape::Immediate, 0);
    }
    match insn.op_kind(number) {
        OpKind::Register if insn.op_register(number).is_gpr32() => (Shape::Register, 4),
        OpKind::Register if insn.op_register(number).is_gpr64() => (Shape::Register, 8),
        OpKind::Memory if matches!(insn.memory_size().size(), 4 | 8) => {
            (Shape::Memory, insn.memory_size().size())
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => (Shape::Immediate, 0),
        _ => (Shape::Any, 0),
    }
}

/// The function for an instruction with an operand, and perhaps an immediate value.
pub(crate) fn unary<M: Memory, O: Operation>(insn: &Instruction) -> Handler<M> {
    match (shape(insn, 0), shape(insn, 1).0) {
        ((Shape::Register, 4), Shape::Immediate) => O::run::<M, Register<4>, Immediate>,
        ((Shape::Register, 8), Shape::Immediate) => O::run::<M, Register<8>, Immediate>,
        ((Shape::Memory, 4), Shape::Immediate) => O::run::<M, InMemory<4>, Immediate>,
        ((Shape::Memory, 8), Shape::Immediate) => O::run::<M, InMemory<8>, Immediate>,
        _ => O::run::<M, Any, Any>,
    }
}

/// The function for an instruction with two operands of the same size.
pub(crate) fn binary<M: Memory, O: Operation>(insn: &Instruction) -> Handler<M> {
    match (shape(insn, 0), shape(insn, 1)) {
        ((Shape::Register, 4), (Shape::Register, 4)) => O::run::<M, Register<4>, Register<4>>,
        ((Shape::Register, 8), (Shape::Register, 8)) => O::run::<M, Register<8>, Register<8>>,
        ((Shape::Register, 4), (Shape::Memory, 4)) => O::run::<M, Register<4>, InMemory<4>>,
        ((Shape::Register, 8), (Shape::Memory, 8)) => O::run::<M, Register<8>, InMemory<8>>,
        ((Shape::Memory, 4), (Shape::Register, 4)) => O::run::<M, InMemory<4>, Register<4>>,
        ((Shape::Memory, 8), (Shape::Register, 8)) => O::run::<M, InMemory<8>, Register<8>>,
        _ => unary::<M, O>(insn),
    }
}
