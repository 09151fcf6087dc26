//! Drivers of SIMVIRTIO in a machine that has no such device, because its image or its memory reaches above 1 MiB.
//!
//! There is memory in the place of the window, so a driver that reads the magic finds zeroes, and the run tells nothing of it.

use super::Machine;
use super::background::Background;
use super::explain::Explanation;
use super::restore::Restore;
use crate::boot::Image;
use crate::exit::Stop;
use crate::memory::Gpa;
use simvirtio::abi;

impl Machine {
    /// True if the guest has looked for SIMVIRTIO, and this machine does not have it: the guest stored where the window would
    /// be, or waited there until a timeout; or it did not end well, and its code compares something with the magic.
    pub(super) fn missed_simvirtio(&self, stop: &Stop, explanation: Option<&Explanation>) -> bool {
        let (window, end) = (abi::WINDOW, abi::WINDOW.saturating_add(abi::WINDOW_SIZE));
        let Some(image) = self.restore.as_ref().map(Restore::image) else { return false };
        if !matches!(self.background, Background::Nothing) || image.overlaps(window, end) {
            return false;
        }
        let mut bytes = [0; abi::WINDOW_SIZE as usize];
        let has_stored = self.memory.read(Gpa(window), &mut bytes) && bytes.iter().any(|byte| *byte != 0);
        let waits = explanation.is_some_and(|found| found.window_access().is_some());
        let ended_well = matches!(stop, Stop::Halted | Stop::Exited(0));
        has_stored || waits || !ended_well && knows_magic(image)
    }
}

/// True if an instruction of the image may have the magic as its immediate operand.
fn knows_magic(image: &Image) -> bool {
    let magic = abi::MAGIC.to_le_bytes();
    image.contents().any(|(_, bytes)| {
        let mut places = bytes.windows(magic.len()).enumerate().filter(|(_, word)| *word == magic);
        places.any(|(at, _)| bytes.get(at.saturating_sub(MOST_BEFORE)..at).is_some_and(takes_immediate))
    })
}

/// The most bytes between the opcode of CMP and its immediate operand: ModRM, SIB and a displacement.
const MOST_BEFORE: usize = 7;

/// True if these bytes can be the beginning of MOV or CMP, whose immediate operand of 4 bytes follows.
fn takes_immediate(before: &[u8]) -> bool {
    let of_accumulator = before.last().is_some_and(|opcode| matches!(opcode, 0x3d | 0xb8..=0xbf));
    of_accumulator || before.iter().rev().skip(1).any(|opcode| *opcode == 0x81)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::modes::Mode;

    #[test]
    fn the_magic_counts_in_instructions_only() {
        let knows = |code: &[u8]| {
            knows_magic(&Image::flat(code.to_vec(), Mode::Long, Gpa(0x20_0000)).expect("an image"))
        };
        // cmp dword [rdi], magic; cmp dword [0x100000], magic; cmp eax, magic; mov esi, magic
        for code in [
            &[0x81, 0x3f, b'v', b'i', b'r', b't'][..],
            &[0x81, 0x3c, 0x25, 0, 0, 0x10, 0, b'v', b'i', b'r', b't'],
            &[0x3d, b'v', b'i', b'r', b't'],
            &[0x90, 0xbe, b'v', b'i', b'r', b't'],
        ] {
            assert!(knows(code), "{code:x?}");
        }
        for text in ["a virtual machine", "virt", "no sim"] {
            assert!(!knows(text.as_bytes()), "{text}");
        }
    }
}
