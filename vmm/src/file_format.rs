//! Known file formats, recognised by content. A layer that expects a flat binary, an ELF file or a raw disk refuses the
//! others by name, and adds the advice that fits.
//!
//! The magic numbers are those of the formats' specifications; file(1) knows most of them, too.
//!
//! Imports: nothing.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Text without a known language, in ASCII, UTF-8 or UTF-16.
    Text,
    /// A script that begins with `#!`.
    Script,
    /// The source of an assembler.
    AssemblySource,
    /// The source of a C compiler.
    CSource,
    /// A compressed file: the name of the compression, and the program that unpacks it.
    Compressed(&'static str, &'static str),
    /// An archive: its name, and the program that unpacks it.
    Archive(&'static str, &'static str),
    /// An initial RAM disk of Linux, a cpio archive.
    Cpio,
    /// A picture, a document or a similar file that holds no program.
    Document(&'static str),
    /// A disk image that is not raw: its name, as it is written in text, and the name by which qemu-img knows it.
    Disk(&'static str, &'static str),
    /// The image of a CD or DVD.
    Iso9660,
    /// A boot sector: 512 bytes or a disk that begins with them, which a BIOS loads at 0x7c00.
    BootSector,
    /// The firmware of a computer: a ROM whose last 16 bytes are the first code of the processor.
    Firmware,
    /// The ROM of an expansion card, which firmware calls.
    OptionRom,
    /// A bzImage, a Linux kernel that unpacks itself.
    LinuxKernel,
    /// A kernel with a header of multiboot 1 or 2.
    Multiboot,
    /// An ELF file of any kind.
    Elf,
    /// A program or an object file of another system, or for another machine.
    Program(&'static str),
    /// A static library.
    StaticLibrary,
}

use FileFormat::{
    Archive, AssemblySource, BootSector, CSource, Compressed, Cpio, Disk, Document, Elf, Firmware, Iso9660,
    LinuxKernel, Multiboot, OptionRom, Program, Script, StaticLibrary, Text,
};

/// A magic number: the format, the offset of the bytes, and the bytes.
type Magic = (FileFormat, usize, &'static [u8]);

/// The number of bytes at the start of a file that [`FileFormat::of`] looks at, except for text.
pub const HEAD: usize = 0x8010;

/// The magic numbers. The first that fits counts.
const MAGICS: &[Magic] = &[
    (LinuxKernel, 0x202, b"HdrS"),
    (Elf, 0, b"\x7fELF"),
    (Disk("qcow2", "qcow2"), 0, b"QFI\xfb\0\0\0\x02"),
    (Disk("qcow2", "qcow2"), 0, b"QFI\xfb\0\0\0\x03"),
    (Disk("qcow", "qcow"), 0, b"QFI\xfb\0\0\0\x01"),
    (Disk("QED", "qed"), 0, b"QED\0"),
    (Disk("VHDX", "vhdx"), 0, b"vhdxfile"),
    (Disk("VHD", "vpc"), 0, b"conectix"),
    (Disk("VMDK", "vmdk"), 0, b"KDMV"),
    (Disk("VMDK", "vmdk"), 0, b"COWD"),
    (Disk("VMDK", "vmdk"), 0, b"# Disk DescriptorFile"),
    (Disk("VDI", "vdi"), 0x40, b"\x7f\x10\xda\xbe"),
    (Disk("Parallels", "parallels"), 0, b"WithoutFreeSpace"),
    (Disk("Parallels", "parallels"), 0, b"WithouFreSpacExt"),
    (Compressed("gzip", "gunzip"), 0, b"\x1f\x8b\x08"),
    (Compressed("xz", "xz -d"), 0, b"\xfd7zXZ\0"),
    (Compressed("zstd", "zstd -d"), 0, b"\x28\xb5\x2f\xfd"),
    // After "BZh" and the block size, the digits of pi begin the first block.
    (Compressed("bzip2", "bzip2 -d"), 4, b"1AY&SY"),
    (Compressed("lz4", "lz4 -d"), 0, b"\x04\x22\x4d\x18"),
    (Compressed("lz4", "lz4 -d"), 0, b"\x02\x21\x4c\x18"),
    (Compressed("lzip", "lzip -d"), 0, b"LZIP"),
    (Archive("zip", "unzip"), 0, b"PK\x03\x04"),
    (Archive("7z", "7z x"), 0, b"7z\xbc\xaf\x27\x1c"),
    (Archive("RAR", "unrar x"), 0, b"Rar!\x1a\x07"),
    (Archive("tar", "tar -xf"), 257, b"ustar"),
    (Cpio, 0, b"070701"),
    (Cpio, 0, b"070702"),
    (StaticLibrary, 0, b"!<arch>\n"),
    (StaticLibrary, 0, b"!<thin>\n"),
    (Iso9660, 0x8001, b"CD001"),
    (Document("PNG picture"), 0, b"\x89PNG\r\n\x1a\n"),
    (Document("JPEG picture"), 0, b"\xff\xd8\xff"),
    (Document("GIF picture"), 0, b"GIF8"),
    (Document("PDF document"), 0, b"%PDF-"),
    (Program("LLVM bitcode"), 0, b"BC\xc0\xde"),
    (Program("LLVM bitcode"), 0, b"\xde\xc0\x17\x0b"),
    (Program("a WebAssembly module"), 0, b"\0asm\x01\0\0\0"),
    (Program("a Mach-O program of macOS"), 0, b"\xcf\xfa\xed\xfe"),
    (Program("a Mach-O program of macOS"), 0, b"\xce\xfa\xed\xfe"),
    (Program("a Mach-O program of macOS"), 0, b"\xfe\xed\xfa\xce"),
    (Program("a Mach-O program of macOS"), 0, b"\xfe\xed\xfa\xcf"),
    // a.out: the magic numbers OMAGIC, NMAGIC, ZMAGIC and QMAGIC with the machine type of the 80386.
    (Program("an a.out program"), 0, b"\x07\x01\x64\0"),
    (Program("an a.out program"), 0, b"\x08\x01\x64\0"),
    (Program("an a.out program"), 0, b"\x0b\x01\x64\0"),
    (Program("an a.out program"), 0, b"\xcc\0\x64\0"),
    (Text, 0, b"\xff\xfe"),
    (Text, 0, b"\xfe\xff"),
];

/// The magic numbers at the start of the last 512 bytes of a file. The footer is all that a VHD image of fixed size has.
const LAST_SECTOR: &[(FileFormat, &[u8])] =
    &[(Disk("VHD", "vpc"), b"conectix"), (Disk("DMG", "dmg"), b"koly\0\0\0\x04\0\0\x02\0")];

impl FileFormat {
    /// Recognises a format by its magic number alone. `bytes` are the start of the file.
    pub fn of_magic(bytes: &[u8]) -> Option<Self> {
        let at =
            |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        MAGICS.iter().find(|(_, offset, magic)| at(*offset, magic)).map(|(format, ..)| *format)
    }

    /// Recognises a format by the last 512 bytes of the file.
    pub fn of_last_sector(bytes: &[u8]) -> Option<Self> {
        LAST_SECTOR.iter().find(|(_, magic)| bytes.starts_with(magic)).map(|(format, _)| *format)
    }

    /// Recognises the format of a file. `None` for unknown bytes, such as a flat binary or a raw disk.
    ///
    /// `bytes` are the whole file, or its first [`HEAD`] bytes or more.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        Self::of_magic(bytes)
            .or_else(|| coff(bytes))
            .or_else(|| java_or_mach_o(bytes))
            .or_else(|| windows_or_dos(bytes))
            // Firmware may have a multiboot header, too: U-Boot has one.
            .or_else(|| is_firmware(bytes).then_some(Firmware))
            .or_else(|| multiboot_header(bytes).map(|_| Multiboot))
            .or_else(|| is_boot_sector(bytes).then_some(BootSector))
            .or_else(|| is_option_rom(bytes).then_some(OptionRom))
            .or_else(|| text(bytes))
    }
}

/// The 4-byte word at an offset.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// An object file of Windows (COFF): its machine type, a few sections, a symbol table inside the file, and no optional
/// header. (Microsoft PE and COFF specification, "COFF File Header".)
fn coff(bytes: &[u8]) -> Option<FileFormat> {
    let machine = bytes.first_chunk::<2>()?;
    let sections = word(bytes, 0)? >> 16;
    let (symbols, optional) = (word(bytes, 8)?, word(bytes, 16)? & 0xffff);
    let right = [[0x64, 0x86], [0x4c, 0x01]].contains(machine)
        && (1..100).contains(&sections)
        && (20..=bytes.len()).contains(&usize::try_from(symbols).ok()?)
        && optional == 0;
    right.then_some(Program("a COFF object file of Windows"))
}

/// Java class files and fat binaries of macOS have the same magic number. A class file continues with its version, 45 or
/// above; a fat binary with the number of its parts.
fn java_or_mach_o(bytes: &[u8]) -> Option<FileFormat> {
    let second = word(bytes.strip_prefix(b"\xca\xfe\xba\xbe")?, 0)?.swap_bytes();
    let java = second & 0xffff >= 45;
    Some(Program(if java { "a Java class file" } else { "a Mach-O program of macOS" }))
}

/// Programs of Windows, EFI and DOS begin with MZ. The offset of the PE header is at 0x3c.
fn windows_or_dos(bytes: &[u8]) -> Option<FileFormat> {
    let rest = bytes.strip_prefix(b"MZ")?;
    let pe = word(bytes, 0x3c).and_then(|at| bytes.get(usize::try_from(at).ok()?..));
    if pe.is_some_and(|rest| rest.starts_with(b"PE\0\0")) {
        return Some(Program("a PE program of Windows or EFI"));
    }
    // The header of DOS: bytes in the last page, below 512, and the number of pages.
    let (last, pages) = (word(rest, 0)? & 0xffff, word(rest, 0)? >> 16);
    (last < 512 && pages > 0).then_some(Program("an EXE program of DOS"))
}

/// A multiboot header in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultibootHeader {
    /// Version 1, at this offset.
    First(usize),
    /// Version 2, at this offset.
    Second(usize),
}

/// The first multiboot header of a file: in its first 8 KiB for version 1, and in its first 32 KiB for version 2.
/// (Multiboot specification 0.6.96, section 3.1.1: magic, flags, checksum, at a multiple of 4; and 2.0, section 3.1.1: magic,
/// architecture, length, checksum, at a multiple of 8. Together these words add up to zero.)
pub fn multiboot_header(bytes: &[u8]) -> Option<MultibootHeader> {
    let is_header = |at: usize| {
        let words = |count: usize| {
            (0..count).try_fold(0u32, |sum, index| {
                let offset = at.checked_add(index.checked_mul(4)?)?;
                Some(sum.wrapping_add(word(bytes, offset)?))
            })
        };
        match word(bytes, at) {
            Some(0x1bad_b002) if at < 0x2000 && words(3) == Some(0) => Some(MultibootHeader::First(at)),
            Some(0xe852_50d6) if at.is_multiple_of(8) && words(4) == Some(0) => {
                Some(MultibootHeader::Second(at))
            }
            _ => None,
        }
    };
    (0..bytes.len().min(0x8000)).step_by(4).find_map(is_header)
}

/// The offset of a multiboot header whose checksum is wrong: the magic, and flags or an architecture that the specifications
/// have.
pub fn unsound_multiboot_header(bytes: &[u8]) -> Option<usize> {
    let is_header = |at: &usize| match (word(bytes, *at), at.checked_add(4).and_then(|at| word(bytes, at))) {
        (Some(0x1bad_b002), Some(flags)) => *at < 0x2000 && flags < 0x2_0000,
        (Some(0xe852_50d6), Some(architecture)) => at.is_multiple_of(8) && architecture == 0,
        _ => false,
    };
    let mut places = (0..bytes.len().min(0x8000)).step_by(4);
    places.find(is_header).filter(|_| multiboot_header(bytes).is_none())
}

/// Whole sectors, the first of which ends in the signature 55 AA.
pub fn is_boot_sector(bytes: &[u8]) -> bool {
    bytes.get(510..512) == Some(b"\x55\xaa") && bytes.len().is_multiple_of(512)
}

/// The ROM of an expansion card: 55 AA, and a number of 512-byte blocks whose bytes add up to zero (PCI Firmware
/// Specification 3.0, section 5.2).
fn is_option_rom(bytes: &[u8]) -> bool {
    let [0x55, 0xaa, blocks, ..] = bytes else { return false };
    let part = bytes.get(..usize::from(*blocks).saturating_mul(512)).filter(|part| !part.is_empty());
    part.is_some_and(|part| part.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0)
}

/// Firmware: a whole number of 64 KiB, which ends at 4 GiB. The first instruction, at the reset vector 16 bytes before the end,
/// is a far jump to the segment 0xf000 or a near jump, perhaps after `nop`, `cli` or `cld` (Intel SDM vol. 3, 11.1.4).
fn is_firmware(bytes: &[u8]) -> bool {
    const BLOCK: usize = 0x1_0000;
    let Some((rest, reset)) = bytes.split_last_chunk::<16>() else { return false };
    let before = reset.iter().take_while(|byte| [0x90, 0xfa, 0xfc].contains(*byte)).count();
    let jumps = match reset.get(before..).unwrap_or_default() {
        [0xea, _, _, segment @ ..] => segment.starts_with(&[0x00, 0xf0]),
        [0xe9, ..] | [0xeb, 0x80..=0xff, ..] => true,
        _ => false,
    };
    bytes.len().is_multiple_of(BLOCK) && jumps && rest.iter().any(|byte| ![0, 0xff].contains(byte))
}

/// The shortest text without an end of line, in bytes: shorter files of printable bytes may be code.
const MIN_TEXT: usize = 4;

/// Text: printable characters, blanks and ends of lines, and nothing else.
fn text(bytes: &[u8]) -> Option<FileFormat> {
    let text = str::from_utf8(bytes).ok()?;
    let printable = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0c');
    if text.is_empty() || !text.chars().all(printable) || !(text.contains('\n') || text.len() >= MIN_TEXT) {
        return None;
    }
    // "#![" begins an attribute of Rust.
    if text.starts_with("#!") && !text.starts_with("#![") {
        return Some(Script);
    }
    let mut words = text.lines().filter_map(|line| line.split_whitespace().next());
    // An assembler has the instruction `int`, too.
    let is_assembly = |word: &str| ASSEMBLY.iter().any(|name| word.eq_ignore_ascii_case(name));
    if words.clone().any(is_assembly) {
        return Some(AssemblySource);
    }
    Some(if words.any(|word| C.contains(&word)) { CSource } else { Text })
}

/// The first words of lines that only the source of an assembler has: directives, and common instructions.
const ASSEMBLY: [&str; 17] = [
    "bits", "[bits", "org", "[org", "section", "segment", "global", ".global", ".globl", ".section",
    ".code16", ".text", "mov", "lodsb", "hlt", "cli", "jmp",
];
/// The first words of lines of C.
const C: [&str; 6] = ["#include", "#define", "int", "void", "static", "typedef"];

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file of `len` zeroes with `bytes` at an offset.
    fn file(len: usize, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; len];
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    #[test]
    fn every_magic_number_is_recognised_and_needs_all_its_bytes() {
        for (format, offset, magic) in MAGICS {
            let mut whole = file(0x9000, *offset, magic);
            assert_eq!(FileFormat::of(&whole), Some(*format));
            whole[*offset + magic.len() - 1] ^= 0x55;
            assert_ne!(FileFormat::of(&whole), Some(*format), "{format:?} with a wrong last byte");
        }
    }

    #[test]
    fn text_is_recognised_and_its_language() {
        for (text, format) in [
            ("vm.\n", Some(Text)),
            ("grüße", Some(Text)),
            ("#!/bin/sh\necho\n", Some(Script)),
            ("; a guest\nbits 16\n  hlt\n", Some(AssemblySource)),
            ("\t.global _start\n_start: hlt\n", Some(AssemblySource)),
            ("start:\n  MOV ah, 0x0e\n  int 0x10\n", Some(AssemblySource)),
            ("org 0x100\nint 0x20\n", Some(AssemblySource)),
            ("#include <stdio.h>\nint main(){}\n", Some(CSource)),
            ("#![no_std]\nfn main() {}\n", Some(Text)),
            // Three printable bytes may be code: push ax; push cx; push dx.
            ("PQR", None),
            ("a\0b\n", None),
            ("\x1b[2J\n", None),
        ] {
            assert_eq!(FileFormat::of(text.as_bytes()), format, "{text:?}");
        }
        assert_eq!(FileFormat::of(b"\xff\xfeh\0i\0"), Some(Text), "UTF-16");
        assert_eq!(FileFormat::of(b"caf\xe9\n"), None, "not UTF-8");
    }

    #[test]
    fn programs_of_other_systems_are_recognised() {
        let mut dos = file(0x200, 0, b"MZ\x90\0\x03\0");
        assert_eq!(FileFormat::of(&dos), Some(Program("an EXE program of DOS")));
        dos[0x3c] = 0x80;
        dos[0x80..0x84].copy_from_slice(b"PE\0\0");
        assert_eq!(FileFormat::of(&dos), Some(Program("a PE program of Windows or EFI")));
        assert_eq!(FileFormat::of(b"MZ\xf4"), None, "code: dec bp; pop dx; hlt");
        assert_eq!(FileFormat::of(b"\xca\xfe\xba\xbe\0\0\0\x34"), Some(Program("a Java class file")));
        assert_eq!(FileFormat::of(b"\xca\xfe\xba\xbe\0\0\0\x02"), Some(Program("a Mach-O program of macOS")));
        let object = file(0x100, 0, b"\x64\x86\x02\0\0\0\0\0\x40\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(FileFormat::of(&object), Some(Program("a COFF object file of Windows")));
    }

    #[test]
    fn a_multiboot_header_needs_its_checksum_and_its_place() {
        use MultibootHeader::{First, Second};
        let header = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let first = header(&[0x1bad_b002, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)]);
        let second = header(&[0xe852_50d6, 0, 16, 0u32.wrapping_sub(0xe852_50d6 + 16)]);
        for (bytes, offset, found) in [
            (&first, 0, true),
            (&first, 0x1ff4, true),
            (&first, 2, false),
            (&first, 0x2000, false),
            (&second, 0x7f00, true),
            (&second, 0x7f04, false),
            (&second, 0x8000, false),
        ] {
            let file = file(0x9000, offset, bytes);
            let header = if bytes.len() == 12 { First(offset) } else { Second(offset) };
            assert_eq!(multiboot_header(&file), found.then_some(header), "{offset:#x}");
            assert_eq!(FileFormat::of(&file), found.then_some(Multiboot));
        }
        let wrong = header(&[0x1bad_b002, 3, 4]);
        assert_eq!(multiboot_header(&file(0x100, 0, &wrong)), None);
        assert_eq!(multiboot_header(&first[..8]), None, "cut short");
        assert_eq!(unsound_multiboot_header(&file(0x100, 0x40, &wrong)), Some(0x40));
        assert_eq!(unsound_multiboot_header(&file(0x100, 0, &first)), None, "its checksum is right");
    }

    #[test]
    fn a_boot_sector_has_its_signature_and_whole_sectors() {
        let sector = |len| file(len, 510, b"\x55\xaa");
        for (len, is) in [(512, true), (1024, true), (513, false), (1000, false)] {
            assert_eq!(FileFormat::of(&sector(len)), is.then_some(BootSector), "{len}");
        }
        assert_eq!(FileFormat::of(&[0; 512]), None);
    }

    #[test]
    fn a_rom_has_a_reset_vector_or_a_checksum() {
        for (jump, is) in [
            (&[0xea, 0x5b, 0xe0, 0x00, 0xf0][..], true),
            (&[0xea, 0x5b, 0xe0, 0x00, 0x10], false),
            (&[0xe9, 0x3d, 0xff], true),
            (&[0x90, 0x90, 0xe9, 0x3d, 0xff], true),
            (&[0xfa, 0xfc, 0xe9, 0x0b, 0xf8, 0xff, 0xff], true),
            (&[0xeb, 0xce], true),
            (&[0xeb, 0x02], false),
            (&[0; 3], false),
        ] {
            let mut rom = file(0x1_0000, 0xfff0, jump);
            assert_eq!(FileFormat::of(&rom), None, "nothing but a jump");
            rom[0x100] = 0xfa;
            assert_eq!(FileFormat::of(&rom), is.then_some(Firmware), "{jump:x?}");
            let mut kernel = rom.clone();
            let header = [0x1bad_b002u32, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)].map(u32::to_le_bytes);
            kernel[0x200..0x20c].copy_from_slice(header.as_flattened());
            assert_eq!(FileFormat::of(&kernel), Some(if is { Firmware } else { Multiboot }), "{jump:x?}");
            rom.truncate(0xff00);
            assert_eq!(FileFormat::of(&rom), None, "no whole number of blocks");
        }
        let mut card = file(0x600, 0, &[0x55, 0xaa, 2, 0xeb, 0x10]);
        assert_eq!(FileFormat::of(&card), None, "a wrong sum");
        card[0x3ff] = 0u8.wrapping_sub(card[..0x3ff].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        assert_eq!(FileFormat::of(&card), Some(OptionRom));
        card[2] = 200;
        assert_eq!(FileFormat::of(&card), None, "cut short");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_format_or_none(
            which in 0..MAGICS.len(),
            noise in prop::collection::vec(any::<u8>(), 0..0x300),
        ) {
            let _ = FileFormat::of(&noise);
            let (_, offset, magic) = MAGICS[which];
            let _ = FileFormat::of(&[&noise[..noise.len().min(offset)], magic, &noise].concat());
            let _ = FileFormat::of(&[b"MZ", &noise[..]].concat());
        }
    }

    #[test]
    fn code_is_no_known_format() {
        for code in [
            &[0xf4][..],
            &[0xb0, b'!', 0xe6, 0xe9, 0xf4],
            &[0xeb, 0xfe],
            &[0x90; 0x401],
            &[0x31, 0xd2, 0xec, 0x42, 0x80, 0xfe, 0x10, 0x75, 0xf9, 0xf4],
        ] {
            assert_eq!(FileFormat::of(code), None, "{code:x?}");
        }
        for guest in guest::GUESTS {
            assert_eq!(FileFormat::of(guest.image), None, "{}", guest.name);
        }
    }
}
