//! ELF64 executables, read with the `object` crate: each PT_LOAD segment goes to its physical address. A Linux
//! kernel's `vmlinux` is one, too.
//!
//! ELF-64 object file format, version 1.5; System V ABI for AMD64.

use super::{Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::x86::modes::Mode;
use object::Endianness;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_INTERP, PT_LOAD, ProgramHeader64};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader};
use std::sync::Arc;

/// Whether `bytes` begin like an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

impl Image {
    /// An ELF64 executable, entered in long mode. Each PT_LOAD segment goes to its physical address.
    ///
    /// # Errors
    /// `bytes` is not an x86-64 executable or is truncated, its segments overlap, or none holds the entry point.
    pub fn elf(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let Layout { segments, entry, .. } = layout(bytes.as_slice())?;
        Ok(Self { bytes: Arc::new(bytes.into()), segments, entry, mode: Mode::Long })
    }
}

/// Where an executable goes.
pub(super) struct Layout {
    /// In order of their addresses, without overlaps; at least one.
    pub(super) segments: Vec<Segment>,
    /// The physical address of the entry point.
    pub(super) entry: Gpa,
    /// Whether it runs at addresses in the last 2 GiB, as kernels do.
    pub(super) is_high: bool,
}

/// Reads the headers of an ELF64 executable, which may be a file that is not read whole.
pub(super) fn layout<'data>(data: impl ReadRef<'data>) -> Result<Layout, ImageError> {
    let refuse = |what: &str| Err(ImageError::Elf(what.into()));
    match data.read_bytes_at(4, 2) {
        Ok([2, 1]) => {}
        Ok([1, _]) => {
            return refuse(
                "is for 32 bits, and this loader takes ELF64: make it flat with objcopy -O binary, and give --mode",
            );
        }
        Ok(_) => return refuse("is not little-endian, as x86-64 is: build it for x86-64"),
        Err(()) => return refuse("is cut short within its header"),
    }
    let Ok(length) = data.len() else { return refuse("cannot be read") };
    let header = FileHeader64::<Endianness>::parse(data).map_err(unreadable)?;
    let endian = header.endian().map_err(unreadable)?;
    if header.e_machine(endian) != EM_X86_64 {
        return refuse("is for another processor: build it for x86-64");
    }
    if header.e_type(endian) != ET_EXEC {
        return refuse("is no executable with fixed addresses: link it with -static -no-pie");
    }
    // Section 0 may say that there are billions.
    if header.phnum(endian, data).map_err(unreadable)? > MOST_HEADERS {
        return refuse("has more than 100000 program headers: link it with fewer");
    }
    let headers = header.program_headers(endian, data).map_err(unreadable)?;
    if headers.iter().any(|header| header.p_type(endian) == PT_INTERP) {
        return refuse("wants a dynamic linker: link it with -static -no-pie");
    }
    let start = header.e_entry(endian);
    let mut segments = Vec::new();
    let mut entry = None;
    let mut is_high = false;
    for header in headers.iter().filter(|header| header.p_type(endian) == PT_LOAD) {
        let Some(segment) = segment(header, endian, length)? else { continue };
        is_high |= header.p_vaddr(endian) >= LAST_2_GIB;
        entry = entry.or_else(|| entry_in(&segment, header.p_vaddr(endian), start));
        segments.push(segment);
    }
    let entry = match entry {
        Some(entry) => entry,
        None if segments.is_empty() => {
            return refuse("has no segment to load: link it with its code in a PT_LOAD segment");
        }
        None => {
            return refuse("has its entry point outside every segment: set it with the linker's -e or ENTRY");
        }
    };
    segments.sort_by_key(|segment| segment.start.0);
    for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
        if segment.end() > next.start.0 {
            return Err(ImageError::Elf(format!(
                "has segments that overlap, at physical addresses {:#x} and {:#x}: correct its linker script",
                segment.start.0, next.start.0
            )));
        }
    }
    Ok(Layout { segments, entry, is_high })
}

/// How many program headers are read.
const MOST_HEADERS: u32 = 100_000;
/// The first of the virtual addresses that the kernel code model has.
const LAST_2_GIB: u64 = 0xffff_ffff_8000_0000;

fn unreadable(error: object::read::Error) -> ImageError {
    ImageError::Elf(format!("cannot be read: {error}: is it complete?"))
}

/// A PT_LOAD segment, checked against the file; `None` for an empty one.
fn segment(
    header: &ProgramHeader64<Endianness>,
    endian: Endianness,
    file_len: u64,
) -> Result<Option<Segment>, ImageError> {
    let (offset, start) = (header.p_offset(endian), header.p_paddr(endian));
    let (in_file, size) = (header.p_filesz(endian), header.p_memsz(endian));
    let refuse = |what: &str| Err(ImageError::Elf(format!("has a segment for {start:#x} that {what}")));
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
    Ok(Some(Segment { start: Gpa(start), file: offset..end, size }))
}

/// The physical address of the entry point, where `segment` holds it: by its virtual address, as linkers
/// write it, or by its physical one, as the Linux kernel's file does.
fn entry_in(segment: &Segment, virtual_start: u64, entry: u64) -> Option<Gpa> {
    [virtual_start, segment.start.0].into_iter().find_map(|start| {
        let offset = entry.checked_sub(start).filter(|offset| *offset < segment.size)?;
        segment.start.0.checked_add(offset).map(Gpa)
    })
}

#[cfg(test)]
pub(super) mod tests;
