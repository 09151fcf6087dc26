//! The notes of an ELF file (System V gABI, "Note Section"): the entry point of PVH, and the names of other systems.

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen `xen/include/public/elfnote.h`).
const PHYS32_ENTRY: u32 = 18;
/// XEN_ELFNOTE_GUEST_OS: the name of the operating system, in the same file.
const GUEST_OS: u32 = 6;
/// NT_GNU_ABI_TAG: the operating system for which a program with the GNU C library was built.
const GNU_ABI_TAG: u32 = 1;
/// The size of the header of a note: the sizes of name and descriptor, and the type, 4 bytes each.
const HEADER: usize = 12;
/// The largest number of notes. The segments of a file may overlap, so that each of them has all of its notes.
const MAX_NOTES: usize = 10_000;

/// The notes that say for what a file was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::boot) struct Notes {
    /// The entry point of PVH, or a note of it that is damaged.
    pub(in crate::boot) pvh: Option<Result<u32, &'static str>>,
    pub(super) xen: bool,
    /// A program for Linux.
    pub(super) linux: bool,
    /// Linux itself: it has notes of its own (Linux `include/linux/elfnote-lto.h`, `include/linux/build-salt.h`), and says its
    /// name to Xen.
    pub(in crate::boot) is_linux: bool,
    pub(super) solo5: bool,
    pub(super) hermit: bool,
    /// There are more notes than [`MAX_NOTES`], and not all were read.
    pub(super) too_many: bool,
}

impl Notes {
    /// Takes what a note says. `whole` is false if the file ends within it.
    fn add(&mut self, name: &[u8], kind: u32, descriptor: Option<&[u8]>) {
        match name {
            b"Xen" if kind == PHYS32_ENTRY => self.pvh = Some(pvh_entry(descriptor)),
            b"Xen" => {
                self.xen = true;
                let name = descriptor.filter(|_| kind == GUEST_OS).unwrap_or_default();
                self.is_linux |=
                    name.strip_suffix(b"\0").is_some_and(|name| name.eq_ignore_ascii_case(b"linux"));
            }
            b"Linux" => self.is_linux = true,
            b"GNU" if kind == GNU_ABI_TAG => {
                self.linux |= descriptor.is_some_and(|bytes| bytes.starts_with(&[0; 4]));
            }
            b"Solo5" => self.solo5 = true,
            b"HERMIT" => self.hermit = true,
            _ => {}
        }
    }
}

/// The address in a note of PVH: 4 bytes, or 8 bytes of which the upper half is zero.
fn pvh_entry(descriptor: Option<&[u8]>) -> Result<u32, &'static str> {
    let (low, high) = match descriptor {
        None => return Err("goes past the end of its segment"),
        Some(bytes) if [4, 8].contains(&bytes.len()) => bytes.split_at(4),
        Some(_) => return Err("has neither 4 nor 8 bytes"),
    };
    let word = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    match (word(low), word(high).unwrap_or(0)) {
        (Some(entry), 0) => Ok(entry),
        _ => Err("has an address above 4 GiB"),
    }
}

/// Collects the notes of segments, each with its alignment. What follows a damaged note is not read.
impl<'data> FromIterator<(&'data [u8], u64)> for Notes {
    fn from_iter<I: IntoIterator<Item = (&'data [u8], u64)>>(segments: I) -> Self {
        let mut notes = Self::default();
        let mut count = 0usize;
        for (mut bytes, alignment) in segments {
            // Other alignments than 8 are those of the segment, and not of the notes.
            let alignment = if alignment == 8 { 8 } else { 4 };
            while let Some(rest) = read(&mut notes, bytes, alignment) {
                bytes = rest;
                count = count.saturating_add(1);
                if count > MAX_NOTES {
                    notes.too_many = true;
                    return notes;
                }
            }
        }
        notes
    }
}

/// Reads the first note of `bytes`. Returns the bytes after it.
fn read<'data>(notes: &mut Notes, bytes: &'data [u8], alignment: usize) -> Option<&'data [u8]> {
    let field = |offset: usize| Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?));
    let (name_size, size) = (usize::try_from(field(0)?).ok()?, usize::try_from(field(4)?).ok()?);
    let kind = field(8)?;
    let name_end = HEADER.checked_add(name_size)?;
    let name = bytes.get(HEADER..name_end)?;
    let start = name_end.checked_next_multiple_of(alignment)?;
    let end = start.checked_add(size)?;
    notes.add(name.strip_suffix(b"\0").unwrap_or(name), kind, bytes.get(start..end));
    bytes.get(end.checked_next_multiple_of(alignment)?..)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
pub(in crate::boot) mod tests {
    use super::*;

    /// A note with these sizes in its header.
    fn sized(name: &[u8], kind: u32, descriptor: &[u8], size: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, size, kind] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(descriptor);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    /// A note of PVH.
    pub(in crate::boot) fn pvh_note(descriptor: &[u8], size: u32) -> Vec<u8> {
        sized(b"Xen\0", PHYS32_ENTRY, descriptor, size)
    }

    fn pvh(descriptor: &[u8], size: u32) -> Option<Result<u32, &'static str>> {
        Notes::from_iter([(&pvh_note(descriptor, size)[..], 4)]).pvh
    }

    #[test]
    fn the_entry_point_of_pvh_has_4_or_8_bytes() {
        assert_eq!(pvh(&[0, 0, 0x10, 0], 4), Some(Ok(0x10_0000)));
        assert_eq!(pvh(&[0, 0, 0x10, 0, 0, 0, 0, 0], 8), Some(Ok(0x10_0000)));
        assert_eq!(pvh(&[0, 0, 0x10, 0, 1, 0, 0, 0], 8), Some(Err("has an address above 4 GiB")));
        for size in [0, 3, 5] {
            assert_eq!(pvh(&[0; 8], size), Some(Err("has neither 4 nor 8 bytes")), "{size}");
        }
        for size in [9, 0x1000, u32::MAX] {
            assert_eq!(pvh(&[0; 8], size), Some(Err("goes past the end of its segment")), "{size}");
        }
    }

    #[test]
    fn the_number_of_notes_is_limited() {
        let notes = sized(b"", 1, b"", 0).repeat(MAX_NOTES / 2);
        let read = |segments: usize| Notes::from_iter(vec![(&notes[..], 4); segments]).too_many;
        assert!(!read(2) && read(3));
    }

    #[test]
    fn every_note_of_a_segment_is_read_and_a_damaged_one_ends_it() {
        let mut notes = sized(b"GNU\0", GNU_ABI_TAG, &[0; 16], 16);
        notes.extend(sized(b"Xen\0", 6, b"Linux\0", 6));
        notes.extend(pvh_note(&[4, 3, 2, 1], 4));
        let all = Notes::from_iter([(&notes[..], 4)]);
        assert_eq!((all.linux, all.xen, all.is_linux, all.pvh), (true, true, true, Some(Ok(0x0102_0304))));
        notes[0] = 0xff;
        assert_eq!(Notes::from_iter([(&notes[..], 4)]), Notes::default());
        for cut in 0..notes.len() {
            let _ = Notes::from_iter([(&notes[..cut], 8), (&notes[cut..], u64::MAX)]);
        }
        // Another operating system.
        let hurd = sized(b"GNU\0", GNU_ABI_TAG, &[1, 0, 0, 0], 4);
        assert_eq!(Notes::from_iter([(&hurd[..], 4)]), Notes::default());
    }

    #[test]
    fn linux_is_known_by_its_own_note_and_by_its_name_for_xen() {
        let is_linux = |name: &[u8], kind, descriptor: &[u8]| {
            let note = sized(name, kind, descriptor, descriptor.len() as u32);
            Notes::from_iter([(&note[..], 4)]).is_linux
        };
        assert!(is_linux(b"Xen\0", GUEST_OS, b"linux\0") && is_linux(b"Linux\0", 0x100, b"\0"));
        assert!(!is_linux(b"Xen\0", GUEST_OS, b"NetBSD\0") && !is_linux(b"Xen\0", 5, b"linux\0"));
    }
}
