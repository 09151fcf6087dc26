//! Hand-made position-independent executables.

use crate::boot::Image;
use crate::boot::elf::tests::{Header, elf, elf32};
use crate::memory::{Gpa, GuestMemory};
use proptest::prelude::*;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
/// The offset of the tables in the file, and their address.
const TABLES: usize = 0x200;

/// A position-independent executable, linked for `start`, whose dynamic section consists of these words.
fn movable(is_64: bool, start: u64, words: &[u64]) -> Vec<u8> {
    let width = if is_64 { 8 } else { 4 };
    let size = (words.len() * width) as u64;
    let all = Header(PT_LOAD, 0, start, start, 0x300, 0x400);
    let dynamic = Header(PT_DYNAMIC, TABLES as u64, start + TABLES as u64, start + TABLES as u64, size, size);
    let entry = start + 0x2f0;
    let mut file = if is_64 { elf(entry, &[all, dynamic]) } else { elf32(entry as u32, &[all, dynamic]) };
    file[16] = 3;
    for (place, word) in words.iter().enumerate() {
        let at = TABLES + place * width;
        file[at..at + width].copy_from_slice(&word.to_le_bytes()[..width]);
    }
    file
}

fn refusal(file: Vec<u8>, base: Option<u64>) -> String {
    match Image::native_elf(file, base.map(Gpa)) {
        Err(error) => error.to_string(),
        Ok(image) => panic!("taken: {:?}", image.segments()),
    }
}

/// The word of a loaded image at an address.
fn word(image: &Image, at: u64) -> u64 {
    let memory = GuestMemory::new(&[(Gpa(0), 0x20_0000)]).unwrap();
    image.load(&memory, 0x20_0000).unwrap();
    let mut bytes = [0; 8];
    assert!(memory.read(Gpa(at), &mut bytes));
    u64::from_le_bytes(bytes)
}

#[test]
fn an_executable_for_address_0_moves_to_1_mib_and_another_stays() {
    for is_64 in [true, false] {
        let image = Image::elf(movable(is_64, 0, &[])).unwrap();
        assert_eq!((image.entry(), image.segments()[0].start), (Gpa(0x10_02f0), Gpa(0x10_0000)));
        let image = Image::elf(movable(is_64, 0x8000, &[])).unwrap();
        assert_eq!((image.entry(), image.segments()[0].start), (Gpa(0x82f0), Gpa(0x8000)));
        let image = Image::native_elf(movable(is_64, 0, &[]), Some(Gpa(0x3000))).unwrap();
        assert_eq!((image.entry(), image.segments()[0].start), (Gpa(0x32f0), Gpa(0x3000)));
    }
    assert!(refusal(movable(true, 0x8000, &[]), Some(0x1000)).contains("is linked for 0x8000"));
    assert!(refusal(movable(true, 0, &[]), Some(0x1001)).contains("a multiple of 0x1000"));
    // The end of the address space is outside memory.
    let last = Image::native_elf(movable(true, 0, &[]), Some(Gpa(!0xfff))).unwrap();
    assert!(last.check(1 << 30).is_err());
}

#[test]
fn relocations_with_addends_are_applied() {
    // DT_RELA at 0x240, one entry: address 0x2c0, type 8, addend 0x123.
    let mut words = vec![7, 0x240, 8, 24, 0, 0, 0, 0];
    words.extend([0x2c0, 8, 0x123]);
    let image = Image::elf(movable(true, 0, &words)).unwrap();
    assert_eq!(word(&image, 0x10_02c0), 0x10_0123);
    words[9] = 6;
    assert!(refusal(movable(true, 0, &words), None).contains("a relocation of type 6 at 0x2c0"));
    (words[8], words[9]) = (0x2fc, 8);
    assert!(refusal(movable(true, 0, &words), None).contains("outside the bytes of its segments"));
    words[1] = 0x1000;
    assert!(refusal(movable(true, 0, &words), None).contains("has its relocations at 0x1000"));
}

#[test]
fn relocations_without_addends_add_to_the_word() {
    // DT_REL at 0x220, one entry: address 0x2c0, type 8.
    let words = [17, 0x220, 18, 8, 0, 0, 0, 0, 0x2c0, 8];
    let mut file = movable(false, 0, &words);
    file[0x2c0..0x2c4].copy_from_slice(&[5, 0, 0, 0]);
    let image = Image::elf(file).unwrap();
    assert_eq!(word(&image, 0x10_02c0) & 0xffff_ffff, 0x10_0005);
}

#[test]
fn packed_relocations_are_applied() {
    // DT_RELR at 0x240: the word at 0x2c0, and of the words after it the first and the third.
    let words = [36, 0x240, 35, 16, 0, 0, 0, 0, 0x2c0, 0b1011];
    let mut file = movable(true, 0, &words);
    file[0x2c0..0x2e0].fill(0);
    let image = Image::elf(file).unwrap();
    let moved = [0x2c0, 0x2c8, 0x2d0, 0x2d8].map(|at| word(&image, 0x10_0000 + at));
    assert_eq!(moved, [0x10_0000, 0x10_0000, 0, 0x10_0000]);
    // Bitmaps that name the same words again and again.
    let hostile: Vec<u64> =
        [36, 0x240, 35, 0x1000, 0, 0, 0, 0].into_iter().chain([0x200, u64::MAX]).collect();
    let refused = refusal(movable(true, 0, &hostile), None);
    assert!(refused.contains("outside") || refused.contains("more relocations"), "{refused}");
}

#[test]
fn shared_libraries_and_their_users_are_refused() {
    let mut library = movable(true, 0, &[]);
    library[24..32].fill(0);
    assert!(refusal(library, None).contains("is a shared library, or has no entry point"));
    assert!(refusal(movable(true, 0, &[1, 5, 0, 0]), None).contains("needs a shared library"));
    assert!(refusal(movable(true, 0, &[2, 24, 0, 0]), None).contains("a procedure linkage table"));
}

proptest! {
    #[test]
    fn damaged_tables_give_an_image_or_an_error(
        is_64 in any::<bool>(),
        tags in prop::collection::vec((0u64..40, 0u64..0x500), 0..6),
        table in prop::collection::vec(any::<u64>(), 0..8),
        start in prop::sample::select(vec![0, 0x1000, 0xffff_0000]),
    ) {
        let words: Vec<u64> = tags.iter().flat_map(|(tag, value)| [*tag, *value]).chain([0, 0]).chain(table).collect();
        let _ = Image::elf(movable(is_64, start, &words));
    }
}
