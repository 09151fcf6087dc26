//! Hand-made kernels, valid and invalid, and the data that they get at their entry.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::super::detect::is_kernel;
use super::super::elf::tests::{Header, elf};
use super::*;
use proptest::prelude::*;
use std::io::Write;
use tempfile::NamedTempFile;

const RAM: u64 = 64 << 20;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage with two sectors of setup and 0x400 bytes of code.
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 0x600];
    bytes.extend([0xf4; 0x400]);
    put(&mut bytes, 0x1f1, &[2]);
    put(&mut bytes, 0x1f4, &0x40u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut bytes, 0x202, b"HdrS\x0f\x02");
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut bytes, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut bytes, 0x236, &3u16.to_le_bytes());
    put(&mut bytes, 0x238, &2047u32.to_le_bytes());
    put(&mut bytes, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut bytes, 0x260, &0x20_0000u32.to_le_bytes());
    bytes
}

fn vmlinux(physical: u64) -> Vec<u8> {
    elf(physical, &[Header(1, 0x200, 0xffff_ffff_8100_0000, physical, 0x100, 0x2000)])
}

fn memory() -> GuestMemory {
    GuestMemory::new(&pc::ram(RAM)).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    let file = file(bytes);
    let opened = Kernel::open(file.path());
    opened.and_then(|mut kernel| kernel.load(&memory(), RAM)).expect_err("it was loaded").to_string()
}

fn word(memory: &GuestMemory, at: u64) -> u32 {
    let mut word = [0; 4];
    assert!(memory.read(Gpa(at), &mut word));
    u32::from_le_bytes(word)
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry_point() {
    let file = file(&bzimage());
    let memory = memory();
    let loaded = Kernel::open(file.path()).unwrap().load(&memory, RAM).unwrap();
    assert_eq!(loaded, Loaded { entry: Gpa(0x10_0200), mode: Mode::Long, end: 0x120_0000 });
    assert_eq!((word(&memory, 0x10_0000), word(&memory, 0x10_03fc)), (0xf4f4_f4f4, 0xf4f4_f4f4));
}

#[test]
fn a_bzimage_without_a_64_bit_entry_point_is_entered_in_protected_mode() {
    let opened = |changes: &[(usize, &[u8])]| {
        let mut bytes = bzimage();
        changes.iter().for_each(|(at, value)| put(&mut bytes, *at, value));
        let (initrd, file, memory) = (file(&vec![1; bytes.len()]), file(&bytes), memory());
        let mut kernel = Kernel::open(file.path()).unwrap();
        let loaded = kernel.load(&memory, RAM).unwrap();
        assert_eq!(word(&memory, 0x10_0000), 0xf4f4_f4f4);
        write_boot_params(&kernel, loaded, &memory, RAM, &[initrd.path().into()], "x").unwrap();
        let (gdt, initrd) = (word(&memory, pc::GDT.0 + 0x14), word(&memory, pc::BOOT_PARAMS.0 + 0x218));
        (loaded.entry.0, loaded.mode, loaded.end, gdt >> 20 & 0xf, kernel.command_line_size(), initrd)
    };
    let top = RAM as u32 - 0x1000;
    // Flags of the code segment: G and L, or G and D.
    assert_eq!(opened(&[]), (0x10_0200, Mode::Long, 0x120_0000, 0xa, 2047, top));
    let protected = (0x10_0000, Mode::Protected, 0x120_0000, 0xc, 2047, top);
    assert_eq!(opened(&[(0x236, &[2])]), protected, "a kernel for i386");
    assert_eq!(opened(&[(0x206, &[0x0b])]), protected, "xloadflags came with 2.12");
    // Linux 2.6.24: its header ends before pref_address.
    let old = opened(&[(0x206, &[6]), (0x200, &[0xeb, 0x3a])]);
    assert_eq!(old, (0x10_0000, Mode::Protected, 0x10_1000, 0xc, 2047, top));
    // Linux 2.4: its header ends after cmd_line_ptr, and syssize has 16 bits.
    let oldest = opened(&[(0x206, &[2]), (0x200, &[0xeb, 0x2a]), (0x1f6, &[0xff, 0xff])]);
    assert_eq!(oldest, (0x10_0000, Mode::Protected, 0x10_1000, 0xc, 255, top));
}

#[test]
fn a_vmlinux_goes_to_its_physical_addresses() {
    let file = file(&vmlinux(0x100_0000));
    let memory = memory();
    let loaded = Kernel::open(file.path()).unwrap().load(&memory, RAM).unwrap();
    assert_eq!(loaded, Loaded { entry: Gpa(0x100_0000), mode: Mode::Long, end: 0x100_2000 });
    assert_eq!(word(&memory, 0x100_0000), 0xf4f4_f4f4);
}

#[test]
fn kernels_are_recognised_by_their_content() {
    let looks_like_one = |bytes: &[u8]| is_kernel(file(bytes).path());
    assert!(looks_like_one(&bzimage()));
    let mut linux = vmlinux(0x100_0000);
    assert!(!looks_like_one(&linux), "a kernel other than Linux in the last 2 GiB");
    linux.resize((1 << 20) - 5, 0);
    linux.extend(b"Linux version 6.1.0");
    assert!(looks_like_one(&linux), "the banner may cross the border of two reads");
    let low = elf(0x1000, &[Header(1, 0x200, 0x1000, 0x1000, 0x100, 0x100)]);
    assert!(
        !looks_like_one(&[low.as_slice(), b"Linux version 6"].concat()),
        "a program that contains the banner of Linux"
    );
    for bytes in [&b""[..], b"x", &[0; 0x300], b"\x7fELF"] {
        assert!(!looks_like_one(bytes));
    }
    assert!(!is_kernel(Path::new("/")) && !is_kernel(Path::new("/no/such/file")));
}

#[test]
fn a_vmlinux_below_1_mib_or_outside_ram_is_refused() {
    assert!(refusal(&vmlinux(0xf_ffff)).contains("below 0x100000"));
    assert!(refusal(&vmlinux(pc::BOOT_PARAMS.0)).contains("below 0x100000"));
    assert!(refusal(&vmlinux(RAM - 0x1000)).contains("give the guest more (--mem)"));
    assert!(refusal(&vmlinux(u64::MAX - 0x1000)).contains("past the last address"));
}

/// A loader that trusted the size of this note would read for hours.
#[test]
fn notes_are_ignored() {
    let load = Header(1, 0x200, 0xffff_ffff_8100_0000, 0x100_0000, 0x100, 0x2000);
    let file = file(&elf(0x100_0000, &[load, Header(4, 0x200, 0, 0, u64::MAX >> 1, 0)]));
    assert!(Kernel::open(file.path()).unwrap().load(&memory(), RAM).is_ok());
}

/// The check and the loader would read different numbers of program headers.
#[test]
fn a_number_of_headers_in_section_0_is_refused() {
    let mut kernel = vmlinux(0x100_0000);
    put(&mut kernel, 56, &[0xff, 0xff]);
    assert!(refusal(&kernel).contains("too many program headers for a kernel"));
}

#[test]
fn files_that_are_not_complete_kernels_are_refused() {
    assert!(refusal(b"").contains("is not a Linux kernel"));
    assert!(refusal(&[0; 0x1000]).contains("is not a Linux kernel"));
    assert!(refusal(&vmlinux(0x100_0000)[..0x280]).contains("is it complete?"));
    assert!(refusal(&bzimage()[..0x210]).contains("cut short within its setup header"));
    assert!(refusal(&bzimage()[..0x5ff]).contains("is it complete?"));
    assert!(refusal(&bzimage()[..0x9ef]).contains("is it complete?"));
}

#[test]
fn a_bzimage_with_an_invalid_header_is_refused() {
    let with = |at: usize, value: &[u8]| {
        let mut bytes = bzimage();
        put(&mut bytes, at, value);
        refusal(&bytes)
    };
    assert!(with(0x1f1, &[255]).contains("is it complete?"), "more setup than file");
    assert!(with(0x1f1, &[0]).contains("is it complete?"), "0 sectors of setup mean 4");
    assert!(with(0x1f4, &u32::MAX.to_le_bytes()).contains("is it complete?"), "more code than file");
    assert!(with(0x1f4, &[0; 4]).contains("is it complete?"), "no code");
    assert!(with(0x206, &[1]).contains("boot protocol 2.01, which has no pointer to the command line"));
    assert!(with(0x206, &[0, 1]).contains("boot protocol 1.00"));
    assert!(with(0x260, &u32::MAX.to_le_bytes()).contains("--mem"), "unpacks to more than RAM");
    assert!(with(0x258, &u64::MAX.to_le_bytes()).contains("--mem"), "unpacks past the last address");
    assert!(with(0x211, &[0]).contains("is a zImage"), "not for high memory");
}

fn given(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str) -> Result<GuestMemory, String> {
    given_all(kernel, initrd.as_slice(), command_line)
}

fn given_all(kernel: &[u8], initrds: &[&[u8]], command_line: &str) -> Result<GuestMemory, String> {
    let (kernel, initrds) = (file(kernel), initrds.iter().map(|bytes| file(bytes)).collect::<Vec<_>>());
    let memory = memory();
    let mut kernel = Kernel::open(kernel.path()).unwrap();
    let loaded = kernel.load(&memory, RAM).unwrap();
    let paths: Vec<_> = initrds.iter().map(|file| file.path().to_path_buf()).collect();
    write_boot_params(&kernel, loaded, &memory, RAM, &paths, command_line)
        .map_err(|error| error.to_string())?;
    Ok(memory)
}

#[test]
fn boot_params_lead_to_everything_the_kernel_needs() {
    for kernel in [bzimage(), vmlinux(0x100_0000)] {
        let memory = given(&kernel, Some(&[7; 0x1001]), "console=ttyS0").unwrap();
        let at = |offset: u64| word(&memory, pc::BOOT_PARAMS.0 + offset);
        assert_eq!(at(0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(at(0x1fe) & 0xffff, 0xaa55);
        assert_eq!(at(0x210) & 0xff, 0xff, "type_of_loader");
        assert_eq!(at(0x211) & 0x81, 0x81, "loadflags");
        assert_eq!(at(0x224) & 0xffff, 0xfe00, "heap_end_ptr");
        assert_eq!((at(0x228), at(0x70)), (0x2_0000, 0xe_0000), "command line, RSDP");
        let (initrd, size) = (at(0x218), at(0x21c));
        assert_eq!((initrd, size), (RAM as u32 - 0x2000, 0x1001));
        assert_eq!(word(&memory, (initrd + size - 4).into()), 0x0707_0707);
        let mut text = [0; 14];
        assert!(memory.read(pc::COMMAND_LINE, &mut text));
        assert_eq!(&text, b"console=ttyS0\0");
        assert_eq!(at(0x1e8) & 0xff, 2, "E820 entries");
        let entry = |n: u64| [0, 8, 16].map(|field| at(0x2d0 + n * 20 + field));
        assert_eq!(entry(0), [0, 0x9_fc00, 1]);
        assert_eq!(entry(1), [0x10_0000, RAM as u32 - 0x10_0000, 1]);
        assert_eq!(word(&memory, pc::PAGE_TABLES.0), 0x3003);
        assert_eq!(word(&memory, pc::GDT.0 + 0x14) >> 8 & 0xff, 0x9b, "code at 0x10");
    }
}

#[test]
fn fields_after_the_end_of_the_header_are_ignored() {
    // The header ends before cmdline_size: what is there is code.
    let mut kernel = bzimage();
    put(&mut kernel, 0x200, &[0xeb, 0x36]);
    let file = file(&kernel);
    assert_eq!(Kernel::open(file.path()).unwrap().command_line_size(), 2047);
    let memory = given(&kernel, None, "").unwrap();
    assert_eq!(word(&memory, pc::BOOT_PARAMS.0 + 0x260), 0);
}

#[test]
fn an_initrd_must_fit_between_the_kernel_and_the_end() {
    let room = (RAM - 0x120_0000) as usize;
    assert!(given(&bzimage(), Some(&vec![1; room]), "").is_ok());
    let refused = given(&bzimage(), Some(&vec![1; room + 1]), "").unwrap_err();
    assert!(refused.contains("--mem") && refused.contains("0x2e00001 bytes"), "{refused}");
    assert!(given(&bzimage(), Some(&[]), "").unwrap_err().contains("is empty"));
    // The kernel limits the address of the initrd.
    let mut limited = bzimage();
    put(&mut limited, 0x22c, &0x1ff_ffffu32.to_le_bytes());
    let memory = given(&limited, Some(&[1]), "").unwrap();
    assert_eq!(word(&memory, pc::BOOT_PARAMS.0 + 0x218), 0x1ff_f000);
}

#[test]
fn several_initrds_are_joined_at_multiples_of_four_bytes() {
    let memory = given_all(&bzimage(), &[&[1; 5], &[2; 8], &[3; 1]], "").unwrap();
    let at = |offset: u64| word(&memory, pc::BOOT_PARAMS.0 + offset);
    assert_eq!((at(0x218), at(0x21c)), (RAM as u32 - 0x1000, 17));
    let words = [0, 4, 8, 12, 16].map(|offset| word(&memory, u64::from(at(0x218)) + offset));
    assert_eq!(words, [0x0101_0101, 1, 0x0202_0202, 0x0202_0202, 3]);
    let room = (RAM - 0x120_0000) as usize;
    assert!(given_all(&bzimage(), &[&vec![1; room - 4], &[1; 4]], "").is_ok());
    let refused = given_all(&bzimage(), &[&vec![1; room - 5], &[1; 5]], "").unwrap_err();
    assert!(
        refused.contains("is the last of several initrds, which together have 0x2e00001 bytes"),
        "{refused}"
    );
    assert!(given_all(&bzimage(), &[&[1], &[]], "").unwrap_err().contains("is empty"));
}

#[test]
fn a_command_line_must_fit_and_be_text() {
    let line = "x".repeat(2048);
    assert!(given(&bzimage(), None, &line[..2047]).is_ok());
    assert!(given(&bzimage(), None, &line).unwrap_err().contains("accepts at most 2047: shorten --cmdline"));
    assert!(given(&vmlinux(0x100_0000), None, &line).unwrap_err().contains("accepts at most 2047"));
    assert!(given(&bzimage(), None, "a\0b").unwrap_err().contains("NUL"));
    let mut large = bzimage();
    put(&mut large, 0x238, &u32::MAX.to_le_bytes());
    assert!(given(&large, None, &"x".repeat(1 << 20)).unwrap_err().contains("shorten --cmdline"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_headers_are_accepted_or_refused(header in prop::collection::vec(any::<u8>(), 0x7b)) {
        let mut bytes = bzimage();
        put(&mut bytes, 0x1f1, &header);
        put(&mut bytes, 0x202, b"HdrS");
        let file = file(&bytes);
        if let Ok(mut kernel) = Kernel::open(file.path()) {
            let memory = memory();
            if let Ok(loaded) = kernel.load(&memory, RAM) {
                let _ = write_boot_params(&kernel, loaded, &memory, RAM, &[file.path().into()], "x");
            }
        }
    }
}
