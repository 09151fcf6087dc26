//! A slot as bytes and words, each read and written in one access: the shortest way for whoever looks at a ring over and
//! over.

use super::Gpa;
use std::sync::atomic::{AtomicU8, AtomicU32};

/// A slot. Only to be kept with the mapping that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    start: u64,
    host: *mut u8,
    /// Size in bytes.
    len: u64,
}

// SAFETY: the address is only that of memory, all of whose accesses here are atomic.
unsafe impl Send for Words {}
// SAFETY: see above.
unsafe impl Sync for Words {}

impl Words {
    /// The slot at `start`, of `len` bytes that are mapped at `host`.
    pub(super) fn new(start: Gpa, host: *mut u8, len: u64) -> Self {
        Self { start: start.0, host, len }
    }

    /// Where the `size` bytes at `gpa` are, if all of them are in this slot.
    #[inline]
    fn place(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let offset = gpa.checked_sub(self.start)?;
        let inside = offset < self.len && self.len - offset >= size;
        // SAFETY: that much is mapped from `host` on, so this is within the mapping.
        inside.then(|| unsafe { self.host.add(offset as usize) })
    }

    /// The byte at `gpa`.
    #[inline]
    pub(super) fn byte(&self, gpa: u64) -> Option<&AtomicU8> {
        // SAFETY: mapped for as long as this is kept, as its owner promises, and the guest's accesses are atomic too.
        self.place(gpa, 1).map(|place| unsafe { AtomicU8::from_ptr(place) })
    }

    /// The word at `gpa`, which has to be aligned.
    #[inline]
    pub(super) fn word(&self, gpa: u64) -> Option<&AtomicU32> {
        let place = self.place(gpa, 4)?.cast::<u32>();
        // SAFETY: as above, and aligned.
        place.is_aligned().then(|| unsafe { AtomicU32::from_ptr(place) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn only_what_is_wholly_inside_and_aligned_is_there() {
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
