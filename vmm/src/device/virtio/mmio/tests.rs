#![allow(clippy::arithmetic_side_effects)]

use super::register::*;
use super::status::*;
use super::*;
use crate::device::virtio::testing::{
    self, Buffer, FEATURES, RAM, Ring, negotiate, read, soon, start, write,
};
use crate::device::virtio::{Block, Console, ConsoleInput, Disk, names};
use crate::output::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

/// What a test device went through.
#[derive(Debug, Default)]
struct Log {
    requests: AtomicUsize,
    resets: AtomicUsize,
    closes: AtomicUsize,
    features: Mutex<Vec<u64>>,
}

/// A device with two queues that gives every request back, each only when it is allowed to.
struct Echo {
    log: Arc<Log>,
    /// Hears of each request.
    begun: Option<Sender<()>>,
    /// Says when each may end.
    may_end: Option<Receiver<()>>,
}

impl Backend for Echo {
    fn id(&self) -> u32 {
        42
    }
    fn names(&self) -> &'static Names {
        names!("virtio-echo")
    }
    fn features(&self) -> u64 {
        1 << 3 | 1 << 40
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }
    fn config(&self) -> Vec<u8> {
        (1..=10).collect()
    }
    fn start(&mut self, features: u64) {
        self.log.features.lock().unwrap().push(features);
    }
    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        use crate::device::virtio::queue::Answer;
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|_, _| {
            let _ = self.begun.as_ref().map(|begun| begun.send(()));
            let _ = self.may_end.as_ref().map(|end| end.recv_timeout(Duration::from_secs(10)));
            self.log.requests.fetch_add(1, Ordering::SeqCst);
            Ok(Answer::Done(0))
        })
    }
    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn close(&mut self) {
        self.log.closes.fetch_add(1, Ordering::SeqCst);
    }
}

fn echo() -> (Mmio, GuestMemory, Arc<Log>) {
    let (memory, log) = (testing::memory(), Arc::new(Log::default()));
    let backend = Echo { log: log.clone(), begun: None, may_end: None };
    (Mmio::new(backend, memory.clone()).unwrap(), memory, log)
}

fn rings(memory: &GuestMemory) -> (Ring, Ring) {
    (Ring::new(memory, 0x1_0000, 16), Ring::new(memory, 0x2_0000, 8))
}

/// A read of any width.
fn get(device: &mut Mmio, offset: u64, size: u8) -> u64 {
    match device.read(offset, size) {
        ControlFlow::Continue(value) => value,
        ControlFlow::Break(stop) => panic!("{stop}"),
    }
}

const NOTHING: &[Buffer] = &[Buffer(0x3_0000, 1, false)];

#[test]
fn a_driver_finds_a_modern_device() {
    let (mut device, ..) = echo();
    assert_eq!(read(&mut device, MAGIC_VALUE), 0x7472_6976);
    assert_eq!([VERSION, DEVICE_ID].map(|at| read(&mut device, at)), [2, 42]);
    assert_eq!([STATUS, INTERRUPT_STATUS, CONFIG_GENERATION].map(|at| read(&mut device, at)), [0; 3]);
    let features = [0, 1, 2, u32::MAX].map(|which| {
        write(&mut device, DEVICE_FEATURES_SEL, which);
        read(&mut device, DEVICE_FEATURES)
    });
    assert_eq!(features, [1 << 29 | 1 << 28 | 1 << 3, 1 << 8 | 1, 0, 0]);
    let sizes = [0, 1, 2, u32::MAX].map(|queue| {
        write(&mut device, QUEUE_SEL, queue);
        read(&mut device, QUEUE_NUM_MAX)
    });
    assert_eq!(sizes, [16, 8, 0, 0]);
    assert_eq!([SHM_LEN_LOW, SHM_LEN_LOW + 4].map(|at| read(&mut device, at)), [u32::MAX; 2]);
}

#[test]
fn registers_are_aligned_words() {
    let (mut device, ..) = echo();
    for (offset, size) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (STATUS, 1), (0xfe, 4)] {
        assert_eq!(get(&mut device, offset, size), 0, "{offset:#x} {size}");
    }
    for size in [1, 2, 8] {
        assert!(device.write(STATUS, size, 1).is_continue());
    }
    assert_eq!(read(&mut device, STATUS), 0);
}

#[test]
fn the_configuration_space_has_any_width_and_an_end() {
    let (mut device, ..) = echo();
    for (offset, size, value) in [
        (0x100, 1, 1),
        (0x101, 2, 0x0302),
        (0x104, 4, 0x0807_0605),
        (0x100, 8, 0x0807_0605_0403_0201),
        (0x109, 8, 10),
        (0x10a, 4, 0),
        (0xfff, 8, 0),
        (u64::MAX, 8, 0),
    ] {
        assert_eq!(get(&mut device, offset, size), value, "{offset:#x} {size}");
    }
    assert!(device.write(0x100, 4, 0).is_continue());
    assert_eq!(get(&mut device, 0x100, 1), 1, "nothing there can be written");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (mut device, ..) = echo();
    assert!(negotiate(&mut device, FEATURES | 1 << 3 | 1 << 40));
    assert!(negotiate(&mut device, 1 << 32));
    for wrong in [FEATURES | 1 << 4, FEATURES | 1 << 63, FEATURES & !(1 << 32), 0] {
        assert!(!negotiate(&mut device, wrong), "{wrong:#x}");
        // What was refused leaves no way to go on.
        write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn features_stay_as_they_were_agreed() {
    let (mut device, memory, log) = echo();
    assert!(negotiate(&mut device, FEATURES));
    write(&mut device, DRIVER_FEATURES_SEL, 0);
    write(&mut device, DRIVER_FEATURES, u32::MAX);
    rings(&memory).0.set_up(&mut device, 0);
    write(&mut device, STATUS, 15);
    assert_eq!(*log.features.lock().unwrap(), [FEATURES]);
}

#[test]
fn the_status_goes_forward_only() {
    let (mut device, ..) = echo();
    write(&mut device, STATUS, DRIVER_OK);
    write(&mut device, STATUS, FEATURES_OK);
    assert_eq!(read(&mut device, STATUS), 0, "not before the driver is one");
    write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | DEVICE_NEEDS_RESET | 0xffff_ff00);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER, "some bits are not the driver's");
    write(&mut device, STATUS, ACKNOWLEDGE);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER, "only a reset takes back");
    write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | FAILED);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER | FAILED);
    write(&mut device, STATUS, 0);
    assert_eq!(read(&mut device, STATUS), 0);
}

#[test]
fn queues_are_set_up_in_their_time() {
    let (mut device, memory, _) = echo();
    let (ring, _) = rings(&memory);
    ring.set_up(&mut device, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 0, "not before the features are agreed");
    assert!(negotiate(&mut device, FEATURES));
    ring.set_up(&mut device, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 1);
    write(&mut device, QUEUE_READY, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 0);
    ring.set_up(&mut device, 2);
    assert_eq!(read(&mut device, QUEUE_READY), 0, "there is no such queue");
    ring.set_up(&mut device, 0);
    write(&mut device, STATUS, 15);
    write(&mut device, QUEUE_READY, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 1, "not while the driver is ready");
}

#[test]
fn requests_are_served_and_interrupt() {
    let (mut device, memory, log) = echo();
    let (mut first, mut second) = rings(&memory);
    start(&mut device, FEATURES, &[&first, &second]);
    assert_eq!(read(&mut device, STATUS), 15);
    first.add(NOTHING);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| first.used().is_some()));
    second.add(NOTHING);
    let notifier = device.notifiers().nth(1).unwrap();
    assert_eq!(notifier.0, 1);
    notifier.1.write(1).unwrap();
    assert!(soon(|| second.used().is_some()), "as the kernel does it");
    assert_eq!(log.requests.load(Ordering::SeqCst), 2);
    assert!(soon(|| device.interrupt.event().read().is_ok()));
    assert_eq!(read(&mut device, INTERRUPT_STATUS), 1);
    write(&mut device, INTERRUPT_ACK, 2);
    assert_eq!(read(&mut device, INTERRUPT_STATUS), 1);
    write(&mut device, INTERRUPT_ACK, u32::MAX);
    assert_eq!(read(&mut device, INTERRUPT_STATUS), 0);
    for queue in [2, 99, u32::MAX] {
        write(&mut device, QUEUE_NOTIFY, queue);
    }
}

#[test]
fn what_was_in_a_queue_before_the_driver_was_ready_is_served() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    for _ in 0..3 {
        first.add(NOTHING);
    }
    start(&mut device, FEATURES, &[&first]);
    assert!(soon(|| first.used_index() == 3));
}

#[test]
fn a_driver_without_event_index_is_served_too() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    start(&mut device, 1 << 32, &[&first]);
    for round in 1..5 {
        first.add(NOTHING);
        write(&mut device, QUEUE_NOTIFY, 0);
        assert!(soon(|| first.used_index() == round && device.interrupt.event().read().is_ok()));
    }
}

#[test]
fn a_reset_takes_the_queues_back_and_the_device_starts_again() {
    let (mut device, memory, log) = echo();
    for round in 1..=20 {
        let (mut first, _) = rings(&memory);
        start(&mut device, FEATURES, &[&first]);
        first.add(NOTHING);
        write(&mut device, QUEUE_NOTIFY, 0);
        assert!(soon(|| first.used().is_some()));
        write(&mut device, STATUS, 0);
        assert_eq!(log.resets.load(Ordering::SeqCst), round);
        assert_eq!([STATUS, INTERRUPT_STATUS, QUEUE_READY].map(|at| read(&mut device, at)), [0; 3]);
        first.add(NOTHING);
        write(&mut device, QUEUE_NOTIFY, 0);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(first.used_index(), 1, "nothing is served after a reset");
    }
}

#[test]
fn a_reset_waits_for_the_request_in_hand_and_no_other() {
    let (memory, log) = (testing::memory(), Arc::new(Log::default()));
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let backend = Echo { log: log.clone(), begun: Some(begun), may_end: Some(may_end) };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let (mut first, _) = rings(&memory);
    for _ in 0..10 {
        first.add(NOTHING);
    }
    start(&mut device, FEATURES, &[&first]);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let resetter = std::thread::spawn(move || {
        write(&mut device, STATUS, 0);
        device
    });
    std::thread::sleep(Duration::from_millis(20));
    assert!(!resetter.is_finished());
    end.send(()).unwrap();
    let mut device = resetter.join().unwrap();
    assert_eq!((log.requests.load(Ordering::SeqCst), first.used_index()), (1, 1));
    drop(end);
    let (mut first, _) = rings(&memory);
    first.add(NOTHING);
    start(&mut device, FEATURES, &[&first]);
    assert!(soon(|| first.used().is_some()), "and it starts again");
}

#[test]
fn stopping_leaves_what_is_still_in_the_queue_and_closes_the_device() {
    let (memory, log) = (testing::memory(), Arc::new(Log::default()));
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let backend = Echo { log: log.clone(), begun: Some(begun), may_end: Some(may_end) };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let (mut first, _) = rings(&memory);
    for _ in 0..10 {
        first.add(NOTHING);
    }
    start(&mut device, FEATURES, &[&first]);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let stopper = std::thread::spawn(move || {
        device.stop(&Deadline::after(Some(Duration::ZERO)));
        device
    });
    std::thread::sleep(Duration::from_millis(30));
    end.send(()).unwrap();
    let device = stopper.join().unwrap();
    assert_eq!((first.used_index(), log.closes.load(Ordering::SeqCst)), (1, 1));
    drop(device);
    assert_eq!(log.closes.load(Ordering::SeqCst), 1, "once");
}

#[test]
fn a_queue_that_cannot_be_makes_the_device_need_a_reset() {
    let bad: [(u64, u32); 9] = [
        (QUEUE_NUM, 0),
        (QUEUE_NUM, 3),
        (QUEUE_NUM, 32),
        (QUEUE_NUM, 0x1_0010),
        (QUEUE_DESC_LOW, 0x1_0001),
        (QUEUE_DESC_HIGH, u32::MAX),
        (QUEUE_DRIVER_LOW, RAM as u32),
        (QUEUE_DEVICE_LOW, RAM as u32 - 4),
        (QUEUE_DEVICE_LOW, 0x1_0002),
    ];
    let (mut device, memory, log) = echo();
    for (offset, value) in bad {
        assert!(negotiate(&mut device, FEATURES));
        rings(&memory).0.set_up(&mut device, 0);
        write(&mut device, QUEUE_READY, 0);
        write(&mut device, offset, value);
        write(&mut device, QUEUE_READY, 1);
        write(&mut device, STATUS, 15);
        assert_eq!(read(&mut device, STATUS), 15 | DEVICE_NEEDS_RESET, "{offset:#x} {value:#x}");
        assert_eq!(read(&mut device, INTERRUPT_STATUS), 2);
        assert!(device.interrupt().read().is_ok());
        write(&mut device, QUEUE_NOTIFY, 0);
    }
    assert!(log.features.lock().unwrap().is_empty(), "the device never starts");
    let (mut first, _) = rings(&memory);
    start(&mut device, FEATURES, &[&first]);
    first.add(NOTHING);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| first.used().is_some()), "a reset makes it good");
}

#[test]
fn a_ring_that_lies_makes_the_device_need_a_reset() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    start(&mut device, FEATURES, &[&first]);
    first.set_avail_index(17);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| read(&mut device, STATUS) & DEVICE_NEEDS_RESET != 0));
    assert!(soon(|| device.interrupt().read().is_ok()));
    assert_eq!(read(&mut device, INTERRUPT_STATUS), 2);
    write(&mut device, STATUS, 15);
    assert_eq!(read(&mut device, STATUS), 15 | DEVICE_NEEDS_RESET);
    write(&mut device, STATUS, 0);
    assert_eq!(read(&mut device, STATUS), 0);
}

#[test]
fn the_profile_has_a_name_for_each_place() {
    let (device, ..) = echo();
    for (offset, name) in [
        (MAGIC_VALUE, "virtio-echo identity"),
        (DRIVER_FEATURES, "virtio-echo features"),
        (QUEUE_READY, "virtio-echo queue"),
        (QUEUE_DEVICE_HIGH, "virtio-echo queue"),
        (QUEUE_NOTIFY, "virtio-echo notify"),
        (INTERRUPT_STATUS, "virtio-echo interrupt status"),
        (INTERRUPT_ACK, "virtio-echo interrupt ack"),
        (STATUS, "virtio-echo status"),
        (0x104, "virtio-echo config"),
        (0xb0, "virtio-echo, reserved"),
    ] {
        assert_eq!(device.name(offset), name);
    }
}

#[test]
fn a_disk_behind_the_transport_reads_and_keeps_what_is_written() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), [7; 4096]).unwrap();
    let memory = testing::memory();
    let disk = Disk::open(image.path(), false).unwrap();
    let mut device = Mmio::new(Block::new(disk), memory.clone()).unwrap();
    assert_eq!(get(&mut device, 0x100, 8), 8, "sectors");
    let mut ring = Ring::new(&memory, 0x1_0000, 128);
    start(&mut device, FEATURES | 1 << 9, &[&ring]);
    let (header, data, status) = (0x2_0000, 0x3_0000, 0x2_1000);
    for kind in [0_u32, 1] {
        memory.write(Gpa(header), &kind.to_le_bytes()).unwrap();
        ring.add(&[Buffer(header, 16, false), Buffer(data, 512, kind == 0), Buffer(status, 1, true)]);
        write(&mut device, QUEUE_NOTIFY, 0);
        assert!(soon(|| ring.used().is_some()));
        assert_eq!(testing::bytes(&memory, data, 512), [7; 512]);
        memory.write(Gpa(header + 8), &1_u64.to_le_bytes()).unwrap();
        memory.write(Gpa(data), &[if kind == 0 { 7 } else { 9 }; 512]).unwrap();
    }
    drop(device);
    assert!(Disk::open(image.path(), false).is_ok(), "the lock goes with the device");
}

#[test]
fn a_console_behind_the_transport_gets_what_is_typed() {
    let memory = testing::memory();
    let input = ConsoleInput::new().unwrap();
    let (output, captured) = Output::captured();
    let console = Console::new(output, input.clone(), |stop| panic!("{stop}"));
    let mut device = Mmio::new(console, memory.clone()).unwrap();
    let (mut receive, mut transmit) = (Ring::new(&memory, 0x1_0000, 64), Ring::new(&memory, 0x2_0000, 64));
    input.push(b"early");
    receive.add(&[Buffer(0x3_0000, 64, true)]);
    start(&mut device, FEATURES, &[&receive, &transmit]);
    assert!(soon(|| receive.used() == Some((0, 5))), "what was typed before the driver was ready");
    for round in 0..50 {
        receive.add(&[Buffer(0x3_0000, 64, true)]);
        write(&mut device, QUEUE_NOTIFY, 0);
        input.push(b"late");
        assert!(soon(|| receive.used().is_some()), "{round}");
    }
    memory.write(Gpa(0x3_1000), b"hello").unwrap();
    transmit.add(&[Buffer(0x3_1000, 5, false)]);
    write(&mut device, QUEUE_NOTIFY, 1);
    assert!(soon(|| captured.bytes() == b"hello"));
}
