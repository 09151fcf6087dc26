//! Every address, offset and value that driver and device agree on.
//!
//! All values are little-endian. The tables of `docs/abi.md` are this file in words.

/// What the `magic` field holds: "virt" as a little-endian word.
pub const MAGIC: u32 = 0x7472_6976;

/// GPA of the result word: a guest leaves [`RESULT_VALUE`] here and in RAX (EAX, AX).
pub const RESULT: u64 = 0x400;
/// The value that says a guest has run to its end.
pub const RESULT_VALUE: u64 = 42;

/// GPA at which the embedded guests are linked.
pub const EMBEDDED_CODE: u64 = 0x1000;
/// GPA of the device table, unaligned on purpose, as in the course's skeleton.
pub const DEVICE_TABLE: u64 = 0x1_000A;
/// GPA of the TX queue's buffer (driver to device).
pub const TX_BUFFER: u64 = 0x1_1000;
/// GPA of the RX queue's buffer (device to driver).
pub const RX_BUFFER: u64 = 0x1_2000;
/// GPA of the first byte that a guest may use as it likes.
pub const HEAP: u64 = 0x1_3000;
/// Size of RAM in the SO2 map, and the initial stack pointer: the stack grows down from here.
pub const RAM_SIZE: u64 = 0x10_0000;

/// GPA of the device window: the config table and the queue controls.
pub const WINDOW: u64 = 0x10_0000;
/// Size of the device window, in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;
/// GPA of the doorbell: over the doorbell transport a 4-byte store of a queue's number here has the device look.
pub const DOORBELL: u64 = 0x10_1000;
/// Size of the doorbell's page, in bytes. Only its first word rings.
pub const DOORBELL_SIZE: u64 = 0x1000;

/// What is stored at the doorbell.
pub mod doorbell {
    /// The driver has moved TX head, or changed the config table.
    pub const TX: u32 = 0;
    /// The driver has moved RX tail, or begins to read.
    pub const RX: u32 = 1;
}

/// Offsets in the device window.
pub mod offset {
    /// `u32`, read-only: [`MAGIC`](super::MAGIC).
    pub const MAGIC: u64 = 0x00;
    /// `u16`, read-only: the length of both queues, in bytes.
    pub const MAX_QUEUE_LEN: u64 = 0x04;
    /// `u8`, read-only: the device's status.
    pub const DEVICE_STATUS: u64 = 0x06;
    /// `u8`: the driver's status.
    pub const DRIVER_STATUS: u64 = 0x07;
    /// `u8`: queue selector, 0 or 1, without effect so far.
    pub const QUEUE_SELECTOR: u64 = 0x08;
    /// `u8`: control of queue 0 (TX), without effect so far.
    pub const Q0_CTL: u64 = 0x09;
    /// `u8`: control of queue 1 (RX). Bit 0, [`READS`](super::q1_ctl::READS), says that the driver reads it.
    pub const Q1_CTL: u64 = 0x0A;
    /// First byte after the config table.
    pub const CONFIG_END: u64 = 0x0B;
    /// `u32`, written by the driver: head of the TX queue.
    pub const TX_HEAD: u64 = 0x10;
    /// `u32`, written by the device: tail of the TX queue.
    pub const TX_TAIL: u64 = 0x14;
    /// `u32`, written by the device: head of the RX queue.
    pub const RX_HEAD: u64 = 0x18;
    /// `u32`, written by the driver: tail of the RX queue.
    pub const RX_TAIL: u64 = 0x1C;
    /// First byte after the queue controls.
    pub const QUEUES_END: u64 = 0x20;
}

/// GPAs of the window's fields.
pub mod gpa {
    use super::{WINDOW, offset};

    /// GPA of the field at [`offset::MAGIC`].
    pub const MAGIC: u64 = WINDOW + offset::MAGIC;
    /// GPA of the field at [`offset::MAX_QUEUE_LEN`].
    pub const MAX_QUEUE_LEN: u64 = WINDOW + offset::MAX_QUEUE_LEN;
    /// GPA of the field at [`offset::DEVICE_STATUS`].
    pub const DEVICE_STATUS: u64 = WINDOW + offset::DEVICE_STATUS;
    /// GPA of the field at [`offset::DRIVER_STATUS`].
    pub const DRIVER_STATUS: u64 = WINDOW + offset::DRIVER_STATUS;
    /// GPA of the field at [`offset::QUEUE_SELECTOR`].
    pub const QUEUE_SELECTOR: u64 = WINDOW + offset::QUEUE_SELECTOR;
    /// GPA of the field at [`offset::Q0_CTL`].
    pub const Q0_CTL: u64 = WINDOW + offset::Q0_CTL;
    /// GPA of the field at [`offset::Q1_CTL`].
    pub const Q1_CTL: u64 = WINDOW + offset::Q1_CTL;
    /// GPA of the field at [`offset::TX_HEAD`].
    pub const TX_HEAD: u64 = WINDOW + offset::TX_HEAD;
    /// GPA of the field at [`offset::TX_TAIL`].
    pub const TX_TAIL: u64 = WINDOW + offset::TX_TAIL;
    /// GPA of the field at [`offset::RX_HEAD`].
    pub const RX_HEAD: u64 = WINDOW + offset::RX_HEAD;
    /// GPA of the field at [`offset::RX_TAIL`].
    pub const RX_TAIL: u64 = WINDOW + offset::RX_TAIL;
}

/// Values of the device status field.
pub mod device_status {
    /// Initial, or reset by the driver's `R`.
    pub const RESET: u8 = 0x00;
    /// Configured by the driver's `C`: the device is in the device table.
    pub const CONFIG: u8 = 0x02;
    /// Ready: every byte on the TX queue is data.
    pub const READY: u8 = 0x04;
    /// The driver broke the protocol; the device answers no more.
    ///
    /// Not from the assignment: the value is virtio's DEVICE_NEEDS_RESET (virtio 1.2, section 2.1).
    pub const BROKEN: u8 = 0x40;
}

/// Values of the driver status field.
pub mod driver_status {
    /// The driver has seen the device's reset, or asks a ready device for one.
    pub const ACK: u8 = 0x00;
    /// The driver knows how to drive the device. Optional.
    pub const DRIVER: u8 = 0x02;
    /// The driver is set up and asks for READY.
    pub const DRIVER_OK: u8 = 0x04;
}

/// Bits of the RX queue's control field.
pub mod q1_ctl {
    /// The driver reads this queue: time in which it is empty, and there is no input, is no time that the
    /// guest wastes.
    pub const READS: u8 = 0x01;
}

/// The byte that ends the input on the RX queue: ASCII's end of transmission.
pub const END_OF_INPUT: u8 = 0x04;

/// Commands, single bytes on the TX queue before READY.
pub mod command {
    /// Reset the device.
    pub const RESET: u8 = b'R';
    /// Configure the device.
    pub const CONFIG: u8 = b'C';
}

/// Length of both queues unless the user says otherwise, in bytes.
pub const DEFAULT_QUEUE_LEN: u16 = 256;
/// Shortest queue, in bytes. It holds one byte: a slot is always free.
pub const MIN_QUEUE_LEN: u16 = 2;
/// Longest queue, in bytes: the buffers are a page each.
pub const MAX_QUEUE_LEN: u16 = 4096;

/// Number of addresses that the device table has room for.
pub const TABLE_LEN: u16 = 10;
/// Offset of the first address in the device table; the `u16` count is at 0. C's layout of
/// `struct { uint16_t count; uint64_t device_addresses[10]; }`.
pub const TABLE_ADDRESSES: u64 = 8;

// The areas do not overlap, and each word of the window is aligned.
const _: () = {
    let table_end = DEVICE_TABLE + TABLE_ADDRESSES + 8 * TABLE_LEN as u64;
    assert!(table_end <= TX_BUFFER);
    assert!(TX_BUFFER + MAX_QUEUE_LEN as u64 <= RX_BUFFER);
    assert!(RX_BUFFER + MAX_QUEUE_LEN as u64 <= HEAP);
    assert!(HEAP < RAM_SIZE && RAM_SIZE <= WINDOW);
    assert!(offset::CONFIG_END <= offset::TX_HEAD && offset::QUEUES_END <= WINDOW_SIZE);
    assert!(WINDOW + WINDOW_SIZE <= DOORBELL);
    assert!(WINDOW.is_multiple_of(4) && offset::TX_HEAD.is_multiple_of(4));
    assert!(MIN_QUEUE_LEN <= DEFAULT_QUEUE_LEN && DEFAULT_QUEUE_LEN <= MAX_QUEUE_LEN);
};
