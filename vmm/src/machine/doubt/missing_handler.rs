//! Calls of software interrupts without a handler, in real mode.
//!
//! `int n` pushes the flags, CS and the address of the next instruction, and jumps to the address in vector n of the
//! table at 0 (Intel SDM volume 3, section 21.1.4). The VMM leaves that table zero. So the call jumps to 0000:0000, and the
//! guest runs through whatever is there. The three words stay on the stack.

use crate::boot::Image;
use crate::memory::{Gpa, GuestMemory};

/// The number of bytes above the stack pointer that are searched.
const DEPTH: u64 = 0x100;
/// The size of the table of vectors, in bytes.
const VECTORS: u64 = 0x400;
/// The bits of the flags that are always the same, and their values (Intel SDM volume 1, section 3.4.3).
const FIXED_FLAGS: (u16, u16) = (0x802a, 0x0002);

/// The firmware that would have set a handler for the vector, in words. DOS has 0x20 to 0x2f (Microsoft MS-DOS
/// Programmer's Reference, "Interrupts").
pub(crate) fn missing_firmware(vector: u8) -> &'static str {
    match vector {
        0x20..=0x2f => "no BIOS and no DOS",
        _ => "no BIOS",
    }
}

/// The number of the software interrupt without a handler whose frame is on the stack. `stack` is the linear address of
/// the stack segment, and `pointer` the stack pointer in it. `None` if there is none.
pub(crate) fn missing_handler(image: &Image, memory: &GuestMemory, stack: u64, pointer: u64) -> Option<u8> {
    let word = |offset: u64| {
        let at = stack.checked_add(pointer.wrapping_add(offset) & 0xffff)?;
        let mut word = [0; 2];
        memory.read(Gpa(at), &mut word).then(|| u16::from_le_bytes(word))
    };
    (0..DEPTH).step_by(2).find_map(|offset| {
        let [ip, cs, flags] = [word(offset)?, word(offset + 2)?, word(offset + 4)?];
        if flags & FIXED_FLAGS.0 != FIXED_FLAGS.1 {
            return None;
        }
        let next = (u64::from(cs) << 4) + u64::from(ip);
        // The file, because the stack may have overwritten the code.
        let vector = match (image.byte_at(next.checked_sub(2)?)?, image.byte_at(next - 1)?) {
            (0xcd, vector) => vector,
            _ => return None,
        };
        // After many calls the stack has overwritten everything. The table then holds no handler that the guest has set.
        let at = stack.saturating_add(pointer & 0xffff);
        let overwrote = at < VECTORS + DEPTH || !is_intact(image, memory, next - 2);
        has_no_handler(image, memory, vector, overwrote).then_some(vector)
    })
}

/// True if a vector is as it was at the start, and led nowhere then: to address 0, or out of the image.
fn has_no_handler(image: &Image, memory: &GuestMemory, vector: u8, overwritten: bool) -> bool {
    let at = u64::from(vector) * 4;
    let start: [u8; 4] = std::array::from_fn(|byte| image.byte_at(at + byte as u64).unwrap_or(0));
    let mut now = [0; 4];
    let unchanged = memory.read(Gpa(at), &mut now) && now == start;
    let [offset, segment] = [[start[0], start[1]], [start[2], start[3]]].map(u16::from_le_bytes);
    let handler = (u64::from(segment) << 4) + u64::from(offset);
    (unchanged || overwritten) && (start == [0; 4] || image.byte_at(handler).is_none())
}

/// True if the instruction at an address, and the one at the entry point, are as in the file.
fn is_intact(image: &Image, memory: &GuestMemory, instruction: u64) -> bool {
    [instruction, instruction.saturating_add(1), image.entry().0].into_iter().all(|gpa| {
        let mut byte = [0];
        memory.read(Gpa(gpa), &mut byte) && image.byte_at(gpa) == Some(byte[0])
    })
}
