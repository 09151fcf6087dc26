//! QEMU's firmware configuration device, from which firmware for QEMU reads the memory and the number of vCPUs. It has the
//! two ports of the traditional interface, and no DMA. A machine with a ROM has it.
//!
//! QEMU, `docs/specs/fw_cfg.rst`.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The port of the selector; the data port follows.
pub const PORT: u16 = 0x510;
/// The number of ports.
pub const PORTS: u16 = 2;

const SIGNATURE: u16 = 0;
/// The revision and the features: bit 0 is the traditional interface.
const ID: u16 = 1;
const RAM_SIZE: u16 = 3;
const CPUS: u16 = 5;
const MAX_CPUS: u16 = 0xf;
const DIRECTORY: u16 = 0x19;
/// The first file.
const E820: u16 = 0x20;
/// The type of RAM in an address map.
const RAM: u32 = 1;

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    selected: u16,
    offset: usize,
}

impl FwCfg {
    /// The device of a machine with `ram` bytes of RAM from address 0 on.
    pub fn new(ram: u64, cpus: u32) -> Self {
        let map = [&0u64.to_le_bytes()[..], &ram.to_le_bytes(), &RAM.to_le_bytes()].concat();
        let mut name = b"etc/e820".to_vec();
        name.resize(56, 0);
        // The number of files; then size, selector, two reserved bytes, and name of each. Only these numbers are big-endian.
        let size = u32::try_from(map.len()).unwrap_or(0).to_be_bytes();
        let directory = [&1u32.to_be_bytes()[..], &size, &E820.to_be_bytes(), &[0; 2], &name].concat();
        let cpus = u16::try_from(cpus).unwrap_or(u16::MAX).to_le_bytes().to_vec();
        let items = [
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, 1u32.to_le_bytes().to_vec()),
            (RAM_SIZE, ram.to_le_bytes().to_vec()),
            (CPUS, cpus.clone()),
            (MAX_CPUS, cpus),
            (DIRECTORY, directory),
            (E820, map),
        ];
        Self { items: items.into_iter().collect(), selected: SIGNATURE, offset: 0 }
    }

    /// The next byte of the selected item; 0 after its end.
    fn next(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|item| item.get(self.offset));
        self.offset = self.offset.saturating_add(1);
        byte.copied().unwrap_or(0)
    }
}

impl Device for FwCfg {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(match (offset, size) {
            (1, 1) => self.next().into(),
            _ => u64::MAX,
        })
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        if (offset, size) == (0, 2) {
            self.selected = u16::try_from(data & 0xffff).unwrap_or(0);
            self.offset = 0;
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        DeviceName::register("fw_cfg", if offset == 0 { "selector" } else { "data" })
    }

    fn reset(&mut self) {
        (self.selected, self.offset) = (SIGNATURE, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(device: &mut FwCfg, selector: u16, len: usize) -> Vec<u8> {
        assert!(device.write(0, 2, selector.into()).is_continue());
        (0..len).map(|_| device.read(1, 1).continue_value().unwrap() as u8).collect()
    }

    #[test]
    fn the_items_are_those_of_the_specification() {
        let mut device = FwCfg::new(64 << 20, 2);
        assert_eq!(item(&mut device, SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(item(&mut device, ID, 4), [1, 0, 0, 0]);
        assert_eq!(item(&mut device, RAM_SIZE, 8), [0, 0, 0, 4, 0, 0, 0, 0]);
        assert_eq!(item(&mut device, CPUS, 3), [2, 0, 0]);
        let directory = item(&mut device, DIRECTORY, 4 + 64);
        assert_eq!(directory[..12], [0, 0, 0, 1, 0, 0, 0, 20, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..21], *b"etc/e820\0");
        assert_eq!(item(&mut device, E820, 20)[8..], [0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn other_items_are_zeroes_and_other_accesses_have_no_effect() {
        let mut device = FwCfg::new(1 << 20, 1);
        assert_eq!(item(&mut device, 0x21, 3), [0; 3]);
        assert_eq!(item(&mut device, 0xffff, 3), [0; 3]);
        assert_eq!(item(&mut device, SIGNATURE, 2), b"QE");
        for (offset, size) in [(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (9, 1)] {
            assert_eq!(device.read(offset, size).continue_value(), Some(u64::MAX));
        }
        for (offset, size) in [(0, 1), (0, 4), (1, 1), (1, 2), (9, 2)] {
            assert!(device.write(offset, size, 5).is_continue());
        }
        assert_eq!(device.read(1, 1).continue_value(), Some(b'M'.into()));
        device.reset();
        assert_eq!(device.read(1, 1).continue_value(), Some(b'Q'.into()));
    }
}
