//! Shuffles, interleaving and packing (SDM volume 1, sections 10.4.3 and 11.4.2).

use super::lanes::{bytes, dwords, from_bytes, from_dwords, from_qwords, from_words, qwords, words};
use super::{combine, combine_immediate};
use crate::memory::Memory;
use crate::op::Handler;
use iced_x86::{Instruction, Mnemonic};
use std::array::from_fn;

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Pshufd => |cpu, op| combine_immediate(cpu, op, |_, b, order| shuffle_dwords(b, b, order)),
        Mnemonic::Shufps => |cpu, op| combine_immediate(cpu, op, shuffle_dwords),
        Mnemonic::Shufpd => |cpu, op| combine_immediate(cpu, op, shuffle_qwords),
        Mnemonic::Pshuflw => |cpu, op| {
            combine_immediate(cpu, op, |_, b, order| {
                b & !u128::from(u64::MAX) | u128::from(shuffle_words(b as u64, order))
            })
        },
        Mnemonic::Pshufhw => |cpu, op| {
            combine_immediate(cpu, op, |_, b, order| {
                b & u128::from(u64::MAX) | u128::from(shuffle_words((b >> 64) as u64, order)) << 64
            })
        },
        Mnemonic::Punpcklbw => |cpu, op| combine(cpu, op, |a, b| interleave_bytes(a, b, 0)),
        Mnemonic::Punpckhbw => |cpu, op| combine(cpu, op, |a, b| interleave_bytes(a, b, 8)),
        Mnemonic::Punpcklwd => |cpu, op| combine(cpu, op, |a, b| interleave_words(a, b, 0)),
        Mnemonic::Punpckhwd => |cpu, op| combine(cpu, op, |a, b| interleave_words(a, b, 4)),
        Mnemonic::Punpckldq | Mnemonic::Unpcklps => {
            |cpu, op| combine(cpu, op, |a, b| interleave_dwords(a, b, 0))
        }
        Mnemonic::Punpckhdq | Mnemonic::Unpckhps => {
            |cpu, op| combine(cpu, op, |a, b| interleave_dwords(a, b, 2))
        }
        Mnemonic::Punpcklqdq | Mnemonic::Unpcklpd => {
            |cpu, op| combine(cpu, op, |a, b| from_qwords([a as u64, b as u64]))
        }
        Mnemonic::Punpckhqdq | Mnemonic::Unpckhpd => {
            |cpu, op| combine(cpu, op, |a, b| from_qwords([(a >> 64) as u64, (b >> 64) as u64]))
        }
        Mnemonic::Packsswb => {
            |cpu, op| combine(cpu, op, |a, b| pack_words(a, b, |word| word.clamp(-128, 127) as u8))
        }
        Mnemonic::Packuswb => {
            |cpu, op| combine(cpu, op, |a, b| pack_words(a, b, |word| word.clamp(0, 255) as u8))
        }
        Mnemonic::Packssdw => |cpu, op| combine(cpu, op, pack_dwords),
        _ => return None,
    })
}

/// Two doublewords of `a` and two of `b`, each chosen by two bits of `order`.
fn shuffle_dwords(a: u128, b: u128, order: u8) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    from_dwords(from_fn(|lane| {
        let from = if lane < 2 { &a } else { &b };
        from[usize::from(order >> (2 * lane) & 3)]
    }))
}

fn shuffle_qwords(a: u128, b: u128, order: u8) -> u128 {
    let (a, b) = (qwords(a), qwords(b));
    from_qwords([a[usize::from(order & 1)], b[usize::from(order >> 1 & 1)]])
}

/// The four words of `value`, each chosen by two bits of `order`.
fn shuffle_words(value: u64, order: u8) -> u64 {
    let word = |lane: u32| value >> (16 * u32::from(order >> (2 * lane) & 3)) & 0xffff;
    (0..4).fold(0, |result, lane| result | word(lane) << (16 * lane))
}

/// Interleaves eight bytes of each operand, from number `first`.
fn interleave_bytes(a: u128, b: u128, first: usize) -> u128 {
    let (a, b) = (bytes(a), bytes(b));
    from_bytes(from_fn(|lane| if lane & 1 == 0 { &a } else { &b }[(first + lane / 2) & 15]))
}

fn interleave_words(a: u128, b: u128, first: usize) -> u128 {
    let (a, b) = (words(a), words(b));
    from_words(from_fn(|lane| if lane & 1 == 0 { &a } else { &b }[(first + lane / 2) & 7]))
}

fn interleave_dwords(a: u128, b: u128, first: usize) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    from_dwords(from_fn(|lane| if lane & 1 == 0 { &a } else { &b }[(first + lane / 2) & 3]))
}

/// Makes a byte of each word of `a`, then of `b`.
fn pack_words(a: u128, b: u128, narrow: impl Fn(i16) -> u8) -> u128 {
    let (a, b) = (words(a), words(b));
    from_bytes(from_fn(|lane| narrow(if lane < 8 { &a } else { &b }[lane & 7] as i16)))
}

/// Makes a word of each doubleword of `a`, then of `b`, with signed saturation.
fn pack_dwords(a: u128, b: u128) -> u128 {
    let (a, b) = (dwords(a), dwords(b));
    let narrow = |value: i32| value.clamp(i16::MIN.into(), i16::MAX.into()) as u16;
    from_words(from_fn(|lane| narrow(if lane < 4 { &a } else { &b }[lane & 3] as i32)))
}
