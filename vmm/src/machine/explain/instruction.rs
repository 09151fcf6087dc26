//! The instruction that a guest died at: its bytes, and its text.

use crate::memory::{Gpa, ReadMemory};
use crate::x86::modes;
use crate::x86::registers::Sregs;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

/// The maximum length of an x86 instruction, in bytes.
pub(super) const MAX_INSTRUCTION: usize = 15;
/// The number of bytes that are shown of an instruction that cannot be decoded.
pub(super) const SHOWN_INVALID_BYTES: usize = 4;

/// Reads the bytes of an instruction, up to the end of memory.
pub(super) fn instruction_bytes(memory: &dyn ReadMemory, gpa: Gpa) -> Vec<u8> {
    let byte = |offset: u64| {
        let mut byte = [0];
        memory.read(Gpa(gpa.0.checked_add(offset)?), &mut byte).then_some(byte[0])
    };
    (0..MAX_INSTRUCTION as u64).map_while(byte).collect()
}

/// The width of the code, in bits. Protected mode has 16-bit code, too: after CR0.PE is set, until the first far jump.
pub(in crate::machine) fn code_bits(sregs: &Sregs) -> u32 {
    let is_long = sregs.efer & modes::EFER_LMA != 0 && sregs.cs.l == 1;
    match (sregs.cr0 & modes::CR0_PE != 0, is_long, sregs.cs.db) {
        (false, ..) | (true, false, 0) => 16,
        (true, true, _) => 64,
        (true, false, _) => 32,
    }
}

/// Decodes the instruction at `rip`. `None` if it has no bytes.
pub(super) fn decode(bits: u32, rip: u64, bytes: &[u8]) -> Option<Instruction> {
    (!bytes.is_empty()).then(|| Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode())
}

/// The number of bytes that are shown of an instruction.
pub(super) fn shown_len(instruction: &Instruction) -> usize {
    if instruction.is_invalid() { SHOWN_INVALID_BYTES } else { instruction.len() }
}

/// The name of an instruction. (Its `Debug` text would need a table of 40 kB.)
pub(super) fn mnemonic(instruction: &Instruction) -> String {
    let mut text = String::new();
    NasmFormatter::new().format_mnemonic(instruction, &mut text);
    text
}

/// The bytes and the text of an instruction.
pub(super) fn format(instruction: &Instruction, bytes: &[u8]) -> String {
    let mut text = String::new();
    NasmFormatter::new().format(instruction, &mut text);
    let len = shown_len(instruction);
    let hex: Vec<_> = bytes.iter().take(len).map(|byte| format!("{byte:02x}")).collect();
    format!("{}  {text}", hex.join(" "))
}
