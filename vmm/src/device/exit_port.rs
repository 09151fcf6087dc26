//! The exit port, 0xF4, as QEMU's isa-debug-exit has it, but with the code as it is: writing it ends the
//! run. Reads give all ones.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The exit port.
pub const PORT: u16 = 0xf4;

/// Ends the run with the code that is written to it.
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
