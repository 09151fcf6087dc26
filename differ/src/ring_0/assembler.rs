//! Code whose width and base change on the way, because it enters other segments and modes.

use super::descriptors;
use crate::generate::{is_near, retarget};
use crate::layout::{CODE_END, DATA, GDT, LDT};
use crate::program::{Piece, Program};
use crate::values::integer;
use fastrand::Rng;
use iced_x86::{Encoder, Instruction};
use softcpu::{cr0, efer, seg};

/// The place of far pointers and of the operands of LGDT and LIDT. The random part of the program may use it, too.
const SLOTS: u64 = DATA + 0xe00;

/// The mode in which the next instruction is executed, if all before it succeed.
#[derive(Clone, Copy)]
pub struct Context {
    /// The width of the code.
    pub bits: u32,
    /// The base address of CS.
    pub base: u64,
    pub is_protected: bool,
    pub has_paging: bool,
    pub is_long: bool,
}

/// An instruction. One that is a near branch has no target yet.
struct Item {
    at: u64,
    bytes: Vec<u8>,
    branch: Option<Instruction>,
    context: Context,
}

/// The code of a program, as far as it is written.
pub struct Assembler<'a> {
    pub program: &'a mut Program,
    pub rng: &'a mut Rng,
    pub context: Context,
    /// The linear address of the next instruction.
    pub at: u64,
    /// The start of DS at the start of the program.
    data: u64,
    items: Vec<Item>,
    slots: u64,
}

impl<'a> Assembler<'a> {
    pub fn new(program: &'a mut Program, rng: &'a mut Rng, at: u64) -> Self {
        let state = &program.state;
        let context = Context {
            bits: state.code_bits(),
            base: if state.is_64() { 0 } else { state.segments[seg::CS].base },
            is_protected: state.cr0 & cr0::PE != 0,
            has_paging: state.cr0 & cr0::PG != 0,
            is_long: state.efer & efer::LMA != 0,
        };
        let data = if state.is_64() { 0 } else { state.segments[seg::DS].base };
        Self { program, rng, context, at, data, items: Vec::new(), slots: 0 }
    }

    /// The offset of the next instruction.
    pub fn rip(&self) -> u64 {
        self.at.wrapping_sub(self.context.base)
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.push_item(bytes.to_vec(), None);
    }

    pub fn push_item(&mut self, bytes: Vec<u8>, branch: Option<Instruction>) {
        let len = bytes.len() as u64;
        self.items.push(Item { at: self.at, bytes, branch, context: self.context });
        self.at += len;
    }

    /// Pushes an instruction that begins with the prefix for the operand size 16 or 32, if it needs one.
    pub fn sized(&mut self, size: u32, bytes: &[u8]) {
        let is_prefixed = (size == 16) != (self.context.bits == 16);
        let prefix: &[u8] = if is_prefixed { &[0x66] } else { &[] };
        self.push(&[prefix, bytes].concat());
    }

    /// MOV AX, a number.
    pub fn set_ax(&mut self, value: u16) {
        let [low, high] = value.to_le_bytes();
        self.sized(16, &[0xb8, low, high]);
    }

    /// MOV to a general register of 32 bits.
    pub fn set_register(&mut self, number: u8, value: u32) {
        self.sized(32, &[&[0xb8 + number], value.to_le_bytes().as_slice()].concat());
    }

    /// The ModR/M byte and the address of a memory operand without registers.
    pub fn memory(&self, register: u8, address: u64) -> Vec<u8> {
        let (offset, register) = (address.wrapping_sub(self.data), register << 3);
        match self.context.bits {
            16 => [&[register | 6], &offset.to_le_bytes()[..2]].concat(),
            32 => [&[register | 5], &offset.to_le_bytes()[..4]].concat(),
            _ => [&[register | 4, 0x25], &address.to_le_bytes()[..4]].concat(),
        }
    }

    /// Puts bytes into a slot. Returns its address.
    pub fn slot(&mut self, bytes: &[u8]) -> u64 {
        let at = SLOTS + self.slots * 16;
        self.slots += 1;
        self.program.write(at, bytes);
        at
    }

    /// The mode after a load of CS.
    pub fn entered(&self, selector: u16) -> Context {
        let context = self.context;
        if !context.is_protected {
            return Context { base: u64::from(selector) << 4, ..context };
        }
        let table = if selector & 4 == 0 { GDT } else { LDT };
        if selector & !3 == 0 || table + u64::from(selector & !7) > LDT + 0x100 {
            return context;
        }
        let segment = descriptors::segment(descriptors::raw(self.program, selector), selector);
        if !segment.code_or_data {
            return context;
        }
        let is_64 = context.is_long && segment.long;
        Context {
            bits: if is_64 { 64 } else { 16 + 16 * u32::from(segment.big) },
            base: if is_64 { 0 } else { segment.base },
            ..context
        }
    }

    /// Writes the code into memory.
    pub fn finish(self) {
        let starts: Vec<u64> = self.items.iter().map(|item| item.at).chain([self.at]).collect();
        for (number, item) in self.items.into_iter().enumerate() {
            let mut bytes = item.bytes;
            if let Some(mut branch) = item.branch {
                // Only forward, so that few programs are endless.
                let target = starts[self.rng.usize(number + 1..starts.len())];
                retarget(&mut branch, target.wrapping_sub(item.context.base));
                let mut encoder = Encoder::new(item.context.bits);
                if encoder.encode(&branch, item.at.wrapping_sub(item.context.base)).is_err() {
                    break;
                }
                let encoded = encoder.take_buffer();
                if encoded.len() != bytes.len() {
                    break;
                }
                bytes = encoded;
            }
            if item.at + bytes.len() as u64 > CODE_END {
                break;
            }
            self.program.write(item.at, &bytes);
            let Context { bits, base, .. } = item.context;
            self.program.pieces.push(Piece { at: item.at, len: bytes.len(), bits, base });
        }
    }

    /// Pushes a random instruction that was made for this place.
    pub fn instruction(&mut self, insn: &Instruction) {
        let bits = self.context.bits;
        let mut encoder = Encoder::new(bits);
        if encoder.encode(insn, self.rip()).is_err() {
            return;
        }
        let bytes = encoder.take_buffer();
        let is_branch = insn.code().is_jcc_short_or_near() || is_near(insn.code());
        if is_branch {
            self.push_item(bytes, Some(*insn));
        } else {
            let bytes = crate::generate::mutate(bytes, bits, self.rng);
            self.push_item(bytes, None);
        }
    }

    /// A random number that fits a register of the code.
    pub fn number(&mut self) -> u32 {
        integer(self.rng) as u32
    }
}
