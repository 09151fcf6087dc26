//! The symbols of a guest: its functions, and the source lines of its code.

// | file | contents |
// |---|---|
// | `functions.rs` | functions in order of their addresses |
// | `elf.rs` | functions and code of an ELF file |
// | `lines.rs` | source lines and inlined functions, from DWARF |
// | `frames.rs` | call frame information, from `.eh_frame` or `.debug_frame` |
// | `offset.rs` | the place of a kernel that has moved itself |
// | `map.rs` | the text format of `System.map` and `/proc/kallsyms` |

mod elf;
mod frames;
mod functions;
mod lines;
mod map;
mod offset;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

pub(crate) use frames::{CallFrames, Caller};
#[cfg(test)]
pub(crate) use sample::elf_of;

use crate::vmcoreinfo::{stext, vmcoreinfo};
use elf::{ElfParts, Piece};
use functions::Functions;
use lines::Lines;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use vmm::host::{format_size, printable};

/// The largest symbol file, in bytes. The `vmlinux` of a distribution with all debug information has about 500 MiB.
const MAX_FILE: u64 = 2 << 30;

/// The physical address of code that is not in the guest's memory.
const NOWHERE: u64 = u64::MAX;

/// The reason why a symbol file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// The file cannot be read.
    #[error("cannot read the symbol file {file}: {source}: give a file that can be read")]
    Read {
        /// The path, safe to print.
        file: String,
        /// The error of the host.
        source: io::Error,
    },
    /// The file is not a symbol file, or is broken.
    #[error("the symbol file {file} {what}")]
    Wrong {
        /// The path, safe to print.
        file: String,
        /// The mistake, and the next step.
        what: String,
    },
}

/// A line of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path, as the compiler wrote it.
    pub file: String,
    /// The line number, from 1. `None` if the compiler did not write it.
    pub line: Option<u32>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = printable(Path::new(&self.file));
        match self.line {
            Some(line) => write!(f, "{file}:{line}"),
            None => f.write_str(&file),
        }
    }
}

/// A function with the source line at which it is: at the address itself, or at the place where it calls an inlined function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The name, demangled.
    pub function: String,
    /// The line. `None` without debug information.
    pub source: Option<Source>,
}

/// The place of an address in a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The innermost function first: inlined functions, and at last the function that is in the symbol table.
    pub calls: Vec<Call>,
    /// The distance of the address from the start of the last function, in bytes.
    pub offset: u64,
}

impl Place {
    /// The line of the innermost function.
    pub fn source(&self) -> Option<&Source> {
        self.calls.first().and_then(|call| call.source.as_ref())
    }

    /// The name of the function in the symbol table, which contains the inlined ones.
    pub fn function(&self) -> &str {
        self.calls.last().map_or("", |call| &call.function)
    }
}

impl fmt::Display for Place {
    /// Writes `function+0x10 (file.c:3)`, after the inlined functions, if there are some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, call) in self.calls.iter().enumerate() {
            if number > 0 {
                f.write_str(", inlined into ")?;
            }
            f.write_str(&call.function)?;
            if number.saturating_add(1) == self.calls.len() {
                write!(f, "+{:#x}", self.offset)?;
            }
            if let Some(source) = &call.source {
                write!(f, " ({source})")?;
            }
        }
        Ok(())
    }
}

/// The symbols of a guest.
pub struct Symbols {
    name: String,
    functions: Functions,
    lines: Option<Lines>,
    frames: Option<CallFrames>,
    /// The code of an ELF file.
    code: Vec<Piece>,
    /// The width of the code in bits: 32 or 64.
    bits: u32,
    /// The address of `_stext`, which a Linux kernel also notes in its memory.
    stext: Option<u64>,
    /// The distance of the guest's virtual addresses from those of the file.
    moved: u64,
    /// The user has given that distance.
    is_given: bool,
}

/// A guest, in whose memory the code of a file is searched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guest<'a> {
    /// Addresses at which the lowest piece of code may be, such as that of a flat binary that was made of the file.
    pub bases: &'a [u64],
    /// The size of its memory in bytes.
    pub memory: u64,
    /// The guest is a Linux kernel, which may have moved itself (KASLR).
    pub may_move: bool,
}

/// The relation of symbols and a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The symbols are those of the guest.
    Same,
    /// The guest has other code: the symbols are those of another build.
    Other,
    /// The kernel may have moved, and its place is not known.
    Moved,
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbols").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Symbols {
    /// Reads the symbols in a file: an ELF file, or a `System.map`.
    ///
    /// # Errors
    /// The file cannot be read, or has no symbols.
    pub fn open(path: &Path) -> Result<Self, SymbolError> {
        let file = printable(path);
        let failed = |source| SymbolError::Read { file: file.clone(), source };
        let opened = File::open(path).map_err(failed)?;
        let metadata = opened.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(wrong(&file, "is not a regular file: give an ELF file or a System.map".into()));
        }
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(usize::try_from(metadata.len().min(MAX_FILE)).unwrap_or(0));
        room.map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        opened.take(MAX_FILE.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            let most = format_size(MAX_FILE);
            return Err(wrong(&file, format!("is larger than {most}: strip its debug information")));
        }
        Self::parse(&file, &bytes)
    }

    /// Reads symbols from the content of a file. `name` is the name for messages.
    ///
    /// # Errors
    /// They are not those of an ELF file or of a `System.map`, or there are none.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, SymbolError> {
        let none = "has no symbols: link without -s, and do not strip it, or give the file that has them (--symbols FILE)";
        if !vmm::boot::is_elf(bytes) {
            let (functions, stext) = map::functions(bytes).ok_or_else(|| {
                wrong(name, "is neither an ELF file nor a System.map: give one of these".into())
            })?;
            return Ok(Self { stext, ..Self::new(name, functions) });
        }
        let ElfParts { functions, lines, frames, code, bits, stext } =
            elf::parts(bytes).map_err(|error| wrong(name, format!("is not a sound ELF file: {error}")))?;
        if functions.is_empty() && lines.is_none() {
            return Err(wrong(name, none.into()));
        }
        Ok(Self { lines, frames, code, bits, stext, ..Self::new(name, functions) })
    }

    fn new(name: &str, functions: Functions) -> Self {
        Self {
            name: name.into(),
            functions,
            lines: None,
            frames: None,
            code: Vec::new(),
            bits: 64,
            stext: None,
            moved: 0,
            is_given: false,
        }
    }

    /// The symbols of code that is `offset` above the addresses in the file, such as that of a kernel with KASLR.
    pub fn with_offset(mut self, offset: u64) -> Self {
        // The physical addresses of the file are not those of the guest, either.
        self.code.iter_mut().for_each(|piece| piece.physical = NOWHERE);
        Self { moved: offset, is_given: true, ..self }
    }

    /// The distance of the guest's virtual addresses from those of the file: given, or found by [`find`](Self::find).
    pub fn offset_of_guest(&self) -> u64 {
        self.moved
    }

    /// True for the symbols of a Linux kernel.
    pub fn is_linux(&self) -> bool {
        self.stext.is_some()
    }

    /// The width of the code in bits: 32 or 64.
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// The name of the file, safe to print.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Finds the code of an ELF file in the guest's memory, so that physical addresses of it have names, too, and those of a
    /// Linux kernel that has moved itself. `read` copies guest physical memory, and returns false where there is none.
    pub fn find(&mut self, guest: &Guest<'_>, read: impl Fn(u64, &mut [u8]) -> bool) -> Fit {
        let lowest = self.code.iter().map(|piece| piece.start).min().unwrap_or(0);
        let mut found = false;
        for piece in &mut self.code {
            let distance = piece.start.wrapping_sub(lowest);
            let elsewhere = guest.bases.iter().map(|base| base.wrapping_add(distance));
            let mut places = [piece.physical, piece.start].into_iter().chain(elsewhere);
            let place = places.find(|place| piece.is_at(*place, &read));
            found |= place.is_some();
            piece.physical = place.unwrap_or(NOWHERE);
        }
        match (self.code.is_empty(), found, guest.may_move) {
            _ if self.is_given => Fit::Same,
            (false, false, false) => Fit::Other,
            (_, _, false) => Fit::Same,
            (false, found, true) => self.find_kernel(guest, found, &read),
            (true, _, true) => self.find_noted(guest, &read),
        }
    }

    /// Finds a Linux kernel by its code. `is_found` is true if a piece of the code is where the file says.
    fn find_kernel(
        &mut self,
        guest: &Guest<'_>,
        is_found: bool,
        read: &impl Fn(u64, &mut [u8]) -> bool,
    ) -> Fit {
        let Some(first) = self.code.iter().find(|piece| offset::is_kernel(piece)) else {
            return if is_found { Fit::Same } else { Fit::Other };
        };
        let is_in_place = first.physical != NOWHERE;
        let base = match is_in_place {
            true => Some(first.physical),
            false => offset::bases(guest.memory).find(|base| first.is_at(*base, read)),
        };
        let Some(base) = base else { return Fit::Other };
        let moved = first.virtual_offset(base, read);
        let delta = base.wrapping_sub(first.start);
        if !is_in_place {
            self.code.iter_mut().for_each(|piece| piece.physical = piece.start.wrapping_add(delta));
        }
        match moved {
            Some(moved) => self.moved = moved,
            // Nothing in the code has moved. If the kernel is where its file says, it has not chosen a place.
            None if is_in_place => {}
            None => return self.find_noted(guest, read),
        }
        Fit::Same
    }

    /// Finds the distance of a Linux kernel by the note that it has made of its addresses.
    fn find_noted(&mut self, guest: &Guest<'_>, read: &impl Fn(u64, &mut [u8]) -> bool) -> Fit {
        let noted = vmcoreinfo(guest.memory, read).as_deref().and_then(stext);
        match (noted, self.stext) {
            (Some(noted), Some(own)) => {
                self.moved = noted.wrapping_sub(own);
                Fit::Same
            }
            _ => Fit::Moved,
        }
    }

    /// The address in the file of a guest's address, which may be virtual or physical.
    fn in_file(&self, address: u64) -> u64 {
        let holds = |start: u64, piece: &&Piece, address: u64| {
            address.checked_sub(start).is_some_and(|offset| offset < piece.bytes.len() as u64)
        };
        let linked = address.wrapping_sub(self.moved);
        if self.code.iter().any(|piece| holds(piece.start, &piece, linked)) {
            return linked;
        }
        let piece = self.code.iter().find(|piece| holds(piece.physical, piece, address));
        piece.map_or(linked, |piece| piece.start.wrapping_add(address.wrapping_sub(piece.physical)))
    }

    /// The place of a guest's address. `None` if no symbol covers it.
    pub fn place(&self, address: u64) -> Option<Place> {
        let address = self.in_file(address);
        let function = self.functions.at(address);
        let mut calls = self.lines.as_ref().map(|lines| lines.at(address)).unwrap_or_default();
        let (name, offset) = match function {
            Some(function) => (function.name.clone(), address.wrapping_sub(function.start)),
            // Only the debug information knows the function.
            None => (calls.last()?.function.clone(), 0),
        };
        match calls.last_mut() {
            // The symbol table has the name under which the function is linked.
            Some(last) if last.function.is_empty() || function.is_some() => {
                last.function = functions::demangled(&name);
            }
            Some(_) => {}
            None => calls.push(Call { function: functions::demangled(&name), source: None }),
        }
        Some(Place { calls, offset })
    }

    /// The distance of an address from the start of its function, in bytes.
    pub(crate) fn offset(&self, address: u64) -> Option<u64> {
        let address = self.in_file(address);
        address.checked_sub(self.functions.at(address)?.start)
    }

    /// The code at a guest's address, as far as the file has it.
    pub(crate) fn code_at(&self, address: u64) -> Option<&[u8]> {
        let address = self.in_file(address);
        self.code.iter().find_map(|piece| {
            let offset = usize::try_from(address.checked_sub(piece.start)?).ok()?;
            piece.bytes.get(offset..).filter(|rest| !rest.is_empty())
        })
    }

    /// The caller of the function at an address, by call frame information. `None` if the file has none for the address.
    pub(crate) fn caller(&self, at: &Caller, read: impl Fn(u64) -> Option<u64>) -> Option<Caller> {
        let from = Caller { rip: self.in_file(at.rip), ..*at };
        self.frames.as_ref()?.caller(&from, read)
    }
}

fn wrong(name: &str, what: String) -> SymbolError {
    SymbolError::Wrong { file: name.into(), what }
}
