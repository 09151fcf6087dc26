//! Random gates of the IDT, and the stacks of the TSS.

use super::descriptors::code_selector;
use crate::layout::{DATA, IDT, KERNEL_STACK_TOP, STACK, TASK};
use crate::program::{Config, Program};
use crate::values::{integer, pick};
use fastrand::Rng;

/// The vectors of exceptions and of a few interrupts.
const VECTORS: [u64; 18] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 13, 14, 14, 17, 32, 128];

/// Changes gates, the limit of the IDT, and the stacks of the TSS.
pub fn fill(program: &mut Program, rng: &mut Rng) {
    let is_long = program.id.config == Config::Long;
    for _ in 0..1 + rng.u8(..12) {
        let vector = *pick(rng, &VECTORS);
        let at = ((IDT + vector * if is_long { 16 } else { 8 }) / 8) as usize;
        let raw = program.image[at];
        program.image[at] = change(raw, is_long, rng);
        if is_long && rng.u8(..16) == 0 {
            program.image[at + 1] = integer(rng);
        }
    }
    if rng.u8(..8) == 0 {
        program.state.idtr.limit = rng.u16(..if is_long { 0x140 } else { 0xa0 });
    }
    stacks(program, is_long, rng);
}

/// A gate with another property.
fn change(raw: u64, is_long: bool, rng: &mut Rng) -> u64 {
    let kind = |kind: u64| raw & !(0x1f << 40) | kind << 40;
    match rng.u8(..12) {
        0..3 if is_long => raw | rng.u64(1..8) << 32,
        0 => kind(6),
        1 => kind(7),
        2 => kind(14),
        3 => kind(15),
        4 => kind(rng.u64(..0x20)),
        5 => raw ^ rng.u64(1..4) << 45,
        6 => raw & !(1 << 47),
        7 => raw ^ 1 << rng.u32(..64),
        _ => raw & !0xffff_0000 | u64::from(code_selector(rng)) << 16,
    }
}

/// The stack pointers of the TSS.
fn stacks(program: &mut Program, is_long: bool, rng: &mut Rng) {
    if !is_long {
        if rng.u8(..4) == 0 {
            program.image[(TASK / 8) as usize + 1] = super::descriptors::any_selector(rng).into();
        }
        return;
    }
    // RSP1, RSP2, and IST1 to IST7.
    let offsets = [0xc, 0x14].into_iter().chain((0x24..0x5c).step_by(8));
    for offset in offsets {
        let pointer = match rng.u8(..16) {
            0 => integer(rng),
            1 => 0x8000_0000_0000 + rng.u64(..16),
            2..5 => DATA + rng.u64(..0x1000),
            5..8 => STACK + 0x200 + rng.u64(..0x1000),
            _ => KERNEL_STACK_TOP - rng.u64(..0x200),
        };
        program.write(TASK + offset, &pointer.to_le_bytes());
    }
}
