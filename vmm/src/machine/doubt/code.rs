//! The code of a flat binary, followed from its first byte: which addresses it uses as pointers, and if it prints.

use crate::host::sort_by_key;
use crate::x86::modes::Mode;
use iced_x86::{
    Code as Encoding, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use std::collections::BTreeSet;

/// The most instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 10_000;
/// The shortest text that is recognised, in bytes.
const MIN_TEXT: usize = 4;
/// The port of the debug console.
const DEBUG_CONSOLE: u8 = 0xe9;

/// The instructions that can be reached from the first byte without an indirect jump.
#[derive(Default)]
pub(super) struct Code {
    /// The offsets of the bytes of the instructions.
    visited: BTreeSet<u64>,
    /// The numbers that the code loads into registers.
    loaded: BTreeSet<(Register, u64)>,
    /// The registers through which the code reads memory.
    pointers: BTreeSet<Register>,
    /// The copies between registers: destination and source.
    copies: BTreeSet<(Register, Register)>,
    /// The displacements of operands with a register, which may be the addresses of tables and texts.
    bases: BTreeSet<u64>,
    /// It writes to the debug console, to a port in DX, or with `outs`.
    pub(super) prints: bool,
}

impl Code {
    /// Follows the code of `bytes`, which is at `start`. `None` if it uses a data segment that does not begin at 0, or is
    /// too long.
    pub(super) fn of(bytes: &[u8], start: u64, mode: Mode) -> Option<Self> {
        let bits = match mode {
            Mode::Real => 16,
            Mode::Protected => 32,
            Mode::Long | Mode::User => 64,
        };
        let mut code = Self::default();
        let mut targets = vec![start];
        let mut left = MAX_INSTRUCTIONS;
        while let Some(target) = targets.pop() {
            let Some(rest) = bytes.get(usize::try_from(target.checked_sub(start)?).ok()?..) else { continue };
            let mut zeroed = Register::None;
            for instruction in &mut Decoder::with_ip(bits, rest, target, DecoderOptions::NONE) {
                let offset = instruction.ip().checked_sub(start)?;
                left = left.checked_sub(1)?;
                if instruction.is_invalid() || !code.visited.insert(offset) {
                    break;
                }
                code.visited.extend(offset..offset + instruction.len() as u64);
                if sets_data_segment(&instruction) && instruction.op1_register() != zeroed {
                    return None;
                }
                zeroed = zeroed_register(&instruction);
                code.note(&instruction);
                let ahead = |target: &u64| *target >= start;
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::IndirectCall | FlowControl::Interrupt => {}
                    FlowControl::ConditionalBranch | FlowControl::Call => {
                        targets.extend(Some(instruction.near_branch_target()).filter(ahead));
                    }
                    FlowControl::UnconditionalBranch => {
                        targets.extend(Some(instruction.near_branch_target()).filter(ahead));
                        break;
                    }
                    _ => break,
                }
                if instruction.mnemonic() == Mnemonic::Hlt {
                    break;
                }
            }
        }
        Some(code)
    }

    /// Keeps what an instruction shows about pointers and output.
    fn note(&mut self, instruction: &Instruction) {
        let [first, second] =
            [instruction.op0_register(), instruction.op1_register()].map(Register::full_register);
        match instruction.mnemonic() {
            Mnemonic::Mov if second != Register::None => drop(self.copies.insert((first, second))),
            Mnemonic::Mov => self.loaded.extend(immediate(instruction).map(|number| (first, number))),
            Mnemonic::Lea => drop(self.loaded.insert((first, instruction.memory_displacement64()))),
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => self.prints = true,
            Mnemonic::Out if first == Register::RDX => {
                self.prints = true;
                // A hypercall takes an address in RDI.
                self.pointers.extend((instruction.code() == Encoding::Out_DX_EAX).then_some(Register::RDI));
            }
            Mnemonic::Out => self.prints |= instruction.immediate8() == DEBUG_CONSOLE,
            _ => {}
        }
        let is_store = instruction.op0_kind() == OpKind::Memory && instruction.mnemonic() == Mnemonic::Mov;
        let kinds = || (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
        if kinds()
            .any(|kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI))
        {
            self.pointers.insert(Register::RSI);
        }
        if is_store || instruction.mnemonic() == Mnemonic::Lea || !kinds().any(|kind| kind == OpKind::Memory)
        {
            return;
        }
        let registers = [instruction.memory_base(), instruction.memory_index()].map(Register::full_register);
        let mut named = registers.into_iter().filter(|register| register.is_gpr()).peekable();
        if named.peek().is_some() {
            self.bases.extend(Some(instruction.memory_displacement64()).filter(|base| *base != 0));
        }
        self.pointers.extend(named);
    }

    /// The addresses that the code uses as pointers to data that it reads, in ascending order.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let mut pointers = self.pointers.clone();
        loop {
            let sources = self.copies.iter().filter(|(to, _)| pointers.contains(to)).map(|(_, from)| *from);
            let new: Vec<_> = sources.filter(|from| !pointers.contains(from)).collect();
            if new.is_empty() {
                break;
            }
            pointers.extend(new);
        }
        let loaded = self.loaded.iter().filter(|(register, _)| pointers.contains(register));
        let mut addresses: Vec<u64> =
            loaded.map(|(_, number)| *number).chain(self.bases.iter().copied()).collect();
        sort_by_key(&mut addresses, |address| *address);
        addresses
    }

    /// The texts outside the code, each with its offset.
    pub(super) fn texts(&self, bytes: &[u8]) -> Vec<(u64, String)> {
        let mut texts = Vec::new();
        let mut text = String::new();
        for (offset, byte) in (0u64..).zip(bytes.iter().copied().chain([0])) {
            let is_text = matches!(byte, b' '..=b'~') && !self.visited.contains(&offset);
            if is_text {
                text.push(char::from(byte));
            } else if text.len() >= MIN_TEXT {
                texts.push((offset.saturating_sub(text.len() as u64), std::mem::take(&mut text)));
            } else {
                text.clear();
            }
        }
        texts
    }
}

fn sets_data_segment(instruction: &Instruction) -> bool {
    let segment = instruction.op0_register() == Register::DS;
    segment && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
}

/// The register that an instruction sets to zero; `None` (of [`Register`]) if it sets none.
fn zeroed_register(instruction: &Instruction) -> Register {
    let register = instruction.op0_register();
    let zeroes = match instruction.mnemonic() {
        Mnemonic::Xor | Mnemonic::Sub => instruction.op1_register() == register,
        Mnemonic::Mov => instruction.op1_kind() == OpKind::Immediate16 && instruction.immediate16() == 0,
        _ => false,
    };
    if zeroes { register } else { Register::None }
}

/// The number that `mov` loads, if its source is a number.
fn immediate(instruction: &Instruction) -> Option<u64> {
    match instruction.op1_kind() {
        OpKind::Immediate16 => Some(instruction.immediate16().into()),
        OpKind::Immediate32 => Some(instruction.immediate32().into()),
        OpKind::Immediate64 => Some(instruction.immediate64()),
        OpKind::Immediate32to64 => u64::try_from(instruction.immediate32to64()).ok(),
        _ => None,
    }
}
