//! A slot as atomic bytes and words: the fastest access for a device that polls a ring.

use super::Gpa;
use std::sync::atomic::{AtomicU8, AtomicU32};

/// A slot. The owner must keep its mapping while it keeps this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    start: u64,
    /// The address of the slot in this process.
    host: *mut u8,
    /// The size in bytes.
    len: u64,
}

// SAFETY: the pointer only holds an address of memory, and all accesses through it are atomic.
unsafe impl Send for Words {}
// SAFETY: see above.
unsafe impl Sync for Words {}

impl Words {
    /// Describes the slot of `len` bytes at `start`, which is mapped at `host`.
    pub(super) fn new(start: Gpa, host: *mut u8, len: u64) -> Self {
        Self { start: start.0, host, len }
    }

    /// The address of the `size` bytes at `gpa` in this process. `None` unless all of them are in this slot.
    #[inline]
    fn address(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let offset = gpa.checked_sub(self.start)?;
        let inside = offset < self.len && self.len - offset >= size;
        // SAFETY: `len` bytes are mapped from `host`, so the address is in the mapping.
        inside.then(|| unsafe { self.host.add(offset as usize) })
    }

    /// The byte at `gpa`.
    #[inline]
    pub(super) fn byte(&self, gpa: u64) -> Option<&AtomicU8> {
        // SAFETY: the owner keeps the memory mapped as long as `self`, and the guest's accesses are atomic too.
        self.address(gpa, 1).map(|address| unsafe { AtomicU8::from_ptr(address) })
    }

    /// The word at `gpa`. `None` unless `gpa` is aligned.
    #[inline]
    pub(super) fn word(&self, gpa: u64) -> Option<&AtomicU32> {
        let address = self.address(gpa, 4)?.cast::<u32>();
        // SAFETY: as above, and aligned.
        address.is_aligned().then(|| unsafe { AtomicU32::from_ptr(address) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn only_aligned_accesses_inside_the_slot_are_found() {
        let mut memory = [0u32; 4];
        memory[3] = 0x0403_0201;
        let words = Words::new(Gpa(0x1000), memory.as_mut_ptr().cast(), 16);
        let byte = |gpa| words.byte(gpa).map(|byte| byte.load(Ordering::Relaxed));
        let word = |gpa| words.word(gpa).map(|word| word.load(Ordering::Relaxed));
        assert_eq!((byte(0x100c), byte(0x100f)), (Some(1), Some(4)));
        for outside in [0, 0xfff, 0x1010, u64::MAX] {
            assert_eq!((byte(outside), word(outside)), (None, None), "{outside:#x}");
        }
        assert_eq!((word(0x100c), word(0x100d), word(0x100e)), (Some(0x0403_0201), None, None));
        assert_eq!((word(0xffd), word(u64::MAX - 3)), (None, None));
    }
}
