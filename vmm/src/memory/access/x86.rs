//! The accesses as instructions of x86-64.

use std::arch::asm;

/// The length from which a string instruction copies faster than a loop over words, in bytes.
const LONG: usize = 256;

/// Reads the byte at `from`.
///
/// # Safety
/// The byte is mapped. All accesses of this program to it go through this file.
#[inline]
pub(in crate::memory) unsafe fn load_u8(from: *const u8) -> u8 {
    let byte: u32;
    // SAFETY: the caller promises that the byte can be read.
    unsafe {
        asm!("movzx {0:e}, byte ptr [{1}]", out(reg) byte, in(reg) from, options(nostack, preserves_flags));
    }
    byte as u8
}

/// Writes the byte at `to`.
///
/// # Safety
/// As for [`load_u8`].
#[inline]
pub(in crate::memory) unsafe fn store_u8(to: *mut u8, byte: u8) {
    // SAFETY: the caller promises that the byte can be written.
    unsafe {
        asm!("mov byte ptr [{0}], {1}", in(reg) to, in(reg_byte) byte, options(nostack, preserves_flags));
    }
}

/// Reads the little-endian word at `from`, in one access if it is aligned.
///
/// # Safety
/// As for [`load_u8`], for all four bytes.
#[inline]
pub(in crate::memory) unsafe fn load_u32(from: *const u8) -> u32 {
    let word: u32;
    // SAFETY: the caller promises that the bytes can be read.
    unsafe {
        asm!("mov {0:e}, dword ptr [{1}]", out(reg) word, in(reg) from, options(nostack, preserves_flags));
    }
    word
}

/// Writes the little-endian word at `to`, in one access if it is aligned.
///
/// # Safety
/// As for [`load_u8`], for all four bytes.
#[inline]
pub(in crate::memory) unsafe fn store_u32(to: *mut u8, word: u32) {
    // SAFETY: the caller promises that the bytes can be written.
    unsafe {
        asm!("mov dword ptr [{0}], {1:e}", in(reg) to, in(reg) word, options(nostack, preserves_flags));
    }
}

/// Reads the 2 little-endian bytes at `from`, in one access if they are aligned.
///
/// # Safety
/// As for [`load_u8`], for both bytes.
#[inline]
pub(in crate::memory) unsafe fn load_u16(from: *const u8) -> u16 {
    let half: u32;
    // SAFETY: the caller promises that the bytes can be read.
    unsafe {
        asm!("movzx {0:e}, word ptr [{1}]", out(reg) half, in(reg) from, options(nostack, preserves_flags));
    }
    half as u16
}

/// Writes the 2 little-endian bytes at `to`, in one access if they are aligned.
///
/// # Safety
/// As for [`load_u8`], for both bytes.
#[inline]
pub(in crate::memory) unsafe fn store_u16(to: *mut u8, half: u16) {
    // SAFETY: the caller promises that the bytes can be written.
    unsafe {
        asm!("mov word ptr [{0}], {1:x}", in(reg) to, in(reg) half, options(nostack, preserves_flags));
    }
}

/// Reads the 8 little-endian bytes at `from`, in one access if they are aligned.
///
/// # Safety
/// As for [`load_u8`], for all eight bytes.
#[inline]
pub(in crate::memory) unsafe fn load_u64(from: *const u8) -> u64 {
    let word: u64;
    // SAFETY: the caller promises that the bytes can be read.
    unsafe {
        asm!("mov {0}, qword ptr [{1}]", out(reg) word, in(reg) from, options(nostack, preserves_flags));
    }
    word
}

/// Writes the 8 little-endian bytes at `to`, in one access if they are aligned.
///
/// # Safety
/// As for [`load_u8`], for all eight bytes.
#[inline]
pub(in crate::memory) unsafe fn store_u64(to: *mut u8, word: u64) {
    // SAFETY: the caller promises that the bytes can be written.
    unsafe {
        asm!("mov qword ptr [{0}], {1}", in(reg) to, in(reg) word, options(nostack, preserves_flags));
    }
}

/// Copies the bytes at `from` into `to`.
///
/// # Safety
/// As for [`load_u8`], for as many bytes as `to` has.
#[inline]
pub(in crate::memory) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
    // SAFETY: the caller promises that the source can be read. The destination is a slice, which does not overlap the
    // guest's memory, because there are no references into that.
    unsafe { copy(from, to.as_mut_ptr(), to.len()) }
}

/// Copies `from` to the bytes at `to`.
///
/// # Safety
/// As for [`load_u8`], for as many bytes as `from` has.
#[inline]
pub(in crate::memory) unsafe fn copy_to(to: *mut u8, from: &[u8]) {
    // SAFETY: as in `copy_from`, in the other direction.
    unsafe { copy(from.as_ptr(), to, from.len()) }
}

/// Copies `len` bytes.
///
/// # Safety
/// The source can be read, the destination can be written, and they do not overlap.
unsafe fn copy(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    // SAFETY: each step copies bytes that the caller has promised, and moves past them. Rust keeps the direction flag
    // clear.
    unsafe {
        if len < LONG {
            while let Some(rest) = len.checked_sub(8) {
                asm!("mov {0}, qword ptr [{1}]", "mov qword ptr [{2}], {0}",
                    out(reg) _, in(reg) from, in(reg) to, options(nostack, preserves_flags));
                (from, to, len) = (from.add(8), to.add(8), rest);
            }
            if len & 4 != 0 {
                store_u32(to, load_u32(from));
                (from, to) = (from.add(4), to.add(4));
            }
            if len & 2 != 0 {
                asm!("movzx {0:e}, word ptr [{1}]", "mov word ptr [{2}], {0:x}",
                    out(reg) _, in(reg) from, in(reg) to, options(nostack, preserves_flags));
                (from, to) = (from.add(2), to.add(2));
            }
            if len & 1 != 0 {
                store_u8(to, load_u8(from));
            }
            return;
        }
        asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}
