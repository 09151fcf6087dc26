//! The addresses in a multiboot header. They replace the segments of an ELF file, and are needed for other files (the
//! "a.out kludge"; multiboot specification 0.6.96, section 3.1.3, and 2.0, sections 3.1.5 and 3.1.6).

use super::Protocol;
use crate::boot::{ImageError, Segment};
use crate::memory::Gpa;

/// The address fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The offset of the header in the file.
    pub(super) offset: usize,
    /// The address of the header in memory.
    pub(super) header: u32,
    /// The address of the first byte that is loaded. `None`: that of the first byte of the file.
    pub(super) load: Option<u32>,
    /// The address after the last byte that is loaded. 0: the file is loaded to its end.
    pub(super) load_end: u32,
    /// The address after the zeroes that follow. 0: there are none.
    pub(super) bss_end: u32,
}

impl Addresses {
    /// The segment of a file of `length` bytes, and its entry point.
    ///
    /// # Errors
    /// The addresses contradict each other, the file, or the entry point.
    pub(super) fn segment(
        &self,
        length: usize,
        protocol: Protocol,
        entry: Option<u32>,
    ) -> Result<(Segment, Gpa), ImageError> {
        let refuse = |what: String| Err(protocol.error(format!("has a header that is wrong: {what}")));
        let offset = u64::try_from(self.offset).unwrap_or(u64::MAX);
        let header = u64::from(self.header);
        let Some(load) = self.load.map_or(header.checked_sub(offset), |load| Some(load.into())) else {
            return refuse(format!(
                "its address {header:#x} is lower than its offset in the file ({offset:#x}), so the file would begin below 0"
            ));
        };
        let Some(before) = header.checked_sub(load) else {
            return refuse(format!(
                "its load address {load:#x} is above the address of the header, {header:#x}"
            ));
        };
        let Some(first) = offset.checked_sub(before) else {
            return refuse(format!(
                "its load address {load:#x} is {before:#x} bytes before the header, which is at {offset:#x} in the file"
            ));
        };
        let rest = u64::try_from(length).unwrap_or(u64::MAX).saturating_sub(first);
        let in_file = match self.load_end {
            0 => rest,
            end => match u64::from(end).checked_sub(load).filter(|size| *size > 0) {
                Some(size) => size,
                None => {
                    return refuse(format!(
                        "its load_end_addr {end:#x} is not above its load address {load:#x}"
                    ));
                }
            },
        };
        if in_file > rest {
            return refuse(format!(
                "it loads {in_file:#x} bytes, and the file has only {rest:#x}: is it complete?"
            ));
        }
        let loaded = load.saturating_add(in_file);
        let end = if self.bss_end == 0 { loaded } else { self.bss_end.into() };
        if end < loaded {
            return refuse(format!(
                "its bss_end_addr {end:#x} is below the end of what is loaded, {loaded:#x}"
            ));
        }
        let Some(entry) = entry.map(u64::from) else {
            return refuse("it has load addresses, but no entry address".into());
        };
        if !(load..end).contains(&entry) {
            return refuse(format!(
                "its entry address {entry:#x} is outside {load:#x} to {:#x}",
                end.saturating_sub(1)
            ));
        }
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let file = place(first)..place(first.saturating_add(in_file));
        Ok((Segment { start: Gpa(load), file, size: end.saturating_sub(load), executable: true }, Gpa(entry)))
    }
}
