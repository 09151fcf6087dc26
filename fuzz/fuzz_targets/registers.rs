//! Fuzzes the registers of the serial port, the 8042, the clock and a virtio device with reads and writes of any width.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::collections::VecDeque;
use vmm::Output;
use vmm::device::{Device, Disk, Serial};
use vmm::exit::Stop;
use vmm::internals::{Backend, Block, Entropy, I8042, Mmio, Rtc};
use vmm::memory::{Gpa, GuestMemory};
use vmm_fuzz::virtio_mmio::Model;
use vmm_fuzz::{ScratchFile, Script};

const RAM: u64 = 0x1_0000;

thread_local! {
    static IMAGE: RefCell<ScratchFile> = RefCell::default();
}

fn read(device: &mut dyn Device, offset: u64, size: u8) -> u64 {
    device.read(offset, size).continue_value().expect("a read does not end the run")
}

fn write(device: &mut dyn Device, offset: u64, size: u8, data: u64) {
    assert!(device.write(offset, size, data).is_continue(), "a write does not end the run");
}

/// The port prints each byte once, and returns its input in order.
fn serial(script: &mut Script) {
    let (output, captured) = Output::captured();
    let mut serial = Serial::new(output);
    let mut input = VecDeque::new();
    let (mut written, mut latch, mut was_looped) = (0, false, false);
    while !script.is_empty() {
        let (offset, size) = (script.below(10), script.pick(&[1, 1, 2, 4]));
        match script.below(3) {
            0 => {
                let value = read(&mut serial, offset, size);
                if offset == 0 && !latch {
                    let right = input.pop_front().unwrap_or(0);
                    assert!(was_looped || value as u8 == right, "input is lost or out of order");
                }
                let status = (5..8).contains(&offset.max(5)).then(|| 5 - offset.min(5));
                if let Some(place) = status.filter(|place| offset <= 5 && *place < size.into()) {
                    assert_eq!(value >> (8 * place) & 0x60, 0x60, "the transmitter is always empty");
                }
            }
            1 => {
                let data = script.pick(&[0, 1, 3, 0x10, 0x80, 0x83, 0xff, 0x0f0f_0f0f]);
                write(&mut serial, offset, size, data);
                for (register, byte) in (offset..).zip(data.to_le_bytes()).take(size.into()) {
                    match register {
                        0 if !latch => written += 1,
                        3 => latch = byte & 0x80 != 0,
                        4 => was_looped |= byte & 0x10 != 0,
                        _ => {}
                    }
                }
            }
            _ => {
                let count = script.below(80).min(serial.room() as u64);
                let bytes: Vec<u8> = (0..count).map(|_| script.any()).collect();
                serial.receive(&bytes);
                input.extend(&bytes);
            }
        }
        assert!(serial.room() <= 64 && captured.bytes().len() <= written);
    }
}

/// The output register is full exactly if a byte can be read, and only a pulse of the reset line ends the run.
fn keyboard(script: &mut Script) {
    let mut i8042 = I8042::default();
    let mut is_full = false;
    let mut sets_output_port = false;
    while !script.is_empty() {
        let (offset, size) = (script.pick(&[0, 4, 0, 4, 1, 2, 3, 5]), script.pick(&[1, 1, 2, 4]));
        if script.one_in(2) {
            let value = read(&mut i8042, offset, size);
            match offset {
                0 => {
                    assert!(value <= 0xff && (is_full || value == 0), "a byte without a status");
                    assert_eq!(read(&mut i8042, 4, 1) & 1, 0, "the byte stays");
                }
                // The last write was a command, or not.
                4 => assert_eq!(value & !8, 0x14 | u64::from(is_full)),
                1 => assert!(value <= 0xff),
                _ => assert_eq!(value, u64::MAX),
            }
        } else {
            let data = script.pick(&[0x20, 0x60, 0xaa, 0xa9, 0xab, 0xd1, 0xd3, 0xd4, 0xfe, 0x100, 0xff]);
            match i8042.write(offset, size, data).break_value() {
                None => {}
                Some(Stop::Rebooted) if (offset, data) == (4, 0xfe) => return,
                Some(Stop::Rebooted) if offset == 0 && sets_output_port && data & 1 == 0 => return,
                Some(stop) => panic!("ended with: {stop}"),
            }
            match offset {
                0 => sets_output_port = false,
                4 => sets_output_port = data == 0xd1,
                _ => {}
            }
        }
        is_full = read(&mut i8042, 4, 1) & 1 == 1;
        if offset == 0 && is_full && script.one_in(2) {
            read(&mut i8042, 0, 1);
            is_full = false;
        }
    }
}

/// Each register of the time is in BCD and in its range.
fn clock(script: &mut Script) {
    let mut rtc = Rtc::default();
    let mut index = 0;
    while !script.is_empty() {
        let (offset, size) = (script.below(3), script.pick(&[1, 1, 2, 4]));
        if script.one_in(2) {
            let data: u64 = if script.one_in(4) { script.any() } else { script.below(0x40) };
            write(&mut rtc, offset, size, data);
            if offset == 0 {
                index = data as u8 & 0x7f;
            }
        }
        let value = read(&mut rtc, 1, 1);
        assert!(value <= 0xff);
        let range = match index {
            0 | 2 => 0..=0x59,
            4 => 0..=0x23,
            6 => 1..=7,
            7 => 1..=0x31,
            8 => 1..=0x12,
            9 | 0x32 => 0..=0x99,
            0x0a => 0x26..=0x26,
            0x0b => 2..=2,
            0x0d => 0x80..=0x80,
            _ => 0..=0,
        };
        assert!(range.contains(&value), "register {index:#x}: {value:#x}");
        assert!(index >= 0x0a && index != 0x32 || value & 0xf <= 9, "register {index:#x} is not in BCD");
    }
}

/// The writes of a driver that sets up its device, as offsets and values.
fn set_up(script: &mut Script) -> Vec<(u64, u64)> {
    let mut writes = Vec::new();
    if script.one_in(2) {
        writes.extend([(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb)]);
    }
    if script.one_in(2) {
        let size = script.pick(&[64, 16, 1, 0, 3, 128, 0x1_0010]);
        writes.extend([(0x30, 0), (0x38, size)]);
        for (offset, place) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            let place: u64 =
                if script.one_in(8) { script.any() } else { place + script.pick(&[0, 0, 16, 2, 1]) };
            writes.extend([(offset, place & 0xffff_ffff), (offset + 4, place >> 32)]);
        }
        writes.push((0x44, 1));
    }
    if script.one_in(4) {
        writes.push((0x70, 0xf));
    }
    writes
}

/// The registers are those of the model after each write.
fn virtio(script: &mut Script, backend: impl Backend + 'static) {
    const OFFSETS: [u64; 16] =
        [0x10, 0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80, 0x94, 0xa0, 0x100, 0xfc];
    // Indirect tables, event indices and version 1 belong to the transport.
    let offered = backend.features() | 1 << 28 | 1 << 29 | 1 << 32;
    let mut model = Model::new(offered, backend.queue_sizes(), RAM);
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).expect("64 KiB");
    let mut device = Mmio::new(backend, memory).expect("descriptors");
    while !script.is_empty() {
        let offset = if script.one_in(8) { script.below(0x1010) } else { script.pick(&OFFSETS) };
        let size = script.pick(&[4, 4, 1, 2, 8]);
        match script.below(4) {
            0 => {
                let value = read(&mut device, offset, size);
                assert!(size == 8 || value >> (8 * size) == 0, "a read of {size} bytes returns {value:#x}");
            }
            1 => {
                for (offset, value) in set_up(script) {
                    write(&mut device, offset, 4, value);
                    model.write(offset, 4, value);
                }
            }
            _ => {
                let data = match script.below(12) {
                    11 => script.any(),
                    choice => [0, 1, 2, 3, 0xb, 0xf, 0x80, 0x4b, 16, 0x1000, 7][choice as usize],
                };
                write(&mut device, offset, size, data);
                model.write(offset, size, data);
            }
        }
        model.check(|offset| read(&mut device, offset, 4));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script::new(input);
    match script.below(5) {
        0 => serial(&mut script),
        1 => keyboard(&mut script),
        2 => clock(&mut script),
        3 => virtio(&mut script, Entropy::new().expect("/dev/urandom")),
        _ => {
            let path = IMAGE.with_borrow_mut(|image| {
                image.set(&[7; 4096]);
                image.path()
            });
            virtio(&mut script, Block::new(Disk::open(&path, false).expect("the image")));
        }
    }
});
