//! Flat binaries whose code is for another mode than the one that they run in.
//!
//! A flat binary does not say how wide its code is. The same bytes are other instructions in another mode: the upper half
//! of a 32-bit immediate is `00 00` in 16-bit code, which is an addition that no program means, and a REX prefix
//! is an increment or a decrement (Intel SDM volume 2, sections 2.2.1.2 and 3.6). So the code up to its first end is
//! decoded for each mode.

use super::suspicion::Suspicion;
use crate::boot::Image;
use crate::x86::modes::Mode;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};

/// The most instructions that are looked at.
const MAX_INSTRUCTIONS: usize = 1000;
/// So many instructions with 64-bit registers are no accident.
const MANY_WIDE: usize = 2;
/// The same in 32-bit code, where a REX prefix is a decrement of EAX, as in 16-bit code, but the rest has the same length.
const MORE_WIDE: usize = 3;

/// The advice to choose another mode, if the code seems to be for one.
pub(super) fn advice(image: &Image) -> Option<Suspicion> {
    choice(image).map(|choice| format!("the code is for another mode: give {choice} (FILE@ADDR:MODE)").into())
}

/// The modes that the code seems to be for, if it is not its own.
pub(super) fn choice(image: &Image) -> Option<&'static str> {
    let (_, bytes) = image.flat_file()?;
    let own = |bits| Reading::of(bytes, bits);
    Some(match image.mode() {
        Mode::Real => {
            let (mine, wide, narrow) = (own(16), own(64), own(32));
            let is_wrong = mine.is_broken || mine.has_zeroes;
            match (wide.is_plausible(), narrow.is_plausible()) {
                (true, _) if wide.wide >= MANY_WIDE => ":64",
                (true, _) | (_, true) if is_wrong => ":32 or :64",
                _ => return None,
            }
        }
        Mode::Protected => {
            let (mine, wide) = (own(32), own(64));
            match wide.is_plausible() && (wide.wide >= MORE_WIDE || wide.wide > 0 && mine.is_in_vain) {
                true => ":64",
                false => of_16_bits(bytes, &mine)?,
            }
        }
        Mode::Long | Mode::User => of_16_bits(bytes, &own(64))?,
    })
}

/// The choice for code that runs in a mode of 32 or 64 bits, but seems to have 16.
fn of_16_bits(bytes: &[u8], mine: &Reading) -> Option<&'static str> {
    let reading = Reading::of(bytes, 16);
    let is_wrong =
        mine.is_broken || mine.has_zeroes || (mine.end.is_none() && reading.end == Some(bytes.len()));
    (is_wrong && reading.is_plausible()).then_some(":16")
}

/// The code of a binary in one mode, from its beginning to the first instruction after which it does not continue.
#[derive(Default)]
struct Reading {
    /// The offset after the last instruction. `None` if no end was found.
    end: Option<usize>,
    /// It has bytes that are not an instruction.
    is_broken: bool,
    /// It has the instruction `00 00`.
    has_zeroes: bool,
    /// It decrements EAX and then overwrites it at once: the decrement is a REX prefix.
    is_in_vain: bool,
    /// The number of its instructions with a 64-bit register.
    wide: usize,
}

impl Reading {
    fn of(bytes: &[u8], bits: u32) -> Self {
        let mut reading = Self::default();
        let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
        let mut decrements = false;
        for _ in 0..MAX_INSTRUCTIONS {
            let start = decoder.position();
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                reading.is_broken = decoder.last_error() == DecoderError::InvalidInstruction;
                break;
            }
            let code = bytes.get(start..decoder.position()).unwrap_or_default();
            reading.has_zeroes |= code == [0, 0];
            let overwrites = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea);
            reading.is_in_vain |= decrements && overwrites && instruction.op0_register() == Register::EAX;
            decrements =
                instruction.mnemonic() == Mnemonic::Dec && instruction.op0_register() == Register::EAX;
            let has_rex_w = code.first().is_some_and(|byte| byte & 0xf8 == 0x48);
            let is_wide =
                instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() == 8;
            reading.wide = reading.wide.saturating_add(usize::from(bits == 64 && has_rex_w && is_wide));
            let ends = matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
            );
            if ends || instruction.mnemonic() == Mnemonic::Hlt {
                reading.end = Some(decoder.position());
                break;
            }
        }
        reading
    }

    fn is_plausible(&self) -> bool {
        self.end.is_some() && !self.is_broken && !self.has_zeroes
    }
}
