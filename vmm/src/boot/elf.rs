//! ELF64 executables, read with the `object` crate: each PT_LOAD segment goes to its physical address.
//!
//! ELF-64 object file format, version 1.5; System V ABI for AMD64.

use super::{Image, ImageError, Segment};
use crate::memory::Gpa;
use crate::modes::Mode;
use object::Endianness;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_INTERP, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use std::sync::Arc;

/// Whether `bytes` begin like an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// The image of an ELF64 executable, entered in long mode.
///
/// # Errors
/// It is no x86-64 executable, is cut short, or its segments overlap or do not hold the entry point.
pub fn image(bytes: Vec<u8>) -> Result<Image, ImageError> {
    let refuse = |what: &str| Err(ImageError::Elf(what.into()));
    match bytes.get(4..6) {
        Some([2, 1]) => {}
        Some([1, _]) => {
            return refuse(
                "is for 32 bits, and this loader takes ELF64: make it flat with objcopy -O binary, and give --mode",
            );
        }
        Some(_) => return refuse("is not little-endian, as x86-64 is: build it for x86-64"),
        None => return refuse("is cut short within its header"),
    }
    let header = FileHeader64::<Endianness>::parse(bytes.as_slice()).map_err(unreadable)?;
    let endian = header.endian().map_err(unreadable)?;
    if header.e_machine(endian) != EM_X86_64 {
        return refuse("is for another processor: build it for x86-64");
    }
    if header.e_type(endian) != ET_EXEC {
        return refuse("is no executable with fixed addresses: link it with -static -no-pie");
    }
    let headers = header.program_headers(endian, bytes.as_slice()).map_err(unreadable)?;
    if headers.iter().any(|header| header.p_type(endian) == PT_INTERP) {
        return refuse("wants a dynamic linker: link it with -static -no-pie");
    }
    let start = header.e_entry(endian);
    let mut segments = Vec::new();
    let mut entry = None;
    for header in headers.iter().filter(|header| header.p_type(endian) == PT_LOAD) {
        let Some(segment) = segment(header, endian, bytes.len())? else { continue };
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
    Ok(Image { bytes: Arc::new(bytes.into()), segments, entry, mode: Mode::Long })
}

fn unreadable(error: object::read::Error) -> ImageError {
    ImageError::Elf(format!("cannot be read: {error}: is it complete?"))
}

/// A PT_LOAD segment, checked against the file; `None` for an empty one.
fn segment(
    header: &ProgramHeader64<Endianness>,
    endian: Endianness,
    file_len: usize,
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
    let file = offset.checked_add(in_file).filter(|end| *end <= file_len as u64);
    let (Some(end), Ok(offset)) = (file, usize::try_from(offset)) else {
        return refuse("goes past the end of the file: is it complete?");
    };
    if start.checked_add(size).is_none() {
        return refuse("goes past the last address: correct its linker script");
    }
    let end = usize::try_from(end).unwrap_or(file_len);
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
mod tests;
