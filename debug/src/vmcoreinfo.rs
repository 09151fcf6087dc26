//! The note VMCOREINFO, in which a Linux kernel describes itself for crash dumps (Linux,
//! Documentation/admin-guide/kdump/vmcoreinfo.rst).

/// The largest memory that is searched, in bytes.
pub(crate) const SEARCHED: u64 = 16 << 30;
/// The first words of the note. It is at the start of a page.
const START: &[u8] = b"OSRELEASE=";
/// The line that a note must have.
const NEEDED: &[u8] = b"SYMBOL(_stext)=";
/// The size of the note: a page.
const SIZE: usize = 4096;

/// The text of the note, found in the pages of a memory of this size. `None` if the kernel has not made one (yet).
pub fn vmcoreinfo(memory: u64, read: &impl Fn(u64, &mut [u8]) -> bool) -> Option<Vec<u8>> {
    let mut start = [0; START.len()];
    let mut note = [0; SIZE];
    for page in (0..memory.min(SEARCHED)).step_by(SIZE) {
        if read(page, &mut start) && start == START && read(page, &mut note) {
            let is_text = |byte: &u8| *byte == b'\n' || byte.is_ascii_graphic() || *byte == b' ';
            let len = note.iter().position(|byte| !is_text(byte)).unwrap_or(SIZE);
            let text = note.get(..len).unwrap_or_default();
            if value(text, NEEDED).is_some() {
                return Some(text.to_vec());
            }
        }
    }
    None
}

/// The address of `_stext` in the note of a kernel.
pub(crate) fn stext(note: &[u8]) -> Option<u64> {
    value(note, NEEDED)
}

/// The hexadecimal number in the line that begins with `key`.
fn value(note: &[u8], key: &[u8]) -> Option<u64> {
    let mut lines = note.split(|byte| *byte == b'\n');
    let digits = lines.find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn find(pages: &[&str]) -> Option<Vec<u8>> {
        let mut memory = vec![0; pages.len() * SIZE];
        for (page, text) in pages.iter().enumerate() {
            memory[page * SIZE..][..text.len()].copy_from_slice(text.as_bytes());
        }
        vmcoreinfo(memory.len() as u64 + 4096, &|at, bytes| {
            let from = memory.get(at as usize..at as usize + bytes.len());
            from.is_some_and(|from| {
                bytes.copy_from_slice(from);
                true
            })
        })
    }

    #[test]
    fn the_note_is_found_and_ends_where_the_text_ends() {
        let note = "OSRELEASE=6.1.0\nSYMBOL(_stext)=ffffffff81000000\nCRASHTIME=1\n";
        assert_eq!(find(&["", "OSRELEASE=6.1.0\n", &format!("{note}\0rest")]).unwrap(), note.as_bytes());
        assert_eq!(stext(note.as_bytes()), Some(0xffff_ffff_8100_0000));
        assert_eq!(find(&["x", &format!(" {note}")]), None);
        assert_eq!(find(&["OSRELEASE=\nSYMBOL(_stext)=zz\n"]), None);
        // A note that fills its page has no end.
        let full = format!("{note}{}", "x".repeat(SIZE - note.len()));
        assert_eq!(find(&[&full]).unwrap().len(), SIZE);
    }
}
