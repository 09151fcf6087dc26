//! Reading and writing operands.

use crate::cpu::Cpu;
use crate::exit::Missing;
use crate::memory::Memory;
use crate::op::{Address, Kind, Op};
use crate::state::{gpr, seg};
use crate::trap::Trap;

/// The bits of a value of `size` bytes.
#[inline]
pub(crate) const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The sign bit of a value of `size` bytes.
#[inline]
pub(crate) const fn sign_bit(size: u8) -> u64 {
    match size {
        1 => 0x80,
        2 => 0x8000,
        4 => 0x8000_0000,
        _ => 1 << 63,
    }
}

/// A value of `size` bytes, sign-extended to 64 bits.
#[inline]
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

impl<M: Memory> Cpu<M> {
    /// The low `size` bytes of a general register, zero-extended.
    #[inline]
    pub(crate) fn gpr(&self, index: usize, size: u8) -> u64 {
        self.state.gpr[index & 15] & mask(size)
    }

    /// Writes the low `size` bytes of a general register. A write of 4 bytes clears the upper half, and a write of 1 or 2
    /// bytes leaves the rest (SDM volume 1, section 3.4.1.1).
    #[inline]
    pub(crate) fn set_gpr(&mut self, index: usize, size: u8, value: u64) {
        let register = &mut self.state.gpr[index & 15];
        *register = match size {
            1 => *register & !0xff | value & 0xff,
            2 => *register & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The offset of the memory operand in its segment (SDM volume 1, section 3.7.5).
    #[inline]
    pub(crate) fn effective_address(&self, op: &Op<M>) -> u64 {
        let Address { base, index, shift, displacement, mask, .. } = op.address;
        let mut offset = displacement;
        if base != Address::NONE {
            offset = offset.wrapping_add(self.state.gpr[usize::from(base & 15)]);
        }
        if index != Address::NONE {
            offset = offset.wrapping_add(self.state.gpr[usize::from(index & 15)] << shift);
        }
        offset & mask
    }

    /// Reads operand `number`: a general register, an immediate value, or memory of up to 8 bytes. The value is
    /// zero-extended; an immediate value is sign-extended to 64 bits where the instruction extends it.
    #[inline]
    pub(crate) fn get(&mut self, op: &Op<M>, number: usize) -> Result<u64, Trap> {
        let operand = op.operands[number & 3];
        match operand.kind {
            Kind::Gpr => Ok(self.gpr(operand.index.into(), operand.size)),
            Kind::Immediate => Ok(op.immediate),
            Kind::Memory => {
                let offset = self.effective_address(op);
                self.load(op.address.segment.into(), offset, operand.size)
            }
            Kind::High => Ok(self.state.gpr[usize::from(operand.index & 3)] >> 8 & 0xff),
            Kind::Segment => Ok(self.state.segments[usize::from(operand.index) % 6].selector.into()),
            _ => Err(Trap::Unsupported(Missing::Instruction)),
        }
    }

    /// Writes operand `number`: a general register or memory of up to 8 bytes.
    #[inline]
    pub(crate) fn set(&mut self, op: &Op<M>, number: usize, value: u64) -> Result<(), Trap> {
        let operand = op.operands[number & 3];
        match operand.kind {
            Kind::Gpr => self.set_gpr(operand.index.into(), operand.size, value),
            Kind::Memory => {
                let offset = self.effective_address(op);
                return self.store(op.address.segment.into(), offset, operand.size, value);
            }
            Kind::High => {
                let register = &mut self.state.gpr[usize::from(operand.index & 3)];
                *register = *register & !0xff00 | (value & 0xff) << 8;
            }
            _ => return Err(Trap::Unsupported(Missing::Instruction)),
        }
        Ok(())
    }

    /// Reads operand `number` for an instruction that writes it afterwards. A page that cannot be written faults here, as
    /// a write access, before anything is changed.
    #[inline]
    pub(crate) fn get_for_update(&mut self, op: &Op<M>, number: usize) -> Result<u64, Trap> {
        let operand = op.operands[number & 3];
        if operand.kind == Kind::Memory {
            let offset = self.effective_address(op);
            return self.load_for_update(op.address.segment.into(), offset, operand.size);
        }
        self.get(op, number)
    }

    /// The size of a stack pointer, in bytes (SDM volume 1, section 6.2.3).
    #[inline]
    pub(crate) fn stack_size(&self) -> u8 {
        match (self.state.is_64(), self.state.segments[seg::SS].big) {
            (true, _) => 8,
            (_, true) => 4,
            (_, false) => 2,
        }
    }

    /// Pushes a value of `size` bytes. The stack of 64-bit code is flat.
    #[inline]
    pub(crate) fn push(&mut self, size: u8, value: u64) -> Result<(), Trap> {
        if size == 8 && self.state.is_64() {
            let pointer = self.state.gpr[gpr::SP].wrapping_sub(8);
            match self.page_to_write(pointer, 8) {
                Some(page) => self.store_to_page(page, pointer, 8, value),
                None => self.store(seg::SS, pointer, 8, value)?,
            }
            self.state.gpr[gpr::SP] = pointer;
            return Ok(());
        }
        let width = self.stack_size();
        let pointer = self.gpr(gpr::SP, width).wrapping_sub(size.into()) & mask(width);
        self.store(seg::SS, pointer, size, value)?;
        self.set_gpr(gpr::SP, width, pointer);
        Ok(())
    }

    /// Reads the value of `size` bytes at `distance` bytes above the stack pointer.
    #[inline]
    pub(crate) fn peek(&mut self, size: u8, distance: u64) -> Result<u64, Trap> {
        if size == 8 && self.state.is_64() {
            let pointer = self.state.gpr[gpr::SP].wrapping_add(distance);
            return match self.page_to_read(pointer, 8) {
                Some(page) => Ok(self.load_from_page(page, pointer, 8)),
                None => self.load(seg::SS, pointer, 8),
            };
        }
        let width = self.stack_size();
        let pointer = self.gpr(gpr::SP, width).wrapping_add(distance) & mask(width);
        self.load(seg::SS, pointer, size)
    }

    /// Moves the stack pointer up by `bytes`.
    #[inline]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        let width = self.stack_size();
        let pointer = self.gpr(gpr::SP, width).wrapping_add(bytes);
        self.set_gpr(gpr::SP, width, pointer);
    }
}
