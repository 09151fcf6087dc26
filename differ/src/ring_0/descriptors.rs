//! Random descriptors of the GDT and the LDT.

use crate::layout::{CODE, CODE_END, DATA, GDT, LDT, OTHER_DATA, STACK, TASK};
use crate::program::{Config, Program};
use crate::values::pick;
use fastrand::Rng;
use softcpu::Segment;

/// The first entry of the segments that programs know.
const KNOWN: u64 = 16;
/// The first random entry, and the number of entries.
const FIRST: u64 = 23;
const ENTRIES: u64 = 64;
/// The number of entries of the LDT.
const LOCAL: u64 = 16;
/// The selectors of code that can be entered: 16 bits, 32 bits, 64 bits, and 16 bits that begin at the code.
pub const CODE_16: u16 = 0x80;
pub const CODE_32: u16 = 0x88;
pub const CODE_64: u16 = 0x90;
pub const CODE_16_HIGH: u16 = 0x98;
/// The selector of the LDT.
pub const LOCAL_TABLE: u16 = 0xb8;
/// The bits of a descriptor's flags: the granularity, the default size, 64-bit code.
const G: u64 = 8;
const D: u64 = 4;
const L: u64 = 2;

/// A descriptor.
fn pack(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access & 0xff) << 40
        | (limit >> 16 & 15) << 48
        | (flags & 15) << 52
        | (base >> 24 & 0xff) << 56
}

/// The descriptor of a selector.
pub fn raw(program: &Program, selector: u16) -> u64 {
    let table = if selector & 4 == 0 { GDT } else { LDT };
    let at = (table + u64::from(selector & !7)) / 8;
    program.image.get(at as usize).copied().unwrap_or(0)
}

/// The segment register that holds a descriptor.
pub fn segment(raw: u64, selector: u16) -> Segment {
    let pages = raw >> 55 & 1 != 0;
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment {
        selector,
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if pages { limit << 12 | 0xfff } else { limit },
        kind: (raw >> 40 & 15) as u8 | 1,
        code_or_data: raw >> 44 & 1 != 0,
        dpl: (raw >> 45 & 3) as u8,
        present: raw >> 47 & 1 != 0,
        available: raw >> 52 & 1 != 0,
        long: raw >> 53 & 1 != 0,
        big: raw >> 54 & 1 != 0,
        pages,
        unusable: false,
    }
}

/// A selector for any load.
pub fn any_selector(rng: &mut Rng) -> u16 {
    let (index, local) = match rng.u8(..16) {
        0 => (0, 0),
        1..3 => (rng.u64(..LOCAL + 2), 4),
        3..6 => (KNOWN + rng.u64(..FIRST - KNOWN), 0),
        6..8 => (1 + rng.u64(..6), 0),
        8 => (rng.u64(..ENTRIES + 16), 0),
        _ => (FIRST + rng.u64(..ENTRIES - FIRST), 0),
    };
    let level = if rng.u8(..4) == 0 { rng.u16(..4) } else { 0 };
    (index << 3) as u16 | local | level
}

/// A selector that a data segment register can often hold.
pub fn data_selector(program: &Program, rng: &mut Rng) -> u16 {
    (0..4)
        .map(|_| any_selector(rng))
        .find(|selector| {
            let raw = raw(program, *selector);
            selector & !3 != 0 && raw >> 47 & 1 != 0 && raw >> 43 & 3 == 2
        })
        .unwrap_or(0x10)
}

/// A selector of code, or of anything.
pub fn code_selector(rng: &mut Rng) -> u16 {
    match rng.u8(..16) {
        0..9 => *pick(rng, &[CODE_16, CODE_32, CODE_64, CODE_16_HIGH]),
        9 => 0x08,
        _ => any_selector(rng),
    }
}

fn base(rng: &mut Rng) -> u64 {
    match rng.u8(..16) {
        0..5 => 0,
        5 => DATA + rng.u64(..0x1000),
        6 => OTHER_DATA,
        7 => STACK,
        8 => CODE,
        9 => 0xffff_0000 + rng.u64(..0x1_0000),
        10 => rng.u32(..).into(),
        11 => rng.u64(..0x100),
        12 => 0x1_d000 - rng.u64(..0x2000),
        _ => DATA,
    }
}

/// A limit, and the flag G.
fn limit(rng: &mut Rng) -> (u64, u64) {
    match rng.u8(..16) {
        0..5 => (0xf_ffff, G),
        5..8 => (0xffff, 0),
        8 => (0xfff, 0),
        9 => (rng.u64(..0x2000), 0),
        10 => (rng.u64(..0x1000) | 0xfff, 0),
        11 => (rng.u64(..0x40), G),
        12 => (0xf_ffff, 0),
        13 => (0, 0),
        14 => (DATA + 0x300 + rng.u64(..0xa00), 0),
        _ => (rng.u64(..0x10_0000), rng.u64(..2) * G),
    }
}

/// The bits P and DPL of an access byte.
fn access(rng: &mut Rng) -> u64 {
    let present = if rng.u8(..12) == 0 { 0 } else { 0x80 };
    let level = if rng.u8(..4) == 0 { rng.u64(..4) } else { 0 };
    present | level << 5
}

/// A code or data segment.
fn code_or_data(is_code: bool, is_long: bool, rng: &mut Rng) -> u64 {
    let kind = rng.u64(..8) | if is_code { 8 } else { 0 };
    // Most segments can be written or read.
    let kind = if rng.u8(..3) == 0 { kind } else { kind | 2 };
    let kind = if !is_code && rng.u8(..3) != 0 { kind & !4 } else { kind };
    let (limit, granularity) = limit(rng);
    let flags = granularity
        | if rng.bool() { D } else { 0 }
        | if rng.u8(..16) == 0 || is_code && is_long && rng.bool() { L } else { 0 }
        | u64::from(rng.u8(..8) == 0);
    let base = if is_code && rng.bool() { 0 } else { base(rng) };
    pack(base, limit, 0x10 | kind | access(rng), flags)
}

/// A system descriptor, and the 8 bytes behind it in long mode.
fn system(rng: &mut Rng) -> (u64, u64) {
    const KINDS: [u64; 24] = [9, 9, 9, 9, 11, 11, 2, 2, 2, 12, 12, 12, 4, 4, 5, 1, 1, 3, 6, 7, 14, 15, 0, 8];
    let kind = *pick(rng, &KINDS);
    let access = kind | access(rng);
    let mut upper = match rng.u8(..16) {
        0 => u64::from(rng.u32(..)),
        1 => 0xffff_ffff,
        2 => 0x7fff,
        3 => 0x8000,
        _ => 0,
    };
    if rng.u8(..16) == 0 {
        upper |= rng.u64(..0x20) << 40;
    }
    let raw = match kind {
        4 | 5 | 6 | 7 | 12 | 14 | 15 => {
            let offset = CODE + rng.u64(..CODE_END - CODE);
            let count = if rng.u8(..4) == 0 { rng.u64(..32) } else { 0 };
            let selector = u64::from(code_selector(rng));
            offset & 0xffff | selector << 16 | count << 32 | access << 40 | (offset >> 16) << 48
        }
        2 => pack(LDT, rng.u64(..LOCAL * 8 + 8), access, 0),
        _ => {
            let base = if rng.u8(..4) == 0 { base(rng) } else { TASK };
            let (limit, flags) = if rng.bool() { (0x67, 0) } else { limit(rng) };
            pack(base, limit, access, flags)
        }
    };
    (raw, upper)
}

/// Fills the GDT and the LDT, and chooses their limits.
pub fn fill(program: &mut Program, rng: &mut Rng) {
    let is_long = program.id.config == Config::Long;
    let known = [
        pack(0, 0xffff, 0x9b, 0),
        pack(0, 0xf_ffff, 0x9b, G | D),
        pack(0, 0xf_ffff, 0x9b, G | L),
        pack(CODE, 0xffff, 0x9b, 0),
        pack(DATA, 0xffff, 0x93, 0),
        pack(0, 0xf_ffff, 0x93, G),
        pack(0, 0xf_ffff, 0x93, G | D),
    ];
    let start = (GDT / 8) as usize;
    program.image[start + KNOWN as usize..start + FIRST as usize].copy_from_slice(&known);
    table(program, (start + FIRST as usize, (ENTRIES - FIRST) as usize), is_long, rng);
    table(program, ((LDT / 8) as usize, LOCAL as usize), is_long, rng);
    let local = start + usize::from(LOCAL_TABLE / 8);
    program.image[local..local + 2].copy_from_slice(&[pack(LDT, LOCAL * 8 - 1, 0x82, 0), 0]);
    program.state.gdtr.limit = match rng.u8(..16) {
        0 => rng.u16(..ENTRIES as u16 * 8),
        1 => 0x3f,
        _ => ENTRIES as u16 * 8 - 1,
    };
    if rng.bool() {
        program.state.ldtr = segment(raw(program, LOCAL_TABLE), LOCAL_TABLE);
        program.state.ldtr.kind = 2;
    }
}

/// Fills entries of a table: the index of the first in memory, and their number.
fn table(program: &mut Program, (first, count): (usize, usize), is_long: bool, rng: &mut Rng) {
    let mut at = first;
    while at < first + count {
        let choice = rng.u8(..16);
        if choice < 5 {
            let (raw, upper) = system(rng);
            program.image[at] = raw;
            at += 1;
            if is_long && at < first + count {
                program.image[at] = upper;
                at += 1;
            }
            continue;
        }
        program.image[at] = if choice == 15 { rng.u64(..) } else { code_or_data(choice < 9, is_long, rng) };
        at += 1;
    }
}
