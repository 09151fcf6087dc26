//! Refuses files whose format is known, but which cannot be a flat binary: text, pictures, disks, programs of other
//! systems.

use super::BOOT_SECTOR;
use crate::error::ImageError;
use crate::file_format::{self, FileFormat, multiboot_header};
use crate::host::printable;
use std::path::Path;

/// The advice that ends most messages.
const FLAT_OR_ELF: &str = "give a flat binary, a boot disk or an ELF file";

/// True if a file that is not an ELF file has a multiboot header.
pub fn is_multiboot(bytes: &[u8]) -> bool {
    multiboot_header(bytes).is_some() && FileFormat::of(bytes) == Some(FileFormat::Multiboot)
}

/// True for a disk whose first sector has the signature of a boot sector, if nothing else is known about the file but a
/// multiboot header, which may be that of a kernel on the disk.
pub fn is_boot_sector(bytes: &[u8]) -> bool {
    let is_free = matches!(FileFormat::of(bytes), Some(FileFormat::BootSector | FileFormat::Multiboot));
    is_free && file_format::is_boot_sector(bytes)
}

/// Refuses a file that is not an ELF file, if its content shows that it is not a flat binary either. `load_at` is the
/// address that the user gave for it, if any.
///
/// # Errors
/// [`ImageError::KnownFormat`], which names the format and says how to make a guest of the file.
pub fn refuse_known_formats(path: &Path, bytes: &[u8], load_at: Option<u64>) -> Result<(), ImageError> {
    if is_blank(bytes) {
        return Err(ImageError::KnownFormat {
            path: printable(path),
            format: format!("a file of {} bytes that are all zero", bytes.len()),
            advice: "it holds no code: was it copied, downloaded or linked completely?".into(),
        });
    }
    refuse_format(path, bytes, load_at)
}

/// The same for the first bytes of a file, which may be zero.
pub(super) fn refuse_format(path: &Path, bytes: &[u8], load_at: Option<u64>) -> Result<(), ImageError> {
    let format = match FileFormat::of(bytes) {
        None | Some(FileFormat::Elf) => return Ok(()),
        Some(FileFormat::BootSector) if load_at == Some(BOOT_SECTOR) => return Ok(()),
        Some(format) => format,
    };
    let path = printable(path);
    let (format, advice) = refusal(format, &path);
    Err(ImageError::KnownFormat { path, format, advice })
}

/// The format of a file that is not a Linux kernel, as a noun phrase, and the next step. `None` if the format is not known.
/// `bytes` are the start of the file.
#[cfg(has_kvm)]
pub(super) fn describe(path: &Path, bytes: &[u8]) -> Option<(String, String)> {
    let (format, advice) = match FileFormat::of(bytes)? {
        FileFormat::Elf | FileFormat::LinuxKernel | FileFormat::Multiboot => return None,
        format => refusal(format, &printable(path)),
    };
    let advice = if advice == FLAT_OR_ELF { "give a vmlinux (ELF64) or a bzImage".into() } else { advice };
    Some((format, advice))
}

/// The format of a file that is not an initial RAM disk of Linux, as a noun phrase. `bytes` are the start of the file. `None` if it
/// may be one: a cpio archive, compressed or not, or a file system.
#[cfg(has_kvm)]
pub(super) fn not_an_initrd(bytes: &[u8]) -> Option<String> {
    match FileFormat::of(bytes)? {
        FileFormat::Cpio | FileFormat::Compressed(..) | FileFormat::BootSector | FileFormat::OptionRom => {
            None
        }
        FileFormat::Firmware | FileFormat::Multiboot => None,
        FileFormat::Elf => Some("an ELF file".into()),
        format => Some(refusal(format, "").0),
    }
}

/// True for zeroes: the processor would execute them as additions, up to the end of memory.
fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The format as a noun phrase, and the next step as a verb phrase.
fn refusal(format: FileFormat, path: &str) -> (String, String) {
    match format {
        FileFormat::Compressed(name, program) => {
            (format!("a file that {name} compressed"), format!("unpack it first ({program})"))
        }
        FileFormat::Archive(name, program) => {
            let article = if name == "RAR" { "an" } else { "a" };
            (format!("{article} {name} archive"), format!("unpack it ({program}), and give the guest in it"))
        }
        FileFormat::Document(name) => (format!("a {name}"), FLAT_OR_ELF.into()),
        FileFormat::Disk(name, qemu_name) => (
            format!("a disk image of the format {name}"),
            format!(
                "convert it to a raw disk (qemu-img convert -f {qemu_name} -O raw FILE NEW), and start that (vmm NEW) or give it \
                 with a kernel (vmm boot KERNEL --disk NEW)"
            ),
        ),
        FileFormat::BootSector => (
            "a boot sector, which runs only at 0x7c00".into(),
            format!(
                "give {path} alone (vmm run {path}), which starts a machine with a BIOS, or {path}@0x7c00, which has none"
            ),
        ),
        other => {
            let (format, advice) = fixed_refusal(other);
            (format.into(), advice.into())
        }
    }
}

/// The same for the formats whose refusal has no names in it.
fn fixed_refusal(format: FileFormat) -> (&'static str, &'static str) {
    match format {
        FileFormat::Text => ("a text file", FLAT_OR_ELF),
        FileFormat::Script => ("a script", "give the guest that it builds, a flat binary or an ELF file"),
        FileFormat::AssemblySource => {
            ("the source of an assembler", "assemble it (nasm -f bin FILE -o guest.bin), and give the result")
        }
        FileFormat::CSource => (
            "the source of a C program",
            "compile it without a C library (gcc -ffreestanding -mgeneral-regs-only -static -nostdlib -no-pie \
             -Wl,-Ttext-segment=0x1000), and give the result",
        ),
        FileFormat::Cpio => (
            "a cpio archive, such as an initial RAM disk of Linux",
            "give it with its kernel (vmm boot KERNEL --initrd FILE)",
        ),
        FileFormat::Iso9660 => (
            "the image of a CD (ISO 9660)",
            "take the kernel and its initrd out of it, and give these (vmm boot KERNEL --initrd FILE)",
        ),
        FileFormat::Firmware => {
            ("firmware, which starts at its reset vector", "run it as a ROM (vmm run --rom FILE)")
        }
        FileFormat::OptionRom => (
            "the ROM of an expansion card, which firmware calls",
            "run firmware that contains it (vmm run --rom FILE), or a kernel or boot sector instead",
        ),
        FileFormat::LinuxKernel => ("a Linux kernel", "boot it (vmm boot FILE)"),
        FileFormat::Multiboot => (
            "a multiboot kernel, which has its own addresses and its own mode",
            "leave out the address and the mode, or give both to start it without its header (FILE@ADDR:32)",
        ),
        FileFormat::StaticLibrary => ("a static library", "link it to an executable (ld), and give that"),
        FileFormat::Program(name) => (
            name,
            "build the guest for no system instead (nasm -f bin, or gcc and ld for ELF64 with -static -nostdlib)",
        ),
        _ => ("not a flat binary", FLAT_OR_ELF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], load_at: Option<u64>) -> String {
        let answer = refuse_known_formats(Path::new("file"), bytes, load_at);
        answer.err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// A file of 64 KiB with `bytes` at an offset, and a byte of code.
    fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x1_0000];
        file[offset..][..bytes.len()].copy_from_slice(bytes);
        file[0x100] = 0xfa;
        file
    }

    #[cfg(has_kvm)]
    #[test]
    fn a_file_that_is_no_linux_kernel_is_described() {
        let described = |bytes: &[u8]| describe(Path::new("file"), bytes).map(|(format, _)| format);
        assert_eq!(described(b"hello"), Some("a text file".into()));
        assert_eq!(described(b"\x1f\x8b\x08\0"), Some("a file that gzip compressed".into()));
        assert_eq!(
            [described(&[0xf4]), described(b"\x7fELF"), described(&at(0x202, b"HdrS"))],
            [None, None, None]
        );
    }

    #[cfg(has_kvm)]
    #[test]
    fn a_file_that_is_no_initrd_is_named() {
        for (bytes, name) in [
            (&b"hello\n"[..], Some("a text file")),
            (b"\x7fELF", Some("an ELF file")),
            (&at(0x202, b"HdrS"), Some("a Linux kernel")),
            (&at(257, b"ustar"), Some("a tar archive")),
            (b"QFI\xfb\0\0\0\x03", Some("a disk image of the format qcow2")),
            (b"070701", None),
            (b"\x1f\x8b\x08\0", None),
            (b"\x01\x02", None),
        ] {
            assert_eq!(not_an_initrd(bytes).as_deref(), name);
        }
    }

    #[test]
    fn a_known_format_is_refused_by_name_with_the_next_step() {
        let pe = {
            let mut pe = at(0x80, b"PE\0\0");
            pe[..2].copy_from_slice(b"MZ");
            pe[0x3c] = 0x80;
            pe
        };
        for (bytes, name, step) in [
            (&b"vm.\n"[..], "file is a text file", "give a flat binary"),
            (b"bits 16\nhlt\n", "the source of an assembler", "nasm -f bin"),
            (b"#include <stdio.h>\n", "the source of a C program", "-Wl,-Ttext-segment=0x1000"),
            (b"#!/bin/sh\n", "a script", "the guest that it builds"),
            (b"\x1f\x8b\x08\0", "a file that gzip compressed", "gunzip"),
            (b"PK\x03\x04", "a zip archive", "unzip"),
            (b"QFI\xfb\0\0\0\x03", "a disk image of the format qcow2", "qemu-img convert -f qcow2 -O raw"),
            (b"\x89PNG\r\n\x1a\n", "a PNG picture", "give a flat binary"),
            (b"070701", "a cpio archive", "--initrd"),
            (b"\xcf\xfa\xed\xfe", "a Mach-O program", "nasm -f bin"),
            (b"\xfd7zXZ\0", "a file that xz compressed", "xz -d"),
            (b"\x28\xb5\x2f\xfd", "a file that zstd compressed", "zstd -d"),
            (b"BZh91AY&SY", "a file that bzip2 compressed", "bzip2 -d"),
            (b"\x04\x22\x4d\x18", "a file that lz4 compressed", "lz4 -d"),
            (b"vhdxfile", "a disk image of the format VHDX", "qemu-img convert -f vhdx -O raw"),
            (b"KDMV\x01", "a disk image of the format VMDK", "qemu-img convert -f vmdk -O raw"),
            (&at(0x40, b"\x7f\x10\xda\xbe"), "a disk image of the format VDI", "qemu-img convert -f vdi"),
            (&at(0x8001, b"CD001"), "the image of a CD (ISO 9660)", "take the kernel and its initrd out"),
            (&at(257, b"ustar"), "a tar archive", "unpack it (tar -xf)"),
            (b"!<arch>\n", "a static library", "link it to an executable"),
            (b"%PDF-1.7", "a PDF document", "give a flat binary"),
            (&pe, "a PE program of Windows or EFI", "build the guest for no system"),
            (&at(0xfff0, &[0xea, 0x5b, 0xe0, 0, 0xf0]), "firmware, which starts at", "vmm run --rom FILE"),
            (&at(0x202, b"HdrS"), "a Linux kernel", "boot it (vmm boot FILE)"),
        ] {
            let message = refused(bytes, Some(0x1000));
            assert!(message.contains(name) && message.contains(step), "{message}");
            assert!(
                message.lines().count() == 1 && !message.contains('.') || message.starts_with("file is ")
            );
        }
        assert_eq!(refused(&[0xf4], None), "");
        assert_eq!(refused(b"\x7fELF", None), "", "ELF files have their own loader");
    }

    #[test]
    fn a_boot_sector_runs_only_at_its_address() {
        let mut sector = vec![0xf4; 512];
        sector.splice(510.., [0x55, 0xaa]);
        assert_eq!(refused(&sector, Some(0x7c00)), "");
        for load_at in [None, Some(0), Some(0x1000)] {
            let message = refused(&sector, load_at);
            assert!(message.contains("give file alone") && message.contains("file@0x7c00"), "{message}");
        }
    }
}
