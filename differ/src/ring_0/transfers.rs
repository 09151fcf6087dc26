//! Loads of segment registers, and far transfers.

use super::assembler::Assembler;
use super::descriptors::{any_selector, code_selector, data_selector};
use crate::layout::CODE;
use crate::values::pick;
use softcpu::seg;

impl Assembler<'_> {
    /// Pushes a load of a segment register or a far transfer.
    pub fn transfer(&mut self) {
        match self.rng.u8(..16) {
            0..4 => self.load_segment(),
            4 => self.pop_segment(),
            5 => self.load_pointer(),
            6..8 => self.stack_segment(),
            8..11 => self.jump_or_call(true),
            11 => self.jump_or_call(false),
            12..14 => self.far_return(),
            _ => self.interrupt_return(),
        }
    }

    fn selector_of_data(&mut self) -> u16 {
        match self.rng.bool() {
            true if self.context.is_protected => data_selector(self.program, self.rng),
            true => (CODE >> 4) as u16 + self.rng.u16(..0x1000),
            false => any_selector(self.rng),
        }
    }

    fn load_segment(&mut self) {
        let selector = self.selector_of_data();
        self.set_ax(selector);
        let index = *pick(self.rng, &[0u8, 3, 3, 4, 5, 1]);
        // CS rarely: that raises #UD.
        let index = if index == 1 && self.rng.u8(..8) != 0 { 0 } else { index };
        self.push(&[0x8e, 0xc0 | index << 3]);
    }

    fn stack_segment(&mut self) {
        let selector = self.selector_of_data();
        self.set_ax(selector);
        self.push(&[0x8e, 0xc0 | (seg::SS as u8) << 3]);
    }

    /// PUSH of a number with the operand size of the code.
    fn push_number(&mut self, value: u32) {
        let bytes = value.to_le_bytes();
        let size = if self.context.bits == 16 { 2 } else { 4 };
        self.push(&[&[0x68], &bytes[..size]].concat());
    }

    fn pop_segment(&mut self) {
        let selector = self.selector_of_data();
        self.push_number(selector.into());
        let choices: &[&[u8]] = match self.context.bits {
            64 => &[&[0x0f, 0xa1], &[0x0f, 0xa9]],
            _ => &[&[0x07], &[0x17], &[0x1f], &[0x0f, 0xa1], &[0x0f, 0xa9]],
        };
        let bytes = *pick(self.rng, choices);
        self.push(bytes);
    }

    /// LSS, LFS, LGS, LDS or LES.
    fn load_pointer(&mut self) {
        let selector = self.selector_of_data();
        let number = self.number();
        let size = if self.context.bits == 16 { 2 } else { 4 };
        let slot = self.slot(&[&number.to_le_bytes()[..size], &selector.to_le_bytes()].concat());
        let choices: &[&[u8]] = match self.context.bits {
            64 => &[&[0x0f, 0xb2], &[0x0f, 0xb4], &[0x0f, 0xb5]],
            _ => &[&[0x0f, 0xb2], &[0x0f, 0xb4], &[0x0f, 0xb5], &[0xc4], &[0xc5]],
        };
        let opcode = *pick(self.rng, choices);
        let memory = self.memory(1, slot);
        self.push(&[opcode, &memory].concat());
    }

    /// A selector for CS, and the offset of the code behind `len` bytes there.
    fn target(&mut self, len: usize) -> (u16, u64) {
        let selector = match self.context.is_protected {
            true => code_selector(self.rng),
            false => (CODE >> 4) as u16,
        };
        let base = self.entered(selector).base;
        (selector, (self.at + len as u64).wrapping_sub(base))
    }

    fn enter(&mut self, selector: u16) {
        self.context = self.entered(selector);
    }

    fn jump_or_call(&mut self, is_jump: bool) {
        let is_direct = self.context.bits != 64 && self.rng.u8(..4) != 0;
        let has_prefix = self.rng.u8(..4) == 0;
        let size = match (self.context.bits == 16) != has_prefix {
            true => 2,
            false => 4,
        };
        let prefix: &[u8] = if has_prefix { &[0x66] } else { &[] };
        if is_direct {
            let (selector, offset) = self.target(prefix.len() + 1 + size + 2);
            let opcode = if is_jump { 0xea } else { 0x9a };
            let offset = &offset.to_le_bytes()[..size];
            self.push(&[prefix, &[opcode], offset, &selector.to_le_bytes()].concat());
            return self.enter(selector);
        }
        let is_wide = self.context.bits == 64 && !has_prefix && self.rng.bool();
        let prefix: &[u8] = if is_wide { &[0x48] } else { prefix };
        let size = if is_wide { 8 } else { size };
        let len = prefix.len() + 1 + self.memory(0, 0).len();
        let (selector, offset) = self.target(len);
        let slot = self.slot(&[&offset.to_le_bytes()[..size], &selector.to_le_bytes()].concat());
        let memory = self.memory(if is_jump { 5 } else { 3 }, slot);
        self.push(&[prefix, &[0xff], &memory].concat());
        self.enter(selector);
    }

    /// RETF with a frame of its own.
    fn far_return(&mut self) {
        let size = if self.context.bits == 16 { 3 } else { 5 };
        let is_64 = self.context.bits == 64;
        let takes = self.rng.u8(..4) == 0;
        let len = 2 * size + usize::from(is_64) + 1 + if takes { 2 } else { 0 };
        let (selector, offset) = self.target(len);
        self.push_number(selector.into());
        self.push_number(offset as u32);
        let prefix: &[u8] = if is_64 { &[0x48] } else { &[] };
        let bytes = if takes { vec![0xca, self.rng.u8(..) & 0x1c, 0] } else { vec![0xcb] };
        self.push(&[prefix, &bytes].concat());
        self.enter(selector);
    }

    /// IRET with a frame of its own.
    fn interrupt_return(&mut self) {
        let is_64 = self.context.bits == 64;
        let size = if self.context.bits == 16 { 3 } else { 5 };
        if is_64 {
            let selector = match self.rng.u8(..4) {
                0 => any_selector(self.rng),
                1 => 0,
                _ => 0x10,
            };
            self.push_number(selector.into());
            let pointer = crate::layout::STACK as u32 + 0x400 + self.rng.u32(..0x1000);
            self.push_number(pointer);
        }
        let flags =
            (self.rng.u32(..) & 0x3f_7fd5 & !0x2_0000 | 2) & !if self.rng.u8(..4) == 0 { 0 } else { 0x4100 };
        self.push_number(flags);
        let len = 2 * size + usize::from(is_64) + 1;
        let (selector, offset) = self.target(len);
        self.push_number(selector.into());
        self.push_number(offset as u32);
        let prefix: &[u8] = if is_64 { &[0x48] } else { &[] };
        self.push(&[prefix, &[0xcf]].concat());
        self.enter(selector);
    }
}
