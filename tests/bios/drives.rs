//! The drives of int 13h, and those of ATA: the same disks.

use super::support::{Files, ran};
use super::{EXIT, sector};
use std::fs;

pub fn written() {
    let files = Files::new();
    // Writes the sector in memory to sector 2, reads it back to 0x2000, and ends with its first byte.
    let code = [
        0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xcd, 0x13, // write
        0xb8, 0x01, 0x02, 0xbb, 0x00, 0x20, 0xcd, 0x13, // read
        0xa0, 0x00, 0x20, 0x34, 0x91, // mov al, [0x2000]; xor al, 0x91
        0xe6, 0xf4,
    ];
    let disk = [sector(&code), vec![7; 512]].concat();
    let path = files.write("disk.img", &disk);
    assert_eq!(ran(&[&path]).status, 0xb8 ^ 0x91);
    assert_eq!(fs::read(&path).unwrap(), disk, "the file is not written");
}

/// Calls a function of int 13h for one sector of the first track, with the buffer at 0x2000.
fn call_13h(function: u8, drive: u8, sector: u8) -> Vec<u8> {
    // mov ax; mov bx, 0x2000; mov cx; mov dx; int 0x13
    vec![0xb8, 1, function, 0xbb, 0, 0x20, 0xb9, sector + 1, 0, 0xba, drive, 0, 0xcd, 0x13]
}

/// Reads a sector of an ATA drive, and leaves its first word in AX.
fn read_ata(drive: u8, sector: u8) -> Vec<u8> {
    let writes = [(0xf6, 0xe0 | drive << 4), (0xf2, 1), (0xf3, sector), (0xf4, 0), (0xf5, 0), (0xf7, 0x20)];
    // mov dx, port; mov al, value; out dx, al
    let writes = writes.iter().flat_map(|(port, value)| [0xba, *port, 1, 0xb0, *value, 0xee]);
    // mov dx, 0x1f0; in ax, dx; the other words: mov cx, 255; in ax, dx; loop
    let rest = [0xba, 0xf0, 1, 0xed, 0x50, 0xb9, 255, 0, 0xed, 0xe2, 0xfd, 0x58];
    writes.chain(rest).collect()
}

/// `mov al, [0x2000]`
const FIRST_BYTE: [u8; 3] = [0xa0, 0x00, 0x20];
/// `mov ah, 0xe; int 0x10`
const PRINT: [u8; 4] = [0xb4, 0x0e, 0xcd, 0x10];

pub fn same_disks() {
    let files = Files::new();
    let code = [
        &call_13h(2, 0x80, 1)[..],
        &FIRST_BYTE,
        &PRINT,
        &read_ata(0, 1),
        &PRINT,
        &call_13h(2, 0x81, 0),
        &FIRST_BYTE,
        &PRINT,
        &read_ata(1, 0),
        &PRINT,
        // What is written by a call is read from the drive, and the second disk is a file.
        &call_13h(3, 0x80, 2),
        &read_ata(0, 2),
        &PRINT,
        &call_13h(3, 0x81, 1),
        // The number of hard disks (0x475), and the type of the second one in CMOS memory.
        &[0xa0, 0x75, 0x04, 0x04, b'0'],
        &PRINT,
        &[0xb0, 0x12, 0xe6, 0x70, 0xe4, 0x71, 0x24, 0x0f, 0x04, b'A' - 15],
        &PRINT,
        &[0xb0, 7],
        &EXIT,
    ]
    .concat();
    let disk = [sector(&code), vec![b'B'; 512], vec![b'C'; 2 << 20]].concat();
    let (boot, other) = (files.write("boot.img", &disk), files.write("other.img", &[b'S'; 4096]));
    fs::write(&other, [vec![b'S'; 512], vec![b'T'; 4096]].concat()).unwrap();
    let ran = ran(&[&boot, "--disk", &other]);
    assert_eq!((ran.status, &*ran.text()), (7, "BBSSS2A"), "{}", ran.stderr);
    assert_eq!(fs::read(&boot).unwrap(), disk, "the boot disk is not written");
    let written = fs::read(&other).unwrap();
    assert_eq!((written[512..1024].to_vec(), written[1024]), (vec![b'S'; 512], b'T'));
}

pub fn disk_with_kernel() {
    let files = Files::new();
    // The header of an ELF file: magic, flags without addresses, checksum.
    let magic = 0x1bad_b002_u32;
    let header = [magic, 0, magic.wrapping_neg()].map(u32::to_le_bytes).concat();
    let code = [&[0xb0, b'd'][..], &PRINT, &[0xb0, 7], &EXIT].concat();
    let path = files.write("disk.img", &[sector(&code), vec![0; 4096], header, vec![0; 500]].concat());
    for arguments in [&[&*path][..], &[&path, "--machine", "bios"]] {
        let ran = ran(arguments);
        assert_eq!((ran.status, &*ran.text()), (7, "d"), "{}", ran.stderr);
    }
}

pub fn beside_diskette() {
    let files = Files::new();
    let code = [
        &call_13h(2, 0, 1)[..],
        &FIRST_BYTE,
        &PRINT,
        &call_13h(2, 0x80, 0),
        &FIRST_BYTE,
        &PRINT,
        &read_ata(0, 0),
        &PRINT,
        &[0xb0, 7],
        &EXIT,
    ]
    .concat();
    let mut disk = [sector(&code), vec![b'F'; 512]].concat();
    disk.resize(1_474_560, 0);
    let (boot, other) = (files.write("boot.img", &disk), files.write("other.img", &[b'H'; 4096]));
    let ran = ran(&[&boot, "--disk", &other]);
    assert_eq!((ran.status, &*ran.text()), (7, "FHH"), "{}", ran.stderr);
}

pub fn read_only() {
    let files = Files::new();
    // The exit code is AH.
    let code = [&call_13h(3, 0x81, 0)[..], &[0x88, 0xe0], &EXIT].concat();
    let (boot, other) = (files.write("boot.img", &sector(&code)), files.write("other.img", &[b'S'; 4096]));
    let ran = ran(&[&boot, "--disk", &format!("{other},ro")]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert_eq!(fs::read(&other).unwrap(), [b'S'; 4096]);
}
