//! The functions and the code of an ELF file.

use super::frames::CallFrames;
use super::functions::{Candidate, Functions};
use super::lines::Lines;
use super::offset;
use object::elf::{
    FileHeader32, FileHeader64, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, STB_GLOBAL, STB_WEAK, STT_FUNC,
    STT_GNU_IFUNC, STT_NOTYPE,
};
use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionFlags, SectionIndex, SymbolFlags};
use std::collections::HashMap;

/// The longest name of a symbol, in bytes. A longer one is cut.
const MAX_NAME: usize = 4096;

/// The parts of an ELF file that name addresses.
pub(super) struct ElfParts {
    pub(super) functions: Functions,
    pub(super) lines: Option<Lines>,
    pub(super) frames: Option<CallFrames>,
    /// The executable segments.
    pub(super) code: Vec<Piece>,
    /// The width of the code in bits.
    pub(super) bits: u32,
    /// The address of `_stext` of a Linux kernel.
    pub(super) stext: Option<u64>,
}

/// An executable segment.
pub(super) struct Piece {
    /// Its virtual address.
    pub(super) start: u64,
    /// Its physical address: that of the file, and then that at which it was found in the guest.
    pub(super) physical: u64,
    /// Its bytes in the file.
    pub(super) bytes: Vec<u8>,
}

/// The most bytes of a segment that are compared with the guest's memory.
const COMPARED: usize = 64 << 10;

impl Piece {
    /// True if the guest has this code at a physical address. Kernels patch some of their code, so a fourth may differ.
    pub(super) fn is_at(&self, physical: u64, read: &impl Fn(u64, &mut [u8]) -> bool) -> bool {
        let own = self.bytes.get(..COMPARED).unwrap_or(&self.bytes);
        let mut theirs = vec![0; own.len()];
        if own.is_empty() || !read(physical, &mut theirs) {
            return false;
        }
        let same = own.iter().zip(&theirs).filter(|(own, theirs)| own == theirs).count();
        same.saturating_mul(4) >= own.len().saturating_mul(3)
    }

    /// The distance by which the addresses in the code are moved, with the code in the guest's memory at `physical`. `None` if
    /// they are not.
    pub(super) fn virtual_offset(
        &self,
        physical: u64,
        read: &impl Fn(u64, &mut [u8]) -> bool,
    ) -> Option<u64> {
        let mut theirs = vec![0; self.bytes.len().min(offset::COMPARED)];
        read(physical, &mut theirs).then(|| offset::virtual_offset(self, &theirs)).flatten()
    }
}

/// Reads an ELF file of 32 or 64 bits.
pub(super) fn parts(bytes: &[u8]) -> Result<ElfParts, object::Error> {
    match bytes.get(4).copied() == Some(object::elf::ELFCLASS64.0) {
        true => ElfFile::<FileHeader64<Endianness>>::parse(bytes).map(|file| of_file(&file)),
        false => ElfFile::<FileHeader32<Endianness>>::parse(bytes).map(|file| of_file(&file)),
    }
}

fn of_file<'data, Header: FileHeader>(file: &ElfFile<'data, Header>) -> ElfParts {
    ElfParts {
        functions: functions(file),
        lines: Lines::of(file),
        frames: CallFrames::of(file),
        code: code(file),
        bits: if file.is_64() { 64 } else { 32 },
        stext: file
            .symbols()
            .find(|symbol| symbol.name_bytes() == Ok(b"_stext"))
            .map(|symbol| symbol.address()),
    }
}

/// The symbols in sections with code.
fn functions<'data>(file: &impl Object<'data>) -> Functions {
    const CODE: u64 = SHF_ALLOC.0 | SHF_EXECINSTR.0;
    let executable = |flags| matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.0 & CODE == CODE);
    let limits: HashMap<SectionIndex, u64> = file
        .sections()
        .filter(|section| executable(section.flags()))
        .map(|section| (section.index(), section.address().saturating_add(section.size())))
        .collect();
    let candidate = |index: Option<SectionIndex>, flags, name: &[u8], start, size| {
        let limit = *limits.get(&index?)?;
        let SymbolFlags::Elf { st_info, .. } = flags else { return None };
        let name = String::from_utf8_lossy(name.get(..MAX_NAME).unwrap_or(name)).into_owned();
        let (kind, binding) = (st_info.st_type(), st_info.st_bind());
        let is_function = matches!(kind, STT_FUNC | STT_GNU_IFUNC);
        // Labels of assembly. Those of a compiler begin with ".L" or "$".
        let is_label = kind == STT_NOTYPE && !name.starts_with(".L") && !name.starts_with('$');
        let rank = match (is_function, matches!(binding, STB_GLOBAL | STB_WEAK)) {
            (false, false) => 0,
            (false, true) => 1,
            (true, false) => 2,
            (true, true) => 3,
        };
        let is_named = !name.is_empty() && (is_function || is_label);
        is_named.then_some(Candidate { start, size, limit, rank, name })
    };
    let candidates = file.symbols().chain(file.dynamic_symbols()).filter_map(|symbol| {
        let name = symbol.name_bytes().ok()?;
        candidate(symbol.section_index(), symbol.flags(), name, symbol.address(), symbol.size())
    });
    Functions::new(candidates.collect())
}

/// The executable segments; of a relocatable file, nothing.
fn code<Header: FileHeader>(file: &ElfFile<'_, Header>) -> Vec<Piece> {
    let endian = file.endian();
    let headers = file.elf_program_headers().iter().filter(|header| {
        header.p_type(endian) == PT_LOAD && header.p_flags(endian).0 & object::elf::PF_X.0 != 0
    });
    let piece = |header: &Header::ProgramHeader| {
        let bytes = header.data(endian, file.data()).ok()?.to_vec();
        let (start, physical) = (header.p_vaddr(endian).into(), header.p_paddr(endian).into());
        Some(Piece { start, physical, bytes })
    };
    headers.filter_map(piece).collect()
}
