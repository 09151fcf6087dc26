//! The input of a classic PC: keys go to the keyboard or to the serial port, whichever the guest reads.

use crate::console::host::Port;
use crate::device::pc::keyboard::port::KeyboardPort;
use crate::device::serial::SerialPort;
use crate::host::EventFd;

/// The two devices with input. Both signal the same event when they have room.
pub(super) struct Inputs {
    pub(super) keyboard: KeyboardPort,
    pub(super) serial: SerialPort,
    /// Input that a user types. A guest that reads both devices gets it from the keyboard, and other input from the serial port.
    pub(super) is_typed: bool,
}

impl Port for Inputs {
    fn push(&mut self, bytes: &[u8]) -> usize {
        // The device that the guest does not read has no room. One that it reads may be full, and then the other one must not
        // get the keys that follow.
        let reads_first = if self.is_typed { self.keyboard.listens() } else { self.serial.listens() };
        if reads_first == self.is_typed { self.keyboard.push(bytes) } else { self.serial.push(bytes) }
    }

    fn room_event(&self) -> &EventFd {
        self.serial.room_event()
    }
}
