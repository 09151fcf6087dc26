//! Stacks of interrupts and far transfers, which may be other than the current one (SDM volume 3, sections 5.8.5, 6.12.1
//! and 6.14).

use crate::cpu::Cpu;
use crate::descriptors::{error_code, is_null, rpl, system};
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::operands::mask;
use crate::state::{Segment, cr0, flag, gpr, seg};
use crate::trap::{AC, SS, TS, Trap};

/// A stack on which values are pushed before it becomes the current one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) segment: Segment,
    /// The value of RSP.
    pub(crate) pointer: u64,
    /// The size of the stack pointer in bytes.
    pub(crate) width: u8,
    /// The privilege of the accesses.
    pub(crate) cpl: u8,
    /// The error code of #SS if a value does not fit.
    pub(crate) error: u32,
}

/// The size of the stack pointer in bytes, for a stack segment that is used by 64-bit code or not.
const fn width(segment: &Segment, is_64: bool) -> u8 {
    match (is_64, segment.big) {
        (true, _) => 8,
        (false, true) => 4,
        (false, false) => 2,
    }
}

impl<M: Memory> Cpu<M> {
    /// The current stack. `external` is the bit EXT of the error code.
    pub(crate) fn current_stack(&self, external: u32) -> Stack {
        Stack {
            segment: self.state.segments[seg::SS],
            pointer: self.state.gpr[gpr::SP],
            width: self.stack_size(),
            cpl: self.state.cpl(),
            error: external,
        }
    }

    /// Pushes values of `size` bytes, the first one first. Returns the new value of RSP. No register changes.
    ///
    /// # Errors
    /// #SS, #PF or #AC, before anything is written.
    pub(crate) fn push_all(&mut self, stack: &Stack, size: u8, values: &[u64]) -> Result<u64, Trap> {
        let user = stack.cpl == 3;
        let mut pointer = stack.pointer;
        for _ in values {
            pointer = stack.below(pointer, size);
            let linear = self.stack_address(stack, pointer, size)?;
            if user && linear & (u64::from(size) - 1) != 0 && self.checks_alignment() {
                return Err(Trap::coded(AC, stack.error & 1));
            }
        }
        let end = pointer;
        pointer = stack.pointer;
        for _ in values {
            pointer = stack.below(pointer, size);
            let linear = self.stack_address(stack, pointer, size)?;
            self.check_write(linear, size.into(), user)?;
        }
        pointer = stack.pointer;
        for value in values {
            pointer = stack.below(pointer, size);
            let linear = self.stack_address(stack, pointer, size)?;
            self.store_linear(linear, size, *value, user)?;
        }
        Ok(end)
    }

    fn checks_alignment(&self) -> bool {
        self.state.has(flag::AC) && self.state.cr0 & cr0::AM != 0
    }

    /// The linear address of `size` bytes at a stack pointer.
    fn stack_address(&self, stack: &Stack, pointer: u64, size: u8) -> Result<u64, Trap> {
        let offset = pointer & mask(stack.width);
        let last = offset.wrapping_add(u64::from(size) - 1);
        let fault = Err(Trap::coded(SS, stack.error));
        if stack.width == 8 {
            let valid = is_canonical(offset) && is_canonical(last);
            return if valid { Ok(offset) } else { fault };
        }
        let segment = &stack.segment;
        let writable = !self.state.is_protected() || segment.is_writable();
        if segment.unusable || !writable || !segment.contains(offset, last) {
            return fault;
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The stack for code of the privilege `cpl`, from the TSS. `is_64`: the code is 64-bit code. `external` is the bit EXT
    /// of the error codes.
    ///
    /// # Errors
    /// #TS or #SS.
    pub(crate) fn inner_stack(&mut self, cpl: u8, is_64: bool, external: u32) -> Result<Stack, Trap> {
        if is_64 {
            let pointer = self.read_tss(u64::from(cpl) * 8 + 4, 8, external)?;
            if !is_canonical(pointer) {
                return Err(Trap::coded(SS, external));
            }
            return Ok(Stack { segment: self.null_stack(cpl), pointer, width: 8, cpl, error: external });
        }
        let is_32 = self.state.tr.kind & system::TSS_32 == system::TSS_32;
        let size = if is_32 { 4 } else { 2 };
        let start = u64::from(size) * (2 * u64::from(cpl) + 1);
        // Both fields are checked before one of them is read.
        self.check_tss(start, size + 2, external)?;
        let pointer = self.read_tss(start, size, external)?;
        let selector = self.read_tss(start + u64::from(size), 2, external)? as u16;
        if is_null(selector) {
            return Err(Trap::coded(TS, external));
        }
        if rpl(selector) != cpl {
            return Err(Trap::coded(TS, error_code(selector) | external));
        }
        let segment = self.stack_segment(selector, cpl, TS, external)?;
        let error = error_code(selector) | external;
        Ok(Stack { segment, pointer, width: width(&segment, false), cpl, error })
    }

    /// SS after a change to 64-bit code of the privilege `cpl`: null.
    pub(crate) fn null_stack(&self, cpl: u8) -> Segment {
        self.state.segments[seg::SS].null(cpl.into(), cpl)
    }

    /// The stack pointer number `index`, 1 to 7, of the interrupt stack table (SDM volume 3, section 6.14.5).
    ///
    /// # Errors
    /// #TS or #SS.
    pub(crate) fn interrupt_stack(&mut self, index: u8, external: u32) -> Result<u64, Trap> {
        let pointer = self.read_tss(u64::from(index) * 8 + 28, 8, external)?;
        if is_canonical(pointer) { Ok(pointer) } else { Err(Trap::coded(SS, external)) }
    }

    /// Checks that `size` bytes are within the limit of the TSS.
    fn check_tss(&self, offset: u64, size: u8, external: u32) -> Result<(), Trap> {
        let tr = &self.state.tr;
        if offset + u64::from(size) - 1 > tr.limit.into() {
            return Err(Trap::coded(TS, error_code(tr.selector) | external));
        }
        Ok(())
    }

    /// Reads a field of the TSS.
    fn read_tss(&mut self, offset: u64, size: u8, external: u32) -> Result<u64, Trap> {
        self.check_tss(offset, size, external)?;
        self.load_system(self.state.tr.base.wrapping_add(offset), size)
    }

    /// Makes a segment that was loaded by a return the stack segment. Without 64-bit code, a segment of 16 bits replaces
    /// only SP. CS is already that of the new code.
    pub(crate) fn set_returned_stack(&mut self, segment: Segment, pointer: u64) {
        self.state.segments[seg::SS] = segment;
        self.set_gpr(gpr::SP, self.stack_size(), pointer);
    }
}

impl Stack {
    /// The stack pointer `size` bytes below another one.
    fn below(&self, pointer: u64, size: u8) -> u64 {
        let mask = mask(self.width);
        pointer & !mask | pointer.wrapping_sub(size.into()) & mask
    }
}
