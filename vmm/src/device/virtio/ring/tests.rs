#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::device::virtio::testing::{self, DriverRing, RAM};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

const BASE: u64 = 0x1_0000;
const SIZE: u16 = 8;

fn rings(event_idx: bool) -> (DriverRing, Ring) {
    let driver = DriverRing::new(&testing::memory(), BASE, SIZE);
    let ring = driver.ring(event_idx);
    (driver, ring)
}

/// The result of a queue with this layout and at most 8 entries.
fn check(change: impl FnOnce(&mut Layout)) -> Result<Ring, RingError> {
    let mut layout = Layout { size: 8, descriptors: BASE, driver: 0x2_0000, device: 0x3_0000 };
    change(&mut layout);
    Ring::new(testing::memory(), &layout, SIZE, true)
}

#[test]
fn the_size_is_a_power_of_two_up_to_the_maximum() {
    for size in [1, 2, 4, 8] {
        assert_eq!(check(|layout| layout.size = size).unwrap().size(), size as u16);
    }
    for size in [0, 3, 7, 9, 16, 0x8000, 0x1_0000, 0x1_0008, u32::MAX] {
        let error = check(|layout| layout.size = size).unwrap_err();
        assert_eq!(error, RingError::Size { size, max: SIZE });
        assert_eq!(
            error.to_string(),
            format!("the size of a queue is {size}, but must be a power of two up to 8")
        );
    }
}

#[test]
fn the_areas_are_aligned() {
    for start in [BASE + 1, BASE + 8, BASE + 15] {
        let error = check(|layout| layout.descriptors = start).unwrap_err();
        assert_eq!(error, RingError::Alignment { area: Area::Descriptors, start });
    }
    let error = check(|layout| layout.driver = BASE + 1).unwrap_err();
    assert_eq!(error, RingError::Alignment { area: Area::Driver, start: BASE + 1 });
    for start in [BASE + 1, BASE + 2] {
        let error = check(|layout| layout.device = start).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the device's ring is at {start:#x}, which is not a multiple of 4")
        );
    }
    assert!(
        check(|layout| layout.driver = BASE + 2).is_ok() && check(|layout| layout.device = BASE + 4).is_ok()
    );
}

#[test]
fn the_areas_are_in_memory_to_the_byte() {
    // The areas have 128, 22 and 70 bytes.
    let refused = |area, start, change: fn(&mut Layout, u64)| {
        let error = check(|layout| change(layout, start)).unwrap_err();
        assert_eq!(error, RingError::Outside { area, start });
    };
    for start in [RAM - 112, RAM, 1 << 63, u64::MAX - 127, u64::MAX - 15] {
        refused(Area::Descriptors, start, |layout, start| layout.descriptors = start);
    }
    for start in [RAM - 20, RAM, 1 << 63, u64::MAX - 21, u64::MAX - 1] {
        refused(Area::Driver, start, |layout, start| layout.driver = start);
    }
    for start in [RAM - 68, RAM, 1 << 63, u64::MAX - 71, u64::MAX - 3] {
        refused(Area::Device, start, |layout, start| layout.device = start);
    }
    assert!(check(|layout| layout.descriptors = RAM - 128).is_ok());
    assert!(check(|layout| (layout.descriptors, layout.driver, layout.device) = (0, 0, 0)).is_ok());
}

#[test]
fn rings_at_the_end_of_memory_work() {
    let memory = testing::memory();
    for (driver, device) in [(RAM - 22, 0x3_0000), (0x2_0000, RAM - 72)] {
        let layout = Layout { size: 8, descriptors: 0, driver, device };
        let mut ring = Ring::new(memory.clone(), &layout, SIZE, true).unwrap();
        // The last entry, with the event indices after it.
        (ring.next_available, ring.next_used) = (7, 7);
        assert!(memory.store_u16(Gpa(driver + 2), 8) && memory.store_u16(Gpa(driver + 18), 5));
        assert!(memory.store_u16(Gpa(driver + 20), 7));
        assert_eq!(ring.take(), Ok(Some(5)));
        ring.add_used(5, 0x0403_0201).unwrap();
        assert_eq!(testing::bytes(&memory, device + 4 + 56, 8), [5, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!((memory.load_u16(Gpa(device + 2)), ring.needs_interrupt(7)), (Some(8), Ok(true)));
        assert_eq!((ring.enable_notification(), memory.load_u16(Gpa(device + 68))), (Ok(false), Some(8)));
    }
}

#[test]
fn the_indices_go_around() {
    for event_idx in [false, true] {
        let (mut driver, mut ring) = rings(event_idx);
        assert_eq!(ring.take(), Ok(None));
        for round in 0..70_000_u32 {
            let head = (round * 3 % 8) as u16;
            driver.publish(head);
            assert_eq!((ring.take(), ring.take()), (Ok(Some(head)), Ok(None)));
            ring.add_used(head, round).unwrap();
            assert_eq!((driver.used(), ring.next_used()), (Some((head.into(), round)), (round + 1) as u16));
            assert_eq!(ring.enable_notification(), Ok(false));
            assert!(!event_idx || driver.avail_event() == (round + 1) as u16);
        }
        for head in 0..SIZE {
            driver.publish(head);
        }
        assert_eq!(ring.enable_notification(), Ok(true));
        for head in 0..SIZE {
            assert_eq!(ring.take(), Ok(Some(head)));
        }
    }
}

#[test]
fn an_index_that_runs_away_is_refused() {
    for start in [0, 5, u16::MAX - 3] {
        for (waiting, is_refused) in [(1, false), (8, false), (9, true), (u16::MAX, true), (0x8000, true)] {
            let (mut driver, mut ring) = rings(true);
            ring.next_available = start;
            driver.set_avail_index(start.wrapping_add(waiting));
            let taken = ring.take();
            if is_refused {
                assert_eq!(taken, Err(RingError::TooFarAhead { waiting, size: SIZE }));
            }
            assert_eq!((taken.is_err(), ring.next_available == start), (is_refused, is_refused));
        }
    }
    let error = RingError::TooFarAhead { waiting: 9, size: 8 }.to_string();
    assert_eq!(error, "the index of the driver's ring is 9 entries ahead, but the queue has 8");
}

#[test]
fn a_chain_that_is_put_back_is_taken_again() {
    let (mut driver, mut ring) = rings(true);
    driver.publish(3);
    for _ in 0..3 {
        assert_eq!(ring.take(), Ok(Some(3)));
        ring.put_back();
    }
    assert_eq!((ring.enable_notification(), driver.avail_event()), (Ok(true), 0));
    assert_eq!((ring.take(), ring.take()), (Ok(Some(3)), Ok(None)));
}

#[test]
fn notifications_use_the_flags_or_the_event_index() {
    let (mut driver, mut ring) = rings(false);
    ring.disable_notification().unwrap();
    assert_eq!((driver.flags(), driver.avail_event()), (1, 0));
    driver.publish(0);
    assert_eq!((ring.enable_notification(), driver.flags()), (Ok(true), 0));
    ring.take().unwrap();
    assert_eq!((ring.enable_notification(), driver.avail_event()), (Ok(false), 0));

    let (mut driver, mut ring) = rings(true);
    driver.publish(0);
    ring.take().unwrap();
    ring.disable_notification().unwrap();
    assert_eq!((driver.flags(), driver.avail_event()), (0, 0));
    assert_eq!((ring.enable_notification(), driver.flags(), driver.avail_event()), (Ok(false), 0, 1));
}

#[test]
fn interrupts_use_the_flags_or_the_event_index() {
    for (event_idx, flags, event, wanted) in [
        (false, 0, 7, true),
        (false, 1, 0, false),
        (false, 2, 0, true),
        (true, 1, 0, true),
        (true, 1, 1, true),
        (true, 0, 2, false),
        (true, 0, u16::MAX, false),
    ] {
        let (driver, mut ring) = rings(event_idx);
        driver.set_flags(flags);
        driver.set_used_event(event);
        assert_eq!(ring.needs_interrupt(0), Ok(false), "nothing is used");
        ring.add_used(0, 0).unwrap();
        ring.add_used(1, 0).unwrap();
        assert_eq!(ring.needs_interrupt(0), Ok(wanted), "{event_idx} {flags} {event}");
    }
}

#[test]
fn an_event_is_passed_only_between_the_indices() {
    for before in [0, 1, 100, u16::MAX - 1, u16::MAX] {
        let passed = |event: u16, count: u16| {
            has_passed(before.wrapping_add(event), before, before.wrapping_add(count))
        };
        assert!(passed(0, 1) && !passed(1, 1) && !passed(u16::MAX, 1) && !passed(0x8000, 1));
        assert!(passed(0, 5) && passed(4, 5) && !passed(5, 5) && !passed(u16::MAX, 5));
        assert!(passed(0, 0x8000) && passed(0x7fff, 0x8000) && !passed(0x8000, 0x8000));
        assert!(passed(0, u16::MAX) && passed(0xfffe, u16::MAX) && !passed(0xffff, u16::MAX));
        assert!(!passed(0, 0), "no entry");
    }
}

/// A notification or an interrupt. A thread waits for it at most ten seconds.
#[derive(Default)]
struct Doorbell(AtomicBool);

impl Doorbell {
    fn ring(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Drops a signal that came too early.
    fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    #[track_caller]
    fn wait(&self) {
        let begun = Instant::now();
        while !self.0.load(Ordering::Acquire) {
            assert!(begun.elapsed() < Duration::from_secs(10), "a signal is lost");
            thread::yield_now();
        }
    }
}

const ROUNDS: u16 = if cfg!(tsan) { 5_000 } else { 60_000 };

/// The driver's thread: makes `ROUNDS` chains available, and notifies the device only if the ring says so.
fn drive(mut driver: DriverRing, event_idx: bool, notification: &Doorbell, interrupt: &Doorbell, size: u16) {
    let mut is_waited_for = 0..ROUNDS;
    for round in 0..ROUNDS {
        driver.publish(round % size);
        fence(Ordering::SeqCst);
        let wanted = match event_idx {
            true => has_passed(driver.avail_event(), round, round + 1),
            false => driver.flags() == 0,
        };
        if wanted {
            notification.ring();
        }
        // Waits if the ring is full, and after the last round for all chains.
        while is_waited_for.start + size <= round + 1 || (round + 1 == ROUNDS && !is_waited_for.is_empty()) {
            interrupt.clear();
            driver.set_used_event(is_waited_for.start);
            fence(Ordering::SeqCst);
            if driver.used_index() == is_waited_for.start {
                interrupt.wait();
            }
            while let Some(used) = driver.used() {
                let next = u32::from(is_waited_for.next().unwrap() % size);
                assert_eq!(used, (next, next * 3));
            }
        }
    }
}

/// The device's thread: returns `ROUNDS` chains, and sleeps while there is none.
fn serve(ring: &mut Ring, notification: &Doorbell, interrupt: &Doorbell) {
    loop {
        ring.disable_notification().unwrap();
        let before = ring.next_used();
        while let Some(head) = ring.take().unwrap() {
            ring.add_used(head, u32::from(head) * 3).unwrap();
        }
        if ring.needs_interrupt(before).unwrap() {
            interrupt.ring();
        }
        if ring.next_used() == ROUNDS {
            return;
        }
        notification.clear();
        if !ring.enable_notification().unwrap() {
            notification.wait();
        }
    }
}

#[test]
fn a_driver_on_another_thread_loses_no_chain_and_no_signal() {
    let (notification, interrupt) = (Doorbell::default(), Doorbell::default());
    for event_idx in [false, true] {
        for size in [1, 2, SIZE] {
            let driver = DriverRing::new(&testing::memory(), BASE, size);
            let mut ring = driver.ring(event_idx);
            notification.clear();
            interrupt.clear();
            thread::scope(|scope| {
                scope.spawn(|| drive(driver, event_idx, &notification, &interrupt, size));
                serve(&mut ring, &notification, &interrupt);
            });
        }
    }
}

/// The guest can use the rings of one device as a buffer of another one, so two threads write them. ThreadSanitizer would
/// report a race here.
#[test]
fn another_device_may_write_the_rings() {
    let memory = testing::memory();
    let driver = DriverRing::new(&memory, BASE, SIZE);
    let Layout { driver: avail, device: used, .. } = driver.layout();
    let is_over = AtomicBool::new(false);
    let mut taken = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in (0..=u8::MAX).cycle() {
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                // Whole rings, in copies of several widths. The entries are `byte`, and so are both bytes of the index.
                for (start, len) in [(avail, 22), (used, 70), (avail + 1, 3), (used + 1, 9)] {
                    memory.write(Gpa(start), &vec![byte; len]).unwrap();
                }
                assert!(memory.store_u16(Gpa(avail + 2), u16::from(byte % 8)));
                testing::bytes(&memory, avail, 22);
                testing::bytes(&memory, used, 70);
            }
        });
        let begun = Instant::now();
        while taken < 1_000 && begun.elapsed() < Duration::from_secs(10) {
            for event_idx in [false, true] {
                let mut ring = driver.ring(event_idx);
                while let Ok(Some(head)) = ring.take() {
                    taken += 1;
                    ring.add_used(head, 7).unwrap();
                    ring.needs_interrupt(0).unwrap();
                }
                ring.disable_notification().unwrap();
                ring.enable_notification().unwrap();
            }
        }
        is_over.store(true, Ordering::Release);
    });
    assert!(taken >= 1_000, "the device takes what it finds: {taken}");
}
