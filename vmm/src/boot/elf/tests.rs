//! Hand-made ELF files, valid and invalid.
#![allow(clippy::arithmetic_side_effects)]

pub(in crate::boot) use super::notes::tests::pvh_note;
use super::*;
use proptest::prelude::*;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// One program header: type, file offset, virtual and physical address, size in file and in memory.
#[derive(Clone, Copy)]
pub(in crate::boot) struct Header(pub u32, pub u64, pub u64, pub u64, pub u64, pub u64);

/// An ELF64 executable with these program headers and 0x100 bytes of content behind them.
pub(in crate::boot) fn elf(entry: u64, headers: &[Header]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64, 56, headers.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for &Header(kind, offset, virt, phys, in_file, size) in headers {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, virt, phys, in_file, size, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(file.len().max(0x200), 0);
    file.extend([0xf4; 0x100]);
    file
}

const CODE: Header = Header(PT_LOAD, 0x200, 0x1000, 0x1000, 0x100, 0x180);

fn refusal(file: Vec<u8>) -> String {
    match Image::elf(file) {
        Err(error) => error.to_string(),
        Ok(image) => panic!("taken: {:?}", image.segments()),
    }
}

impl Image {
    /// The image with these bytes as a segment of data in addition.
    pub(crate) fn with_data(&self, start: u64, data: &[u8]) -> Self {
        let mut bytes = self.bytes.to_vec();
        let offset = bytes.len();
        bytes.extend(data);
        let file = offset..bytes.len();
        let mut segments = self.segments.clone();
        segments.push(Segment { start: Gpa(start), file, size: data.len() as u64, executable: false });
        Self { bytes: std::sync::Arc::new(bytes.into()), segments, is_elf: true, ..self.clone() }
    }
}

#[test]
fn a_valid_executable_is_loaded() {
    let image = Image::elf(elf(0x1010, &[CODE])).unwrap();
    assert_eq!((image.entry(), image.mode(), image.end()), (Gpa(0x1010), Mode::Long, 0x1180));
    assert_eq!(
        image.segments(),
        [Segment { start: Gpa(0x1000), file: 0x200..0x300, size: 0x180, executable: true }]
    );
}

#[test]
fn the_entry_point_may_be_virtual_or_physical() {
    let high = Header(PT_LOAD, 0x200, 0xffff_ffff_8100_0000, 0x2000, 0x100, 0x100);
    assert_eq!(Image::elf(elf(0xffff_ffff_8100_0004, &[high])).unwrap().entry(), Gpa(0x2004));
    assert_eq!(Image::elf(elf(0x2004, &[high])).unwrap().entry(), Gpa(0x2004));
}

#[test]
fn empty_segments_and_other_types_are_ignored() {
    let empty = Header(PT_LOAD, u64::MAX, 0, u64::MAX, 0, 0);
    let note = Header(4, u64::MAX, 0, 0, u64::MAX, 0);
    assert_eq!(Image::elf(elf(0x1000, &[empty, note, CODE])).unwrap().segments().len(), 1);
}

#[test]
fn errors_name_the_wrong_kind_of_file() {
    let mut file = elf(0x1000, &[CODE]);
    file[4] = 3;
    assert!(refusal(file.clone()).contains("is neither of 32 nor of 64 bits"));
    (file[4], file[5]) = (2, 2);
    assert!(refusal(file.clone()).contains("is not little-endian"));
    (file[5], file[18]) = (1, 40);
    assert!(refusal(file.clone()).contains("is for another processor, ARM of 32 bits: build it"));
    file[18] = 1;
    assert!(refusal(file.clone()).contains("is for another processor, number 1: build it"));
    for (kind, text) in [(1, "an object file: link it"), (4, "the core dump"), (9, "-no-pie")] {
        (file[18], file[16]) = (62, kind);
        assert!(refusal(file.clone()).contains(text), "{kind}");
    }
    assert!(refusal(elf(0x1000, &[CODE, Header(PT_INTERP, 0, 0, 0, 0, 0)])).contains("dynamic linker"));
    // The x32 ABI.
    let mut x32 = elf32(0x1000, &[CODE]);
    x32[18] = 62;
    assert!(refusal(x32).contains("the x32 ABI"));
}

#[test]
fn a_long_path_of_a_dynamic_linker_makes_no_long_message() {
    let mut file = elf(0x1000, &[Header(PT_INTERP, 0x200, 0, 0, 0x10_0000, 0x10_0000), CODE]);
    file.resize(0x10_0200, b'x');
    let text = refusal(file);
    assert!(text.contains("needs a dynamic linker") && text.len() < 2000, "{}", text.len());
}

#[test]
fn programs_of_other_systems_are_named_with_the_next_step() {
    let with = |kind, text: &[u8]| {
        let mut file = elf(0x1000, &[CODE, Header(kind, 0x280, 0, 0, text.len() as u64, 0)]);
        file[0x280..0x280 + text.len()].copy_from_slice(text);
        file
    };
    const NOTE: u32 = 4;
    let note = |name: &[u8; 8], kind: u32| {
        let size = name.iter().position(|byte| *byte == 0).unwrap() as u32 + 1;
        let header = [size, 4, kind].map(u32::to_le_bytes);
        let padded = &name[..(size as usize).next_multiple_of(4)];
        [header.as_flattened(), padded, &[0; 4]].concat()
    };
    for (kind, text, system, step) in [
        (
            PT_INTERP,
            b"/lib64/ld-linux-x86-64.so.2\0".to_vec(),
            "a program for Linux (it needs /lib64/ld-",
            "-ffreestanding",
        ),
        (PT_INTERP, b"/nonexistent/solo5/\0".to_vec(), "Solo5", "solo5-hvt"),
        (NOTE, note(b"Solo5\0\0\0", 1), "Solo5", "a multiboot kernel"),
        (
            NOTE,
            note(b"GNU\0\0\0\0\0", 1),
            "a program for Linux with the GNU C library",
            "vmm boot KERNEL --initrd",
        ),
        (NOTE, note(b"HERMIT\0\0", 0x5a00), "a Hermit unikernel", "uhyve"),
        (NOTE, note(b"Xen\0\0\0\0\0", 6), "a paravirtualised guest of Xen", "XEN_ELFNOTE_PHYS32_ENTRY"),
    ] {
        let refusal = refusal(with(kind, &text));
        assert!(refusal.contains(system) && refusal.contains(step), "{refusal}");
    }
    let mut uml = with(PT_INTERP, b"/lib/ld-linux.so.2\0");
    uml.extend(b"http://user-mode-linux.sourceforge.net/");
    assert!(refusal(uml).contains("User Mode Linux"));
    // A note of the compiler's says nothing.
    assert!(Image::elf(with(NOTE, &note(b"GNU\0\0\0\0\0", 5))).is_ok());
}

/// An ELF32 executable like that of [`elf`].
pub(in crate::boot) fn elf32(entry: u32, headers: &[Header]) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 3].map(u16::to_le_bytes).as_flattened());
    file.extend([1, entry, 52, 0, 0].map(u32::to_le_bytes).as_flattened());
    file.extend([52, 32, headers.len() as u16, 40, 0, 0].map(u16::to_le_bytes).as_flattened());
    for &Header(kind, offset, virt, phys, in_file, size) in headers {
        let words = [kind.into(), offset, virt, phys, in_file, size, 7, 0x1000]
            .map(|word: u64| (word as u32).to_le_bytes());
        file.extend(words.as_flattened());
    }
    file.resize(file.len().max(0x200), 0);
    file.extend([0xf4; 0x100]);
    file
}

#[test]
fn an_executable_of_32_bits_starts_in_protected_mode() {
    let image = Image::elf(elf32(0x1010, &[CODE])).unwrap();
    assert_eq!((image.entry(), image.mode(), image.end()), (Gpa(0x1010), Mode::Protected, 0x1180));
    assert_eq!(image.protocol(), None);
    let file = elf32(0x1000, &[CODE]);
    for len in 4..file.len() {
        refusal(file[..len].to_vec());
    }
    let many: Vec<_> =
        (0..0xffff).map(|place| Header(PT_LOAD, 0x200, 0x1000, 0x1000 + place, 1, 1)).collect();
    // 65,535 means that the number is in section 0, and there is none.
    assert!(refusal(elf32(0x1000, &many)).contains("cannot be read"));
    assert_eq!(Image::elf(elf32(0x1000, &many[1..])).unwrap().segments().len(), 0xfffe);
}

#[test]
fn a_segment_with_only_the_headers_of_the_file_is_left_out_above_4_gib() {
    const HIGH: u64 = 0xffff_ffff_8000_0000;
    let own = |start| Header(PT_LOAD, 0, start, start, 64 + 2 * 56, 64 + 2 * 56);
    let code = Header(PT_LOAD, 0x200, HIGH + 0x1000, 0x1000, 0x10, 0x10);
    let mut file = elf(HIGH + 0x1000, &[own(HIGH), code]);
    // p_flags of the first header, without PF_X.
    file[64 + 4] = 4;
    let image = Image::elf(file.clone()).unwrap();
    assert_eq!((image.segments().len(), image.entry()), (1, Gpa(0x1000)));
    file[64 + 4] = 5;
    assert_eq!(Image::elf(file).unwrap().segments().len(), 2, "it may hold code");
    let mut low = elf(HIGH + 0x1000, &[own(0x8000), code]);
    low[64 + 4] = 4;
    assert_eq!(Image::elf(low).unwrap().segments().len(), 2);
}

#[test]
fn segments_that_do_not_fit_are_listed_with_the_flags_that_help() {
    let at = |address: u64| Header(PT_LOAD, 0x200, address, address, 0x100, 0x180);
    let image =
        Image::elf(elf(0x40_0010, &[at(0x40_0000), at(0x40_1000), at(0x40_2000), at(0x40_3000)])).unwrap();
    let refused = image.check(0x10_0000).unwrap_err().to_string();
    for text in [
        "its segments are 0x400000 to 0x40017f, 0x401000 to 0x40117f, 0x402000 to 0x40217f and 1 more",
        "memory is 0x0 to 0xfffff",
        "-Wl,-Ttext-segment=0x1000",
        "linker/long64.ld",
    ] {
        assert!(refused.contains(text), "{refused}");
    }
    assert!(image.check(0x100_0000).is_ok());
    let high = Image::elf(elf(0xffff_ffff_8010_0000, &[at(0xffff_ffff_8010_0000)])).unwrap();
    let refused = high.check(0x10_0000).unwrap_err().to_string();
    assert!(
        refused.contains("0xffffffff80100000 to 0xffffffff8010017f") && refused.contains("AT("),
        "{refused}"
    );
    assert!(refused.contains("objcopy --change-section-lma '*-0xffffffff80000000' FILE NEW"), "{refused}");
    let high = Image::elf(elf32(0xc010_0000, &[at(0xc010_0000)])).unwrap();
    let refused = high.check(0x10_0000).unwrap_err().to_string();
    assert!(refused.contains("'*-0xc0000000'"), "{refused}");
}

#[test]
fn errors_name_the_wrong_segment() {
    let refused = |header| refusal(elf(0x1000, &[header]));
    assert!(
        refused(Header(PT_LOAD, 0x200, 0x1000, 0x1000, 0x101, 0x200)).contains("past the end of the file")
    );
    assert!(refused(Header(PT_LOAD, u64::MAX, 0x1000, 0x1000, 2, 2)).contains("past the end of the file"));
    assert!(refused(Header(PT_LOAD, 0x200, 0x1000, 0x1000, 0x100, 0xff)).contains("larger in the file"));
    assert!(refused(Header(PT_LOAD, 0x200, 0x1000, u64::MAX, 1, 2)).contains("past the last address"));
    assert!(refusal(elf(0x1180, &[CODE])).contains("entry point outside every segment"));
    assert!(refusal(elf(0xfff, &[CODE])).contains("entry point outside every segment"));
    assert!(refusal(elf(0x1000, &[])).contains("no segment to load"));
    let overlap = Header(PT_LOAD, 0x200, 0x117f, 0x117f, 1, 1);
    assert!(
        refusal(elf(0x1000, &[overlap, CODE])).contains("overlap, at physical addresses 0x1000 and 0x117f")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = elf(0x1000, &[CODE]);
    for len in 4..file.len() {
        refusal(file[..len].to_vec());
    }
}

/// A file with `count` program headers, each for one byte, at consecutive addresses. From 65,535 on the number does not
/// fit into the header and is in the first section header (ELF-64, "e_phnum"; PN_XNUM).
fn many_headers(count: u32) -> Vec<u8> {
    let header = |place: u64| Header(PT_LOAD, 0x200, 0x1000, 0x1000 + place, 1, 1);
    let headers: Vec<_> = (0..u64::from(count)).map(header).collect();
    let mut file = elf(0x1000, &headers);
    if count >= 0xffff {
        file[56..58].copy_from_slice(&0xffffu16.to_le_bytes());
        let sections = file.len() as u64;
        file[40..48].copy_from_slice(&sections.to_le_bytes());
        file[60..62].copy_from_slice(&1u16.to_le_bytes());
        let mut section = [0; 64];
        section[44..48].copy_from_slice(&count.to_le_bytes());
        file.extend(section);
    }
    file
}

#[test]
fn the_largest_numbers_of_program_headers_are_read_fast() {
    for count in [65_534, 65_535, 70_000] {
        assert_eq!(Image::elf(many_headers(count)).unwrap().segments().len(), count as usize);
    }
    let mut cut = many_headers(65_535);
    cut.truncate(cut.len() - 1);
    assert!(refusal(cut).contains("cannot be read"));
    let mut wrong = many_headers(10);
    wrong[56..58].copy_from_slice(&0xffffu16.to_le_bytes());
    refusal(wrong);
}

proptest! {
    #[test]
    fn random_and_damaged_files_give_an_image_or_an_error(noise in prop::collection::vec(any::<u8>(), 0..200), changes in prop::collection::vec((0usize..0x300, any::<u8>()), 0..12)) {
        let _ = Image::elf(noise.clone());
        let mut file = elf(0x1000, &[CODE, Header(PT_LOAD, 0x200, 0x4000, 0x4000, 1, 1)]);
        for (place, byte) in changes {
            file[place] = byte;
        }
        if let Ok(image) = Image::elf(file) {
            let memory = crate::memory::GuestMemory::new(&[(Gpa(0), 0x8000)]).unwrap();
            let _ = image.load(&memory, 0x8000);
        }
    }
}

#[test]
fn a_segment_without_the_execute_flag_holds_no_code() {
    let data = Header(PT_LOAD, 0x200, 0x3000, 0x3000, 0x100, 0x100);
    let mut file = elf(0x1010, &[CODE, data]);
    assert_eq!(Image::elf(file.clone()).unwrap().code_ranges(), [0x1000..0x1180, 0x3000..0x3100]);
    // p_flags of the second header, without PF_X.
    let flags = 64 + 56 + 4;
    file[flags] = 6;
    assert_eq!(Image::elf(file.clone()).unwrap().code_ranges(), vec![0x1000u64..0x1180]);
    // Without any flag, nothing is known.
    file[64 + 4] = 6;
    assert_eq!(Image::elf(file).unwrap().code_ranges(), [0x1000..0x1180, 0x3000..0x3100]);
}
