//! The addresses, offsets and values of the protocol (`docs/abi.md`, sections 2 and 4).
//!
//! All values are little-endian. All addresses are guest physical addresses (GPA), and all lengths are in bytes.
//!
//! # The handshake
//!
//! The driver (`docs/abi.md`, section 4.5)
//!
//! 1. reads [`offset::MAGIC`] and stops if it is not [`MAGIC`]; reads [`offset::MAX_QUEUE_LEN`];
//! 2. pushes [`command::RESET`] on TX;
//! 3. waits until TX tail equals TX head and the device status is [`device_status::RESET`];
//! 4. writes [`driver_status::ACK`] to the driver status;
//! 5. pushes [`command::CONFIG`] on TX;
//! 6. waits until the device status is [`device_status::CONFIG`]; the device table then holds [`WINDOW`];
//! 7. may write [`driver_status::DRIVER`];
//! 8. writes [`driver_status::DRIVER_OK`];
//! 9. waits until the device status is [`device_status::READY`];
//! 10. pushes the bytes of its message on TX.
//!
//! A driver that reads input sets [`q1_ctl::READS`] and takes bytes from RX up to [`END_OF_INPUT`]. Each wait is a
//! loop that loads the field again, and that also stops at [`device_status::BROKEN`]. The module [`ring`](crate::ring)
//! specifies push and pop, and the module [`device`](crate::device) specifies the device's states.
//!
//! For a new handshake from READY the driver waits until TX is empty, writes [`driver_status::ACK`], waits for
//! [`device_status::RESET`], and continues with step 2. The queues keep their indices.

/// The value of the magic field: "virt" as a little-endian word.
pub const MAGIC: u32 = 0x7472_6976;

/// GPA of the result word. A guest leaves [`RESULT_VALUE`] here and in RAX (EAX, AX).
pub const RESULT: u64 = 0x400;
/// The result of a guest that has completed its work.
pub const RESULT_VALUE: u64 = 42;

/// GPA at which the embedded guests are linked.
pub const EMBEDDED_CODE: u64 = 0x1000;
/// GPA of the device table: a `u16` count, then up to [`TABLE_LEN`] addresses (`u64`) at [`TABLE_ADDRESSES`]. It is
/// not aligned, as in the course's skeleton. The device adds [`WINDOW`] when it is configured, and stores the address
/// before the count.
pub const DEVICE_TABLE: u64 = 0x1_000A;
/// GPA of the TX queue's buffer (driver to device), [`offset::MAX_QUEUE_LEN`] bytes.
pub const TX_BUFFER: u64 = 0x1_1000;
/// GPA of the RX queue's buffer (device to driver), [`offset::MAX_QUEUE_LEN`] bytes.
pub const RX_BUFFER: u64 = 0x1_2000;
/// GPA of the first byte after the areas of the protocol. The guest may use the RAM from here.
pub const HEAP: u64 = 0x1_3000;
/// Size of RAM in the SO2 map, in bytes. Also the initial stack pointer: the stack grows down.
pub const RAM_SIZE: u64 = 0x10_0000;

/// GPA of the device window, which holds the config table and the queue controls.
pub const WINDOW: u64 = 0x10_0000;
/// Size of the device window, in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;
/// GPA of the doorbell. Over the doorbell transport, a 4-byte store of a queue's number makes the device look at the
/// window. Over the other transports a store has no effect.
pub const DOORBELL: u64 = 0x10_1000;
/// Size of the doorbell's page, in bytes. Only the first word is a doorbell.
pub const DOORBELL_SIZE: u64 = 0x1000;

/// Values for the doorbell.
pub mod doorbell {
    /// The driver has moved TX head (once for a batch is enough), or has changed the driver status.
    pub const TX: u32 = 0;
    /// The driver has moved RX tail where RX was full or is now empty, or has set
    /// [`q1_ctl::READS`](super::q1_ctl::READS).
    pub const RX: u32 = 1;
}

/// Offsets in the device window. Fields that the driver may write are 0 at power-on.
///
/// The config table takes accesses of any width. The queue controls take aligned 4-byte accesses only: over the exit
/// transports another access is a protocol error, and over the others the device cannot see it. A store to a read-only
/// field is ignored and counted; over shared memory the device restores the field. The rest of the page is reserved.
pub mod offset {
    /// `u32`, read-only: [`MAGIC`](super::MAGIC).
    pub const MAGIC: u64 = 0x00;
    /// First byte of the fields whose order a [`Layout`](super::Layout) decides. They end at [`QUEUE_SELECTOR`].
    pub const LAYOUT: u64 = 0x04;
    /// `u16`, read-only, in [`Layout::Table`](super::Layout::Table): the length of both queues, in bytes.
    pub const MAX_QUEUE_LEN: u64 = 0x04;
    /// `u8`, read-only, in [`Layout::Table`](super::Layout::Table): the device's status, one of
    /// [`device_status`](super::device_status).
    pub const DEVICE_STATUS: u64 = 0x06;
    /// `u8`, in [`Layout::Table`](super::Layout::Table): the driver's status, one of
    /// [`driver_status`](super::driver_status).
    pub const DRIVER_STATUS: u64 = 0x07;
    /// `u8`: queue selector, 0 or 1, without effect. Another value is a protocol error.
    pub const QUEUE_SELECTOR: u64 = 0x08;
    /// `u8`: control of queue 0 (TX), without effect.
    pub const Q0_CTL: u64 = 0x09;
    /// `u8`: control of queue 1 (RX). Bit 0 is [`READS`](super::q1_ctl::READS); the others have no effect.
    pub const Q1_CTL: u64 = 0x0A;
    /// First byte after the config table.
    pub const CONFIG_END: u64 = 0x0B;
    /// `u32`, written by the driver: head of the TX queue, the index of the next free slot.
    pub const TX_HEAD: u64 = 0x10;
    /// `u32`, read-only: tail of the TX queue, the index of the next byte that the device takes.
    pub const TX_TAIL: u64 = 0x14;
    /// `u32`, read-only: head of the RX queue, the index of the next free slot.
    pub const RX_HEAD: u64 = 0x18;
    /// `u32`, written by the driver: tail of the RX queue, the index of the next byte that the driver takes.
    pub const RX_TAIL: u64 = 0x1C;
    /// First byte after the queue controls.
    pub const QUEUES_END: u64 = 0x20;
}

/// The order of the fields between the magic and the queue selector. The assignment describes it twice, in two ways
/// (`docs/abi.md`, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// That of the assignment's table: max_queue_len (`u16`), device_status, driver_status.
    #[default]
    Table,
    /// That of the assignment's struct `device_t`: device_status, driver_status, max_queue_len (`u8`).
    Struct,
}

impl Layout {
    /// The other layout.
    pub const fn other(self) -> Self {
        match self {
            Self::Table => Self::Struct,
            Self::Struct => Self::Table,
        }
    }

    /// Offset of the device status (`u8`) in the window.
    pub const fn device_status(self) -> u64 {
        match self {
            Self::Table => offset::DEVICE_STATUS,
            Self::Struct => offset::LAYOUT,
        }
    }

    /// Offset of the driver status (`u8`) in the window.
    pub const fn driver_status(self) -> u64 {
        match self {
            Self::Table => offset::DRIVER_STATUS,
            Self::Struct => offset::LAYOUT + 1,
        }
    }

    /// Offset of the length of the queues in the window.
    pub const fn max_queue_len(self) -> u64 {
        match self {
            Self::Table => offset::MAX_QUEUE_LEN,
            Self::Struct => offset::LAYOUT + 2,
        }
    }

    /// The greatest length of the queues, in bytes. The struct has one byte for it.
    pub const fn longest_queue(self) -> u16 {
        match self {
            Self::Table => MAX_QUEUE_LEN,
            Self::Struct => u8::MAX as u16,
        }
    }

    /// The length of the queues by default, in bytes.
    pub const fn usual_queue(self) -> u16 {
        match self {
            Self::Table => DEFAULT_QUEUE_LEN,
            Self::Struct => self.longest_queue(),
        }
    }
}

/// GPAs of the window's fields. The order of three of them is that of [`Layout::Table`].
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
    /// The device is powered on, or the driver has reset it.
    pub const RESET: u8 = 0x00;
    /// The driver has configured the device with `C`, and the device table holds its address.
    pub const CONFIG: u8 = 0x02;
    /// The device has seen DRIVER_OK. Each byte on the TX queue is data.
    pub const READY: u8 = 0x04;
    /// The driver broke the protocol, and the device has stopped.
    ///
    /// The assignment does not define this status. The value is virtio's DEVICE_NEEDS_RESET (virtio 1.2, section 2.1).
    pub const BROKEN: u8 = 0x40;
}

/// Values of the driver status field. Another value is a protocol error.
pub mod driver_status {
    /// The driver acknowledges the device's reset, or asks a READY device for a reset.
    pub const ACK: u8 = 0x00;
    /// The driver can drive the device. Optional.
    pub const DRIVER: u8 = 0x02;
    /// The driver is set up, and asks a configured device for READY.
    pub const DRIVER_OK: u8 = 0x04;
}

/// Bits of the RX queue's control field.
pub mod q1_ctl {
    /// The driver reads this queue. Over the doorbell and polling transports the device delivers input only if this
    /// bit is set, and time without input does not count towards the timeout of the run.
    pub const READS: u8 = 0x01;
}

/// The byte that ends the input on the RX queue: ASCII EOT. The device sends it once. The same byte in the input
/// itself looks the same.
pub const END_OF_INPUT: u8 = 0x04;

/// Commands: single bytes on the TX queue before READY.
pub mod command {
    /// Resets the device.
    pub const RESET: u8 = b'R';
    /// Configures the device. The driver status must be [`ACK`](super::driver_status::ACK).
    pub const CONFIG: u8 = b'C';
}

/// Default length of both queues, in bytes.
pub const DEFAULT_QUEUE_LEN: u16 = 256;
/// Minimum length of a queue, in bytes. This queue holds one byte, because one slot always stays free.
pub const MIN_QUEUE_LEN: u16 = 2;
/// Maximum length of a queue, in bytes, because each buffer is one page.
pub const MAX_QUEUE_LEN: u16 = 4096;

/// Capacity of the device table, in addresses. If the count is this value or more, the device breaks.
pub const TABLE_LEN: u16 = 10;
/// Offset of the first address in the device table. The `u16` count is at offset 0. This is C's layout of
/// `struct { uint16_t count; uint64_t device_addresses[10]; }`.
pub const TABLE_ADDRESSES: u64 = 8;

// The areas do not overlap, and the queue controls are aligned.
const _: () = {
    let table_end = DEVICE_TABLE + TABLE_ADDRESSES + 8 * TABLE_LEN as u64;
    assert!(table_end <= TX_BUFFER);
    assert!(TX_BUFFER + MAX_QUEUE_LEN as u64 <= RX_BUFFER);
    assert!(RX_BUFFER + MAX_QUEUE_LEN as u64 <= HEAP);
    assert!(HEAP < RAM_SIZE && RAM_SIZE <= WINDOW);
    assert!(offset::LAYOUT == offset::MAX_QUEUE_LEN && offset::LAYOUT + 4 == offset::QUEUE_SELECTOR);
    assert!(offset::CONFIG_END <= offset::TX_HEAD && offset::QUEUES_END <= WINDOW_SIZE);
    assert!(WINDOW + WINDOW_SIZE <= DOORBELL);
    assert!(WINDOW.is_multiple_of(4) && offset::TX_HEAD.is_multiple_of(4));
    assert!(MIN_QUEUE_LEN <= DEFAULT_QUEUE_LEN && DEFAULT_QUEUE_LEN <= MAX_QUEUE_LEN);
};
