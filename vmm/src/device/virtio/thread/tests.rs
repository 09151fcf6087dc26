#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::console::host::Port as _;
use crate::console::output::Output;
use crate::device::bus::Device as _;
use crate::device::virtio::interrupt::CONFIG_CHANGE;
use crate::device::virtio::registers::register::*;
use crate::device::virtio::registers::status::*;
use crate::device::virtio::testing::{
    Buffer, Echo, FEATURES, Log, REQUEST, Ring, bytes, echo, get, memory, read, rings, soon, start, write,
};
use crate::device::virtio::{Block, ConsoleDevice, ConsoleInput, ConsolePort, Disk, Mmio};
use crate::memory::Gpa;
use crate::shutdown::StopHandle;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Instant;

/// Begins a run of `device`. Returns the handle through which the device ends it.
fn begin_run(device: &mut Mmio, deadline: Deadline) -> Arc<StopHandle> {
    let stop_handle = Arc::new(StopHandle::new().unwrap());
    device.begin_run(deadline, stop_handle.clone());
    stop_handle
}

#[test]
fn requests_are_served_and_interrupt() {
    let (mut device, memory, log) = echo();
    let (mut first, mut second) = rings(&memory);
    start(&mut device, FEATURES, &[&first, &second]);
    assert_eq!(read(&mut device, STATUS), 15);
    first.add(REQUEST);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| first.used().is_some()));
    second.add(REQUEST);
    let notifier = device.notifiers().nth(1).unwrap();
    assert_eq!(notifier.0, 1);
    notifier.1.write(1).unwrap();
    assert!(soon(|| second.used().is_some()), "notified as the kernel does it");
    assert_eq!(log.requests.load(Ordering::SeqCst), 2);
    assert!(soon(|| device.interrupt().read().is_ok()));
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
fn requests_queued_before_the_driver_was_ready_are_served() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    for _ in 0..3 {
        first.add(REQUEST);
    }
    start(&mut device, FEATURES, &[&first]);
    assert!(soon(|| first.used_index() == 3));
}

#[test]
fn a_driver_without_event_index_is_served() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    start(&mut device, 1 << 32, &[&first]);
    for round in 1..5 {
        first.add(REQUEST);
        write(&mut device, QUEUE_NOTIFY, 0);
        assert!(soon(|| first.used_index() == round && device.interrupt().read().is_ok()));
    }
}

#[test]
fn after_a_reset_the_device_can_start_again() {
    let (mut device, memory, log) = echo();
    for round in 1..=20 {
        let (mut first, _) = rings(&memory);
        start(&mut device, FEATURES, &[&first]);
        first.add(REQUEST);
        write(&mut device, QUEUE_NOTIFY, 0);
        assert!(soon(|| first.used().is_some()));
        let before = log.resets.load(Ordering::SeqCst);
        write(&mut device, STATUS, 0);
        assert_eq!(log.resets.load(Ordering::SeqCst), before + 1, "{round}");
        assert_eq!([STATUS, INTERRUPT_STATUS, QUEUE_READY].map(|at| read(&mut device, at)), [0; 3]);
        first.add(REQUEST);
        write(&mut device, QUEUE_NOTIFY, 0);
        thread::sleep(Duration::from_millis(1));
        assert_eq!(first.used_index(), 1, "nothing is served after a reset");
    }
}

#[test]
fn a_reset_waits_for_the_current_request_only() {
    let (memory, log) = (memory(), Arc::new(Log::default()));
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let backend = Echo { log: log.clone(), begun: Some(begun), may_end: Some(may_end), must_be_heard: false };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let (mut first, _) = rings(&memory);
    for _ in 0..10 {
        first.add(REQUEST);
    }
    start(&mut device, FEATURES, &[&first]);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let resetter = thread::spawn(move || {
        write(&mut device, STATUS, 0);
        device
    });
    thread::sleep(Duration::from_millis(20));
    assert!(!resetter.is_finished());
    end.send(()).unwrap();
    let mut device = resetter.join().unwrap();
    assert_eq!((log.requests.load(Ordering::SeqCst), first.used_index()), (1, 1));
    drop(end);
    let (mut first, _) = rings(&memory);
    first.add(REQUEST);
    start(&mut device, FEATURES, &[&first]);
    assert!(soon(|| first.used().is_some()), "the device starts again");
}

#[test]
fn a_stop_completes_the_current_request_only_and_closes_the_device() {
    let (memory, log) = (memory(), Arc::new(Log::default()));
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let backend = Echo { log: log.clone(), begun: Some(begun), may_end: Some(may_end), must_be_heard: false };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let (mut first, _) = rings(&memory);
    for _ in 0..10 {
        first.add(REQUEST);
    }
    start(&mut device, FEATURES, &[&first]);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let stopper = thread::spawn(move || {
        begin_run(&mut device, Deadline::after(Some(Duration::ZERO)));
        device.stop().unwrap();
        device
    });
    thread::sleep(Duration::from_millis(30));
    end.send(()).unwrap();
    let device = stopper.join().unwrap();
    assert_eq!((first.used_index(), log.closes.load(Ordering::SeqCst)), (1, 1));
    drop(device);
    assert_eq!(log.closes.load(Ordering::SeqCst), 1, "once");
}

#[test]
fn a_device_that_cannot_continue_ends_the_run() {
    let (memory, log) = (memory(), Arc::new(Log::default()));
    // The test drops its end of the channel, and the device panics.
    let (begun, has_begun) = mpsc::channel();
    drop(has_begun);
    let backend = Echo { log, begun: Some(begun), may_end: None, must_be_heard: true };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let stop_handle = begin_run(&mut device, Deadline::default());
    let (mut first, _) = rings(&memory);
    first.add(REQUEST);
    start(&mut device, FEATURES, &[&first]);
    assert!(soon(|| stop_handle.has_ended()));
    let Some(Stop::HostFailed(why)) = stop_handle.reason() else { panic!() };
    assert!(why.to_string().starts_with("virtio-echo cannot continue: its thread panicked"), "{why}");
    assert!(device.stop().is_ok());
}

#[test]
fn a_device_that_fails_while_it_stops_has_given_the_reason_when_it_has_stopped() {
    let (memory, log) = (memory(), Arc::new(Log::default()));
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    let backend = Echo { log, begun: Some(begun), may_end: Some(may_end), must_be_heard: true };
    let mut device = Mmio::new(backend, memory.clone()).unwrap();
    let stop_handle = begin_run(&mut device, Deadline::default());
    let (mut first, _) = rings(&memory);
    first.add(REQUEST);
    start(&mut device, FEATURES, &[&first]);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let stopper = thread::spawn(move || device.stop());
    thread::sleep(Duration::from_millis(30));
    assert!(!stopper.is_finished() && !stop_handle.has_ended());
    drop(end);
    stopper.join().unwrap().unwrap();
    assert!(matches!(stop_handle.reason(), Some(Stop::HostFailed(_))), "{:?}", stop_handle.reason());
}

#[test]
fn an_invalid_ring_makes_the_device_need_a_reset() {
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
fn a_mistake_from_before_a_reset_does_not_stop_the_device_after_it() {
    let (mut device, memory, _) = echo();
    let (mut first, _) = rings(&memory);
    let interrupt = device.shared_interrupt();
    let delayed = interrupt.delay_reports();
    start(&mut device, FEATURES, &[&first]);
    first.set_avail_index(17);
    write(&mut device, QUEUE_NOTIFY, 0);
    // The thread finds the mistake meanwhile, and waits before it reports it.
    thread::sleep(Duration::from_millis(100));
    write(&mut device, STATUS, 0);
    let (mut first, _) = rings(&memory);
    start(&mut device, FEATURES, &[&first]);
    drop(delayed);
    first.add(REQUEST);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| first.used().is_some()));
    assert_eq!(read(&mut device, STATUS), 15);
}

#[test]
fn a_disk_behind_the_transport_reads_and_writes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), [7; 4096]).unwrap();
    let memory = memory();
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
        assert_eq!(bytes(&memory, data, 512), [7; 512]);
        memory.write(Gpa(header + 8), &1_u64.to_le_bytes()).unwrap();
        memory.write(Gpa(data), &[if kind == 0 { 7 } else { 9 }; 512]).unwrap();
    }
    drop(device);
    assert!(Disk::open(image.path(), false).is_ok(), "the drop of the device unlocks the image");
}

#[test]
fn a_console_behind_the_transport_receives_and_transmits() {
    let memory = memory();
    let input = ConsoleInput::new().unwrap();
    let (output, captured) = Output::captured();
    let console = ConsoleDevice::new(output, input.clone(), None);
    let mut device = Mmio::new(console, memory.clone()).unwrap();
    let (mut receive, mut transmit) = (Ring::new(&memory, 0x1_0000, 64), Ring::new(&memory, 0x2_0000, 64));
    input.push(b"early");
    receive.add(&[Buffer(0x3_0000, 64, true)]);
    start(&mut device, FEATURES, &[&receive, &transmit]);
    assert!(soon(|| receive.used() == Some((0, 5))), "input from before the driver was ready");
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

/// Linux throws input away until it has registered its console.
#[test]
fn a_console_gets_input_and_the_size_of_the_terminal_when_its_driver_has_started() {
    let memory = memory();
    let input = ConsoleInput::new().unwrap();
    let (output, _captured) = Output::captured();
    let console = ConsoleDevice::new(output, input.clone(), Some((80, 25)));
    let device = Arc::new(Mutex::new(Mmio::new(console, memory.clone()).unwrap()));
    let mut port = ConsolePort { input, device: device.clone() };
    let (mut receive, transmit) = (Ring::new(&memory, 0x1_0000, 64), Ring::new(&memory, 0x2_0000, 64));
    receive.add(&[Buffer(0x3_0000, 64, true)]);
    assert_eq!((port.push(b"early"), port.resize(132, 43)), (0, false), "there is no driver");
    let locked = || device.lock().unwrap();
    assert_eq!(locked().read(0x100, 4).continue_value(), Some(80 | 25 << 16));
    let before = Instant::now();
    start(&mut locked(), FEATURES | 1, &[&receive, &transmit]);
    let told = (port.push(b""), port.resize(132, 43));
    assert!(told == (0, false) || before.elapsed() > Duration::from_millis(150), "the driver starts");
    assert!(told.1 || soon(|| port.resize(132, 43)), "it has started");
    assert_eq!(locked().read(0x100, 4).continue_value(), Some(132 | 43 << 16));
    assert_eq!(locked().read(INTERRUPT_STATUS, 4).continue_value(), Some(CONFIG_CHANGE.into()));
    assert_eq!(locked().read(CONFIG_GENERATION, 4).continue_value(), Some(1));
    assert_eq!(port.push(b"late"), 4);
    assert!(soon(|| receive.used() == Some((0, 4))));
    write(&mut locked(), STATUS, 0);
    assert_eq!(port.push(b"later"), 0, "the driver is gone");
}

/// A driver that prints without a pause gets its input, too.
#[test]
fn a_console_driver_starts_again_with_each_use_of_its_queues() {
    let input = ConsoleInput::new().unwrap();
    assert!(!input.is_started());
    input.note_use(true);
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(10));
        input.note_use(false);
        assert!(!input.is_started());
    }
    assert!(soon(|| input.is_started()));
    input.note_use(false);
    assert!(input.is_started(), "it stays so");
}

#[test]
fn a_console_without_a_reader_delays_a_reset_only_until_the_deadline() {
    let memory = memory();
    let (_reader, pipe) = io::pipe().unwrap();
    let deadline = Deadline::after(Some(Duration::from_millis(100)));
    let output = Output::new(std::fs::File::from(std::os::fd::OwnedFd::from(pipe)), false);
    output.set_deadline(deadline.clone());
    let console = ConsoleDevice::new(output, ConsoleInput::new().unwrap(), None);
    let mut device = Mmio::new(console, memory.clone()).unwrap();
    let stop_handle = begin_run(&mut device, deadline);
    let (receive, mut transmit) = (Ring::new(&memory, 0x1_0000, 64), Ring::new(&memory, 0x2_0000, 64));
    // More than fits into a pipe.
    transmit.add(&[Buffer(0x4_0000, 0x8_0000, false)]);
    start(&mut device, FEATURES, &[&receive, &transmit]);
    thread::sleep(Duration::from_millis(20));
    let resetter = thread::spawn(move || write(&mut device, STATUS, 0));
    assert!(soon(|| resetter.is_finished()));
    assert!(soon(|| matches!(stop_handle.reason(), Some(Stop::Timeout(_)))));
}

#[test]
fn random_writes_to_the_ring_block_neither_the_device_nor_a_reset() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 16).unwrap();
    let memory = memory();
    let mut device = Mmio::new(Block::new(Disk::open(image.path(), false).unwrap()), memory.clone()).unwrap();
    // A linear congruential generator: every run uses the same numbers.
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let begun = Instant::now();
    for _ in 0..200 {
        let mut ring = Ring::new(&memory, 0x1_0000, 64);
        memory.write(Gpa(0x2_0000), &[0; 16]).unwrap();
        start(&mut device, FEATURES, &[&ring]);
        for _ in 0..40 {
            ring.add(&[Buffer(0x2_0000, 16, false), Buffer(0x3_0000, 512, true), Buffer(0x2_1000, 1, true)]);
            write(&mut device, QUEUE_NOTIFY, 0);
            let at = 0x1_0000 + random() % 0x4000;
            memory.write(Gpa(at), &random().to_le_bytes()).unwrap();
        }
        write(&mut device, STATUS, 0);
        assert_eq!(read(&mut device, STATUS), 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}
