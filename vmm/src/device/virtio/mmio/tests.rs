#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::device::virtio::registers::{register::*, status::*};
use crate::device::virtio::testing::{
    FEATURES, NOTHING, RAM, echo, get, negotiate, read, rings, soon, start, write,
};
use proptest::prelude::*;

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
        (0xb0, "virtio-echo reserved"),
    ] {
        assert_eq!(device.name(offset).to_string(), name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Registers in any order, over a ring of anything; the device is there afterwards.
    #[test]
    fn whatever_is_written_the_device_starts_again(
        accesses in proptest::collection::vec(
            (
                prop_oneof![0..0x40_u64, Just(0x11_u64), any::<u64>()],
                prop_oneof![Just(4_u8), Just(4), Just(4), 1..9_u8],
                prop_oneof![0..16_u64, 0..RAM, any::<u64>()],
            ),
            0..200,
        ),
        bytes in proptest::collection::vec(any::<u8>(), 0..0x1000),
    ) {
        let (mut device, memory, _) = echo();
        memory.write(Gpa(0x1_0000), &bytes).unwrap();
        memory.write(Gpa(0x1_2000), &bytes).unwrap();
        prop_assert!(negotiate(&mut device, FEATURES));
        for (at, size, value) in accesses {
            let offset = at.wrapping_mul(4);
            prop_assert!(device.write(offset, size, value).is_continue());
            prop_assert!(device.read(offset, size).is_continue());
        }
        let (mut first, _) = rings(&memory);
        start(&mut device, FEATURES, &[&first]);
        first.add(NOTHING);
        write(&mut device, QUEUE_NOTIFY, 0);
        prop_assert!(soon(|| first.used().is_some()));
    }
}

/// Whatever the driver does, the page says what reading the register would.
#[test]
fn a_page_shows_what_the_registers_say() {
    let (mut device, memory, _) = echo();
    let base = Gpa(0x4000_0000);
    let page = GuestMemory::new(&[(base, SIZE)]).unwrap();
    let (receive, _) = rings(&memory);
    let seen = |device: &mut Mmio| {
        for offset in (0..CONFIG).step_by(4) {
            let mut word = [0; 4];
            assert!(page.read(Gpa(base.0 + offset), &mut word));
            assert_eq!(u32::from_le_bytes(word), read(device, offset), "register {offset:#x}");
        }
    };
    device.show(page.clone(), base);
    seen(&mut device);
    let offered = device.offered;
    assert!(negotiate(&mut device, offered));
    write(&mut device, DEVICE_FEATURES_SEL, 1);
    seen(&mut device);
    receive.set_up(&mut device, 1);
    seen(&mut device);
    device.interrupt.used_buffer();
    seen(&mut device);
    write(&mut device, INTERRUPT_ACK, 1);
    device.interrupt.needs_reset(QueueError::Chain("for a test"));
    seen(&mut device);
    write(&mut device, STATUS, 0);
    seen(&mut device);
    let config = device.config.clone();
    let mut shown = vec![0; config.len()];
    assert!(page.read(Gpa(base.0 + CONFIG), &mut shown) && shown == config);
}
