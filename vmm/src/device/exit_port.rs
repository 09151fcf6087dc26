//! The exit port, 0xF4: a write ends the run. QEMU's isa-debug-exit has the same port, but changes the code; here the
//! code is the value written. Reads return all ones.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The port.
pub const PORT: u16 = 0xf4;

/// The device: a write ends the run with the written value as its code.
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
