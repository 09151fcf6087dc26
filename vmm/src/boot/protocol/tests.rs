//! Hand-made headers, right and wrong, and what kernels get.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::*;
use crate::boot::elf::tests::{Header, elf, elf32};
use crate::memory::GuestMemory;
use proptest::prelude::*;

const RAM: u64 = 4 << 20;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const CODE: Header = Header(LOAD, 0x200, 0x10_0000, 0x10_0000, 0x100, 0x180);

/// A multiboot 1 header with these flags and fields.
fn first(flags: u32, fields: &[u32]) -> Vec<u8> {
    let words = [0x1bad_b002, flags, 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)];
    words.iter().chain(fields).flat_map(|word| word.to_le_bytes()).collect()
}

/// A multiboot 2 header with these tags.
fn second(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, flags, words) in tags.iter().chain(&[(0, 0, &[][..])]) {
        bytes.extend([*kind, *flags].map(u16::to_le_bytes).as_flattened());
        bytes.extend((8 + 4 * words.len() as u32).to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let length = 16 + bytes.len() as u32;
    let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(length);
    let words = [0xe852_50d6, 0, length, sum];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(bytes).collect()
}

/// A flat file that begins with a header and has 0x100 bytes.
fn flat(header: &[u8]) -> Vec<u8> {
    let mut file = header.to_vec();
    file.resize(0x100, 0xf4);
    file
}

/// An ELF32 file with a header at 0x180.
fn elf_with(header: &[u8]) -> Vec<u8> {
    let mut file = elf32(0x10_0010, &[CODE]);
    file[0x180..0x180 + header.len().min(0x80)].copy_from_slice(&header[..header.len().min(0x80)]);
    file
}

fn refusal(answer: Result<Image, ImageError>) -> String {
    match answer {
        Err(error) => error.to_string(),
        Ok(image) => panic!("taken: {:?}", image.segments()),
    }
}

#[test]
fn the_addresses_of_a_header_place_a_flat_file() {
    let load = |fields: &[u32]| Image::multiboot(flat(&first(1 << 16, fields)));
    let image = load(&[0x10_0000, 0x10_0000, 0, 0, 0x10_0020]).unwrap();
    assert_eq!((image.entry(), image.end(), image.mode()), (Gpa(0x10_0020), 0x10_0100, Mode::Protected));
    let image = load(&[0x10_0000, 0x10_0000, 0x10_0080, 0x10_0200, 0x10_01ff]).unwrap();
    assert_eq!((image.segments()[0].file.clone(), image.end()), (0..0x80, 0x10_0200));
    for (fields, why) in [
        ([0x10_0000, 0x10_0004, 0, 0, 0x10_0020], "load address 0x100004 is above the address of the header"),
        ([0x10_0000, 0x0f_ffff, 0, 0, 0x10_0020], "0x1 bytes before the header, which is at 0x0 in the file"),
        ([0x10_0000, 0x10_0000, 0x10_0000, 0, 0x10_0020], "load_end_addr 0x100000 is not above"),
        (
            [0x10_0000, 0x10_0000, 0x10_0101, 0, 0x10_0020],
            "it loads 0x101 bytes, and the file has only 0x100",
        ),
        ([0x10_0000, 0x10_0000, 0xffff_ffff, 0, 0x10_0020], "the file has only 0x100"),
        ([0x10_0000, 0x10_0000, 0, 0x10_00ff, 0x10_0020], "bss_end_addr 0x1000ff is below"),
        (
            [0x10_0000, 0x10_0000, 0, 0, 0x10_0100],
            "its entry address 0x100100 is outside 0x100000 to 0x1000ff",
        ),
        ([0x10_0000, 0x10_0000, 0, 0, 0], "its entry address 0x0 is outside"),
    ] {
        let refused = refusal(load(&fields));
        assert!(
            refused.contains(why) && refused.starts_with("the multiboot 1 kernel has a header"),
            "{refused}"
        );
    }
    let cut = first(1 << 16, &[0x10_0000, 0x10_0000, 0, 0]);
    assert!(refusal(Image::multiboot(cut)).contains("cut short within its addresses"));
    assert!(
        refusal(Image::multiboot(flat(&first(0, &[])))).contains("give the ELF file from which it was made")
    );
}

#[test]
fn an_address_over_the_tables_of_the_machine_does_not_fit() {
    for place in [0xfffc_0000, 0xffff_ff00, 0xbfff_ff80] {
        let image = Image::multiboot(flat(&first(1 << 16, &[place, place, 0, 0, place]))).unwrap();
        let refused = image.check(3 << 30).unwrap_err().to_string();
        assert!(refused.contains(&format!("its segments are {place:#x} to ")), "{refused}");
    }
}

#[test]
fn the_tags_of_version_2_place_a_flat_file() {
    let load = |tags: &[(u16, u16, &[u32])]| Image::multiboot(flat(&second(tags)));
    let addresses: &[u32] = &[0x10_0000, u32::MAX, 0, 0];
    let image = load(&[(2, 0, addresses), (3, 0, &[0x10_0080])]).unwrap();
    assert_eq!((image.entry(), image.segments()[0].start), (Gpa(0x10_0080), Gpa(0x10_0000)));
    assert!(refusal(load(&[(2, 0, addresses)])).contains("no entry address"));
    assert!(refusal(load(&[(2, 0, &[1])])).contains("an address tag that is too short"));
    assert!(refusal(load(&[])).contains("no load addresses"));
    // The entry tag replaces the entry point of an ELF file.
    let image = Image::elf(elf_with(&second(&[(3, 0, &[0x10_0044])]))).unwrap();
    assert_eq!((image.entry(), image.protocol()), (Gpa(0x10_0044), Some(Protocol::Multiboot2)));
    let refused = refusal(Image::elf(elf_with(&second(&[(3, 0, &[0x44])]))));
    assert!(refused.contains("the entry address 0x44, outside every segment"), "{refused}");
}

#[test]
fn what_this_machine_does_not_have_is_refused_if_it_is_required() {
    let elf = |header: &[u8]| Image::elf(elf_with(header));
    for (header, why) in [
        (first(8, &[]), "features that multiboot 0.6.96 does not have (flags 0x8"),
        (second(&[(5, 0, &[1024, 768, 32])]), "requires graphics (1024x768 with 32 bits)"),
        (second(&[(4, 0, &[1])]), "requires a console other than a text screen"),
        (second(&[(1, 0, &[6, 99])]), "requires information that multiboot 2.0 does not have (type 99)"),
        (second(&[(77, 0, &[])]), "something that multiboot 2.0 does not have (tag 77"),
    ] {
        let refused = refusal(elf(&header));
        assert!(refused.contains(why), "{refused}");
    }
    for header in [
        first(3 | 0xfffe_0000, &[]),
        first(4, &[0, 0, 0, 0, 0, 1, 80, 25, 0]),
        second(&[(5, 1, &[1024, 768, 32]), (77, 1, &[]), (1, 1, &[99]), (6, 0, &[]), (10, 0, &[0, 0, 0, 0])]),
        second(&[(4, 0, &[3]), (5, 0, &[1024, 768, 32])]),
        second(&[(5, 0, &[0, 0, 0])]),
        second(&[(1, 0, &[1, 2, 3, 4, 5, 6, 8, 9, 21])]),
    ] {
        assert!(elf(&header).is_ok(), "{header:x?}");
    }
    // Another architecture, and tags with wrong sizes.
    let mut mips = second(&[]);
    (mips[4], mips[12]) = (4, mips[12].wrapping_sub(4));
    assert!(refusal(elf(&mips)).contains("for another processor (architecture 4"));
    for size in [0u32, 7, 0x1000, u32::MAX] {
        let mut wrong = second(&[(6, 0, &[])]);
        wrong[20..24].copy_from_slice(&size.to_le_bytes());
        assert!(refusal(elf(&wrong)).contains("tag 6 has a wrong size"), "{size}");
    }
    let mut long = second(&[]);
    long[8..12].copy_from_slice(&0x8000u32.to_le_bytes());
    let sum = 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(0x8000);
    long[12..16].copy_from_slice(&sum.to_le_bytes());
    assert!(refusal(elf(&long)).contains("not within the first 32 KiB"));
}

/// An ELF64 file with a note of PVH.
fn pvh(descriptor: &[u8], size: u32) -> Vec<u8> {
    let note = elf::tests::pvh_note(descriptor, size);
    let mut file = elf(0x10_0000, &[CODE, Header(NOTE, 0x280, 0, 0, note.len() as u64, 0)]);
    file[0x280..0x280 + note.len()].copy_from_slice(&note);
    file
}

#[test]
fn a_note_of_pvh_gives_the_entry_point() {
    let image = Image::elf(pvh(&0x10_0040u32.to_le_bytes(), 4)).unwrap();
    assert_eq!(
        (image.entry(), image.mode(), image.protocol()),
        (Gpa(0x10_0040), Mode::Protected, Some(Protocol::Pvh))
    );
    for (entry, size, why) in [
        (0x10_0180u32, 4, "its entry point outside every segment, at 0x100180"),
        (0xffff_ffff, 4, "outside every segment, at 0xffffffff"),
        (0x10_0000, 3, "that has neither 4 nor 8 bytes"),
        (0x10_0000, u32::MAX, "that goes past the end of its segment"),
    ] {
        let refused = refusal(Image::elf(pvh(&entry.to_le_bytes(), size)));
        assert!(refused.contains(why) && refused.starts_with("the PVH kernel has"), "{refused}");
    }
    // Without the protocol, it is an ELF64 file.
    let native = Image::native_elf(pvh(&0u32.to_le_bytes(), 4), None).unwrap();
    assert_eq!((native.mode(), native.protocol()), (Mode::Long, None));
}

fn module(bytes: &[u8], text: &str) -> Module {
    Module { bytes: Arc::new(bytes.to_vec()), text: text.into(), file: "file".into() }
}

/// A kernel in memory, with a command line and two modules.
struct Booted {
    memory: GuestMemory,
    image: Image,
}

impl Booted {
    fn new(file: Vec<u8>) -> Self {
        let image = if elf::is_elf(&file) { Image::elf(file) } else { Image::multiboot(file) }.unwrap();
        let image = image
            .with_boot_data("one two", vec![module(b"abc", "first"), module(&[7; 5000], "second")])
            .unwrap();
        let image = image.handed_over(RAM, &Firmware::NONE).unwrap();
        let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
        image.load(&memory, RAM).unwrap();
        Self { memory, image }
    }

    fn register(&self, register: GeneralRegister) -> Option<u64> {
        self.image.start().registers.iter().find(|set| set.register == register).map(|set| set.value)
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.memory.read(Gpa(at), &mut bytes));
        bytes
    }

    fn word(&self, at: u64) -> u64 {
        u32::from_le_bytes(self.bytes(at)).into()
    }

    fn wide(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn text(&self, at: u64) -> String {
        (at..).map(|at| self.bytes::<1>(at)[0]).take_while(|byte| *byte != 0).map(char::from).collect()
    }
}

/// The number of ranges in the memory map: low memory around the information, the screen, high memory, the tables.
const RANGES: u64 = 6;

#[test]
fn a_kernel_of_version_1_gets_its_information() {
    let booted = Booted::new(elf_with(&first(7, &[])));
    assert_eq!(booted.register(GeneralRegister::Rax), Some(0x2bad_b002));
    let info = booted.register(GeneralRegister::Rbx).unwrap();
    assert_eq!(info, 0x9_0000);
    let field = |offset| booted.word(info + offset);
    // Memory, command line, modules, map, name, framebuffer.
    assert_eq!(field(0), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9 | 1 << 12);
    assert_eq!((field(4), field(8)), (576, 3 * 1024));
    assert_eq!((booted.text(field(16)), booted.text(field(64))), ("one two".into(), "vmm".into()));
    assert_eq!(field(20), 2);
    let modules = field(24);
    assert_eq!((booted.word(modules), booted.word(modules + 4)), (0x10_1000, 0x10_1003));
    assert_eq!((booted.word(modules + 16), booted.word(modules + 20)), (0x10_2000, 0x10_3388));
    assert_eq!(booted.text(booted.word(modules + 8)), "first");
    assert_eq!((booted.bytes(0x10_1000), booted.bytes(0x10_2000)), (*b"abc", [7; 5000]));
    assert_eq!(field(44), RANGES * 24);
    let map = field(48);
    assert_eq!(
        (booted.word(map), booted.wide(map + 4), booted.wide(map + 12), booted.word(map + 20)),
        (20, 0, 0x9_0000, 1)
    );
    assert_eq!((booted.wide(map + 28), booted.wide(map + 36), booted.word(map + 44)), (0x9_0000, 0x1000, 2));
    assert_eq!((booted.wide(info + 88), field(96), field(100), field(104)), (0xb_8000, 160, 80, 25));
    assert_eq!(booted.bytes(info + 108), [16, 2]);
}

#[test]
fn a_kernel_of_version_2_gets_its_information() {
    let booted = Booted::new(elf_with(&second(&[(4, 0, &[2])])));
    assert_eq!(booted.register(GeneralRegister::Rax), Some(0x36d7_6289));
    let info = booted.register(GeneralRegister::Rbx).unwrap();
    let end = info + booted.word(info);
    let mut tags = Vec::new();
    let mut at = info + 8;
    while at < end {
        tags.push((booted.word(at), at));
        at = (at + booted.word(at + 4)).next_multiple_of(8);
    }
    assert_eq!(tags.iter().map(|tag| tag.0).collect::<Vec<_>>(), [1, 2, 3, 3, 4, 6, 8, 0]);
    assert_eq!(at, end);
    let tag = |index: usize| tags[index].1;
    assert_eq!((booted.text(tag(0) + 8), booted.text(tag(1) + 8)), ("one two".into(), "vmm".into()));
    assert_eq!((booted.word(tag(3) + 8), booted.word(tag(3) + 12)), (0x10_2000, 0x10_3388));
    assert_eq!(booted.text(tag(3) + 16), "second");
    assert_eq!((booted.word(tag(4) + 8), booted.word(tag(4) + 12)), (576, 3 * 1024));
    assert_eq!((booted.word(tag(5) + 4), booted.word(tag(5) + 8)), (16 + RANGES * 24, 24));
    assert_eq!((booted.wide(tag(5) + 16 + 24), booted.word(tag(5) + 16 + 40)), (0x9_0000, 2));
    assert_eq!((booted.wide(tag(6) + 8), booted.word(tag(6) + 20)), (0xb_8000, 80));
}

#[test]
fn a_pvh_kernel_gets_its_information() {
    let booted = Booted::new(pvh(&0x10_0040u32.to_le_bytes(), 4));
    assert_eq!(booted.register(GeneralRegister::Rax), None);
    let info = booted.register(GeneralRegister::Rbx).unwrap();
    let words = [0, 4, 8, 12].map(|offset| booted.word(info + offset));
    assert_eq!(words, [0x336e_c578, 1, 0, 2]);
    let list = booted.wide(info + 16);
    assert_eq!((booted.wide(list + 32), booted.wide(list + 40)), (0x10_2000, 5000));
    assert_eq!(booted.text(booted.wide(list + 48)), "second");
    assert_eq!((booted.text(booted.wide(info + 24)), booted.wide(info + 32)), ("one two".into(), 0));
    let map = booted.wide(info + 40);
    assert_eq!(booted.word(info + 48), RANGES);
    assert_eq!((booted.wide(map + 24), booted.wide(map + 32), booted.word(map + 40)), (0x9_0000, 0x1000, 2));
}

#[test]
fn the_symbols_of_an_elf_kernel_are_loaded_after_its_modules() {
    let mut file = elf_with(&first(0, &[]));
    let symbols = file.len();
    file.extend([9; 0x30]);
    let table = file.len();
    // No section, the symbols, and a section outside the file.
    for words in [
        [0u32; 10],
        [0, 2, 0, 0, symbols as u32, 0x30, 0, 0, 4, 16],
        [0, 3, 0, 0, 0xffff_fff0, 0x30, 0, 0, 1, 0],
    ] {
        file.extend(words.map(u32::to_le_bytes).as_flattened());
    }
    file[32..36].copy_from_slice(&(table as u32).to_le_bytes());
    (file[48], file[50]) = (3, 2);
    let booted = Booted::new(file);
    let info = booted.register(GeneralRegister::Rbx).unwrap();
    assert_eq!(booted.word(info) & 1 << 5, 1 << 5);
    let [count, size, headers, names] = [28, 32, 36, 40].map(|offset| booted.word(info + offset));
    assert_eq!((count, size, names), (3, 40, 2));
    let address = |index: u64| booted.word(headers + index * 40 + 12);
    assert_eq!([0, 1, 2].map(address), [0, 0x10_4000, 0]);
    assert_eq!(booted.bytes(0x10_4000), [9; 0x30]);
}

#[test]
fn boot_data_needs_a_protocol_and_has_limits() {
    let plain = || Image::flat(vec![0xf4], Mode::Real, Gpa(0)).unwrap();
    let refused =
        |image: Image, text: &str, modules| image.with_boot_data(text, modules).unwrap_err().to_string();
    assert!(plain().with_boot_data("", Vec::new()).is_ok());
    assert!(
        refused(plain(), "x", Vec::new()).starts_with("--cmdline is for kernels with a multiboot header")
    );
    assert!(refused(plain(), "", vec![module(b"", "")]).starts_with("--module is for kernels"));
    let kernel = || Image::elf(elf_with(&first(0, &[]))).unwrap();
    assert!(refused(kernel(), &"x".repeat(MAX_TEXT + 1), Vec::new()).contains("at most 16384 bytes"));
    assert!(refused(kernel(), "a\0b", Vec::new()).contains("without a NUL"));
    assert!(refused(kernel(), "", vec![module(b"", ""); 257]).contains("at most 256 times, not 257"));
    assert!(refused(kernel(), "", vec![module(b"", "a\0")]).contains("the text of --module file"));
    // The largest that is allowed fits, but not into low memory.
    let largest = kernel()
        .with_boot_data(&"x".repeat(MAX_TEXT), vec![module(b"", &"y".repeat(MAX_TEXT)); 256])
        .unwrap();
    let largest = largest.handed_over(16 << 20, &Firmware::NONE).unwrap();
    assert!(largest.start().registers.iter().any(|set| set.value >= 0x10_0000));
    let large = kernel().with_boot_data("", vec![module(&[0; 1 << 22], "")]).unwrap();
    assert!(refusal(large.handed_over(RAM, &Firmware::NONE)).contains("the module file does not fit"));
}

proptest! {
    #[test]
    fn any_header_gives_an_image_or_an_error(
        version in any::<bool>(),
        flags in any::<u32>(),
        fields in prop::collection::vec(prop_oneof![any::<u32>(), 0x10_0000u32..0x10_0100], 0..12),
        tags in prop::collection::vec((0u16..12, 0u16..2, prop::collection::vec(any::<u32>(), 0..5)), 0..6),
        damage in prop::collection::vec((0usize..0x80, any::<u8>()), 0..3),
        is_elf in any::<bool>(),
    ) {
        let tags: Vec<_> = tags.iter().map(|(kind, flags, words)| (*kind, *flags, &words[..])).collect();
        let header = if version { second(&tags) } else { first(flags & 0x1_0007, &fields) };
        let mut file = if is_elf { elf_with(&header) } else { flat(&header) };
        for (place, byte) in damage {
            let start = if is_elf { 0x180 } else { 0 };
            file[start + place] = byte;
        }
        let image = if is_elf { Image::elf(file) } else { Image::multiboot(file) };
        if let Ok(image) = image && image.check(RAM).is_ok() && let Ok(image) = image.handed_over(RAM, &Firmware::NONE) {
            let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
            prop_assert!(image.load(&memory, RAM).is_ok());
        }
    }
}

#[test]
fn a_module_that_cannot_fit_is_refused_before_it_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let error = Module::read(file.path(), Vec::new(), (1 << 40) - 1).unwrap_err().to_string();
    assert!(error.contains("does not fit: it has more than the"), "{error}");
}
