//! The section headers of an ELF kernel, for the multiboot information: a kernel finds its own symbols with them.

use crate::boot::Segment;
use crate::memory::Gpa;
use object::Endianness;
use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::FileHeader;

/// The largest number of sections that are handed over.
const MAX_SECTIONS: u32 = 4096;

/// The table of the section headers, as it is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::boot) struct SectionTable {
    pub(in crate::boot) count: u32,
    /// The size of a header in bytes.
    pub(in crate::boot) entry_size: u32,
    /// The index of the section with the names.
    pub(in crate::boot) names: u32,
    pub(in crate::boot) bytes: Vec<u8>,
}

impl SectionTable {
    /// Reads the table of a file. `None` if it has none, or one that is damaged or very large: nothing needs it to run.
    pub(in crate::boot) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes.get(4)? {
            1 => table::<FileHeader32<Endianness>>(bytes),
            2 => table::<FileHeader64<Endianness>>(bytes),
            _ => None,
        }
    }
}

/// Symbol tables and tables of texts (`sh_type` SHT_SYMTAB and SHT_STRTAB).
const LOADED: [u32; 2] = [2, 3];

impl SectionTable {
    /// Loads the symbols and the texts of sections that are in no segment, and enters their addresses in the table. `place`
    /// returns the address for a number of bytes, if there is room. `length` is the size of the file. Sections without
    /// room, or with a place outside the file, keep their address of 0.
    pub(in crate::boot) fn load(
        &mut self,
        length: usize,
        mut place: impl FnMut(u64) -> Option<u64>,
    ) -> Vec<Segment> {
        let Ok(entry_size) = usize::try_from(self.entry_size) else { return Vec::new() };
        // The offsets of address, place and size in a header, and their width.
        let (address, offset, size, width) = if entry_size == 64 { (16, 24, 32, 8) } else { (12, 16, 20, 4) };
        let mut segments = Vec::new();
        // Sections that share bytes cannot fill more memory than the file has.
        let mut left = length;
        for header in self.bytes.chunks_exact_mut(entry_size.max(1)) {
            let field = |at: usize, width: usize| {
                let bytes = header.get(at..at.checked_add(width)?)?;
                let word = bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
                usize::try_from(word).ok()
            };
            let kind = field(4, 4).and_then(|kind| u32::try_from(kind).ok()).unwrap_or(0);
            let [Some(0), Some(start), Some(bytes)] = [address, offset, size].map(|at| field(at, width))
            else {
                continue;
            };
            let Some(end) = start.checked_add(bytes).filter(|end| *end <= length) else { continue };
            if !LOADED.contains(&kind) || bytes == 0 || bytes > left {
                continue;
            }
            let Some(at) = place(bytes as u64) else { continue };
            left = left.saturating_sub(bytes);
            let segment = Segment { start: Gpa(at), file: start..end, size: bytes as u64, executable: false };
            segments.push(segment);
            let word = at.to_le_bytes();
            if let (Some(to), Some(word)) =
                (header.get_mut(address..address.saturating_add(width)), word.get(..width))
            {
                to.copy_from_slice(word);
            }
        }
        segments
    }
}

fn table<H: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> Option<SectionTable> {
    let header = H::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let count = header.shnum(endian, bytes).ok().filter(|count| (1..=MAX_SECTIONS).contains(count))?;
    let entry_size = u32::from(header.e_shentsize(endian));
    if usize::try_from(entry_size).ok()? != size_of::<H::SectionHeader>() {
        return None;
    }
    let start = usize::try_from(header.e_shoff(endian).into()).ok()?;
    let size = usize::try_from(count.checked_mul(entry_size)?).ok()?;
    let table = bytes.get(start..start.checked_add(size)?)?;
    let names = header.shstrndx(endian, bytes).ok()?;
    Some(SectionTable { count, entry_size, names, bytes: table.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::elf::tests::elf;

    #[test]
    fn a_file_without_sections_or_with_damaged_ones_has_no_table() {
        let mut file = elf(0x1000, &[]);
        assert_eq!(SectionTable::of(&file), None);
        let start = file.len() as u64;
        file.extend([7; 128]);
        file[40..48].copy_from_slice(&start.to_le_bytes());
        (file[58], file[60], file[62]) = (64, 2, 1);
        let table = SectionTable { count: 2, entry_size: 64, names: 1, bytes: vec![7; 128] };
        assert_eq!(SectionTable::of(&file), Some(table));
        file.pop();
        assert_eq!(SectionTable::of(&file), None, "cut short");
        file[58] = 63;
        assert_eq!(SectionTable::of(&file), None);
        assert_eq!(SectionTable::of(&[]), None);
    }
}
