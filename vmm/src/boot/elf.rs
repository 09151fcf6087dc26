//! ELF64 executables, read with the `object` crate: each PT_LOAD segment is loaded at its physical address. The
//! `vmlinux` file of a Linux kernel is also an ELF64 executable.
//!
//! ELF-64 object file format, version 1.5; System V ABI for AMD64.

use super::{Image, ImageError, Segment};
use crate::file_format::{self, multiboot_offset};
use crate::memory::Gpa;
use crate::x86::modes::Mode;
use object::Endianness;
use object::elf::{
    EM_386, EM_AARCH64, EM_ARM, EM_BPF, EM_IAMCU, EM_MIPS, EM_PPC, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64,
    ET_CORE, ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, Machine, PF_X, PT_INTERP, PT_LOAD, PT_TLS,
    ProgramHeader64,
};
use object::read::ReadRef;
use object::read::elf::{FileHeader, ProgramHeader};
use std::sync::Arc;

/// True if `bytes` begin with the ELF magic number.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

impl Image {
    /// Creates an image from an ELF64 executable, entered in long mode. Each PT_LOAD segment is loaded at its physical
    /// address.
    ///
    /// # Errors
    /// `bytes` are not an x86-64 executable or are truncated, segments overlap, or no segment contains the entry point.
    pub fn elf(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let Layout { segments, entry, .. } = layout(bytes.as_slice())?;
        if multiboot_offset(&bytes).is_some() {
            log::warn!(
                "the ELF64 file has a multiboot header, so its entry point may be 32-bit code, but it is entered in long \
                 mode: if it crashes, make a flat binary of its 32-bit code, and give FILE@ADDR:32"
            );
        }
        Ok(Self { bytes: Arc::new(bytes.into()), segments, entry, mode: Mode::Long, is_elf: true })
    }
}

/// The addresses of an executable.
pub(super) struct Layout {
    /// At least one segment, in order of address, without overlaps.
    pub(super) segments: Vec<Segment>,
    /// The physical address of the entry point.
    pub(super) entry: Gpa,
    /// True if it runs at virtual addresses in the last 2 GiB, as kernels do.
    pub(super) is_high: bool,
}

/// Reads the headers of an ELF64 executable. `data` may be a file, of which only the headers are read.
pub(super) fn layout<'data>(data: impl ReadRef<'data>) -> Result<Layout, ImageError> {
    let refuse = |what: &str| Err(ImageError::Elf(what.into()));
    match data.read_bytes_at(4, 2) {
        Ok([2, 1]) => {}
        Ok([1, _]) => return refuse(not_64_bit(data)),
        Ok(_) => return refuse("is not little-endian: build it for x86-64"),
        Err(()) => return refuse("is cut short within its header: is it complete?"),
    }
    let Ok(length) = data.len() else { return refuse("cannot be read") };
    let header = FileHeader64::<Endianness>::parse(data).map_err(unreadable)?;
    let endian = header.endian().map_err(unreadable)?;
    if header.e_machine(endian) != EM_X86_64 {
        let machine = machine(header.e_machine(endian));
        return refuse(&format!("is for another processor, {machine}: build it for x86-64"));
    }
    if header.e_type(endian) != ET_EXEC {
        return refuse(not_executable(header.e_type(endian)));
    }
    // The count may be in section 0, as any 32-bit number.
    if header.phnum(endian, data).map_err(unreadable)? > MAX_HEADERS {
        return refuse("has more than 100000 program headers: link it with fewer");
    }
    let headers = header.program_headers(endian, data).map_err(unreadable)?;
    if headers.iter().any(|header| header.p_type(endian) == PT_INTERP) {
        return refuse("needs a dynamic linker: link it with -static -no-pie");
    }
    if headers.iter().any(|header| header.p_type(endian) == PT_TLS) {
        log::warn!(
            "the ELF file has thread-local data, like programs for Linux with a C library, which cannot run without Linux: \
             build guests with -ffreestanding -static -nostdlib"
        );
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
    check_overlaps(&segments)?;
    Ok(Layout { segments, entry, is_high })
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

/// The refusal of an ELF file for 32 bits.
fn not_64_bit<'data>(data: impl ReadRef<'data>) -> &'static str {
    let length = data.len().unwrap_or(0).min(file_format::HEAD as u64);
    let head = data.read_bytes_at(0, length).unwrap_or_default();
    match multiboot_offset(head) {
        Some(_) => {
            "is a 32-bit multiboot kernel, which needs a boot loader: convert it to a flat binary that begins with its \
             code (objcopy -O binary -R .multiboot), and give FILE@ADDR:32 with its link address"
        }
        None => {
            "is 32-bit, but this loader needs ELF64: convert it to a flat binary (objcopy -O binary) and give \
             FILE@ADDR:32 with its link address"
        }
    }
}

/// The refusal of an ELF file that is not an executable with fixed addresses, by its type.
fn not_executable(kind: FileType) -> &'static str {
    match kind {
        ET_REL => "is an object file: link it (ld -T linker/long64.ld, or gcc -static -nostdlib -no-pie)",
        ET_DYN => {
            "is position-independent or a shared library, and a guest needs fixed addresses: link it with -static \
             -nostdlib -no-pie"
        }
        ET_CORE => "is the core dump of a program: give the executable of a guest",
        _ => "is not an executable with fixed addresses: link it with -static -no-pie",
    }
}

/// The name of a processor (`e_machine`, gABI "ELF Header"), or its number.
fn machine(machine: Machine) -> String {
    let name = match machine {
        EM_386 | EM_IAMCU => "x86 of 32 bits",
        EM_ARM => "ARM of 32 bits",
        EM_AARCH64 => "ARM of 64 bits",
        EM_RISCV => "RISC-V",
        EM_PPC | EM_PPC64 => "PowerPC",
        EM_MIPS => "MIPS",
        EM_S390 => "s390",
        EM_BPF => "BPF",
        _ => return format!("number {}", machine.0),
    };
    name.into()
}

/// The maximum number of program headers.
const MAX_HEADERS: u32 = 100_000;
/// The first virtual address of the kernel code model.
const LAST_2_GIB: u64 = 0xffff_ffff_8000_0000;

fn unreadable(error: object::read::Error) -> ImageError {
    ImageError::Elf(format!("cannot be read: {error}: is it complete?"))
}

/// Converts a PT_LOAD segment, and checks it against the length of the file. `None` for an empty segment.
fn segment(
    header: &ProgramHeader64<Endianness>,
    endian: Endianness,
    file_len: u64,
) -> Result<Option<Segment>, ImageError> {
    let (offset, start) = (header.p_offset(endian), header.p_paddr(endian));
    let (in_file, size) = (header.p_filesz(endian), header.p_memsz(endian));
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
