//! Integer multiplication, and sums of differences.

use super::combine;
use super::lanes::{bytes, each_dword, each_qword, each_word, from_qwords};
use crate::memory::Memory;
use crate::op::Handler;
use iced_x86::{Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Pmullw => |cpu, op| combine(cpu, op, |a, b| each_word(a, b, u16::wrapping_mul)),
        Mnemonic::Pmulhw => |cpu, op| {
            combine(cpu, op, |a, b| {
                each_word(a, b, |a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16)
            })
        },
        Mnemonic::Pmulhuw => |cpu, op| {
            combine(cpu, op, |a, b| each_word(a, b, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16))
        },
        Mnemonic::Pmuludq => |cpu, op| {
            combine(cpu, op, |a, b| each_qword(a, b, |a, b| u64::from(a as u32) * u64::from(b as u32)))
        },
        Mnemonic::Pmaddwd => |cpu, op| combine(cpu, op, |a, b| each_dword(a, b, products_sum)),
        Mnemonic::Psadbw => |cpu, op| combine(cpu, op, differences_sum),
        _ => return None,
    })
}

/// The sum of the products of the signed words of two doublewords. It wraps if all words are -32768.
fn products_sum(a: u32, b: u32) -> u32 {
    let product = |a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16);
    product(a, b).wrapping_add(product(a >> 16, b >> 16)) as u32
}

/// The sums of the absolute differences of the bytes, for each half.
fn differences_sum(a: u128, b: u128) -> u128 {
    let (a, b) = (bytes(a), bytes(b));
    let sum = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    from_qwords([sum(&a[..8], &b[..8]), sum(&a[8..], &b[8..])])
}
