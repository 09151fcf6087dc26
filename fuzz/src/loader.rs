//! Kernels of boot loaders: multiboot headers in ELF files and in flat files, notes of PVH, and position-independent
//! executables.

use crate::{Script, elf};

/// The address at which most kernels are loaded.
const BASE: u32 = 0x10_0000;
/// The size of the headers of an ELF64 file with up to 7 segments, in bytes.
const ELF_HEADERS: usize = 64 + 7 * 56;

/// Builds a kernel: an ELF64 file, an ELF32 file or a flat file, with a header or a note in most cases.
pub fn kernel(script: &mut Script) -> Vec<u8> {
    let header = match script.below(4) {
        0 => first(script),
        1 => second(script),
        2 => note(script),
        _ => Vec::new(),
    };
    let mut file = match script.below(4) {
        0 => vec![0xf4; 0x200],
        1 => elf::build(script, BASE.into()),
        2 => elf32(script),
        _ => movable(script),
    };
    let place = if file.starts_with(b"\x7fELF") { ELF_HEADERS.next_multiple_of(8) } else { 0 };
    file.resize(file.len().max(place + header.len()), 0x90);
    file[place..place + header.len()].copy_from_slice(&header);
    file
}

/// A word that is near the load address in most cases.
fn near(script: &mut Script) -> u32 {
    match script.below(8) {
        0 => 0,
        1 => u32::MAX,
        2 => script.any(),
        _ => BASE + script.below(0x200) as u32,
    }
}

/// A multiboot 1 header.
fn first(script: &mut Script) -> Vec<u8> {
    let flags: u32 = script.pick(&[3, 0x1_0003, 7, 0x1_0000, 0, 8, 0xffff_0000]);
    let sum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let fields: Vec<u32> = (0..9).map(|_| near(script)).collect();
    [0x1bad_b002, flags, sum].iter().chain(&fields).flat_map(|word| word.to_le_bytes()).collect()
}

/// A multiboot 2 header with up to 7 tags.
fn second(script: &mut Script) -> Vec<u8> {
    let mut tags = Vec::new();
    for _ in 0..script.below(8) {
        let kind = if script.one_in(8) { script.any() } else { script.below(11) as u16 };
        let words: Vec<u32> = (0..script.below(6)).map(|_| near(script)).collect();
        let size = if script.one_in(16) { script.any() } else { 8 + 4 * words.len() as u32 };
        tags.extend([kind, script.below(2) as u16].map(u16::to_le_bytes).as_flattened());
        tags.extend(size.to_le_bytes());
        tags.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        tags.resize(tags.len().next_multiple_of(8), 0);
    }
    let length = if script.one_in(16) { script.any() } else { 16 + tags.len() as u32 };
    let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(length);
    [0xe852_50d6, 0, length, sum].iter().flat_map(|word| word.to_le_bytes()).chain(tags).collect()
}

/// A note of PVH. A segment of the file may be a note with these bytes.
fn note(script: &mut Script) -> Vec<u8> {
    let size = script.pick(&[4u32, 8, 0, 5, u32::MAX]);
    let words =
        [script.pick(&[4u32, 3, 0, u32::MAX]), size, 18, u32::from_le_bytes(*b"Xen\0"), near(script), 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ELF32 file with up to 6 segments of any type.
fn elf32(script: &mut Script) -> Vec<u8> {
    let count = script.below(7) as u16;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([script.pick(&[2u16, 3]), 3].map(u16::to_le_bytes).as_flattened());
    file.extend(
        [1, near(script), 52, script.pick(&[0, 0x100, u32::MAX]), 0].map(u32::to_le_bytes).as_flattened(),
    );
    file.extend(
        [52, 32, count, 40, script.below(8) as u16, script.below(8) as u16]
            .map(u16::to_le_bytes)
            .as_flattened(),
    );
    for _ in 0..count {
        let start = near(script);
        let kind = script.pick(&[1, 1, 1, 4, 2, 3]);
        let size = script.below(0x100) as u32;
        let more = script.pick(&[0, 0x100, 0x1_0000]);
        let offset = script.below(0x200) as u32;
        file.extend(
            [kind, offset, start, start, size, size + more, 7, 4].map(u32::to_le_bytes).as_flattened(),
        );
    }
    file.resize(file.len().max(0x400), 0x90);
    file
}

/// A position-independent ELF64 file with one segment and a dynamic section.
fn movable(script: &mut Script) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([3u16, 62].map(u16::to_le_bytes).as_flattened());
    file.extend(1u32.to_le_bytes());
    file.extend([0x180u64, 64, 0].map(u64::to_le_bytes).as_flattened());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    for (kind, size) in [(1u32, 0x800u64), (2, 0x100)] {
        let offset = if kind == 1 { 0u64 } else { 0x200 };
        file.extend([kind, 7].map(u32::to_le_bytes).as_flattened());
        file.extend([offset, offset, offset, size, size, 0x1000].map(u64::to_le_bytes).as_flattened());
    }
    file.resize(0x200, 0x90);
    for _ in 0..script.below(6) {
        let tag: u64 = script.pick(&[7, 8, 17, 18, 35, 36, 1, 2]);
        let value = script.pick(&[0x300u64, 0x30, 0x18, 0x400, 0x7f8, u64::MAX]);
        file.extend([tag, value].map(u64::to_le_bytes).as_flattened());
    }
    file.resize(0x300, 0);
    while file.len() < 0x500 && !script.is_empty() {
        let word: u64 = script.pick(&[0x400, 8, 0x408, 0, 3, u64::MAX, 0x7f8]);
        file.extend(word.to_le_bytes());
    }
    file.resize(0x800, 0);
    file
}
