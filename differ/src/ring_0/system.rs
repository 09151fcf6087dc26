//! Loads of tables and control registers, changes of page tables and modes, and faults.

use super::assembler::Assembler;
use super::descriptors::{CODE_32, LOCAL_TABLE, any_selector};
use super::pages;
use crate::layout::{CODE, GDT, IDT, PAGE, TABLES};
use crate::values::pick;

/// IA32_EFER.
const EFER: u32 = 0xc000_0080;

impl Assembler<'_> {
    /// Pushes a sequence that changes the system, or uses it.
    pub fn system(&mut self) {
        match self.rng.u8(..20) {
            0..2 => self.load_table(),
            2..4 => self.load_system_segment(),
            4..6 => self.store_table(),
            6 => self.control_bit(),
            7 => self.extended_bit(),
            8 => self.load_cr3(),
            9..12 if self.context.has_paging => self.change_page(),
            9..15 => self.change_mode(),
            _ => self.fault(),
        }
    }

    /// LGDT or LIDT.
    fn load_table(&mut self) {
        let is_idt = self.rng.bool();
        let base = if is_idt { IDT } else { GDT };
        let base = match self.rng.u8(..16) {
            0 => crate::values::integer(self.rng),
            1 => base + self.rng.u64(..0x10) * 8,
            _ => base,
        };
        let limit = match self.rng.u8(..4) {
            0 => self.rng.u16(..0x200),
            1 => self.rng.u16(..),
            _ => 0xfff,
        };
        let slot = self.slot(&[limit.to_le_bytes().as_slice(), &base.to_le_bytes()].concat());
        let memory = self.memory(if is_idt { 3 } else { 2 }, slot);
        self.push(&[&[0x0f, 0x01], memory.as_slice()].concat());
    }

    /// LLDT or LTR.
    fn load_system_segment(&mut self) {
        let is_task = self.rng.bool();
        let selector = match self.rng.u8(..4) {
            0 if is_task => 0x28,
            0 | 1 if !is_task => LOCAL_TABLE,
            _ => any_selector(self.rng),
        };
        self.set_ax(selector);
        self.push(&[0x0f, 0x00, if is_task { 0xd8 } else { 0xd0 }]);
    }

    /// SGDT, SIDT, SLDT, STR or SMSW.
    fn store_table(&mut self) {
        let slot = self.slot(&[]);
        let bytes = match self.rng.u8(..8) {
            0 => [&[0x0f, 0x01], self.memory(0, slot).as_slice()].concat(),
            1 => [&[0x0f, 0x01], self.memory(1, slot).as_slice()].concat(),
            2 => [&[0x0f, 0x00], self.memory(0, slot).as_slice()].concat(),
            3 => [&[0x0f, 0x00], self.memory(1, slot).as_slice()].concat(),
            4 => vec![0x0f, 0x00, 0xc0 | self.rng.u8(..8)],
            5 => vec![0x0f, 0x00, 0xc8 | self.rng.u8(..8)],
            6 => vec![0x0f, 0x01, 0xe0 | self.rng.u8(..8)],
            _ => vec![0x8c, 0xc0 | self.rng.u8(..6) << 3 | self.rng.u8(..8)],
        };
        self.push(&bytes);
    }

    /// MOV EAX, CR; BTC EAX, bit; MOV CR, EAX.
    fn toggle(&mut self, register: u8, bit: u8) {
        self.push(&[0x0f, 0x20, 0xc0 | register << 3]);
        self.sized(32, &[0x0f, 0xba, 0xf8, bit]);
        self.push(&[0x0f, 0x22, 0xc0 | register << 3]);
    }

    fn control_bit(&mut self) {
        if self.rng.bool() {
            let bit = *pick(self.rng, &[1, 2, 3, 4, 5, 16, 18, 29, 30, 0, 31, 8]);
            self.toggle(0, bit);
        } else {
            let bit = *pick(self.rng, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 31]);
            self.toggle(4, bit);
        }
    }

    /// Toggles a bit of IA32_EFER.
    fn extended_bit(&mut self) {
        self.set_register(1, EFER);
        self.push(&[0x0f, 0x32]);
        let bit = *pick(self.rng, &[0, 8, 11, 11, 10, 1]);
        self.sized(32, &[0x0f, 0xba, 0xf8, bit]);
        self.push(&[0x0f, 0x30]);
    }

    fn load_cr3(&mut self) {
        let value = match self.rng.u8(..8) {
            0 => self.number(),
            1 => TABLES as u32 | 0x18,
            _ => TABLES as u32,
        };
        self.set_register(0, value);
        self.push(&[0x0f, 0x22, 0xd8]);
    }

    /// Writes an entry of a page table, and flushes the TLB.
    fn change_page(&mut self) {
        let at = pages::entry(self.rng);
        let index = (at / 8) as usize;
        let raw = self.program.image.get(index).copied().unwrap_or(0);
        let raw = pages::change(raw, self.rng);
        // Only the lower half.
        self.set_register(0, raw as u32);
        let memory = self.memory(0, at);
        self.sized(32, &[&[0x89], memory.as_slice()].concat());
        // INVLPG with a 16-bit address does not reach all pages.
        if self.rng.u8(..4) == 0 || self.context.bits == 16 {
            self.set_register(0, TABLES as u32);
            return self.push(&[0x0f, 0x22, 0xd8]);
        }
        let page = (at & 0xfff) / 8 * PAGE;
        let memory = self.memory(7, page);
        self.push(&[&[0x0f, 0x01], memory.as_slice()].concat());
    }

    /// Goes on to another mode, one step.
    fn change_mode(&mut self) {
        let context = self.context;
        match (context.is_protected, context.has_paging) {
            (true, true) if context.bits == 64 => self.jump_to(CODE_32),
            (true, true) => {
                self.toggle(0, 31);
                self.context.has_paging = false;
                self.context.is_long = false;
            }
            (true, false) if self.rng.u8(..3) == 0 => {
                self.toggle(0, 31);
                self.context.has_paging = true;
                // A program of long mode has left EFER.LME set.
                self.context.is_long = self.program.id.config.is_64();
            }
            (true, false) => {
                self.toggle(0, 0);
                self.context.is_protected = false;
                if self.rng.u8(..4) != 0 {
                    self.jump_to((CODE >> 4) as u16);
                }
            }
            (false, _) => {
                self.toggle(0, 0);
                self.context.is_protected = true;
                if self.rng.u8(..4) != 0 {
                    let selector = *pick(self.rng, &[0x08, 0x80, CODE_32, 0x98]);
                    self.jump_to(selector);
                }
            }
        }
    }

    /// A far jump to the next instruction.
    fn jump_to(&mut self, selector: u16) {
        let next = self.entered(selector);
        let size = if self.context.bits == 16 { 2 } else { 4 };
        if self.context.bits != 64 {
            let offset = (self.at + 3 + size as u64).wrapping_sub(next.base);
            let offset = &offset.to_le_bytes()[..size];
            self.push(&[&[0xea], offset, &selector.to_le_bytes()].concat());
        } else {
            let offset = (self.at + 7) as u32;
            let slot = self.slot(&[offset.to_le_bytes().as_slice(), &selector.to_le_bytes()].concat());
            let memory = self.memory(5, slot);
            self.push(&[&[0xff], memory.as_slice()].concat());
        }
        self.context = next;
    }

    /// An exception, or an interrupt.
    fn fault(&mut self) {
        let bytes = match self.rng.u8(..10) {
            0 => vec![0x0f, 0x0b],
            1 => vec![0xcd, *pick(self.rng, &[3, 4, 13, 14, 32, 128])],
            // DIV by AL = 0.
            2 => {
                self.set_ax(0);
                vec![0xf6, 0xf0]
            }
            3 => vec![0x0f, 0x0b],
            4 => vec![0xf1],
            5 => {
                let address = pages::address(self.program.id.config, self.rng);
                let memory = self.memory(0, address);
                [&[0x8b], memory.as_slice()].concat()
            }
            6 => {
                let address = pages::address(self.program.id.config, self.rng);
                let memory = self.memory(0, address);
                [&[0x89], memory.as_slice()].concat()
            }
            7 => {
                let memory = self.memory(0, crate::layout::UNMAPPED);
                [&[0x8b], memory.as_slice()].concat()
            }
            // Single step.
            8 if self.context.bits == 16 => vec![0x68, 0x02, 0x01],
            8 => vec![0x68, 0x02, 0x01, 0, 0],
            _ => vec![0x0f, 0x08],
        };
        let is_step = bytes[0] == 0x68;
        self.push(&bytes);
        if is_step {
            self.push(&[0x9d]);
        }
    }
}
