//! A log of the pages that the host has written, for the reset of a machine.

use super::{Gpa, PAGE};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The pages of a slot, with one bit for each.
#[derive(Debug)]
struct Slot {
    start: u64,
    pages: Box<[AtomicU64]>,
}

/// The log. Until it is switched on, it costs one load for each write.
#[derive(Debug, Default)]
pub(super) struct WrittenPages(OnceLock<Box<[Slot]>>);

impl WrittenPages {
    /// Switches the log on. `slots` contains the start and the size in bytes of each slot.
    pub(super) fn switch_on(&self, slots: impl Iterator<Item = (u64, u64)>) {
        self.0.get_or_init(|| {
            let slot = |(start, size): (u64, u64)| {
                let words = size.div_ceil(PAGE).div_ceil(64);
                Slot { start, pages: (0..words).map(|_| AtomicU64::new(0)).collect() }
            };
            slots.map(slot).collect()
        });
    }

    /// Logs a write of `len` bytes at `start`. The parts of the range outside all slots are ignored.
    #[inline]
    pub(super) fn log(&self, start: u64, len: u64) {
        if let Some(slots) = self.0.get() {
            log_in(slots, start, len);
        }
    }

    /// Logs a write to one page: that with index `page` in the slot with index `slot`.
    #[inline]
    pub(super) fn log_page(&self, slot: usize, page: u32) {
        let Some(slots) = self.0.get() else { return };
        let word = slots.get(slot).and_then(|slot| slot.pages.get((page / 64) as usize));
        if let Some(word) = word {
            let bit = 1 << (page % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// The addresses of the pages that were written since the last call.
    pub(super) fn take(&self) -> Vec<Gpa> {
        let mut found = Vec::new();
        for slot in self.0.get().into_iter().flatten() {
            for (word, pages) in (0u64..).zip(&slot.pages) {
                if pages.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let pages = pages.swap(0, Ordering::AcqRel);
                let set = (0..64).filter(|bit| pages & 1 << bit != 0);
                found.extend(
                    set.map(|bit| Gpa(slot.start.saturating_add((word * 64 + bit).saturating_mul(PAGE)))),
                );
            }
        }
        found
    }
}

/// Logs a write in `slots`.
#[cold]
fn log_in(slots: &[Slot], start: u64, len: u64) {
    let Some(last) = len.checked_sub(1).map(|more| start.saturating_add(more)) else { return };
    for slot in slots {
        let Some(last) = last.checked_sub(slot.start) else { continue };
        let first = start.saturating_sub(slot.start) / PAGE;
        for page in first..=last / PAGE {
            let word = usize::try_from(page / 64).ok().and_then(|word| slot.pages.get(word));
            // The rest of the range is after the end of the slot.
            let Some(word) = word else { break };
            let bit = 1 << (page % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_written_page_is_taken_once() {
        let written = WrittenPages::default();
        written.log(0, 1);
        written.switch_on([(0, 0x10_0000), (0xffff_0000, 0x2000)].into_iter());
        assert_eq!(written.take(), []);
        written.log(0xfff, 2);
        written.log(0x4_0000, 0);
        written.log(0xf_f000, 0x10_0000);
        written.log(0xffff_1fff, 1);
        written.log(u64::MAX, 8);
        assert_eq!(written.take(), [0, 0x1000, 0xf_f000, 0xffff_1000].map(Gpa));
        for (slot, page) in [(0, 70), (1, 1), (1, 2000), (2, 0)] {
            written.log_page(slot, page);
        }
        assert_eq!(written.take(), [0x4_6000, 0xffff_1000].map(Gpa));
        assert_eq!(written.take(), []);
    }
}
