//! Small ELF files for tests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use object::elf::{SHF_ALLOC, SHF_EXECINSTR, SHT_PROGBITS, SHT_STRTAB, SHT_SYMTAB};

/// An ELF file of 64 bits with this code at an address, and functions given by name, address and size.
pub(crate) fn elf_of(base: u64, code: &[u8], functions: &[(&str, u64, u64)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut symbols = vec![0; 24];
    for (name, start, size) in functions {
        symbols.extend((names.len() as u32).to_le_bytes());
        // STB_GLOBAL, STT_FUNC, section 1.
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend(start.to_le_bytes());
        symbols.extend(size.to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
    }
    let sections: &[u8] = b"\0.text\0.symtab\0.strtab\0";
    let code_at = 64 + 56;
    let symbols_at = code_at + code.len();
    let names_at = symbols_at + symbols.len();
    let sections_at = names_at + names.len();
    let headers_at = sections_at + sections.len();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, version.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [base, 64, headers_at as u64].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend([0; 4]);
    [64u16, 56, 1, 64, 5, 4].iter().for_each(|half| file.extend(half.to_le_bytes()));
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = code.len() as u64;
    [code_at as u64, base, base, size, size, 1].iter().for_each(|word| file.extend(word.to_le_bytes()));
    for part in [code, &symbols, &names, sections] {
        file.extend(part);
    }
    let alloc = SHF_ALLOC.0 | SHF_EXECINSTR.0;
    let mut header =
        |name: u32, kind: u32, flags: u64, address: u64, at: usize, size: usize, link: u32, entry: u64| {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            [flags, address, at as u64, size as u64].iter().for_each(|word| file.extend(word.to_le_bytes()));
            file.extend(link.to_le_bytes());
            file.extend(1u32.to_le_bytes());
            [1, entry].iter().for_each(|word: &u64| file.extend(word.to_le_bytes()));
        };
    header(0, 0, 0, 0, 0, 0, 0, 0);
    header(1, SHT_PROGBITS.0, alloc, base, code_at, code.len(), 0, 0);
    header(7, SHT_SYMTAB.0, 0, 0, symbols_at, symbols.len(), 3, 24);
    header(15, SHT_STRTAB.0, 0, 0, names_at, names.len(), 0, 0);
    header(15, SHT_STRTAB.0, 0, 0, sections_at, sections.len(), 0, 0);
    file
}
