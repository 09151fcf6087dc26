//! Any accesses to the trapped window: six bytes each, of offset, width, direction and data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simvirtio::{Memory, abi};
use simvirtio::device::State;
use std::ops::ControlFlow;
use vmm::{Input, Output};
use vmm::device::{Device, Simvirtio, Transport, TrappedMemory, Window};
use vmm::memory::{Gpa, GuestMemory};

fuzz_target!(|accesses: &[u8]| {
    let ram = GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE)]).expect("1 MiB");
    let (output, captured) = Output::captured();
    let device = Simvirtio::power_on(4, TrappedMemory::new(ram.clone()), output, Input::bytes(b"input"));
    let mut window = Window::new(device.expect("a length that there is"));
    for access in accesses.chunks_exact(6) {
        let (offset, how, data) = (access[0], access[1], u32::from_le_bytes([access[2], access[3], access[4], access[5]]));
        // Most accesses near the fields, some far away; RAM is the guest's own.
        let offset = if how & 0x80 == 0 { u64::from(offset) } else { u64::from(offset) << 4 };
        let size = 1 << (how & 3);
        let stopped = match how >> 4 & 3 {
            0 => window.read(offset, size).is_break(),
            1 => {
                ram.store_u8(abi::TX_BUFFER + (offset & 3), data as u8);
                false
            }
            _ => matches!(window.write(offset, size, u64::from(data) << 32 | u64::from(data)), ControlFlow::Break(_)),
        };
        let report = window.simvirtio().report(Transport::Exit);
        assert_eq!(stopped, report.state == State::Broken);
        assert!(captured.bytes().is_empty() || report.history.readies > 0);
        if stopped {
            break;
        }
    }
});
