//! The device that the guests access. `benches/parts.rs` includes this file too.

use std::ops::ControlFlow;
use vmm::device::{Device, DeviceName};
use vmm::exit::Stop;

/// A device that stores one value.
#[derive(Debug, Default)]
pub struct Latch(u64);

impl Device for Latch {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(self.0)
    }
    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.0 = data;
        ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("latch")
    }
}
