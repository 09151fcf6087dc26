//! A decoded instruction with its operands, ready to be executed many times.

use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::ops;
use crate::state::seg;
use crate::trap::Trap;
use iced_x86::{Instruction, OpKind, Register};

/// The function that executes an instruction. If it returns an error, the registers are unchanged, and the instruction
/// can be executed again.
pub(crate) type Handler<M> = fn(&mut Cpu<M>, &Op<M>) -> Result<(), Trap>;

/// A decoded instruction.
pub(crate) struct Op<M: Memory> {
    pub(crate) run: Handler<M>,
    pub(crate) insn: Instruction,
    pub(crate) operands: [Operand; 4],
    /// The address of the memory operand, if there is one. For a string instruction, the segment of the source, and the
    /// bits that the address size leaves.
    pub(crate) address: Address,
    /// The first immediate operand, extended to 64 bits as the instruction extends it, or the target of a near branch.
    pub(crate) immediate: u64,
    /// The length in bytes.
    pub(crate) len: u8,
    /// The size of the first operand, in bytes; if it has none, that of the second.
    pub(crate) size: u8,
    /// No instruction of its block follows this one.
    pub(crate) ends_block: bool,
}

impl<M: Memory> Clone for Op<M> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

/// An operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) kind: Kind,
    /// The number of the register.
    pub(crate) index: u8,
    /// The size in bytes.
    pub(crate) size: u8,
}

/// The place of an operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    None,
    /// The low bits of a general register.
    Gpr,
    /// AH, CH, DH or BH: bits 8 to 15 of register 0 to 3.
    High,
    Immediate,
    Memory,
    Segment,
    Control,
    Debug,
    Xmm,
    /// An MMX register.
    Mm,
    /// A branch target, near or far, or an operand that only the handler knows, such as ES:DI of a string instruction.
    Other,
}

/// The address of a memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Address {
    pub(crate) segment: u8,
    /// The number of the base register, or [`Address::NONE`].
    pub(crate) base: u8,
    /// The number of the index register, or [`Address::NONE`].
    pub(crate) index: u8,
    /// The index register is shifted by this.
    pub(crate) shift: u8,
    /// The displacement. For an address relative to RIP, the whole address.
    pub(crate) displacement: u64,
    /// The bits that the address size leaves.
    pub(crate) mask: u64,
    /// The segment has base 0 and no limit: its offsets are linear addresses, as long as these are canonical.
    pub(crate) is_flat: bool,
}

impl Address {
    /// No register.
    pub(crate) const NONE: u8 = 0xff;
}

impl Operand {
    fn of_register(register: Register) -> Self {
        let size = register.size() as u8;
        // The numbers of iced-x86's registers of a byte are not those of the whole registers.
        let whole = if register.is_gpr() { register.full_register() } else { register };
        let index = whole.number() as u8;
        let high = [Register::AH, Register::CH, Register::DH, Register::BH];
        let (kind, index) = match register {
            _ if high.contains(&register) => {
                (Kind::High, high.iter().position(|name| *name == register).unwrap_or(0) as u8)
            }
            // The byte registers have other numbers of their own.
            _ if register.is_gpr() => (Kind::Gpr, register.full_register().number() as u8),
            _ if register.is_segment_register() => (Kind::Segment, index),
            _ if register.is_cr() => (Kind::Control, index),
            _ if register.is_dr() => (Kind::Debug, index),
            _ if register.is_xmm() => (Kind::Xmm, index),
            _ if register.is_mm() => (Kind::Mm, index),
            _ => (Kind::Other, index),
        };
        Self { kind, index, size }
    }

    fn new(insn: &Instruction, number: u32) -> Self {
        match insn.op_kind(number) {
            OpKind::Register => Self::of_register(insn.op_register(number)),
            OpKind::Memory => {
                Self { kind: Kind::Memory, index: 0, size: insn.memory_size().size().min(255) as u8 }
            }
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Self { kind: Kind::Immediate, index: number as u8, size: 0 },
            _ => Self { kind: Kind::Other, index: 0, size: insn.memory_size().size().min(255) as u8 },
        }
    }
}

/// The number of a general register in an address, or [`Address::NONE`].
fn address_register(register: Register) -> u8 {
    if register.is_gpr() { register.number() as u8 } else { Address::NONE }
}

/// The index of a segment register.
pub(crate) fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

fn address(insn: &Instruction, bits: u32) -> Address {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let used = if base == Register::None { index } else { base };
    let size = match (used, insn.memory_displ_size()) {
        (Register::EIP, _) => 4,
        (Register::RIP, _) => 8,
        (Register::None, 2) => 2,
        (Register::None, 4) => 4,
        (Register::None, 8) => 8,
        (Register::None, _) => bits / 8,
        (register, _) => register.size() as u32,
    };
    let mask = match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    // In 64-bit mode, a prefix for CS, DS, ES or SS has no effect (SDM volume 1, section 3.7.4).
    let segment = match (insn.memory_segment(), base.full_register()) {
        (Register::FS | Register::GS, _) => insn.memory_segment(),
        (_, Register::RSP | Register::RBP) if bits == 64 => Register::SS,
        _ if bits == 64 => Register::DS,
        (segment, _) => segment,
    };
    Address {
        segment: segment_index(segment) as u8,
        base: address_register(base),
        index: address_register(index),
        shift: insn.memory_index_scale().trailing_zeros() as u8,
        displacement: insn.memory_displacement64(),
        mask,
        is_flat: bits == 64 && !matches!(segment, Register::FS | Register::GS),
    }
}

/// The part of [`Op::address`] that a string instruction uses.
fn string_address(insn: &Instruction) -> Address {
    let mask = |number| match insn.op_kind(number) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(0xffff),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(0xffff_ffff),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(u64::MAX),
        _ => None,
    };
    let mask = (0..insn.op_count()).find_map(mask).unwrap_or(0);
    Address { segment: segment_index(insn.memory_segment()) as u8, mask, ..Address::default() }
}

impl<M: Memory> Op<M> {
    /// Prepares an instruction that was decoded as code of this width, 16, 32 or 64 bits.
    pub(crate) fn new(insn: Instruction, bits: u32) -> Self {
        let mut operands = [Operand::default(); 4];
        for (number, operand) in (0..insn.op_count()).zip(&mut operands) {
            *operand = Operand::new(&insn, number);
        }
        let has_memory = operands.iter().any(|operand| operand.kind == Kind::Memory);
        let immediate = operands.iter().find(|operand| operand.kind == Kind::Immediate);
        let size = operands.iter().map(|operand| operand.size).find(|size| *size != 0).unwrap_or(0);
        Self {
            run: ops::handler(&insn),
            operands,
            address: if has_memory { address(&insn, bits) } else { string_address(&insn) },
            immediate: match immediate {
                Some(operand) => insn.immediate(operand.index.into()),
                None => insn.near_branch_target(),
            },
            len: insn.len() as u8,
            size,
            ends_block: ops::ends_block(&insn),
            insn,
        }
    }
}
