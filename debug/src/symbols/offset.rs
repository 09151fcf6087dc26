//! The place of a kernel that has moved itself (KASLR).
//!
//! A relocatable Linux kernel chooses a physical and a virtual base at each boot, both multiples of 2 MiB, and adds the
//! distance of the virtual one to all addresses in its code (Linux, arch/x86/boot/compressed/kaslr.c and misc.c). So its code in
//! memory differs from its file in these words, by the same number each. It also notes its addresses for crash dumps
//! (VMCOREINFO; Linux, Documentation/admin-guide/kdump/vmcoreinfo.rst).

use super::elf::Piece;
use crate::vmcoreinfo::SEARCHED;
use std::collections::HashMap;

/// The most bytes of code that are compared.
pub(super) const COMPARED: usize = 1 << 20;
/// The alignment of a kernel's bases: the smallest CONFIG_PHYSICAL_ALIGN for 64 bits.
const ALIGNMENT: u64 = 2 << 20;
/// The largest distance of the virtual base: KERNEL_IMAGE_SIZE.
const MOST_OFFSET: u32 = 1 << 30;
/// The most bytes of a kernel's image to which its code refers.
const IMAGE: u32 = 64 << 20;
/// The least number of words that must agree on the distance.
const LEAST_WITNESSES: usize = 8;
/// The addresses at which Linux links its code for 64 bits start here (Documentation/arch/x86/x86_64/mm.rst).
const LINKED: u64 = 0xffff_ffff_8000_0000;

/// The physical addresses at which a moved kernel may start, in memory of this size.
pub(super) fn bases(memory: u64) -> impl Iterator<Item = u64> {
    (0..memory.min(SEARCHED)).step_by(ALIGNMENT as usize)
}

/// True for a piece of code of a Linux kernel of 64 bits.
pub(super) fn is_kernel(piece: &Piece) -> bool {
    piece.start >= LINKED && piece.start.is_multiple_of(ALIGNMENT)
}

/// The distance of the kernel's virtual base from that of its file. `theirs` is the code of the piece in the guest's memory.
/// `None` if no words have moved, or if those that differ do not agree.
pub(super) fn virtual_offset(piece: &Piece, theirs: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|word| u32::from_le_bytes(*word))
    };
    // The lower 32 bits of the addresses in the kernel's image.
    let low = piece.start as u32;
    let mut votes = HashMap::<u32, usize>::new();
    for at in 0..theirs.len() {
        let (Some(own), Some(their)) = (word(&piece.bytes, at), word(theirs, at)) else { break };
        let moved = their.wrapping_sub(own);
        let is_address = own.wrapping_sub(low) < IMAGE;
        if is_address && moved != 0 && moved < MOST_OFFSET && u64::from(moved).is_multiple_of(ALIGNMENT) {
            let count = votes.entry(moved).or_default();
            *count = count.saturating_add(1);
        }
    }
    let all: usize = votes.values().sum();
    let (moved, count) = votes.into_iter().max_by_key(|(moved, count)| (*count, *moved))?;
    let agree = count >= LEAST_WITNESSES && count.saturating_mul(10) >= all.saturating_mul(9);
    agree.then_some(moved.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use crate::symbols::{Fit, Guest, Symbols, elf_of};

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// Code with an address in it every 32 bytes: `mov rdi, address; nop...; ret`. `moved` is added to the addresses.
    fn code(moved: u32) -> Vec<u8> {
        let mut code = Vec::new();
        for number in 0..64u32 {
            code.extend([0x48, 0xc7, 0xc7]);
            code.extend((0x8100_1000 + number * 64 + moved).to_le_bytes());
            code.extend([0x90; 24]);
            code.push(0xc3);
        }
        code
    }

    /// Finds the kernel in a memory that holds `code` at `physical`, and a page `note` at 0x9000.
    fn found(file: &[u8], physical: u64, code: &[u8], note: &str) -> (Fit, Symbols) {
        let mut symbols = Symbols::parse("vmlinux", file).unwrap();
        let mut memory = vec![0; 64 << 20];
        memory[physical as usize..][..code.len()].copy_from_slice(code);
        memory[0x9000..][..note.len()].copy_from_slice(note.as_bytes());
        let guest = Guest { bases: &[], memory: memory.len() as u64, may_move: true };
        let fit = symbols.find(&guest, |address, bytes| {
            let from = memory.get(address as usize..address as usize + bytes.len());
            from.is_some_and(|from| {
                bytes.copy_from_slice(from);
                true
            })
        });
        (fit, symbols)
    }

    #[test]
    fn a_moved_kernel_is_found_by_its_code() {
        let size = code(0).len() as u64;
        let file = elf_of(BASE, &code(0), &[("_stext", BASE, size)]);
        let (fit, symbols) = found(&file, 0x0220_0000, &code(0x1d40_0000), "");
        assert_eq!((fit, symbols.offset_of_guest()), (Fit::Same, 0x1d40_0000));
        for address in [BASE + 0x1d40_0000 + 8, 0x0220_0008] {
            assert_eq!(symbols.place(address).unwrap().to_string(), "_stext+0x8", "{address:#x}");
        }
        assert_eq!(symbols.place(BASE + 0x10), None, "the guest has nothing there");
        // Its code may also be where the file has it physically, and another virtual base.
        let (fit, symbols) = found(&file, 0, &code(0x20_0000), "");
        assert_eq!((fit, symbols.offset_of_guest()), (Fit::Same, 0x20_0000));
        // Nothing has moved in the code, although the kernel is elsewhere: it does not tell.
        assert_eq!(found(&file, 0x0220_0000, &code(0), "").0, Fit::Moved);
        assert_eq!(found(&file, 0x0220_0000, &[0xcc; 2048], "").0, Fit::Other);
    }

    #[test]
    fn the_note_of_a_kernel_tells_its_place_and_nothing_is_guessed_without_it() {
        let map = format!("{BASE:x} T _text\n{BASE:x} T _stext\n{:x} T panic\n", BASE + 0x100);
        let note = "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff9e000000\nOFFSET(page.flags)=0\n";
        let (fit, symbols) = found(map.as_bytes(), 0, &[], note);
        assert_eq!((fit, symbols.offset_of_guest()), (Fit::Same, 0x1d00_0000));
        assert_eq!(symbols.place(0xffff_ffff_9e00_0101).unwrap().to_string(), "panic+0x1");
        for wrong in ["", "OSRELEASE=6.1.0\n", "OSRELEASE=\nSYMBOL(_stext)=zz\n"] {
            assert_eq!(found(map.as_bytes(), 0, &[], wrong).0, Fit::Moved, "{wrong}");
        }
        let given = Symbols::parse("System.map", map.as_bytes()).unwrap().with_offset(0x1000);
        assert_eq!(given.place(BASE + 0x1101).unwrap().to_string(), "panic+0x1");
    }
}
