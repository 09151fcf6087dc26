//! The places of a kernel's modules and of its information in RAM, and the memory map that the kernel gets.

use super::{Module, Protocol};
use crate::boot::{ImageError, Segment};
use crate::host::format_size;
use crate::memory::{PAGE, TSS};

/// The preferred address of the information. Kernels commonly put a stack below 0x90000, or below 0x9fc00.
const INFORMATION: u64 = 0x9_0000;
/// The lowest address of the information: the page before holds the interrupt vectors of real mode.
const LOWEST: u64 = PAGE;
/// The start of high memory. Modules are here or above.
const HIGH: u64 = 0x10_0000;
/// The end of the addresses that the map describes.
const MAP_END: u64 = 1 << 32;

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    /// The address after the last byte.
    pub(super) end: u64,
    /// RAM that the kernel may use. Otherwise the range is reserved.
    pub(super) usable: bool,
}

impl Range {
    pub(super) fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The type of E820, which the three protocols have in common: 1 for RAM, 2 for reserved memory.
    pub(super) fn kind(&self) -> u32 {
        if self.usable { 1 } else { 2 }
    }
}

/// The size of the usable memory from 0, and from 1 MiB, in KiB (multiboot specification 0.6.96, section 3.3).
pub(super) fn lower_and_upper(map: &[Range]) -> (u32, u32) {
    let size = |from: u64| {
        let range = map.iter().find(|range| range.usable && range.start == from);
        u32::try_from(range.map_or(0, |range| range.size() >> 10)).unwrap_or(u32::MAX)
    };
    (size(0), size(HIGH))
}

/// The free memory of a machine.
pub(super) struct Places<'a> {
    protocol: Protocol,
    ram: u64,
    /// The end of low memory.
    low_end: u64,
    /// The segments of the kernel.
    segments: &'a [Segment],
    /// The end of what was placed last.
    end: u64,
}

impl<'a> Places<'a> {
    pub(super) fn new(protocol: Protocol, ram: u64, low_end: u64, segments: &'a [Segment]) -> Self {
        let end = segments.iter().map(Segment::end).max().unwrap_or(0).max(HIGH);
        Self { protocol, ram, low_end, segments, end }
    }

    /// Takes `size` bytes from the next page after the kernel and what was placed before. `None` if RAM ends before.
    pub(super) fn after(&mut self, size: u64) -> Option<u64> {
        let start = self.end.checked_next_multiple_of(PAGE)?;
        self.end = start.checked_add(size).filter(|end| *end <= self.ram)?;
        Some(start)
    }

    /// Takes the memory of a module.
    pub(super) fn module(&mut self, module: &Module) -> Result<u64, ImageError> {
        let size = module.bytes.len() as u64;
        self.after(size).ok_or_else(|| ImageError::Module {
            file: module.file.clone(),
            what: format!(
                "does not fit: it has {size} bytes, the memory before {:#x} is taken, and the guest's memory has {}: choose a \
                 larger --mem",
                self.end,
                format_size(self.ram)
            ),
        })
    }

    /// Places the information that `build` makes for its address and the memory map.
    pub(super) fn information(
        &mut self,
        build: impl Fn(u64, &[Range]) -> Vec<u8>,
    ) -> Result<(u64, Vec<u8>), ImageError> {
        // The size depends on the number of ranges, but not on the addresses in them.
        let size = |start: u64| {
            build(0, &map(self.ram, self.low_end, start, start.saturating_add(PAGE))).len() as u64
        };
        let size =
            [INFORMATION, LOWEST, self.end.saturating_add(PAGE)].map(size).into_iter().max().unwrap_or(0);
        let size = size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        let start = self.low(size).or_else(|| self.after(size)).ok_or_else(|| {
            self.protocol.error(format!(
                "leaves no room for {size} bytes of boot information in {} of memory: choose a larger --mem",
                format_size(self.ram)
            ))
        })?;
        Ok((start, build(start, &map(self.ram, self.low_end, start, start.saturating_add(size)))))
    }

    /// A free place in low memory: the preferred one, or else the highest.
    fn low(&self, size: u64) -> Option<u64> {
        let overlaps = |start: u64, end: u64| {
            self.segments.iter().find(|segment| segment.start.0 < end && start < segment.end())
        };
        let preferred = INFORMATION.checked_add(size).filter(|end| *end < self.low_end)?;
        if overlaps(INFORMATION, preferred).is_none() {
            return Some(INFORMATION);
        }
        let mut end = self.low_end;
        loop {
            let start = end.checked_sub(size)? & !(PAGE.saturating_sub(1));
            match overlaps(start, end) {
                _ if start < LOWEST => return None,
                None => return Some(start),
                // The segments are finite, and each one is passed once.
                Some(segment) => end = segment.start.0 & !(PAGE.saturating_sub(1)),
            }
        }
    }
}

/// The memory map of a machine with `ram` bytes of RAM, of which [`start`, `end`) is the information. The memory from
/// `low_end` to 1 MiB is reserved.
fn map(ram: u64, low_end: u64, start: u64, end: u64) -> Vec<Range> {
    let range = |start, end, usable| Range { start, end, usable };
    let plain = [
        range(0, low_end.min(ram), true),
        range(low_end, HIGH, false),
        range(HIGH, ram, true),
        // The tables of the machine, and KVM's task state below them.
        range(TSS, MAP_END, false),
    ];
    let mut map: Vec<Range> = Vec::new();
    for whole in plain {
        let before = range(whole.start, whole.end.min(start), whole.usable);
        let inside = range(whole.start.max(start), whole.end.min(end), false);
        let after = range(whole.start.max(end), whole.end, whole.usable);
        for part in [before, inside, after].into_iter().filter(|part| part.start < part.end) {
            match map.last_mut() {
                Some(last) if last.end == part.start && last.usable == part.usable => last.end = part.end,
                _ => map.push(part),
            }
        }
    }
    map
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::memory::Gpa;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const LOW_END: u64 = 0xa_0000;

    fn segment(start: u64, end: u64) -> Segment {
        Segment { start: Gpa(start), file: 0..0, size: end - start, executable: true }
    }

    #[test]
    fn the_information_is_reserved_in_the_map() {
        let words = |map: &[Range]| {
            map.iter().map(|range| (range.start, range.end, range.usable)).collect::<Vec<_>>()
        };
        let tables = (0xfffb_d000, 1 << 32, false);
        let usual = map(64 * MIB, LOW_END, 0x9_0000, 0x9_1000);
        assert_eq!(
            words(&usual),
            [
                (0, 0x9_0000, true),
                (0x9_0000, 0x9_1000, false),
                (0x9_1000, 0xa_0000, true),
                (0xa_0000, MIB, false),
                (MIB, 64 * MIB, true),
                tables
            ]
        );
        assert_eq!(lower_and_upper(&usual), (576, 63 * 1024));
        let pc = map(64 * MIB, 0x9_fc00, 0x9_0000, 0x9_1000);
        assert_eq!(words(&pc)[2..4], [(0x9_1000, 0x9_fc00, true), (0x9_fc00, MIB, false)]);
        let joined = map(64 * MIB, LOW_END, 0x9_f000, 0xa_0000);
        assert_eq!(words(&joined)[..2], [(0, 0x9_f000, true), (0x9_f000, MIB, false)]);
        let high = map(4 * MIB, LOW_END, 3 * MIB, 4 * MIB);
        assert_eq!(words(&high)[2..], [(MIB, 3 * MIB, true), (3 * MIB, 4 * MIB, false), tables]);
        assert_eq!(lower_and_upper(&map(MIB, LOW_END, 0x1000, 0x2000)), (4, 0));
    }

    #[test]
    fn the_information_avoids_the_kernel() {
        let place = |segments: &[Segment], size: usize, ram| {
            let mut places = Places::new(Protocol::Pvh, ram, LOW_END, segments);
            places
                .information(|_, _| vec![0; size])
                .map(|(start, _)| start)
                .map_err(|error| error.to_string())
        };
        assert_eq!(place(&[segment(MIB, 2 * MIB)], 100, 4 * MIB), Ok(0x9_0000));
        assert_eq!(place(&[segment(0x9_0fff, 0x9_1000)], 100, 4 * MIB), Ok(0x9_f000));
        assert_eq!(place(&[segment(0x8000, 0x9_ffff)], 0x2000, 4 * MIB), Ok(0x6000));
        // Low memory is full: after the kernel.
        assert_eq!(place(&[segment(0, 0x9_ffff)], 100, 4 * MIB), Ok(MIB));
        assert_eq!(place(&[segment(MIB, 2 * MIB)], 0x20_0000, 8 * MIB), Ok(2 * MIB));
        let full = place(&[segment(0, 4 * MIB)], 100, 4 * MIB).unwrap_err();
        assert!(full.contains("the PVH kernel leaves no room for 4096 bytes"), "{full}");
    }

    #[test]
    fn modules_are_on_pages_after_the_kernel_and_must_fit() {
        let segments = [segment(0x8000, 0x9000), segment(2 * MIB, 2 * MIB + 5)];
        let mut places = Places::new(Protocol::Pvh, 3 * MIB, LOW_END, &segments);
        let module = |size| Module { bytes: vec![0; size].into(), text: Vec::new(), file: "file".into() };
        assert_eq!(places.module(&module(1)).unwrap(), 2 * MIB + PAGE);
        assert_eq!(places.module(&module(5000)).unwrap(), 2 * MIB + 2 * PAGE);
        let error = places.module(&module(1 << 20)).unwrap_err().to_string();
        assert!(error.starts_with("the module file does not fit: it has 1048576 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_placed_overlaps_nothing(
            kernel in prop::collection::vec((0u64..0x40_0000, 0u64..0x1_0000), 1..6),
            modules in prop::collection::vec(0usize..0x3000, 0..4),
            size in 1usize..0x3000,
            pages in 0x100u64..0x800,
        ) {
            let segments: Vec<_> = kernel.iter().map(|(start, size)| segment(*start, start + size)).collect();
            let ram = pages * PAGE;
            let mut places = Places::new(Protocol::Pvh, ram, LOW_END, &segments);
            let mut taken: Vec<(u64, u64)> = segments.iter().map(|segment| (segment.start.0, segment.end())).collect();
            for size in modules {
                let module = Module { bytes: vec![0; size].into(), text: Vec::new(), file: String::new() };
                if let Ok(start) = places.module(&module) {
                    prop_assert!(start % PAGE == 0 && start + size as u64 <= ram);
                    prop_assert!(taken.iter().all(|(from, to)| start + size as u64 <= *from || *to <= start));
                    taken.push((start, start + size as u64));
                }
            }
            let map = std::cell::RefCell::new(Vec::new());
            let placed = places.information(|_, ranges| {
                *map.borrow_mut() = ranges.to_vec();
                vec![0; size]
            });
            if let Ok((start, bytes)) = placed {
                let end = start + bytes.len() as u64;
                prop_assert!(end <= ram && taken.iter().all(|(from, to)| end <= *from || *to <= start));
                let map = map.borrow();
                prop_assert!(map.iter().all(|range| !range.usable || end <= range.start || range.end <= start));
                prop_assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
        }
    }
}
