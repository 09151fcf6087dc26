//! The exit port, 0xF4: a write ends the run. [`ExitPort`] ends it with the value that was written. [`QemuExit`] is
//! QEMU's isa-debug-exit at the same port, which changes the value.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The port.
pub const PORT: u16 = 0xf4;
/// The number of ports of QEMU's device.
pub const QEMU_PORTS: u16 = 4;

/// The device: a write ends the run with the written value as its code. Reads return all ones.
#[derive(Clone, Copy, Debug)]
pub struct ExitPort;

impl Device for ExitPort {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(u64::MAX)
    }
    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        ControlFlow::Break(Stop::Exited(data))
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("exit port")
    }
}

/// QEMU's isa-debug-exit with the options iobase=0xf4,iosize=4: a write of the value `v` ends the run with the code
/// `v << 1 | 1`, which is never 0. Reads return 0.
#[derive(Clone, Copy, Debug)]
pub struct QemuExit;

impl Device for QemuExit {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(0)
    }
    fn write(&mut self, _: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let bits = u32::from(size).saturating_mul(8);
        let value = data & u64::MAX.checked_shl(bits).map_or(u64::MAX, |above| !above);
        ControlFlow::Break(Stop::Exited(value << 1 | 1))
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("exit port")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_port_doubles_the_code_and_adds_one() {
        for (size, data, expected) in [
            (1, 0, 1),
            (1, 0x10, 33),
            (4, 0x11, 35),
            (1, 0xff, 511),
            (4, 0xffff_ffff, 0x1_ffff_ffff),
            (8, 1 << 63, 1),
        ] {
            let ended = QemuExit.write(0, size, data);
            assert!(matches!(ended, ControlFlow::Break(Stop::Exited(code)) if code == expected), "{data:#x}");
        }
        assert_eq!(QemuExit.read(0, 1).continue_value(), Some(0));
        assert!(matches!(ExitPort.write(0, 1, 7), ControlFlow::Break(Stop::Exited(7))));
    }
}
