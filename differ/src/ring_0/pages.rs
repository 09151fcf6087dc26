//! Random page tables.

use crate::layout::{CODE, CODE_END, DATA, MAPPED, MEMORY, PAGE, TABLES};
use crate::program::{Config, Program};
use crate::values::pick;
use fastrand::Rng;

/// A linear address at which the page directory is used as a page table, so that it maps the page tables.
const MAPS: u64 = 0xe0_0000;
/// The same for the top level.
const TOP: u64 = 0xffff_ffff_ffff_f000;
/// Present, writable, user, accessed, dirty.
const BITS: u64 = 0x67;

/// A linear address that the random tables may map.
pub fn address(config: Config, rng: &mut Rng) -> u64 {
    let inside = rng.u64(..PAGE);
    let page = match rng.u8(..12) {
        0..5 => MAPPED + rng.u64(..16) * PAGE,
        5..8 => 0x20_0000 + rng.u64(..4) * 0x20_0000 + rng.u64(..0x20) * PAGE,
        8 => 0x3f_f000,
        9 => MAPS + rng.u64(..2) * PAGE,
        10 if config == Config::Long => TOP,
        _ => DATA + rng.u64(..8) * PAGE,
    };
    page + inside
}

/// The address of an entry that is worth changing while the program runs.
pub fn entry(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => TABLES + 2 * PAGE + rng.u64(..8) * 8,
        1 => TABLES + rng.u64(..3) * PAGE,
        _ => TABLES + 3 * PAGE + (DATA / PAGE + rng.u64(..28)) * 8,
    }
}

/// A page that an entry of the last level maps.
fn frame(rng: &mut Rng) -> u64 {
    match rng.u8(..12) {
        0 => TABLES + rng.u64(..7) * PAGE,
        1 => CODE + rng.u64(..3) * PAGE,
        2 => MEMORY + rng.u64(..3) * PAGE,
        3 => rng.u64(..7) * PAGE,
        _ => DATA + rng.u64(..9) * PAGE,
    }
}

/// Flips some of the bits of an entry.
pub fn change(mut raw: u64, rng: &mut Rng) -> u64 {
    for _ in 0..1 + rng.u8(..2) {
        raw ^= match rng.u8(..16) {
            0..2 => 1,
            2..5 => 2,
            5..7 => 4,
            7 => 0x18,
            8..10 => 0x20,
            10..12 => 0x40,
            12 => 0x100,
            13 => 1 << 63,
            // Bit 51 is reserved on all processors with fewer physical addresses.
            14 => 1 << *pick(rng, &[51, 51, 51, 52, 58, 62]),
            _ => 0x80,
        };
    }
    raw
}

/// The tables of long mode.
pub fn four_levels(program: &mut Program, rng: &mut Rng) {
    let table = |number: u64, index: u64| ((TABLES + number * PAGE) / 8 + index) as usize;
    let image = &mut program.image;
    for page in MAPPED / PAGE..MAPPED / PAGE + 16 {
        let raw = frame(rng) | BITS;
        image[table(3, page)] = if rng.u8(..3) == 0 { change(raw, rng) } else { raw };
    }
    for _ in 0..rng.u8(..6) {
        let page = CODE_END / PAGE + 1 + rng.u64(..(MAPPED - CODE_END) / PAGE);
        let at = table(3, page);
        image[at] = if rng.u8(..4) == 0 { frame(rng) | BITS } else { change(image[at], rng) };
    }
    for number in 1..5 {
        // Large pages.
        let address = if rng.u8(..16) == 0 { 1 << rng.u32(13..40) } else { 0 };
        let raw = address | BITS | 0x80;
        image[table(2, number)] = if rng.u8(..3) == 0 { change(raw, rng) } else { raw };
    }
    image[table(2, MAPS >> 21)] = (TABLES + 2 * PAGE) | BITS;
    image[table(0, 511)] = TABLES | BITS;
    if rng.u8(..16) == 0 {
        // 1 GiB.
        image[table(1, 1)] = BITS | 0x80;
    }
    if rng.u8(..4) == 0 {
        let number = *pick(rng, &[0, 1, 2]);
        let bit = *pick(rng, &[2, 4, 0x18, 0x20, 0x20, 0x40, 0x100, 1 << 52]);
        image[table(number, 0)] ^= bit;
    }
    if rng.u8(..16) == 0 {
        program.state.cr3 |= rng.u64(..2) << 3 | rng.u64(..2) << 4;
    }
}

/// The tables of 32-bit paging, which a program may switch on.
pub fn two_levels(program: &mut Program, rng: &mut Rng) {
    let mut set = |address: u64, raw: u64| program.write(address, &(raw as u32).to_le_bytes());
    set(TABLES, (TABLES + 3 * PAGE) | BITS);
    for number in 1..4 {
        let raw = BITS | 0x80;
        set(TABLES + number * 4, if rng.u8(..3) == 0 { change(raw, rng) } else { raw });
    }
    for page in 0..MAPPED / PAGE + 16 {
        let mut raw = if page < MAPPED / PAGE { page * PAGE } else { frame(rng) } | BITS;
        if page * PAGE > CODE_END && rng.u8(..8) == 0 {
            raw = change(raw, rng);
        }
        set(TABLES + 3 * PAGE + page * 4, raw);
    }
    program.state.cr3 = TABLES;
}
