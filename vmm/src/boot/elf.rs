//! ELF executables, read with the `object` crate: each PT_LOAD segment is loaded at its physical address. The `vmlinux`
//! file of a Linux kernel is also an ELF64 executable.
//!
//! ELF-64 object file format, version 1.5; System V ABI for the Intel386 architecture and for AMD64. `notes.rs` reads the
//! notes, `movable.rs` moves position-independent executables, and `refuse.rs` has the refusals.

mod code;
mod movable;
mod notes;
mod refuse;
mod sections;

use super::{Image, ImageError, Segment};
use crate::host::sort_by_key;
use crate::memory::Gpa;
use crate::x86::modes::{Mode, Start};
use notes::Notes;
use object::Endianness;
use object::elf::{
    EM_386, EM_X86_64, ET_DYN, ET_EXEC, FileHeader32, FileHeader64, PF_X, PT_INTERP, PT_LOAD, PT_NOTE, PT_TLS,
};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader};

pub use code::ElfCode;
pub(super) use sections::SectionTable;

/// True if `bytes` begin with the ELF magic number.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// The kind of an ELF file, from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfKind {
    /// The width of its addresses, 32 or 64 bits.
    pub bits: u32,
    /// It is position-independent (ET_DYN), so it may be moved.
    pub movable: bool,
}

impl ElfKind {
    /// Reads the kind of an ELF file. `None` if the bytes are not its start.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let bits = match (is_elf(bytes), bytes.get(4)?) {
            (true, 1) => 32,
            (true, 2) => 64,
            _ => return None,
        };
        let kind = u16::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
        Some(Self { bits, movable: kind == ET_DYN.0 })
    }

    /// The mode in which a file of this kind starts.
    pub fn mode(self) -> Mode {
        if self.bits == 32 { Mode::Protected } else { Mode::Long }
    }
}

impl Image {
    /// Creates an image from an ELF executable, without regard to a multiboot header or a note of PVH. A
    /// position-independent executable is moved to `base`, if that is given.
    ///
    /// # Errors
    /// `bytes` are not an x86 executable or are truncated, segments overlap, or no segment contains the entry point; or a
    /// position-independent executable cannot be moved.
    pub fn native_elf(mut bytes: Vec<u8>, base: Option<Gpa>) -> Result<Self, ImageError> {
        let layout = layout(bytes.as_slice())?;
        layout.refuse_other_systems(&bytes)?;
        let mode = if layout.is_64 { Mode::Long } else { Mode::Protected };
        let layout = layout.moved(&mut bytes, base)?;
        if layout.has_tls {
            log::warn!(
                "the ELF file has thread-local data, like programs for Linux with a C library, which cannot run without Linux: \
                 build guests with -ffreestanding -static -nostdlib"
            );
        }
        Ok(Self::of(bytes.into(), layout.segments, Start::new(mode, layout.entry?), true))
    }
}

/// The addresses of an executable.
pub(super) struct Layout {
    /// At least one segment, in order of address, without overlaps.
    pub(super) segments: Vec<Segment>,
    /// The virtual address of each of them.
    virtual_starts: Vec<u64>,
    /// The physical address of the entry point, or the reason why there is none.
    pub(super) entry: Result<Gpa, ImageError>,
    /// True if it runs at virtual addresses in the last 2 GiB, as kernels do.
    pub(super) is_high: bool,
    /// True for ELF64.
    pub(super) is_64: bool,
    /// True if it is position-independent.
    pub(super) is_movable: bool,
    /// The entry point of the file (`e_entry`).
    start: u64,
    /// The path of its dynamic linker, if it needs one.
    interpreter: Option<Vec<u8>>,
    has_tls: bool,
    /// The place of the dynamic section in the file, if it has one.
    dynamic: Option<(u64, u64)>,
    /// The number that was added to its addresses.
    pub(super) base: u64,
    /// The largest alignment of a segment (`p_align`).
    alignment: u64,
    pub(super) notes: Notes,
}

impl Layout {
    /// The physical address of a virtual or physical one in a segment.
    pub(super) fn physical(&self, address: u64) -> Option<Gpa> {
        let mut places = self.segments.iter().zip(&self.virtual_starts);
        places.find_map(|(segment, virtual_start)| entry_in(segment, *virtual_start, address))
    }

    /// Moves a position-independent executable to `base`, and applies its relocations. Another one stays as it is.
    pub(super) fn moved(self, bytes: &mut [u8], base: Option<Gpa>) -> Result<Self, ImageError> {
        if self.is_movable { movable::moved(self, bytes, base) } else { Ok(self) }
    }

    /// Refuses a program for another system, by the name of the system.
    fn refuse_other_systems(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let reason = refuse::other_system(self.interpreter.as_deref(), &self.notes, bytes);
        reason.map_or(Ok(()), |reason| Err(ImageError::Elf(reason)))
    }
}

/// Reads the headers of an ELF executable. `data` may be a file, of which only the headers and notes are read.
pub(super) fn layout<'data>(data: impl ReadRef<'data>) -> Result<Layout, ImageError> {
    let refuse = |what: &str| Err(ImageError::Elf(what.into()));
    match data.read_bytes_at(4, 2) {
        Ok([1, 1]) => headers::<FileHeader32<Endianness>>(data),
        Ok([2, 1]) => headers::<FileHeader64<Endianness>>(data),
        Ok([1 | 2, _]) => refuse("is not little-endian: build it for x86-64"),
        Ok(_) => refuse("is neither of 32 nor of 64 bits: is it complete?"),
        Err(()) => refuse("is cut short within its header: is it complete?"),
    }
}

/// Reads the headers of an executable of one class.
fn headers<'data, H: FileHeader<Endian = Endianness>>(
    data: impl ReadRef<'data>,
) -> Result<Layout, ImageError> {
    let refuse = |what: &str| Err(ImageError::Elf(what.into()));
    let Ok(length) = data.len() else { return refuse("cannot be read") };
    let header = H::parse(data).map_err(unreadable)?;
    let endian = header.endian().map_err(unreadable)?;
    let expected = if header.is_class_64() { EM_X86_64 } else { EM_386 };
    if header.e_machine(endian) != expected {
        return Err(ImageError::Elf(refuse::other_machine(header.e_machine(endian), header.is_class_64())));
    }
    if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
        return refuse(refuse::not_executable(header.e_type(endian)));
    }
    // The count may be in section 0, as any 32-bit number.
    if header.phnum(endian, data).map_err(unreadable)? > MAX_HEADERS {
        return refuse("has more than 100000 program headers: link it with fewer");
    }
    let headers = header.program_headers(endian, data).map_err(unreadable)?;
    let start = header.e_entry(endian).into();
    let own = u64::from(header.e_phentsize(endian)).saturating_mul(headers.len() as u64);
    let own = own.saturating_add(header.e_phoff(endian).into());
    let (segments, virtual_starts) = segments(headers, endian, length, own)?;
    let of_type = |kind| headers.iter().find(move |header| header.p_type(endian) == kind);
    let place = |header: &H::ProgramHeader| (header.p_offset(endian).into(), header.p_filesz(endian).into());
    let bytes = |(offset, size): (u64, u64)| data.read_bytes_at(offset, size).ok();
    let interpreter = of_type(PT_INTERP).map(|header| {
        let path = bytes(place(header)).unwrap_or_default();
        path.get(..path.len().min(MAX_PATH)).unwrap_or_default().to_vec()
    });
    let notes = headers.iter().filter(|header| header.p_type(endian) == PT_NOTE);
    let mut layout = Layout {
        is_high: virtual_starts.iter().any(|start| *start >= LAST_2_GIB),
        is_64: header.is_class_64(),
        is_movable: header.e_type(endian) == ET_DYN,
        start,
        interpreter,
        has_tls: of_type(PT_TLS).is_some(),
        dynamic: of_type(object::elf::PT_DYNAMIC).map(place),
        base: 0,
        alignment: headers.iter().map(|header| header.p_align(endian).into()).max().unwrap_or(1),
        notes: notes
            .filter_map(|header| bytes(place(header)).map(|bytes| (bytes, header.p_align(endian).into())))
            .collect(),
        segments,
        virtual_starts,
        entry: Err(ImageError::Elf(refuse::ENTRY_OUTSIDE.into())),
    };
    if layout.notes.too_many {
        return refuse("has more than 10000 notes: link it with fewer");
    }
    if let Some(entry) = layout.physical(start) {
        layout.entry = Ok(entry);
    }
    Ok(layout)
}

/// The segments to load in the order of their addresses, and their virtual addresses. The file's own headers end at `own`. A
/// segment with nothing else, which linkers add, is left out if it is above 4 GiB, where nothing can be loaded.
fn segments<P: ProgramHeader<Endian = Endianness>>(
    headers: &[P],
    endian: Endianness,
    length: u64,
    own: u64,
) -> Result<(Vec<Segment>, Vec<u64>), ImageError> {
    let is_own = |segment: &Segment| {
        let only = segment.file.start == 0 && segment.size <= own && !segment.executable;
        only && segment.start.0 >= 1 << 32
    };
    let mut segments = Vec::new();
    for header in headers.iter().filter(|header| header.p_type(endian) == PT_LOAD) {
        if let Some(segment) = segment(header, endian, length)? {
            segments.push((segment, header.p_vaddr(endian).into()));
        }
    }
    if segments.iter().any(|(segment, _)| !is_own(segment)) {
        segments.retain(|(segment, _)| !is_own(segment));
    }
    if segments.is_empty() {
        let none = "has no segment to load: link it with its code in a PT_LOAD segment";
        return Err(ImageError::Elf(none.into()));
    }
    sort_by_key(&mut segments, |(segment, _)| segment.start.0);
    let (segments, virtual_starts): (Vec<Segment>, Vec<u64>) = segments.into_iter().unzip();
    check_overlaps(&segments)?;
    Ok((segments, virtual_starts))
}

/// Checks that segments in the order of their addresses do not overlap.
fn check_overlaps(segments: &[Segment]) -> Result<(), ImageError> {
    for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
        if segment.end() > next.start.0 {
            return Err(ImageError::Elf(format!(
                "has segments that overlap, at physical addresses {:#x} and {:#x}: correct its linker script",
                segment.start.0, next.start.0
            )));
        }
    }
    Ok(())
}

/// The maximum number of program headers.
const MAX_HEADERS: u32 = 100_000;
/// The part of the dynamic linker's path that is read. It is in messages.
const MAX_PATH: usize = 256;
/// The first virtual address of the kernel code model.
const LAST_2_GIB: u64 = 0xffff_ffff_8000_0000;

fn unreadable(error: object::read::Error) -> ImageError {
    ImageError::Elf(format!("cannot be read: {error}: is it complete?"))
}

/// Converts a PT_LOAD segment, and checks it against the length of the file. `None` for an empty segment.
fn segment<P: ProgramHeader<Endian = Endianness>>(
    header: &P,
    endian: Endianness,
    file_len: u64,
) -> Result<Option<Segment>, ImageError> {
    let (offset, start): (u64, u64) = (header.p_offset(endian).into(), header.p_paddr(endian).into());
    let (in_file, size): (u64, u64) = (header.p_filesz(endian).into(), header.p_memsz(endian).into());
    let refuse = |what: &str| Err(ImageError::Elf(format!("has a segment at {start:#x} that {what}")));
    if size == 0 && in_file == 0 {
        return Ok(None);
    }
    if in_file > size {
        return refuse("is larger in the file than in memory: correct its linker script");
    }
    let file = offset.checked_add(in_file).filter(|end| *end <= file_len);
    let (Some(Ok(end)), Ok(offset)) = (file.map(usize::try_from), usize::try_from(offset)) else {
        return refuse("goes past the end of the file: is it complete?");
    };
    if start.checked_add(size).is_none() {
        return refuse("goes past the last address: correct its linker script");
    }
    let executable = header.p_flags(endian).contains(PF_X);
    Ok(Some(Segment { start: Gpa(start), file: offset..end, size, executable }))
}

/// The physical address of the entry point, if `segment` contains it. The entry point may be a virtual address, as
/// linkers write it, or a physical one, as in the file of a Linux kernel.
fn entry_in(segment: &Segment, virtual_start: u64, entry: u64) -> Option<Gpa> {
    [virtual_start, segment.start.0].into_iter().find_map(|start| {
        let offset = entry.checked_sub(start).filter(|offset| *offset < segment.size)?;
        segment.start.0.checked_add(offset).map(Gpa)
    })
}

#[cfg(test)]
pub(super) mod tests;
