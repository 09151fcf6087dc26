//! The code of an executable on the disk, by its virtual addresses.
//!
//! A debugger needs it for code in memory that is not mapped yet, such as that of a kernel before it has switched on paging.

use super::layout;
use crate::memory::{Gpa, GuestMemory};
use object::ReadCache;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The number of bytes that are compared with the guest's memory.
const COMPARED: usize = 32;

/// The segments of an executable with code.
#[derive(Debug)]
pub struct ElfCode {
    file: File,
    /// Of each: the virtual address, the physical address, the offset in the file, and the number of bytes in the file.
    segments: Vec<[u64; 4]>,
    /// The width of its code.
    bits: u32,
}

impl ElfCode {
    /// Opens an executable. `None` if the file is none, or cannot be read.
    pub fn open(path: &Path) -> Option<Self> {
        let (file, _) = crate::boot::file::open(path).ok()?;
        let layout = layout(&ReadCache::new(&file)).ok()?;
        let segments = layout.segments.iter().zip(&layout.virtual_starts).map(|(segment, start)| {
            let size = segment.file.end.saturating_sub(segment.file.start);
            [*start, segment.start.0, segment.file.start as u64, size as u64]
        });
        let (segments, bits) = (segments.collect(), if layout.is_64 { 64 } else { 32 });
        Some(Self { file, segments, bits })
    }

    /// The place in memory of the code at a virtual address, and the width of the code. `None` if the file has no code
    /// there, or the guest has other bytes at this place.
    pub fn find(&self, address: u64, memory: &GuestMemory) -> Option<(Gpa, u32)> {
        let (offset, [_, physical, at, size]) = self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment[0])?;
            (offset < segment[3]).then_some((offset, segment))
        })?;
        let len = usize::try_from(size.saturating_sub(offset)).map_or(COMPARED, |len| len.min(COMPARED));
        let (mut own, mut now) = ([0; COMPARED], [0; COMPARED]);
        let gpa = Gpa(physical.checked_add(offset)?);
        self.file.read_exact_at(own.get_mut(..len)?, at.checked_add(offset)?).ok()?;
        (memory.read(gpa, now.get_mut(..len)?) && own == now).then_some((gpa, self.bits))
    }
}
