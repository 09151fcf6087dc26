//! Fuzzes the trapped window with any accesses: six bytes each, of offset, width, direction and data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use simvirtio::device::State;
use simvirtio::{Memory, abi};
use std::ops::ControlFlow;
use vmm::device::{Device, Simvirtio, Transport, TrappedMemory, Window};
use vmm::memory::{Gpa, GuestMemory};
use vmm::{Input, Output};

fuzz_target!(|accesses: &[u8]| {
    let ram = GuestMemory::new(&[(Gpa(0), abi::RAM_SIZE)]).expect("1 MiB");
    let (output, captured) = Output::captured();
    let device = Simvirtio::power_on(4, TrappedMemory::new(ram.clone()), output, Input::bytes(b"input"));
    let mut window = Window::new(device.expect("4 is a valid queue length"));
    for access in accesses.chunks_exact(6) {
        let (offset, how) = (access[0], access[1]);
        let data = u32::from_le_bytes([access[2], access[3], access[4], access[5]]);
        // Most accesses are near the fields, and some are far away. A store of the guest to RAM does not exit.
        let offset = if how & 0x80 == 0 { u64::from(offset) } else { u64::from(offset) << 4 };
        let size = 1 << (how & 3);
        let stopped = match how >> 4 & 3 {
            0 => window.read(offset, size).is_break(),
            1 => {
                ram.store_u8(abi::TX_BUFFER + (offset & 3), data as u8);
                false
            }
            _ => matches!(
                window.write(offset, size, u64::from(data) << 32 | u64::from(data)),
                ControlFlow::Break(_)
            ),
        };
        let report = window.simvirtio().report(Transport::Exit);
        assert_eq!(stopped, report.state == State::Broken);
        assert!(captured.bytes().is_empty() || report.history.readies > 0);
        if stopped {
            break;
        }
    }
});
