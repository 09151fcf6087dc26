//! A call of the BIOS: the caller's registers, its frame on the stack, and its memory.

use crate::memory::{Gpa, GuestMemory};
use crate::x86::registers::{Regs, Sregs};

/// RFLAGS and FLAGS: carry.
pub(super) const CARRY: u16 = 1;
/// RFLAGS and FLAGS: zero.
pub(super) const ZERO: u16 = 1 << 6;
/// FLAGS: interrupts are on.
pub(super) const INTERRUPTS: u16 = 1 << 9;

/// A call, whose frame is on the stack.
pub(super) struct Call<'a> {
    pub(super) regs: Regs,
    pub(super) sregs: Sregs,
    pub(super) memory: &'a GuestMemory,
    /// The number of bytes that the stub has pushed below the frame.
    pub(super) pushed: u64,
}

/// Functions for the 16-bit and 8-bit parts of a register.
macro_rules! register {
    ($($field:ident: $word:ident $low:ident $high:ident, $set_word:ident $set_low:ident $set_high:ident;)*) => {$(
        #[allow(dead_code)]
        pub(super) fn $word(&self) -> u16 {
            self.regs.$field as u16
        }
        #[allow(dead_code)]
        pub(super) fn $low(&self) -> u8 {
            self.regs.$field as u8
        }
        #[allow(dead_code)]
        pub(super) fn $high(&self) -> u8 {
            (self.regs.$field >> 8) as u8
        }
        #[allow(dead_code)]
        pub(super) fn $set_word(&mut self, value: u16) {
            self.regs.$field = self.regs.$field & !0xffff | u64::from(value);
        }
        #[allow(dead_code)]
        pub(super) fn $set_low(&mut self, value: u8) {
            self.regs.$field = self.regs.$field & !0xff | u64::from(value);
        }
        #[allow(dead_code)]
        pub(super) fn $set_high(&mut self, value: u8) {
            self.regs.$field = self.regs.$field & !0xff00 | u64::from(value) << 8;
        }
    )*};
}

impl Call<'_> {
    register! {
        rax: ax al ah, set_ax set_al set_ah;
        rbx: bx bl bh, set_bx set_bl set_bh;
        rcx: cx cl ch, set_cx set_cl set_ch;
        rdx: dx dl dh, set_dx set_dl set_dh;
    }

    pub(super) fn si(&self) -> u16 {
        self.regs.rsi as u16
    }

    pub(super) fn di(&self) -> u16 {
        self.regs.rdi as u16
    }

    pub(super) fn bp(&self) -> u16 {
        self.regs.rbp as u16
    }

    pub(super) fn set_di(&mut self, value: u16) {
        self.regs.rdi = self.regs.rdi & !0xffff | u64::from(value);
    }

    /// The linear address of an offset in ES.
    pub(super) fn in_es(&self, offset: u16) -> u64 {
        self.sregs.es.base.wrapping_add(offset.into())
    }

    /// The linear address of an offset in DS.
    pub(super) fn in_ds(&self, offset: u16) -> u64 {
        self.sregs.ds.base.wrapping_add(offset.into())
    }

    /// Loads ES with a segment of real mode.
    pub(super) fn set_es(&mut self, segment: u16) {
        self.sregs.es.selector = segment;
        self.sregs.es.base = u64::from(segment) << 4;
    }

    /// Loads DS with a segment of real mode.
    pub(super) fn set_ds(&mut self, segment: u16) {
        self.sregs.ds.selector = segment;
        self.sregs.ds.base = u64::from(segment) << 4;
    }

    /// The address of a word of the frame: 0 is IP, 1 is CS, 2 are the flags.
    fn frame(&self, word: u64) -> u64 {
        let offset = self.regs.rsp.wrapping_add(self.pushed).wrapping_add(word.wrapping_mul(2));
        self.sregs.ss.base.wrapping_add(offset & 0xffff)
    }

    /// The address to which the call returns: CS and IP.
    pub(super) fn caller(&self) -> (u16, u16) {
        (self.word(self.frame(1)), self.word(self.frame(0)))
    }

    /// The caller's flags.
    pub(super) fn flags(&self) -> u16 {
        self.word(self.frame(2))
    }

    /// Sets or clears a flag that the caller sees.
    pub(super) fn set_flag(&mut self, flag: u16, on: bool) {
        let flags = self.flags();
        let changed = if on { flags | flag } else { flags & !flag };
        self.set_word(self.frame(2), changed);
    }

    /// Ends the call with CF, and a code in AH.
    pub(super) fn fail(&mut self, code: u8) {
        self.set_ah(code);
        self.set_flag(CARRY, true);
    }

    /// Ends the call without CF, with AH 0.
    pub(super) fn succeed(&mut self) {
        self.set_ah(0);
        self.set_flag(CARRY, false);
    }

    /// The byte at a linear address. All ones outside of memory.
    pub(super) fn byte(&self, linear: u64) -> u8 {
        let mut byte = [0xff];
        self.memory.read(Gpa(linear), &mut byte);
        byte[0]
    }

    /// The word at a linear address.
    pub(super) fn word(&self, linear: u64) -> u16 {
        u16::from_le_bytes([self.byte(linear), self.byte(linear.wrapping_add(1))])
    }

    /// Stores a byte. A store outside of memory does nothing.
    pub(super) fn set_byte(&mut self, linear: u64, value: u8) {
        let _ = self.memory.write(Gpa(linear), &[value]);
    }

    /// Stores a word.
    pub(super) fn set_word(&mut self, linear: u64, value: u16) {
        let [low, high] = value.to_le_bytes();
        self.set_byte(linear, low);
        self.set_byte(linear.wrapping_add(1), high);
    }

    /// Stores a double word.
    pub(super) fn set_long(&mut self, linear: u64, value: u32) {
        self.set_word(linear, value as u16);
        self.set_word(linear.wrapping_add(2), (value >> 16) as u16);
    }

    /// Copies bytes to a linear address. False if a part of it is not in memory; then nothing is copied.
    pub(super) fn store(&mut self, linear: u64, bytes: &[u8]) -> bool {
        self.memory.contains(Gpa(linear), bytes.len() as u64) && self.memory.write(Gpa(linear), bytes).is_ok()
    }

    /// Copies bytes from a linear address. False if a part of it is not in memory.
    pub(super) fn load(&self, linear: u64, bytes: &mut [u8]) -> bool {
        self.memory.read(Gpa(linear), bytes)
    }
}
