//! Calls of software interrupts without a handler, in real mode.
//!
//! `int n` pushes the flags, CS and the address of the next instruction, and jumps to the address in vector n of the
//! table at 0 (Intel SDM volume 3, section 21.1.4). The VMM leaves that table zero. So the call jumps to 0000:0000, and the
//! guest runs through whatever is there. The three words stay on the stack.

use super::Original;
use crate::boot::Image;
use crate::memory::{Gpa, ReadMemory};

/// The number of bytes above the stack pointer that are searched.
const DEPTH: u64 = 0x100;
/// The size of the table of vectors, in bytes.
const VECTORS: u64 = 0x400;
/// The bits of the flags that are always the same, and their values (Intel SDM volume 1, section 3.4.3).
const FIXED_FLAGS: (u16, u16) = (0x802a, 0x0002);

/// The firmware that would have set a handler for the vector, in words. DOS has 0x20 to 0x2f (Microsoft MS-DOS
/// Programmer's Reference, "Interrupts").
fn missing_firmware(vector: u8) -> &'static str {
    match vector {
        0x20..=0x2f => "no BIOS and no DOS",
        _ => "no BIOS",
    }
}

/// The reason why a vector is empty, with advice.
pub(crate) fn empty_because(vector: u8, image: &Image) -> String {
    match image.loads_itself() {
        // The machine's BIOS has set all vectors.
        true if image.boot_disk().is_some() => "the guest has overwritten its vector".into(),
        true => "the guest has set none".into(),
        false => format!("this machine has {}: print with port 0xe9", missing_firmware(vector)),
    }
}

/// The same for a machine of this program, with the machine that has it.
pub(super) fn missing_firmware_here(vector: u8) -> &'static str {
    match vector {
        0x10..=0x1c => "no BIOS (--machine bios has one, for boot disks)",
        _ => missing_firmware(vector),
    }
}

/// The number of the software interrupt without a handler whose frame is on the stack. `stack` is the linear address of
/// the stack segment, and `pointer` the stack pointer in it. `None` if there is none.
pub(crate) fn missing_handler(
    image: &dyn Original,
    memory: &dyn ReadMemory,
    stack: u64,
    pointer: u64,
) -> Option<u8> {
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
        // After many calls the stack has overwritten everything, also the table.
        let at = stack.saturating_add(pointer & 0xffff);
        let overwrote = at < VECTORS + DEPTH || !is_intact(image, memory, next - 2);
        let found = match entry(image, memory, vector) {
            Entry::None => true,
            Entry::Set(_) if !overwrote => false,
            Entry::Set(set) => !is_handler(image, memory, vector, set, [ip, cs, flags]),
        };
        found.then_some(vector)
    })
}

/// The entry of a vector in the table, as offset and segment.
enum Entry {
    /// It is as it was at the start, and leads nowhere: to address 0, or out of the image.
    None,
    /// It leads into the image, or it was changed.
    Set([u16; 2]),
}

fn entry(image: &dyn Original, memory: &dyn ReadMemory, vector: u8) -> Entry {
    let at = u64::from(vector) * 4;
    let start: [u8; 4] = std::array::from_fn(|byte| image.byte_at(at + byte as u64).unwrap_or(0));
    let mut now = [0; 4];
    let unchanged = memory.read(Gpa(at), &mut now) && now == start;
    let entry = [[now[0], now[1]], [now[2], now[3]]].map(u16::from_le_bytes);
    match unchanged && (start == [0; 4] || image.byte_at(linear(entry)).is_none()) {
        true => Entry::None,
        false => Entry::Set(entry),
    }
}

/// True if a changed entry leads to code: into the image, or to memory that is not zero. Two neighbouring words of the
/// frames that `int n` pushes (IP, CS and flags) are not an entry. IP and CS alone may be one, because a handler can
/// follow the call; in a frame the flags are behind them.
fn is_handler(
    image: &dyn Original,
    memory: &dyn ReadMemory,
    vector: u8,
    entry: [u16; 2],
    [ip, cs, flags]: [u16; 3],
) -> bool {
    let mut behind = [0; 2];
    let has_flags = memory.read(Gpa((u64::from(vector) + 1) * 4), &mut behind)
        && u16::from_le_bytes(behind) & FIXED_FLAGS.0 == FIXED_FLAGS.1;
    let is_frame = entry == [ip, cs] && has_flags || [[cs, flags], [flags, ip]].contains(&entry);
    let mut code = [0; 2];
    let leads_to_code = image.byte_at(linear(entry)).is_some()
        || (memory.read(Gpa(linear(entry)), &mut code) && code != [0; 2]);
    entry != [0; 2] && !is_frame && leads_to_code
}

/// The linear address of an offset and a segment.
fn linear([offset, segment]: [u16; 2]) -> u64 {
    (u64::from(segment) << 4) + u64::from(offset)
}

/// True if the instruction at an address, and the one at the entry point, are as in the file.
fn is_intact(image: &dyn Original, memory: &dyn ReadMemory, instruction: u64) -> bool {
    [instruction, instruction.saturating_add(1), image.entry().0].into_iter().all(|gpa| {
        let mut byte = [0];
        memory.read(Gpa(gpa), &mut byte) && image.byte_at(gpa) == Some(byte[0])
    })
}
