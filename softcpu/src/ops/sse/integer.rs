//! Integer arithmetic, comparison, logic and shifts (SDM volume 1, sections 10.4.4 and 11.4.2).

use super::lanes::{each_byte, each_dword, each_qword, each_word};
use super::{combine, combine_immediate};
use crate::cpu::Cpu;
use crate::memory::Memory;
use crate::op::{Handler, Kind, Op};
use crate::trap::Trap;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    sums(insn).or_else(|| comparisons(insn)).or_else(|| logic(insn)).or_else(|| shifts(insn))
}

fn sums<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Paddb => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::wrapping_add)),
        Mnemonic::Paddw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, u16::wrapping_add)),
        Mnemonic::Paddd => |cpu, op| combine(cpu, op, |a, b| each_dword(a, b, u32::wrapping_add)),
        Mnemonic::Paddq => |cpu, op| combine(cpu, op, |a, b| each_qword(a, b, u64::wrapping_add)),
        Mnemonic::Psubb => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::wrapping_sub)),
        Mnemonic::Psubw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, u16::wrapping_sub)),
        Mnemonic::Psubd => |cpu, op| combine(cpu, op, |a, b| each_dword(a, b, u32::wrapping_sub)),
        Mnemonic::Psubq => |cpu, op| combine(cpu, op, |a, b| each_qword(a, b, u64::wrapping_sub)),
        Mnemonic::Paddusb => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::saturating_add)),
        Mnemonic::Paddusw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, u16::saturating_add)),
        Mnemonic::Psubusb => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::saturating_sub)),
        Mnemonic::Psubusw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, u16::saturating_sub)),
        Mnemonic::Paddsb => {
            |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, |a, b| (a as i8).saturating_add(b as i8) as u8))
        }
        Mnemonic::Paddsw => |cpu, op| {
            combine(cpu, op, |a, b| each_word(a, b, |a, b| (a as i16).saturating_add(b as i16) as u16))
        },
        Mnemonic::Psubsb => {
            |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, |a, b| (a as i8).saturating_sub(b as i8) as u8))
        }
        Mnemonic::Psubsw => |cpu, op| {
            combine(cpu, op, |a, b| each_word(a, b, |a, b| (a as i16).saturating_sub(b as i16) as u16))
        },
        Mnemonic::Pavgb => |cpu, op| {
            combine(cpu, op, |a, b| each_byte(a, b, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8))
        },
        Mnemonic::Pavgw => |cpu, op| {
            combine(cpu, op, |a, b| each_word(a, b, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16))
        },
        _ => return None,
    })
}

/// All ones, or zero.
macro_rules! filled {
    ($type:ty, $condition:expr) => {
        if $condition { <$type>::MAX } else { 0 }
    };
}

fn comparisons<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Pcmpeqb => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, |a, b| filled!(u8, a == b))),
        Mnemonic::Pcmpeqw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, |a, b| filled!(u16, a == b))),
        Mnemonic::Pcmpeqd => |cpu, op| combine(cpu, op, |a, b| each_dword(a, b, |a, b| filled!(u32, a == b))),
        Mnemonic::Pcmpgtb => {
            |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, |a, b| filled!(u8, (a as i8) > (b as i8))))
        }
        Mnemonic::Pcmpgtw => {
            |cpu, op| combine(cpu, op, |a, b| each_word(a, b, |a, b| filled!(u16, (a as i16) > (b as i16))))
        }
        Mnemonic::Pcmpgtd => {
            |cpu, op| combine(cpu, op, |a, b| each_dword(a, b, |a, b| filled!(u32, (a as i32) > (b as i32))))
        }
        Mnemonic::Pmaxub => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::max)),
        Mnemonic::Pminub => |cpu, op| combine(cpu, op, |a, b| each_byte(a, b, u8::min)),
        Mnemonic::Pmaxsw => {
            |cpu, op| combine(cpu, op, |a, b| each_word(a, b, |a, b| (a as i16).max(b as i16) as u16))
        }
        Mnemonic::Pminsw => {
            |cpu, op| combine(cpu, op, |a, b| each_word(a, b, |a, b| (a as i16).min(b as i16) as u16))
        }
        _ => return None,
    })
}

fn logic<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Pand | Mnemonic::Andps | Mnemonic::Andpd => |cpu, op| combine(cpu, op, |a, b| a & b),
        Mnemonic::Pandn | Mnemonic::Andnps | Mnemonic::Andnpd => |cpu, op| combine(cpu, op, |a, b| !a & b),
        Mnemonic::Por | Mnemonic::Orps | Mnemonic::Orpd => |cpu, op| combine(cpu, op, |a, b| a | b),
        Mnemonic::Pxor | Mnemonic::Xorps | Mnemonic::Xorpd => |cpu, op| combine(cpu, op, |a, b| a ^ b),
        _ => return None,
    })
}

/// Shifts by the immediate operand, or by the low 64 bits of the second one.
#[inline]
fn shift<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, result: impl Fn(u128, u32) -> u128) -> Result<(), Trap> {
    if op.operands[1].kind == Kind::Immediate {
        cpu.check_sse()?;
        let value = result(cpu.xmm(op, 0), op.insn.immediate8().into());
        cpu.set_xmm(op, 0, value);
        return Ok(());
    }
    combine(cpu, op, |a, count| result(a, (count as u64).min(255) as u32))
}

fn shifts<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Psllw => {
            |cpu, op| shift(cpu, op, |a, by| each_word(a, 0, |a, _| a.checked_shl(by).unwrap_or(0)))
        }
        Mnemonic::Pslld => {
            |cpu, op| shift(cpu, op, |a, by| each_dword(a, 0, |a, _| a.checked_shl(by).unwrap_or(0)))
        }
        Mnemonic::Psllq => {
            |cpu, op| shift(cpu, op, |a, by| each_qword(a, 0, |a, _| a.checked_shl(by).unwrap_or(0)))
        }
        Mnemonic::Psrlw => {
            |cpu, op| shift(cpu, op, |a, by| each_word(a, 0, |a, _| a.checked_shr(by).unwrap_or(0)))
        }
        Mnemonic::Psrld => {
            |cpu, op| shift(cpu, op, |a, by| each_dword(a, 0, |a, _| a.checked_shr(by).unwrap_or(0)))
        }
        Mnemonic::Psrlq => {
            |cpu, op| shift(cpu, op, |a, by| each_qword(a, 0, |a, _| a.checked_shr(by).unwrap_or(0)))
        }
        Mnemonic::Psraw => {
            |cpu, op| shift(cpu, op, |a, by| each_word(a, 0, |a, _| (a as i16 >> by.min(15)) as u16))
        }
        Mnemonic::Psrad => {
            |cpu, op| shift(cpu, op, |a, by| each_dword(a, 0, |a, _| (a as i32 >> by.min(31)) as u32))
        }
        Mnemonic::Pslldq => |cpu, op| shift(cpu, op, |a, by| a.checked_shl(by * 8).unwrap_or(0)),
        Mnemonic::Psrldq => |cpu, op| shift(cpu, op, |a, by| a.checked_shr(by * 8).unwrap_or(0)),
        Mnemonic::Pinsrw => |cpu, op| {
            combine_immediate(cpu, op, |a, b, lane| {
                let shift = 16 * u32::from(lane & 7);
                a & !(0xffff << shift) | (b & 0xffff) << shift
            })
        },
        Mnemonic::Pextrw => extract_word,
        _ => return None,
    })
}

fn extract_word<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.check_sse()?;
    let word = cpu.xmm(op, 1) >> (16 * u32::from(op.insn.immediate8() & 7)) & 0xffff;
    cpu.set(op, 0, word as u64)
}
