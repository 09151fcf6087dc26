#![allow(clippy::arithmetic_side_effects)]

use super::*;
use crate::device::virtio::registers::{register::*, status::*};
use crate::device::virtio::testing::{
    FEATURES, RAM, REQUEST, echo, get, negotiate, read, rings, soon, start, write,
};
use proptest::prelude::*;

#[test]
fn the_identity_features_and_queue_sizes_are_right() {
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
fn only_aligned_words_are_registers() {
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
fn the_configuration_space_allows_every_width_and_ends() {
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
    assert_eq!(get(&mut device, 0x100, 1), 1, "the configuration space is read-only");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (mut device, ..) = echo();
    assert!(negotiate(&mut device, FEATURES | 1 << 3 | 1 << 40));
    assert!(negotiate(&mut device, 1 << 32));
    for wrong in [FEATURES | 1 << 4, FEATURES | 1 << 63, FEATURES & !(1 << 32), 0] {
        assert!(!negotiate(&mut device, wrong), "{wrong:#x}");
        // After the refusal the driver cannot continue.
        write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn features_cannot_be_changed_after_features_ok() {
    let (mut device, memory, log) = echo();
    assert!(negotiate(&mut device, FEATURES));
    write(&mut device, DRIVER_FEATURES_SEL, 0);
    write(&mut device, DRIVER_FEATURES, u32::MAX);
    rings(&memory).0.set_up(&mut device, 0);
    write(&mut device, STATUS, 15);
    assert_eq!(*log.features.lock().unwrap(), [FEATURES]);
}

#[test]
fn status_bits_can_only_be_set() {
    let (mut device, ..) = echo();
    write(&mut device, STATUS, DRIVER_OK);
    write(&mut device, STATUS, FEATURES_OK);
    assert_eq!(read(&mut device, STATUS), 0, "not before DRIVER");
    write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | DEVICE_NEEDS_RESET | 0xffff_ff00);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER, "some bits cannot be set by the driver");
    write(&mut device, STATUS, ACKNOWLEDGE);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER, "only a reset clears bits");
    write(&mut device, STATUS, ACKNOWLEDGE | DRIVER | FAILED);
    assert_eq!(read(&mut device, STATUS), ACKNOWLEDGE | DRIVER | FAILED);
    write(&mut device, STATUS, 0);
    assert_eq!(read(&mut device, STATUS), 0);
}

#[test]
fn queues_can_be_set_up_only_between_features_ok_and_driver_ok() {
    let (mut device, memory, _) = echo();
    let (ring, _) = rings(&memory);
    ring.set_up(&mut device, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 0, "not before FEATURES_OK");
    assert!(negotiate(&mut device, FEATURES));
    ring.set_up(&mut device, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 1);
    write(&mut device, QUEUE_READY, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 0);
    ring.set_up(&mut device, 2);
    assert_eq!(read(&mut device, QUEUE_READY), 0, "the queue does not exist");
    ring.set_up(&mut device, 0);
    write(&mut device, STATUS, 15);
    write(&mut device, QUEUE_READY, 0);
    assert_eq!(read(&mut device, QUEUE_READY), 1, "not after DRIVER_OK");
}

#[test]
fn an_invalid_queue_makes_the_device_need_a_reset() {
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
    first.add(REQUEST);
    write(&mut device, QUEUE_NOTIFY, 0);
    assert!(soon(|| first.used().is_some()), "the device works after a reset");
}

#[test]
fn each_register_has_a_name() {
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

    /// The ring has random content.
    #[test]
    fn the_device_starts_after_any_sequence_of_register_accesses(
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
        first.add(REQUEST);
        write(&mut device, QUEUE_NOTIFY, 0);
        prop_assert!(soon(|| first.used().is_some()));
    }
}

#[test]
fn the_mirror_always_equals_the_registers() {
    let (mut device, memory, _) = echo();
    let base = Gpa(0x4000_0000);
    let page = GuestMemory::new(&[(base, SIZE)]).unwrap();
    let (receive, _) = rings(&memory);
    let check = |device: &mut Mmio| {
        for offset in (0..CONFIG).step_by(4) {
            let mut word = [0; 4];
            assert!(page.read(Gpa(base.0 + offset), &mut word));
            assert_eq!(u32::from_le_bytes(word), read(device, offset), "register {offset:#x}");
        }
    };
    device.show(page.clone(), base);
    check(&mut device);
    let offered = device.offered;
    assert!(negotiate(&mut device, offered));
    write(&mut device, DEVICE_FEATURES_SEL, 1);
    check(&mut device);
    receive.set_up(&mut device, 1);
    check(&mut device);
    device.interrupt.used_buffer();
    check(&mut device);
    write(&mut device, INTERRUPT_ACK, 1);
    device.interrupt.needs_reset("kind".into(), "for a test");
    check(&mut device);
    write(&mut device, STATUS, 0);
    check(&mut device);
    let config = device.config.clone();
    let mut shown = vec![0; config.len()];
    assert!(page.read(Gpa(base.0 + CONFIG), &mut shown) && shown == config);
}
