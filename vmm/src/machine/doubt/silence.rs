//! Flat binaries that are loaded at another address than the one that they are linked for.
//!
//! A flat binary does not say where it belongs. Its jumps are relative, so it runs anywhere, but it finds its data only
//! at the address of its link. The search looks at the addresses in its code: if none of them is in the image, but one
//! would be the beginning of a text in it at another address, the image belongs there.

use super::{Doubt, EXCERPT};
use crate::boot::Image;
use crate::memory::PLAIN_RAM;
use crate::x86::modes::Mode;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeSet;

/// The most instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 10_000;
/// The largest file that is looked at, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The shortest text that is recognised, in bytes.
const MIN_TEXT: usize = 4;
/// Addresses for which images are linked are multiples of this.
const ALIGNMENT: u64 = 0x100;

/// A text that the code of a flat binary expects at another address. `None` for other images, and if the code is not
/// clear.
pub(super) fn misplaced_text(image: &Image) -> Option<Doubt> {
    let (start, bytes) = image.flat_file().filter(|(_, bytes)| bytes.len() <= MAX_FILE)?;
    let code = Code::of(bytes, start, image.mode())?;
    let end = start.saturating_add(bytes.len() as u64);
    if code.addresses.iter().any(|address| (start..end).contains(address)) {
        return None;
    }
    let texts = texts(bytes, &code.visited);
    let highest = if image.mode() == Mode::Real { 0xffff } else { PLAIN_RAM };
    code.addresses.iter().find_map(|&expected| {
        texts.iter().find_map(|(offset, text)| {
            let load_at = expected.checked_sub(*offset)?;
            let is_plausible = load_at.is_multiple_of(ALIGNMENT) && load_at <= highest;
            is_plausible.then(|| Doubt::MisplacedText {
                text: text.chars().take(EXCERPT).collect(),
                expected,
                actual: start.saturating_add(*offset),
                load_at,
            })
        })
    })
}

/// The instructions that can be reached from the first byte without an indirect jump.
struct Code {
    /// The offsets of the bytes of the instructions.
    visited: BTreeSet<u64>,
    /// The numbers in them that may be addresses of data.
    addresses: BTreeSet<u64>,
}

impl Code {
    /// Follows the code of `bytes`, which is at `start`. `None` if it uses a data segment that does not begin at 0.
    fn of(bytes: &[u8], start: u64, mode: Mode) -> Option<Self> {
        let bits = match mode {
            Mode::Real => 16,
            Mode::Protected => 32,
            Mode::Long | Mode::User => 64,
        };
        let mut code = Self { visited: BTreeSet::new(), addresses: BTreeSet::new() };
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
                code.addresses.extend(addresses(&instruction));
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

/// The immediate operands and displacements of an instruction.
fn addresses(instruction: &Instruction) -> impl Iterator<Item = u64> {
    let immediate = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Immediate16 => Some(instruction.immediate16().into()),
        OpKind::Immediate32 => Some(instruction.immediate32().into()),
        OpKind::Immediate64 => Some(instruction.immediate64()),
        OpKind::Immediate32to64 => u64::try_from(instruction.immediate32to64()).ok(),
        OpKind::Memory => Some(instruction.memory_displacement64()),
        _ => None,
    };
    (0..instruction.op_count()).filter_map(immediate).collect::<Vec<_>>().into_iter()
}

/// The texts outside the code, each with its offset.
fn texts(bytes: &[u8], code: &BTreeSet<u64>) -> Vec<(u64, String)> {
    let mut texts = Vec::new();
    let mut text = String::new();
    for (offset, byte) in (0u64..).zip(bytes.iter().copied().chain([0])) {
        let is_text = matches!(byte, b' '..=b'~') && !code.contains(&offset);
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
