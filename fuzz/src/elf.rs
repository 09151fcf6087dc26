//! ELF64 executables with any number of segments.

use crate::Script;

/// The size of the ELF header, and of a program header, in bytes.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// The first virtual address of the kernel code model.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
const LOAD: u32 = 1;

/// A program header.
struct Segment {
    kind: u32,
    offset: u64,
    virtual_start: u64,
    start: u64,
    in_file: u64,
    size: u64,
}

/// Builds an executable with up to 7 segments, most of which are loaded at `base` or above, one after the other.
pub fn build(script: &mut Script, base: u64) -> Vec<u8> {
    let count = script.below(8);
    let mut content = vec![0xf4; 64];
    let mut next = base;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(segment(script, &mut next, count, &mut content));
    }
    let entry = entry(script, &segments);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let machine: u16 = if script.one_in(32) { script.any() } else { 62 };
    file.extend([2u16, machine].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([entry, HEADER, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    let halves = [HEADER as u16, PROGRAM_HEADER as u16, count as u16, 64, 0, 0];
    file.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    for segment in &segments {
        file.extend([segment.kind, 7].iter().flat_map(|word| word.to_le_bytes()));
        let Segment { offset, virtual_start, start, in_file, size, .. } = *segment;
        let words = [offset, virtual_start, start, in_file, size, 0x1000];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    file.extend(&content);
    // Kernels are recognised by this text.
    if script.one_in(4) {
        file.extend(b"Linux version 0");
    }
    file
}

/// Chooses a segment. `next` is the address after the last one.
fn segment(script: &mut Script, next: &mut u64, count: u64, content: &mut Vec<u8>) -> Segment {
    let kind = if script.one_in(8) { script.pick(&[0, 2, 3, 4, 6, 0x6474_e551]) } else { LOAD };
    let start = match script.below(16) {
        14 => script.any(),
        // May overlap the one before.
        15 => next.wrapping_sub(script.below(0x1000)),
        gap => next.wrapping_add(gap << 8),
    };
    let in_file = match script.below(8) {
        6 => script.below(1 << 16),
        7 => script.any(),
        few => few * 7,
    };
    let more = script.pick(&[0, 0, 1, 0x1f0, 0x1000, 0x2000, 0x1_0000, u64::MAX]);
    let size = in_file.saturating_add(more);
    let virtual_start = match script.below(4) {
        0 | 1 => start,
        2 => KERNEL.wrapping_add(start),
        _ => script.any(),
    };
    let offset = HEADER + count * PROGRAM_HEADER + content.len() as u64;
    content.extend(std::iter::repeat_n(0x90, in_file.min(0x1000) as usize));
    *next = start.wrapping_add(size);
    Segment { kind, offset, virtual_start, start, in_file, size }
}

/// Chooses the entry point: in most cases in the first segment.
fn entry(script: &mut Script, segments: &[Segment]) -> u64 {
    let Some(first) = segments.first() else { return script.any() };
    let segment = segments.get(script.below(segments.len() as u64) as usize).unwrap_or(first);
    match script.below(8) {
        6 => segment.start.wrapping_add(segment.size),
        7 => script.any(),
        0..4 => segment.virtual_start,
        _ => segment.start,
    }
}
