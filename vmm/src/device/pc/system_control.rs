//! System control port B, 0x61. Kernels that measure time with the PIT wait for bit 5, the output of its third counter.
//! There is no PIT, so the bit is always set. Bit 4 changes at each read, like the memory refresh bit of a PC.

use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The third counter of the timer has run out.
const TIMER_OUT: u8 = 1 << 5;
/// Changes with each memory refresh cycle.
const REFRESH: u8 = 1 << 4;
/// The bits that read back as written: the gate of the counter, and the speaker.
const WRITABLE: u8 = 0x0f;

/// The device.
#[derive(Debug, Default)]
pub struct SystemControl {
    value: u8,
}

impl Device for SystemControl {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        self.value ^= REFRESH;
        ControlFlow::Continue((self.value | TIMER_OUT).into())
    }

    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        self.value = self.value & REFRESH | data.to_le_bytes()[0] & WRITABLE;
        ControlFlow::Continue(())
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("system control")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_has_always_run_out_and_the_refresh_bit_changes() {
        let mut port = SystemControl::default();
        assert!(port.write(0, 1, 0xff).is_continue());
        let seen = [0; 3].map(|_| port.read(0, 1).continue_value().unwrap());
        assert_eq!(seen, [0x3f, 0x2f, 0x3f]);
    }
}
