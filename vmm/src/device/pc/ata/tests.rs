#![allow(clippy::arithmetic_side_effects)]

use super::file_medium::FileMedium;
use super::*;
use crate::device::Disk;
use crate::device::pc::medium::{MAX_SECTORS, SECTOR};
use crate::host::event;
use crate::shutdown::Deadline;
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::time::Duration;
use tempfile::NamedTempFile;

/// The sectors of the disk of a [`Bench`]: more than LBA28 reaches are not needed, but more than a cylinder.
const SECTORS: u64 = 3000;

/// A channel with one disk, whose sector n has the bytes of n in its first word.
struct Bench {
    channel: Arc<Mutex<Channel>>,
    control: ControlBlock,
    line: EventFd,
    media: SharedMedium,
    image: NamedTempFile,
}

fn bench_with(read_only: bool) -> Bench {
    let mut image = NamedTempFile::new().unwrap();
    for sector in 0..SECTORS as u16 {
        let mut bytes = [0; SECTOR];
        bytes[..2].copy_from_slice(&sector.to_le_bytes());
        image.write_all(&bytes).unwrap();
    }
    image.flush().unwrap();
    let disk = Disk::open(image.path(), read_only).unwrap();
    let media: SharedMedium = Arc::new(Mutex::new(FileMedium::new(disk).unwrap()));
    let line = event().unwrap();
    let channel = Channel::new(vec![media.clone()], Some(line.try_clone().unwrap()));
    let channel = Arc::new(Mutex::new(channel));
    Bench { control: ControlBlock(channel.clone()), channel, line, media, image }
}

fn bench() -> Bench {
    bench_with(false)
}

impl Bench {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        let value = self.channel.lock().unwrap().read(offset, size).continue_value().unwrap();
        if size == 8 { value } else { value & ((1 << (8 * u32::from(size))) - 1) }
    }

    fn write(&mut self, offset: u64, value: u64) {
        assert!(self.channel.lock().unwrap().write(offset, 1, value).is_continue());
    }

    fn control(&mut self, value: u64) {
        assert!(self.control.write(0, 1, value).is_continue());
    }

    /// Writes the address of LBA28 and the count, then the command.
    fn command(&mut self, code: u8, lba: u64, count: u8) {
        let device = 0xe0 | lba >> 24 & 0xf;
        for (offset, value) in
            [(2, count.into()), (3, lba & 0xff), (4, lba >> 8 & 0xff), (5, lba >> 16 & 0xff), (6, device)]
        {
            self.write(offset, value);
        }
        self.write(7, code.into());
    }

    /// The same for LBA48.
    fn command48(&mut self, code: u8, lba: u64, count: u16) {
        let bytes = lba.to_le_bytes();
        let count = count.to_le_bytes();
        for (offset, value) in [(2, count[1]), (3, bytes[3]), (4, bytes[4]), (5, bytes[5])] {
            self.write(offset, value.into());
        }
        for (offset, value) in [(2, count[0]), (3, bytes[0]), (4, bytes[1]), (5, bytes[2]), (6, 0x40)] {
            self.write(offset, value.into());
        }
        self.write(7, code.into());
    }

    fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    /// The status, which acknowledges the interrupt.
    fn status(&mut self) -> u64 {
        self.read(7, 1)
    }

    /// Reads a sector in words.
    fn sector(&mut self) -> Vec<u16> {
        (0..256).map(|_| self.read(0, 2) as u16).collect()
    }

    fn send_sector(&mut self, byte: u8) {
        for _ in 0..256 {
            let word = u64::from(u16::from_le_bytes([byte, byte]));
            assert!(self.channel.lock().unwrap().write(0, 2, word).is_continue());
        }
    }

    fn on_disk(&self, sector: usize) -> [u8; 2] {
        let bytes = fs::read(self.image.path()).unwrap();
        [bytes[sector * SECTOR], bytes[sector * SECTOR + SECTOR - 1]]
    }
}

const IDLE: u64 = 0x50;
const WANTS_DATA: u64 = 0x58;
const FAILED: u64 = 0x51;

#[test]
fn a_drive_identifies_itself() {
    let mut bench = bench();
    assert_eq!((bench.status(), bench.read(1, 1)), (IDLE, 1));
    bench.command(0xec, 0, 0);
    assert_eq!((bench.interrupts(), bench.status()), (1, WANTS_DATA));
    let words = bench.sector();
    assert_eq!(bench.status(), IDLE);
    assert_eq!((words[1], words[3], words[6]), (2, 16, 63));
    assert_eq!((words[60], words[61], words[100]), (SECTORS as u16, 0, SECTORS as u16));
    assert_eq!((words[49] & 0x200, words[83] & 0x400, words[47]), (0x200, 0x400, 0x8010));
    assert_eq!(&words[27..31], &[0x564d, 0x4d20, 0x4449, 0x534b], "the first byte is the high one");
    let sum = words.iter().flat_map(|word| word.to_le_bytes()).fold(0u8, |sum, byte| sum.wrapping_add(byte));
    assert_eq!((words[255] & 0xff, sum), (0xa5, 0));
}

#[test]
fn sectors_are_read_with_an_interrupt_for_each_block() {
    let mut bench = bench();
    bench.command(0x20, 5, 3);
    for sector in 5..8 {
        assert_eq!((bench.interrupts(), bench.status()), (1, WANTS_DATA));
        assert_eq!(bench.sector()[0], sector);
    }
    assert_eq!((bench.interrupts(), bench.status()), (0, IDLE));
    assert_eq!(bench.read(0, 2), 0xffff, "there is no more data");
    // Blocks of four sectors, and a rest of one.
    bench.command(0xc6, 0, 4);
    assert_eq!((bench.interrupts(), bench.status()), (1, IDLE));
    bench.command(0xc4, 10, 5);
    for sector in 10..15 {
        let interrupts = u64::from(sector == 10 || sector == 14);
        assert_eq!(bench.interrupts(), interrupts, "{sector}");
        assert_eq!((bench.status(), bench.sector()[0]), (WANTS_DATA, sector));
    }
    assert_eq!((bench.interrupts(), bench.status()), (0, IDLE));
}

#[test]
fn lba48_cylinders_and_count_0_reach_what_they_should() {
    let mut bench = bench();
    bench.command48(0x24, 2999, 1);
    assert_eq!((bench.status(), bench.sector()[0]), (WANTS_DATA, 2999));
    bench.control(0x80);
    assert_eq!((bench.read(3, 1), bench.read(4, 1)), (0, 0));
    bench.control(0);
    assert_eq!((bench.read(3, 1), bench.read(4, 1)), (2999 & 0xff, 2999 >> 8));
    // Cylinder 1, head 2, sector 3 of 16 heads and 63 sectors.
    for (offset, value) in [(2, 1), (3, 3), (4, 1), (5, 0), (6, 0xa2), (7, 0x20)] {
        bench.write(offset, value);
    }
    assert_eq!((bench.status(), bench.sector()[0]), (WANTS_DATA, (16 + 2) * 63 + 2));
    // The count 0 means 256, and 65,536 for LBA48, which are more than this disk has.
    bench.command(0x20, 0, 0);
    for sector in 0..256 {
        assert_eq!((bench.status(), bench.sector()[0]), (WANTS_DATA, sector));
    }
    assert_eq!(bench.status(), IDLE);
    bench.command48(0x24, 0, 0);
    assert_eq!((bench.status(), bench.read(1, 1)), (FAILED, 0x10));
    // Another geometry: 4 heads of 10 sectors.
    for (offset, value) in
        [(2, 10), (6, 0xa3), (7, 0x91), (2, 1), (3, 1), (4, 1), (5, 0), (6, 0xa0), (7, 0x20)]
    {
        bench.write(offset, value);
    }
    assert_eq!((bench.status(), bench.sector()[0]), (WANTS_DATA, 40));
}

#[test]
fn sectors_are_written_and_the_first_block_has_no_interrupt() {
    let mut bench = bench();
    bench.command(0x30, 7, 2);
    assert_eq!((bench.interrupts(), bench.status()), (0, WANTS_DATA));
    bench.send_sector(0xaa);
    assert_eq!((bench.interrupts(), bench.status()), (1, WANTS_DATA));
    bench.send_sector(0xbb);
    assert_eq!((bench.interrupts(), bench.status()), (1, IDLE));
    assert_eq!((bench.on_disk(7), bench.on_disk(8), bench.on_disk(9)), ([0xaa; 2], [0xbb; 2], [9, 0]));
    bench.command48(0x34, 2999, 1);
    bench.send_sector(0xcc);
    assert_eq!((bench.status(), bench.on_disk(2999)), (IDLE, [0xcc; 2]));
    bench.command(0xe7, 0, 0);
    assert_eq!((bench.interrupts(), bench.status()), (2, IDLE));
    bench.send_sector(0xdd);
    assert_eq!(bench.on_disk(7), [0xaa; 2], "data that nothing asked for is lost");
}

#[test]
fn errors_have_their_bits_and_the_first_address() {
    let mut bench = bench();
    for (code, lba, error) in [
        (0x20, 2999, 0x10),
        (0x30, 2999, 0x10),
        (0x40, 0xfff_ffff, 0x10),
        // NOP, DEVICE RESET, PACKET, IDENTIFY PACKET DEVICE, READ DMA, and READ MULTIPLE before SET MULTIPLE.
        (0x00, 0, 4),
        (0x08, 0, 4),
        (0xa0, 0, 4),
        (0xa1, 0, 4),
        (0xc8, 0, 4),
        (0xc4, 0, 4),
        (0xff, 0, 4),
    ] {
        bench.command(code, lba, 2);
        assert_eq!((bench.interrupts(), bench.status(), bench.read(1, 1)), (1, FAILED, error), "{code:#x}");
    }
    bench.command(0x20, 2999, 2);
    assert_eq!(
        (bench.read(3, 1), bench.read(4, 1)),
        (SECTORS & 0xff, SECTORS >> 8),
        "the first one that is missing"
    );
    bench.command(0xc6, 0, 3);
    assert_eq!((bench.status(), bench.read(1, 1)), (FAILED, 4), "no power of two");
    // Sector 0 does not exist.
    for (offset, value) in [(2, 1), (3, 0), (6, 0xa0), (7, 0x20)] {
        bench.write(offset, value);
    }
    assert_eq!((bench.status(), bench.read(1, 1)), (FAILED, 0x10));
    bench.command(0x20, 0, 1);
    assert_eq!((bench.status(), bench.read(1, 1)), (WANTS_DATA, 0), "a command clears the error");
}

#[test]
fn a_read_only_disk_refuses_writes_and_a_shorter_file_is_an_error() {
    let mut bench = bench_with(true);
    bench.command(0x30, 1, 1);
    assert_eq!((bench.interrupts(), bench.status(), bench.read(1, 1)), (1, FAILED, 0x44));
    bench.send_sector(0xaa);
    assert_eq!(bench.on_disk(1), [1, 0]);
    fs::File::options().write(true).open(bench.image.path()).unwrap().set_len(1024).unwrap();
    bench.command(0x20, 2, 1);
    assert_eq!((bench.status(), bench.read(1, 1)), (FAILED, 0x40));
}

#[test]
fn accesses_of_other_widths_move_words() {
    let mut bench = bench();
    bench.command(0x20, 0x0102, 2);
    assert_eq!((bench.read(0, 4), bench.read(0, 1)), (0x0102, 0));
    for _ in 0..(512 - 6) / 2 {
        bench.read(0, 2);
    }
    assert_eq!(bench.read(0, 4), 0x0103);
    bench.command(0x30, 0, 1);
    for _ in 0..127 {
        assert!(bench.channel.lock().unwrap().write(0, 4, 0x0403_0201).is_continue());
    }
    assert!(bench.channel.lock().unwrap().write(0, 1, 0xff77).is_continue());
    assert!(bench.channel.lock().unwrap().write(0, 2, 0x1234).is_continue());
    assert_eq!(bench.status(), IDLE);
    let bytes = fs::read(bench.image.path()).unwrap();
    assert_eq!((&bytes[..4], &bytes[508..512]), (&[1, 2, 3, 4][..], &[0x77, 0, 0x34, 0x12][..]));
    // An access to the registers covers one register with each byte.
    bench.write(2, 9);
    assert!(bench.channel.lock().unwrap().write(3, 2, 0x0201).is_continue());
    assert_eq!((bench.read(2, 4), bench.read(6, 4)), (0x0002_0109, 0xffff_50e0));
}

#[test]
fn resets_and_the_diagnostic_show_the_signature() {
    let mut bench = bench();
    for by_control in [true, false] {
        bench.command(0x30, 0x1234, 5);
        bench.interrupts();
        if by_control {
            bench.control(4);
            assert_eq!(bench.status(), 0x80);
            bench.write(7, 0xec);
            assert_eq!(bench.control.read(0, 1).continue_value().unwrap() & 0xff, 0x80);
            bench.control(0);
            assert_eq!(bench.interrupts(), 0);
        } else {
            bench.write(7, 0x90);
            assert_eq!(bench.interrupts(), 1);
        }
        assert_eq!((bench.status(), bench.read(1, 1)), (IDLE, 1));
        assert_eq!((bench.read(2, 4), bench.read(6, 1)), (0x0000_0101, 0xa0));
        assert_eq!(bench.read(0, 2), 0xffff, "the transfer is over");
    }
}

#[test]
fn interrupts_can_be_masked_and_come_later() {
    let mut bench = bench();
    bench.control(2);
    bench.command(0x40, 0, 1);
    assert_eq!(bench.interrupts(), 0);
    bench.control(0);
    assert_eq!(bench.interrupts(), 1);
    bench.control(2);
    bench.command(0x40, 0, 1);
    bench.status();
    bench.control(0);
    assert_eq!(bench.interrupts(), 0, "a read of the status acknowledges it");
}

#[test]
fn a_missing_drive_reads_as_0_and_a_missing_channel_as_ones() {
    let mut bench = bench();
    bench.write(6, 0x10);
    assert_eq!((bench.status(), bench.read(1, 1), bench.read(6, 1)), (0, 0, 0xb0));
    bench.command(0xec, 0, 1);
    bench.write(6, 0x10);
    bench.write(7, 0xec);
    assert_eq!((bench.status(), bench.read(0, 2)), (0, 0xffff));
    bench.write(6, 0);
    assert_eq!(bench.status(), WANTS_DATA, "the command was for the other drive");
    let mut empty = Channel::default();
    for offset in 0..8 {
        assert!(empty.write(offset, 1, 0xec).is_continue());
        assert_eq!(empty.read(offset, 1).continue_value().unwrap() & 0xff, 0xff);
    }
    let mut control = ControlBlock(Arc::new(Mutex::new(empty)));
    assert_eq!(control.read(0, 1).continue_value().unwrap() & 0xff, 0xff);
}

#[test]
fn features_are_set_or_refused() {
    let mut bench = bench();
    for (feature, count, status) in [
        (3, 8, IDLE),
        (3, 0x0c, IDLE),
        (3, 0x45, FAILED),
        (0x82, 0, IDLE),
        (0x02, 0, IDLE),
        (0xaa, 0, IDLE),
        (0x10, 0, FAILED),
    ] {
        bench.write(1, feature);
        bench.command(0xef, 0, count);
        assert_eq!(bench.status(), status, "{feature:#x} {count:#x}");
    }
    bench.command(0xe5, 0, 0);
    assert_eq!((bench.status(), bench.read(2, 1)), (IDLE, 0xff));
}

#[test]
fn an_access_ends_the_run_after_its_deadline() {
    let bench = bench();
    bench.media.lock().unwrap().begin_run(Deadline::after(Some(Duration::ZERO)));
    let mut channel = bench.channel.lock().unwrap();
    for (offset, value) in [(2, 1), (6, 0xe0)] {
        assert!(channel.write(offset, 1, value).is_continue());
    }
    assert!(matches!(channel.write(7, 1, 0x20), ControlFlow::Break(Stop::Timeout(_))));
}

#[test]
fn media_moves_whole_sectors_within_its_buffer() {
    let bench = bench();
    let mut media = bench.media.lock().unwrap();
    let mut large = vec![0; MAX_SECTORS * SECTOR];
    assert!(media.read(0, &mut large).is_ok());
    assert_eq!(large[127 * SECTOR], 127);
    assert!(media.read(0, &mut [0; 100]).is_err());
    assert!(media.write(0, &vec![0; (MAX_SECTORS + 1) * SECTOR]).is_err());
    assert!(media.read(u64::MAX, &mut [0; SECTOR]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_order_of_accesses_hangs_or_panics(
        accesses in prop::collection::vec(
            (0u64..9, prop::sample::select(vec![1u8, 2, 4]), any::<u32>(), any::<bool>()),
            1..300,
        ),
    ) {
        let mut bench = bench();
        for (offset, size, value, is_write) in accesses {
            let mut channel = bench.channel.lock().unwrap();
            let value = u64::from(value);
            match (offset, is_write) {
                (8, true) => {
                    drop(channel);
                    prop_assert!(bench.control.write(0, size, value).is_continue());
                }
                (8, false) => {
                    drop(channel);
                    prop_assert!(bench.control.read(0, size).is_continue());
                }
                (offset, true) => prop_assert!(channel.write(offset, size, value).is_continue()),
                (offset, false) => prop_assert!(channel.read(offset, size).is_continue()),
            }
        }
        // A reset always brings the drive back.
        bench.control(4);
        bench.control(0);
        bench.command(0x20, 1, 1);
        prop_assert_eq!(bench.status(), WANTS_DATA);
        prop_assert_eq!(fs::metadata(bench.image.path()).unwrap().len(), SECTORS * SECTOR as u64);
    }
}
