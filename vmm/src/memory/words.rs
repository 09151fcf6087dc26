//! A slot of guest memory, with checked accesses to it. A device that polls a ring makes them all the time, so the check
//! is only a comparison.

use super::Gpa;
use super::access;

/// A slot. The owner must keep its mapping while it keeps this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    start: u64,
    /// The address of the slot in this process.
    host: *mut u8,
    /// The size in bytes.
    len: u64,
}

// SAFETY: the pointer only holds an address of memory. All accesses through it are those of `access`, which may happen on
// several threads at the same time.
unsafe impl Send for Words {}
// SAFETY: see above.
unsafe impl Sync for Words {}

impl Words {
    /// A slot without memory.
    pub(super) const EMPTY: Self = Self { start: 0, host: std::ptr::null_mut(), len: 0 };

    /// Describes the slot of `len` bytes at `start`, which is mapped at `host`.
    pub(super) fn new(start: Gpa, host: *mut u8, len: u64) -> Self {
        Self { start: start.0, host, len }
    }

    /// The address of the `size` bytes at `gpa` in this process. `None` unless all of them are in this slot.
    #[inline]
    pub(super) fn address(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let offset = gpa.checked_sub(self.start)?;
        let inside = offset < self.len && self.len - offset >= size;
        // SAFETY: `len` bytes are mapped from `host`, so the address is in the mapping.
        inside.then(|| unsafe { self.host.add(offset as usize) })
    }

    /// The address in this process of the `size` bytes at `offset` of the slot. `None` unless all of them are in it.
    #[inline]
    pub(super) fn at(&self, offset: u64, size: u64) -> Option<*mut u8> {
        let inside = self.len.checked_sub(size).is_some_and(|last| offset <= last);
        // SAFETY: `len` bytes are mapped from `host`, so the address is in the mapping.
        inside.then(|| unsafe { self.host.add(offset as usize) })
    }

    /// The offset of the page that contains `gpa`. `None` unless the whole page is in this slot.
    pub(super) fn page_offset(&self, gpa: u64, page: u64) -> Option<u64> {
        let offset = (gpa & !page.wrapping_sub(1)).checked_sub(self.start)?;
        self.at(offset, page).map(|_| offset).filter(|offset| offset.is_multiple_of(page))
    }

    /// The address of the word at `gpa` in this process. `None` unless it is aligned and in this slot.
    #[inline]
    fn word(&self, gpa: u64) -> Option<*mut u8> {
        self.address(gpa, 4).filter(|address| address.cast::<u32>().is_aligned())
    }

    // SAFETY, for all accesses below: the address is in the slot, and the owner keeps it mapped as long as `self`. While
    // vCPUs or devices run, this program accesses guest memory only in this way, except for the rings of virtio, whose
    // crate makes volatile accesses, and for the kernel, which is outside of Rust's memory model.

    /// Reads the byte at `gpa`. `None` if it is not in this slot.
    #[inline]
    pub(super) fn load_u8(&self, gpa: u64) -> Option<u8> {
        // SAFETY: see above.
        self.address(gpa, 1).map(|address| unsafe { access::load_u8(address) })
    }

    /// Writes the byte at `gpa`. Returns false if it is not in this slot.
    #[inline]
    pub(super) fn store_u8(&self, gpa: u64, value: u8) -> bool {
        let address = self.address(gpa, 1);
        // SAFETY: see above.
        address.map(|address| unsafe { access::store_u8(address, value) }).is_some()
    }

    /// Reads the little-endian word at `gpa`. `None` unless it is aligned and in this slot.
    #[inline]
    pub(super) fn load_u32(&self, gpa: u64) -> Option<u32> {
        // SAFETY: see above.
        self.word(gpa).map(|address| unsafe { access::load_u32(address) })
    }

    /// Writes the little-endian word at `gpa`. Returns false unless it is aligned and in this slot.
    #[inline]
    pub(super) fn store_u32(&self, gpa: u64, value: u32) -> bool {
        // SAFETY: see above.
        self.word(gpa).map(|address| unsafe { access::store_u32(address, value) }).is_some()
    }

    /// Copies memory from `gpa` into the start of `data`, up to the end of the slot. Returns the number of bytes, which is
    /// 0 only if `gpa` is not in this slot or `data` is empty.
    pub(super) fn read(&self, gpa: u64, data: &mut [u8]) -> Option<usize> {
        let (address, len) = self.rest(gpa, data.len())?;
        let part = data.get_mut(..len)?;
        // SAFETY: see above.
        unsafe { access::copy_from(address, part) };
        Some(len)
    }

    /// Copies the start of `data` to `gpa`, up to the end of the slot. Returns the number of bytes as [`read`](Self::read).
    pub(super) fn write(&self, gpa: u64, data: &[u8]) -> Option<usize> {
        let (address, len) = self.rest(gpa, data.len())?;
        // SAFETY: see above.
        unsafe { access::copy_to(address, data.get(..len)?) };
        Some(len)
    }

    /// The address of `gpa` in this process, and the smaller one of `len` and the number of bytes up to the end of the
    /// slot.
    #[inline]
    fn rest(&self, gpa: u64, len: usize) -> Option<(*mut u8, usize)> {
        let address = self.address(gpa, 1)?;
        let rest = self.len.saturating_sub(gpa.saturating_sub(self.start));
        Some((address, usize::try_from(rest).map_or(len, |rest| len.min(rest))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn only_aligned_accesses_inside_the_slot_are_found() {
        let mut memory = [0u32; 4];
        memory[3] = 0x0403_0201;
        let words = Words::new(Gpa(0x1000), memory.as_mut_ptr().cast(), 16);
        let (byte, word) = (|gpa| words.load_u8(gpa), |gpa| words.load_u32(gpa));
        assert_eq!((byte(0x100c), byte(0x100f)), (Some(1), Some(4)));
        for outside in [0, 0xfff, 0x1010, u64::MAX] {
            assert_eq!((byte(outside), word(outside)), (None, None), "{outside:#x}");
            assert!(!words.store_u8(outside, 1) && !words.store_u32(outside, 1));
            assert_eq!((words.read(outside, &mut [0]), words.write(outside, &[1])), (None, None));
        }
        assert_eq!((word(0x100c), word(0x100d), word(0x100e)), (Some(0x0403_0201), None, None));
        assert_eq!((word(0xffd), word(u64::MAX - 3)), (None, None));
        assert_eq!((words.write(0x100e, &[7, 8, 9]), words.load_u32(0x100c)), (Some(2), Some(0x0807_0201)));
        let mut data = [0; 20];
        assert_eq!((words.read(0x100f, &mut data), data[0], data[1]), (Some(1), 8, 0));
    }

    /// Returns a slot of 4096 bytes that is never freed.
    fn leaked() -> Words {
        let memory = Box::leak(vec![0u64; 512].into_boxed_slice());
        Words::new(Gpa(0), memory.as_mut_ptr().cast(), 4096)
    }

    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 2_000 };

    #[test]
    fn a_consumer_sees_each_byte_before_the_index_after_it() {
        let slot = leaked();
        thread::scope(|scope| {
            scope.spawn(move || {
                for index in 0..ROUNDS {
                    slot.store_u8(64 + u64::from(index % 1024), index as u8);
                    slot.store_u32(16, index + 1);
                    while slot.load_u32(20) != Some(index + 1) {
                        thread::yield_now();
                    }
                }
            });
            for index in 0..ROUNDS {
                while slot.load_u32(16) != Some(index + 1) {
                    thread::yield_now();
                }
                assert_eq!(slot.load_u8(64 + u64::from(index % 1024)), Some(index as u8));
                slot.store_u32(20, index + 1);
            }
        });
    }

    /// The guest chooses the addresses, so it can make two threads access the same bytes with any two widths. Miri and
    /// ThreadSanitizer would report a race here.
    #[test]
    fn threads_may_access_the_same_bytes_with_any_widths() {
        let slot = leaked();
        let all = |value: u32| {
            slot.store_u8(17, value as u8);
            slot.store_u32(16, value);
            slot.write(12, &[value as u8; 11]);
            slot.write(8, &[value as u8; 300]);
            let (mut short, mut long) = ([0; 11], [0; 300]);
            slot.read(13, &mut short);
            slot.read(9, &mut long);
            assert!(slot.load_u8(18).is_some() && slot.load_u32(16).is_some());
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..ROUNDS).for_each(all));
            }
        });
    }

    /// A race on purpose, which `make sanitize` runs to see that ThreadSanitizer works.
    #[test]
    #[cfg(tsan)]
    #[ignore = "ThreadSanitizer must report it"]
    fn a_plain_access_is_a_race() {
        let slot = leaked();
        thread::scope(|scope| {
            scope.spawn(move || slot.store_u8(100, 1));
            // SAFETY: the byte is in the slot. The race is intended.
            scope.spawn(move || unsafe { slot.address(100, 1).map(|byte| byte.write(2)) });
        });
    }
}
