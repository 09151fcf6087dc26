#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::device::virtio::interrupt::Interrupt;
use crate::device::virtio::testing::{self, Buffer, INDIRECT, NEXT, RAM, Ring, WRITE, bytes};
use crate::memory::Gpa;
use proptest::prelude::*;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tempfile::NamedTempFile;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;

// The addresses that the tests use.
const RING: u64 = 0x1_0000;
const HEADER: u64 = 0x2_0000;
const STATUS: u64 = 0x2_1000;
const DATA: u64 = 0x3_0000;
const TABLE: u64 = 0x8_0000;
/// A status byte that no device writes.
const UNTOUCHED: u8 = 0xee;

/// A disk of 64 sectors, each full of its own number, and its driver.
struct Rig {
    image: NamedTempFile,
    block: Block,
    memory: GuestMemory,
    ring: Ring,
    queues: Queues,
    interrupt: Arc<Interrupt>,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let image = NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..64).flat_map(|sector| [sector; 512]).collect();
        fs::write(image.path(), content).unwrap();
        let block = Block::new(Disk::open(image.path(), read_only).unwrap());
        let memory = testing::memory();
        let ring = Ring::new(&memory, RING, QUEUE_SIZE);
        let interrupt = Arc::new(Interrupt::new("virtio-blk").unwrap());
        let queues = Queues::new(vec![Some(ring.queue(&interrupt))]);
        Self { image, block, memory, ring, queues, interrupt }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory.write(Gpa(HEADER), &kind.to_le_bytes()).unwrap();
        self.memory.write(Gpa(HEADER + 8), &sector.to_le_bytes()).unwrap();
        self.memory.write(Gpa(STATUS), &[UNTOUCHED]).unwrap();
    }

    fn notify(&mut self) -> Result<(), QueueError> {
        self.block.notified(0, &mut self.queues)
    }

    /// Performs a request with the data buffers `data`. Returns its status and the number of bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let buffers = [&[Buffer(HEADER, 16, false)], data, &[Buffer(STATUS, 1, true)]].concat();
        let head = self.ring.add(&buffers);
        self.notify().unwrap();
        let (id, written) = self.ring.used().expect("the request is complete");
        assert_eq!((id, self.ring.used()), (head.into(), None));
        (bytes(&self.memory, STATUS, 1)[0], written)
    }

    fn data(&self, len: usize) -> Vec<u8> {
        bytes(&self.memory, DATA, len)
    }
}

#[test]
fn reads_return_the_content_of_the_image() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(IN, 5, &[Buffer(DATA, 1024, true)]), (OK, 1025));
    assert_eq!(rig.data(1024), [[5; 512], [6; 512]].concat());
    assert_eq!(rig.request(IN, 63, &[Buffer(DATA, 512, true)]), (OK, 513));
    assert_eq!(rig.request(IN, 64, &[]), (OK, 1), "an empty read at the end of the disk");
}

#[test]
fn writes_are_in_the_image_after_a_flush() {
    let mut rig = Rig::new(false);
    rig.memory.write(Gpa(DATA), &[0xab; 1024]).unwrap();
    assert_eq!(rig.request(OUT, 62, &[Buffer(DATA, 1024, false)]), (OK, 1));
    assert_eq!(rig.request(FLUSH_REQUEST, 0, &[]), (OK, 1));
    let content = fs::read(rig.image.path()).unwrap();
    assert_eq!((content.len(), &content[62 * 512..]), (64 * 512, [0xab; 1024].as_slice()));
    assert_eq!(content[61 * 512], 61);
}

#[test]
fn a_request_may_have_as_many_buffers_as_the_queue_has_entries() {
    let mut rig = Rig::new(false);
    // 2 + 254 descriptors, with 32 sectors in 254 pieces, backwards in memory.
    let mut buffers: Vec<Buffer> = (0..253).map(|n| Buffer(DATA + (253 - n) * 64, 64, true)).collect();
    buffers.push(Buffer(DATA + 0x8000, 32 * 512 - 253 * 64, true));
    assert_eq!(rig.request(IN, 0, &buffers), (OK, 32 * 512 + 1));
    assert_eq!(bytes(&rig.memory, DATA + 253 * 64, 64), [0; 64]);
    assert_eq!(bytes(&rig.memory, DATA + 64, 64), [31; 64]);
    assert_eq!(bytes(&rig.memory, DATA + 0x8000 + 190, 3), [31, 31, 0]);
}

#[test]
fn the_driver_may_divide_a_request_into_any_buffers() {
    let mut rig = Rig::new(false);
    rig.header(IN, 9);
    // The header in three buffers, an empty buffer, and the status in the last buffer of the data.
    rig.ring.add(&[
        Buffer(HEADER, 3, false),
        Buffer(HEADER + 3, 0, false),
        Buffer(HEADER + 3, 12, false),
        Buffer(HEADER + 15, 1, false),
        Buffer(DATA, 100, true),
        Buffer(DATA + 100, 413, true),
        Buffer(0, 0, true),
    ]);
    rig.notify().unwrap();
    assert_eq!(rig.ring.used(), Some((0, 513)));
    assert_eq!(rig.data(513), [[9; 512].as_slice(), &[OK]].concat());
    // Header and data of a write in one buffer.
    rig.header(OUT, 1);
    rig.memory.write(Gpa(HEADER + 16), &[0xcd; 512]).unwrap();
    rig.ring.add(&[Buffer(HEADER, 528, false), Buffer(STATUS, 1, true)]);
    rig.notify().unwrap();
    assert_eq!(bytes(&rig.memory, STATUS, 1), [OK]);
    assert_eq!(fs::read(rig.image.path()).unwrap()[512..1024], [0xcd; 512]);
}

#[test]
fn a_request_may_be_in_an_indirect_table() {
    let mut rig = Rig::new(false);
    rig.header(IN, 7);
    rig.ring.describe(TABLE, HEADER, 16, NEXT, 1);
    rig.ring.describe(TABLE + 16, DATA, 512, NEXT | WRITE, 2);
    rig.ring.describe(TABLE + 32, STATUS, 1, WRITE, 0);
    rig.ring.set(0, TABLE, 48, INDIRECT, 0);
    rig.ring.publish(0);
    rig.notify().unwrap();
    assert_eq!((rig.ring.used(), rig.data(512)), (Some((0, 513)), vec![7; 512]));
}

#[test]
fn sectors_outside_the_disk_are_an_error() {
    let mut rig = Rig::new(false);
    for (sector, len) in [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512)] {
        assert_eq!(rig.request(IN, sector, &[Buffer(DATA, len, true)]), (IOERR, 1), "{sector}");
        assert_eq!(rig.request(OUT, sector, &[Buffer(DATA, len, false)]), (IOERR, 1), "{sector}");
    }
    assert_eq!(rig.request(IN, 0, &[Buffer(DATA, 100, true)]), (IOERR, 1), "part of a sector");
    assert_eq!(fs::read(rig.image.path()).unwrap().len(), 64 * 512);
}

#[test]
fn buffers_outside_memory_are_an_error() {
    let mut rig = Rig::new(false);
    for start in [RAM, RAM - 511, u64::MAX - 100] {
        assert_eq!(rig.request(IN, 0, &[Buffer(start, 512, true)]), (IOERR, 1));
        assert_eq!(rig.request(OUT, 0, &[Buffer(start, 512, false)]), (IOERR, 1));
    }
    assert_eq!(fs::read(rig.image.path()).unwrap()[..512], [0; 512]);
}

#[test]
fn a_read_only_disk_offers_the_feature_and_refuses_writes() {
    let mut rig = Rig::new(true);
    assert_ne!(rig.block.features() & READ_ONLY, 0);
    assert_eq!(rig.request(OUT, 0, &[Buffer(HEADER, 512, false)]), (IOERR, 1));
    assert_eq!(rig.request(IN, 3, &[Buffer(DATA, 512, true)]), (OK, 513));
    assert_eq!(rig.request(FLUSH_REQUEST, 0, &[]), (OK, 1));
    assert_eq!(fs::read(rig.image.path()).unwrap()[..512], [0; 512]);
    assert_eq!(Rig::new(false).block.features() & READ_ONLY, 0);
}

#[test]
fn the_serial_number_is_the_file_name() {
    let mut rig = Rig::new(false);
    rig.memory.write(Gpa(DATA), &[0xff; 40]).unwrap();
    assert_eq!(rig.request(GET_ID, 0, &[Buffer(DATA, 20, true)]), (OK, 21));
    let name = rig.image.path().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(rig.data(name.len()), name.as_bytes());
    assert_eq!(rig.data(21)[name.len()..], [vec![0; 20 - name.len()], vec![0xff]].concat());
    assert_eq!(rig.request(GET_ID, 0, &[Buffer(DATA, 3, true)]), (OK, 4), "truncated to the buffer");
}

#[test]
fn an_unknown_request_is_unsupported() {
    let mut rig = Rig::new(false);
    for kind in [2, 3, 5, 11, 13, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[Buffer(DATA, 512, true)]), (UNSUPP, 1));
    }
}

#[test]
fn reads_of_the_missing_part_of_a_truncated_image_fail() {
    let mut rig = Rig::new(false);
    rig.image.as_file().set_len(10 * 512).unwrap();
    assert_eq!(rig.request(IN, 9, &[Buffer(DATA, 512, true)]), (OK, 513));
    assert_eq!(rig.request(IN, 9, &[Buffer(DATA, 1024, true)]), (IOERR, 1));
    assert_eq!(rig.request(IN, 20, &[Buffer(DATA, 512, true)]), (IOERR, 1));
    assert_eq!(rig.block.disk.reported(), ["read"]);
}

#[test]
fn the_configuration_has_the_layout_of_the_specification() {
    let config = Rig::new(false).block.config();
    assert_eq!(config[..8], 64_u64.to_le_bytes());
    assert_eq!(config[12..16], 254_u32.to_le_bytes());
    assert_eq!(config[20..], 512_u32.to_le_bytes());
}

#[test]
fn a_batch_of_requests_gets_one_interrupt() {
    let mut rig = Rig::new(false);
    rig.header(IN, 1);
    for _ in 0..80 {
        rig.ring.add(&[Buffer(HEADER, 16, false), Buffer(DATA, 512, true), Buffer(STATUS, 1, true)]);
    }
    rig.notify().unwrap();
    assert_eq!((rig.ring.used_index(), rig.interrupt.event().read().unwrap()), (80, 1));
    assert_eq!(rig.ring.avail_event(), 80, "the device wants a notification of the next request");
    // A driver that does not want an interrupt yet does not get one.
    rig.ring.set_used_event(100);
    rig.ring.add(&[Buffer(HEADER, 16, false), Buffer(DATA, 512, true), Buffer(STATUS, 1, true)]);
    rig.notify().unwrap();
    assert_eq!(rig.ring.used_index(), 81);
    assert!(rig.interrupt.event().read().is_err());
}

#[test]
fn without_flushes_each_write_is_flushed() {
    let mut rig = Rig::new(false);
    rig.block.start(0);
    assert!(rig.block.writes_through);
    assert_eq!(rig.request(OUT, 0, &[Buffer(HEADER, 512, false)]), (OK, 1));
    rig.block.start(FLUSH);
    assert!(!rig.block.writes_through);
}

/// Lets `wrong` fill the ring, and requires that the device refuses it. `what` describes the mistake.
fn breaks(what: &str, wrong: impl FnOnce(&mut Ring)) {
    let mut rig = Rig::new(false);
    rig.header(IN, 0);
    wrong(&mut rig.ring);
    assert!(rig.notify().is_err(), "{what}");
    assert_eq!(rig.ring.used_index(), 0, "{what}");
}

#[test]
fn invalid_chains_break_the_device() {
    breaks("a loop", |ring| {
        ring.set(0, HEADER, 16, NEXT, 1);
        ring.set(1, DATA, 512, NEXT | WRITE, 1);
        ring.publish(0);
    });
    breaks("a head outside the table", |ring| ring.publish(QUEUE_SIZE));
    breaks("the largest head", |ring| ring.publish(u16::MAX));
    breaks("a next outside the table", |ring| {
        ring.set(0, HEADER, 16, NEXT, QUEUE_SIZE);
        ring.publish(0);
    });
    let (header, data, status) =
        (Buffer(HEADER, 16, false), Buffer(DATA, 512, true), Buffer(STATUS, 1, true));
    for (what, buffers) in [
        ("a readable buffer after a writable one", [data, header].as_slice()),
        ("no status", &[header]),
        ("no header", &[status]),
        ("a writable header", &[Buffer(HEADER, 16, true), status]),
        ("half a header", &[Buffer(HEADER, 15, false), status]),
        ("only empty buffers", &[Buffer(HEADER, 0, false), Buffer(STATUS, 0, true)]),
        ("a header partly outside memory", &[Buffer(RAM - 8, 16, false), status]),
        ("a status outside memory", &[header, Buffer(RAM, 1, true)]),
        ("a status at the last address", &[header, Buffer(u64::MAX, u32::MAX, true)]),
        ("more than 4 GiB of buffers", &[header, Buffer(0, u32::MAX, true), status]),
    ] {
        breaks(what, |ring| {
            ring.add(buffers);
        });
    }
}

#[test]
fn invalid_indirect_tables_break_the_device() {
    for (what, at, len) in [
        ("no entry", TABLE, 0),
        ("half an entry", TABLE, 24),
        ("outside memory", RAM, 48),
        ("partly outside memory", RAM - 16, 48),
        ("at the last address", u64::MAX - 15, 48),
        ("too large", TABLE, 16 * 0x1_0000),
    ] {
        breaks(what, |ring| {
            ring.describe(RAM - 16, HEADER, 16, NEXT, 1);
            ring.set(0, at, len, INDIRECT, 0);
            ring.publish(0);
        });
    }
    breaks("a table in a table", |ring| {
        ring.describe(TABLE, TABLE, 16, INDIRECT, 0);
        ring.set(0, TABLE, 16, INDIRECT, 0);
        ring.publish(0);
    });
    breaks("longer than the queue", |ring| {
        for entry in 0..1000 {
            ring.describe(TABLE + entry * 16, DATA, 16, NEXT, entry as u16 + 1);
        }
        ring.describe(TABLE + 16000, STATUS, 1, WRITE, 0);
        ring.set(0, TABLE, 16016, INDIRECT, 0);
        ring.publish(0);
    });
}

#[test]
fn an_index_that_jumps_breaks_the_device() {
    for index in [QUEUE_SIZE + 1, u16::MAX, 1 << 15] {
        breaks("a jump", |ring| ring.set_avail_index(index));
    }
    // A jump by the size of the queue is allowed: it makes the same chain available 256 times.
    let mut rig = Rig::new(false);
    rig.header(IN, 0);
    rig.ring.add(&[Buffer(HEADER, 16, false), Buffer(DATA, 512, true), Buffer(STATUS, 1, true)]);
    rig.ring.set_avail_index(QUEUE_SIZE);
    rig.notify().unwrap();
    assert_eq!(rig.ring.used_index(), QUEUE_SIZE);
}

#[test]
fn a_device_that_is_asked_to_halt_takes_no_further_request() {
    let mut rig = Rig::new(false);
    rig.header(IN, 0);
    rig.ring.add(&[Buffer(HEADER, 16, false), Buffer(DATA, 512, true), Buffer(STATUS, 1, true)]);
    rig.interrupt.halt();
    rig.notify().unwrap();
    assert_eq!(rig.ring.used_index(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// The ring contains mostly valid descriptors.
    #[test]
    fn the_device_returns_for_every_content_of_the_ring(
        descriptors in proptest::collection::vec(
            (
                prop_oneof![Just(HEADER), Just(TABLE), Just(RING), DATA..RAM + 4096, any::<u64>()],
                prop_oneof![Just(0), Just(1), Just(16), Just(48), Just(512), 0..70_000_u32, any::<u32>()],
                prop_oneof![0..8_u16, any::<u16>()],
                prop_oneof![0..48_u16, any::<u16>()],
            ),
            1..48,
        ),
        indirect in proptest::collection::vec((0..RAM, 0..2000_u32, 0..8_u16, 0..40_u16), 0..40),
        heads in proptest::collection::vec(prop_oneof![0..48_u16, any::<u16>()], 0..40),
        index in prop_oneof![Just(None), any::<u16>().prop_map(Some)],
        kind in 0..10_u32,
        sector in prop_oneof![0..70_u64, any::<u64>()],
    ) {
        let (done, returned) = std::sync::mpsc::channel();
        let case = move || {
            let mut rig = Rig::new(false);
            rig.header(kind, sector);
            for (slot, (address, len, flags, next)) in (0..).zip(descriptors) {
                rig.ring.set(slot, address, len, flags, next);
            }
            for (at, (address, len, flags, next)) in (0..).zip(indirect) {
                rig.ring.describe(TABLE + at * 16, address, len, flags, next);
            }
            heads.into_iter().for_each(|head| rig.ring.publish(head));
            if let Some(index) = index {
                rig.ring.set_avail_index(index);
            }
            // Repeated, because a read may overwrite the ring.
            for _ in 0..3 {
                let _ = rig.notify();
            }
            let _ = done.send(fs::metadata(rig.image.path()).unwrap().len());
        };
        let thread = std::thread::spawn(case);
        let size = returned.recv_timeout(Duration::from_secs(20)).expect("the device returns");
        prop_assert_eq!(size, 64 * 512);
        thread.join().unwrap();
    }
}
