//! Single accesses to memory that the guest and other threads of this program may change at any time.
//!
//! A guest decides which of its addresses a device, a hypercall or a vCPU accesses, so any two threads of this program
//! may access the same bytes at the same time, with any two widths. In Rust's memory model that is undefined, unless all
//! of these accesses are atomic and have the same width. So each function here is, in that model, a sequence of atomic
//! accesses to single bytes: loads with acquire order, stores with release order.
//!
//! The functions are assembly, because the standard library has no such copy of several bytes, and because the
//! processor does more than the model says: an access to an aligned word is one access. The rings of SIMVIRTIO need that
//! to work, but memory safety does not depend on it. On x86, ordinary loads and stores have acquire and release order.
//!
//! Miri and ThreadSanitizer do not see into assembly. With `cfg(miri)` and `cfg(tsan)` the same functions are what they
//! are in the model, so the tools find every access that does not go through this file.
//!
//! Other processors use the same functions, with atomic accesses to aligned words. An atomic access to a word is one access
//! on every processor that has it. A race between a word and its bytes is outside Rust's model, and defined on the processor:
//! each access is one instruction, and a load returns for each byte a value that was stored there.

#[cfg(not(all(target_arch = "x86_64", not(any(miri, tsan)))))]
pub(super) use model::{copy_from, copy_to, load_u8, load_u32, store_u8, store_u32};
#[cfg(all(target_arch = "x86_64", not(any(miri, tsan))))]
pub(super) use processor::{copy_from, copy_to, load_u8, load_u32, store_u8, store_u32};

/// The accesses as instructions of x86.
#[cfg(all(target_arch = "x86_64", not(any(miri, tsan))))]
mod processor {
    use std::arch::asm;

    /// The length from which a string instruction copies faster than a loop over words, in bytes.
    const LONG: usize = 256;

    /// Reads the byte at `from`.
    ///
    /// # Safety
    /// The byte is mapped. All accesses of this program to it go through this file.
    #[inline]
    pub(in super::super) unsafe fn load_u8(from: *const u8) -> u8 {
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
    pub(in super::super) unsafe fn store_u8(to: *mut u8, byte: u8) {
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
    pub(in super::super) unsafe fn load_u32(from: *const u8) -> u32 {
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
    pub(in super::super) unsafe fn store_u32(to: *mut u8, word: u32) {
        // SAFETY: the caller promises that the bytes can be written.
        unsafe {
            asm!("mov dword ptr [{0}], {1:e}", in(reg) to, in(reg) word, options(nostack, preserves_flags));
        }
    }

    /// Copies the bytes at `from` into `to`.
    ///
    /// # Safety
    /// As for [`load_u8`], for as many bytes as `to` has.
    #[inline]
    pub(in super::super) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
        // SAFETY: the caller promises that the source can be read. The destination is a slice, which does not overlap the
        // guest's memory, because there are no references into that.
        unsafe { copy(from, to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` to the bytes at `to`.
    ///
    /// # Safety
    /// As for [`load_u8`], for as many bytes as `from` has.
    #[inline]
    pub(in super::super) unsafe fn copy_to(to: *mut u8, from: &[u8]) {
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
}

/// The accesses as Rust's memory model sees them, for the tools and for other processors. The safety conditions are those
/// of `processor`.
#[cfg(any(test, not(target_arch = "x86_64"), miri, tsan))]
#[allow(clippy::missing_safety_doc)]
mod model {
    use std::array;
    use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

    /// Makes an access to an aligned word one access, which guests need. Miri does not run guests, and refuses races of
    /// accesses of different widths. ThreadSanitizer has no rule about widths.
    const WORDS: bool = !cfg!(miri);

    pub(in super::super) unsafe fn load_u8(from: *const u8) -> u8 {
        // SAFETY: the caller promises it.
        unsafe { AtomicU8::from_ptr(from.cast_mut()).load(Ordering::Acquire) }
    }

    pub(in super::super) unsafe fn store_u8(to: *mut u8, byte: u8) {
        // SAFETY: the caller promises it.
        unsafe { AtomicU8::from_ptr(to).store(byte, Ordering::Release) }
    }

    pub(in super::super) unsafe fn load_u32(from: *const u8) -> u32 {
        if WORDS && from.cast::<u32>().is_aligned() {
            // SAFETY: the caller promises it, and the word is aligned.
            let word = unsafe { AtomicU32::from_ptr(from.cast_mut().cast()).load(Ordering::Acquire) };
            return u32::from_le(word);
        }
        // SAFETY: the caller promises it for four bytes.
        u32::from_le_bytes(array::from_fn(|at| unsafe { load_u8(from.add(at)) }))
    }

    pub(in super::super) unsafe fn store_u32(to: *mut u8, word: u32) {
        if WORDS && to.cast::<u32>().is_aligned() {
            // SAFETY: as above.
            return unsafe { AtomicU32::from_ptr(to.cast()).store(word.to_le(), Ordering::Release) };
        }
        // SAFETY: the caller promises it for four bytes.
        unsafe { copy_to(to, &word.to_le_bytes()) }
    }

    pub(in super::super) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..) {
            // SAFETY: the caller promises it for as many bytes as are left, and words are aligned.
            done += unsafe {
                let from = from.add(done);
                if WORDS
                    && from.cast::<u64>().is_aligned()
                    && let Some(word) = rest.first_chunk_mut()
                {
                    *word = AtomicU64::from_ptr(from.cast_mut().cast()).load(Ordering::Acquire).to_ne_bytes();
                    word.len()
                } else if WORDS
                    && from.cast::<u32>().is_aligned()
                    && let Some(word) = rest.first_chunk_mut()
                {
                    *word = load_u32(from).to_le_bytes();
                    word.len()
                } else {
                    let Some(byte) = rest.first_mut() else { return };
                    *byte = load_u8(from);
                    1
                }
            };
        }
    }

    pub(in super::super) unsafe fn copy_to(to: *mut u8, from: &[u8]) {
        let mut done = 0;
        while let Some(rest) = from.get(done..) {
            // SAFETY: as in `copy_from`.
            done += unsafe {
                let to = to.add(done);
                if WORDS
                    && to.cast::<u64>().is_aligned()
                    && let Some(word) = rest.first_chunk()
                {
                    AtomicU64::from_ptr(to.cast()).store(u64::from_ne_bytes(*word), Ordering::Release);
                    word.len()
                } else if WORDS
                    && to.cast::<u32>().is_aligned()
                    && let Some(word) = rest.first_chunk()
                {
                    store_u32(to, u32::from_le_bytes(*word));
                    word.len()
                } else {
                    let Some(byte) = rest.first() else { return };
                    store_u8(to, *byte);
                    1
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_length_copy_exactly_these_bytes() {
        // SAFETY: the buffers of `copies` are long enough, and only this thread uses them.
        copies(|to, from| unsafe { copy_to(to, from) }, |from, to| unsafe { copy_from(from, to) });
        // SAFETY: as above.
        copies(
            |to, from| unsafe { model::copy_to(to, from) },
            |from, to| unsafe { model::copy_from(from, to) },
        );
    }

    fn copies(copy_to: impl Fn(*mut u8, &[u8]), copy_from: impl Fn(*const u8, &mut [u8])) {
        let source: Vec<u8> = (0..600).map(|byte| (byte % 251) as u8 + 1).collect();
        let lengths: Vec<usize> = if cfg!(miri) { vec![0, 1, 7, 15, 300] } else { (0..520).collect() };
        for len in lengths {
            for start in [0, 1, 3] {
                let mut memory = vec![0; 600];
                copy_to(memory[start..].as_mut_ptr(), &source[..len]);
                assert_eq!(memory[start..start + len], source[..len]);
                assert!(memory[..start].iter().chain(&memory[start + len..]).all(|byte| *byte == 0));
                let mut copy = vec![0; len];
                copy_from(memory[start..].as_ptr(), &mut copy);
                assert_eq!(copy, source[..len]);
            }
        }
    }

    #[test]
    fn words_are_little_endian() {
        let mut memory = [0u32; 2];
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: the accesses are in the array, and only this thread uses it.
        unsafe {
            store_u32(start.add(4), 0x0403_0201);
            store_u8(start.add(5), 0x22);
            assert_eq!((load_u8(start.add(4)), load_u8(start.add(7))), (1, 4));
            assert_eq!((load_u32(start.add(4)), load_u32(start)), (0x0403_2201, 0));
        }
    }
}
