//! System control port B, 0x61. Kernels that measure time with the PIT wait for bit 5, the output of its third counter.
//! The bit is always set while there is no PIT. Opening the gate of that counter creates the PIT, if the machine can have
//! one; then KVM has this port. Bit 4 changes at each read, like the memory refresh bit of a PC.

use crate::device::bus::{Device, DeviceName};
use crate::device::pc::pit::{FirstUse, Pit};
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The third counter of the timer has run out.
const TIMER_OUT: u8 = 1 << 5;
/// Changes with each memory refresh cycle.
const REFRESH: u8 = 1 << 4;
/// The gate of the third counter is open.
const GATE: u8 = 1 << 0;
/// The bits that read back as written: the gate of the counter, and the speaker.
const WRITABLE: u8 = 0x0f;

/// The device.
#[derive(Debug, Default)]
pub struct SystemControl {
    value: u8,
    /// The timer that is created when it is needed. `None` on a machine without it.
    pit: Option<Pit>,
}

impl SystemControl {
    /// A port that creates `pit` when the guest opens the gate of its third counter.
    pub fn with_pit(pit: Option<Pit>) -> Self {
        Self { value: 0, pit }
    }
}

impl Device for SystemControl {
    fn read(&mut self, _: u64, _: u8) -> ControlFlow<Stop, u64> {
        self.value ^= REFRESH;
        ControlFlow::Continue((self.value | TIMER_OUT).into())
    }

    fn write(&mut self, _: u64, _: u8, data: u64) -> ControlFlow<Stop> {
        let opens = data.to_le_bytes()[0] & !self.value & GATE != 0;
        self.value = self.value & REFRESH | data.to_le_bytes()[0] & WRITABLE;
        match &self.pit {
            Some(pit) if opens => pit.create(FirstUse::Gate),
            _ => ControlFlow::Continue(()),
        }
    }

    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("system control")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_timer_has_always_run_out_and_the_refresh_bit_changes() {
        let mut port = SystemControl::default();
        assert!(port.write(0, 1, 0xff).is_continue());
        let seen = [0; 3].map(|_| port.read(0, 1).continue_value().unwrap());
        assert_eq!(seen, [0x3f, 0x2f, 0x3f]);
    }

    #[test]
    fn only_the_gate_creates_the_timer() {
        let uses = Arc::new(Mutex::new(Vec::new()));
        let noted = uses.clone();
        let pit = Pit::new(move |first| {
            noted.lock().unwrap().push(first);
            Ok(())
        });
        let mut port = SystemControl::with_pit(Some(pit));
        assert!(port.write(0, 1, 0xfe).is_continue() && uses.lock().unwrap().is_empty());
        assert!(port.write(0, 1, 1).is_continue());
        assert_eq!(*uses.lock().unwrap(), [FirstUse::Gate]);
    }
}
