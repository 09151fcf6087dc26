//! Fuzzes the trapped window with accesses of a driver: six bytes each, of offset, width, direction and data.
//!
//! Half of them are right accesses to one of the fields, so that a handshake can be repeated by a copy of its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simvirtio::abi::Layout;
use simvirtio::device::State;
use simvirtio::{Memory, abi};
use std::ops::ControlFlow;
use vmm::device::{Device, Simvirtio, Transport, TrappedMemory, Window};
use vmm::memory::{Gpa, GuestMemory};
use vmm::{Input, Output};

/// The length of the queues in bytes.
const QUEUE_LEN: u16 = 4;
/// The fields that a driver stores to, and their sizes in bytes.
const FIELDS: [(u64, u8); 6] = [
    (abi::offset::DRIVER_STATUS, 1),
    (abi::offset::TX_HEAD, 4),
    (abi::offset::RX_TAIL, 4),
    (abi::offset::QUEUE_SELECTOR, 1),
    (abi::offset::Q0_CTL, 1),
    (abi::offset::Q1_CTL, 1),
];

/// Stores a small value to a field, or sends a byte as a driver does. Returns true if the device stopped the guest.
fn right_access(window: &mut Window, ram: &GuestMemory, field: u8, sends: bool, data: u32) -> bool {
    if !sends {
        let (offset, size) = FIELDS[usize::from(field) % FIELDS.len()];
        return window.write(offset, size, u64::from(data % 8)).is_break();
    }
    let ControlFlow::Continue(head) = window.read(abi::offset::TX_HEAD, 4) else { return true };
    ram.store_u8(abi::TX_BUFFER + head, data as u8);
    window.write(abi::offset::TX_HEAD, 4, (head + 1) % u64::from(QUEUE_LEN)).is_break()
}

fuzz_target!(|accesses: &[u8]| {
    let ram = GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE)]).expect("1 MiB");
    let (output, captured) = Output::captured();
    let memory = TrappedMemory::new(ram.clone());
    let device = Simvirtio::power_on(Layout::Table, QUEUE_LEN, memory, output, Input::bytes(b"input"));
    let mut window = Window::new(device.expect("4 is a valid queue length"));
    for access in accesses.chunks_exact(6) {
        let (offset, how) = (access[0], access[1]);
        let data = u32::from_le_bytes([access[2], access[3], access[4], access[5]]);
        // Most other accesses are near the fields, and some are far away. A store of the guest to RAM does not exit.
        let far = if how & 0x80 == 0 { u64::from(offset) } else { u64::from(offset) << 4 };
        let size = 1 << (how & 3);
        let stopped = match how >> 4 & 3 {
            _ if how & 8 != 0 => right_access(&mut window, &ram, offset, how & 0x10 != 0, data),
            0 => window.read(far, size).is_break(),
            1 => {
                ram.store_u8(abi::TX_BUFFER + (far & 3), data as u8);
                false
            }
            _ => window.write(far, size, u64::from(data) << 32 | u64::from(data)).is_break(),
        };
        let report = window.simvirtio().report(Transport::Exit);
        assert_eq!(stopped, report.state == State::Broken);
        assert!(captured.bytes().is_empty() || report.history.readies > 0);
        if stopped {
            break;
        }
    }
});
