#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::memory::Gpa;
use std::cell::Cell;
use std::fs;
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
/// The sectors of [`MIB`] bytes.
const MIB_SECTORS: u64 = MIB / SECTOR;

/// A disk of this size, its image, and 32 MiB of guest memory.
fn disk(size: u64) -> (Disk, NamedTempFile, GuestMemory) {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(size).unwrap();
    let memory = GuestMemory::new(&[(Gpa(0), 32 * MIB)]).unwrap();
    (Disk::open(image.path(), false).unwrap(), image, memory)
}

fn span(start: u64, len: u64) -> [Span; 1] {
    [Span { start: Gpa(start), len: len as u32 }]
}

/// Returns false `times` times, and then true.
fn after(times: u32) -> impl Fn() -> bool {
    let left = Cell::new(times);
    move || left.replace(left.get().saturating_sub(1)) == 0
}

const NEVER: &dyn Fn() -> bool = &|| false;

#[test]
fn a_transfer_ends_between_two_pieces() {
    let (mut disk, image, memory) = disk(32 * MIB);
    memory.write(Gpa(0), &vec![7; 32 << 20]).unwrap();
    let all = span(0, 32 * MIB);
    let cut = disk.write(&memory, 0, &all, &after(2));
    assert!(matches!(cut, Err(Failure::CutOff)), "{cut:?}");
    let written = fs::read(image.path()).unwrap().iter().filter(|byte| **byte == 7).count();
    assert!((1..=2 << 20).contains(&written), "two pieces have {written} bytes");
    assert_eq!(disk.write(&memory, 0, &all, NEVER).unwrap(), 32 * MIB);

    memory.write(Gpa(0), &vec![9; 32 << 20]).unwrap();
    let cut = disk.read(&memory, 0, &all, &after(2));
    assert!(matches!(cut, Err(Failure::CutOff)), "{cut:?}");
    let mut bytes = vec![0; 32 << 20];
    assert!(memory.read(Gpa(0), &mut bytes));
    let read = bytes.iter().filter(|byte| **byte == 7).count();
    assert!((1..=2 << 20).contains(&read), "two pieces have {read} bytes");
    assert_eq!(disk.read(&memory, 0, &all, &|| true).unwrap_err().kind(), ("cut off", 0));
}

#[test]
fn a_flush_ends_between_two_pieces_and_is_no_failure() {
    let (mut disk, _image, memory) = disk(64 * MIB);
    disk.write(&memory, 0, &span(0, 16 * MIB), NEVER).unwrap();
    for times in 0..3 {
        assert!(matches!(disk.flush(&after(times)), Err(Failure::CutOff)), "{times}");
    }
    assert!(disk.dirty && disk.lost.is_none());
    disk.flush(NEVER).unwrap();
    assert!(!disk.dirty && disk.unflushed.bytes == 0);
    // A small flush is one piece.
    disk.write(&memory, 5, &span(0, SECTOR), NEVER).unwrap();
    disk.flush(&|| true).unwrap();
    assert!(!disk.dirty);
}

#[test]
fn a_flush_covers_the_range_of_the_writes() {
    let (mut disk, _image, memory) = disk(64 * MIB);
    assert_eq!(disk.unflushed.range, 0..64 * MIB, "another program may have written the image");
    disk.flush(NEVER).unwrap();
    for (sector, len) in [(40 * MIB_SECTORS, 5 * MIB), (20 * MIB_SECTORS, MIB)] {
        disk.write(&memory, sector, &span(0, len), NEVER).unwrap();
    }
    assert_eq!((disk.unflushed.range.clone(), disk.unflushed.bytes), (20 * MIB..45 * MIB, 6 * MIB));
    // Seven pieces of 4 MiB cover it.
    assert!(matches!(disk.flush(&after(6)), Err(Failure::CutOff)));
    disk.flush(&after(7)).unwrap();
    assert!(disk.unflushed.range.is_empty());
}

#[test]
fn the_last_flush_is_left_out_when_the_run_must_end() {
    let (mut disk, _image, memory) = disk(MIB);
    disk.write(&memory, 0, &span(0, SECTOR), NEVER).unwrap();
    assert_eq!(disk.close(&|| true), Ok(()));
    assert!(disk.dirty);
    assert_eq!(disk.close(NEVER), Ok(()));
    assert!(!disk.dirty);
}

#[test]
fn after_a_failed_flush_every_flush_fails() {
    let (mut disk, image, memory) = disk(MIB);
    disk.write(&memory, 0, &span(0, SECTOR), NEVER).unwrap();
    // A pipe cannot be flushed.
    let pipe = std::os::fd::OwnedFd::from(io::pipe().unwrap().1);
    let good = std::mem::replace(&mut disk.image.file, pipe.into());
    disk.unflushed = Unflushed::default();
    assert!(matches!(disk.flush(NEVER), Err(Failure::Host("flushed", _))));
    disk.image.file = good;
    for _ in 0..2 {
        assert!(matches!(disk.flush(NEVER), Err(Failure::Lost(_))));
    }
    let end = disk.close(NEVER).unwrap_err();
    let name = image.path().to_str().unwrap();
    assert!(end.starts_with(&format!("the disk image {name} could not be flushed: ")), "{end}");
}

#[test]
fn mistakes_of_the_guest_do_not_hide_failures_of_the_host() {
    let (mut disk, image, memory) = disk(2 * MIB);
    image.as_file().set_len(MIB).unwrap();
    let requests: [(u64, [Span; 1]); 4] = [
        (0, span(64 * MIB, SECTOR)),
        (2 * MIB_SECTORS, span(0, SECTOR)),
        (0, span(0, 100)),
        (MIB_SECTORS, span(0, SECTOR)),
    ];
    for _ in 0..3 {
        for (sector, spans) in &requests {
            let failure = disk.read(&memory, *sector, spans, NEVER).unwrap_err();
            disk.report(&failure);
        }
    }
    assert_eq!(disk.reported(), ["buffer", "outside", "part of a sector", "read"]);
    let of_guest = disk.describe(&Failure::NotMemory);
    assert!(of_guest.starts_with("a request of the guest to the disk "), "{of_guest}");
    let of_host = disk.describe(&Failure::Short("read", 2 * MIB));
    assert!(of_host.contains("could not be read: the file is shorter than the 2097152 bytes"), "{of_host}");
}
