//! The input of a classic PC: it goes to the keyboard or to the serial port, as the user asks, or whichever the guest reads.

use crate::console::host::Port;
use crate::device::pc::keyboard::port::KeyboardPort;
use crate::device::serial::SerialPort;
use crate::host::EventFd;
use crate::machine::InputDevice;

/// The two devices with input. Both signal the same event when they have room.
pub(super) struct Inputs {
    pub(super) keyboard: KeyboardPort,
    pub(super) serial: SerialPort,
    /// Input that a user types. A guest that reads both devices gets it from the keyboard, and other input from the serial port.
    pub(super) is_typed: bool,
    /// The device that the user asks for.
    pub(super) device: Option<InputDevice>,
}

impl Port for Inputs {
    fn push(&mut self, bytes: &[u8]) -> usize {
        match self.device {
            Some(InputDevice::Serial) => return self.serial.push(bytes),
            Some(InputDevice::Keyboard) => return self.keyboard.push(bytes),
            None => {}
        }
        // The device that the guest does not read has no room. One that it reads may be full, and then the other one must not
        // get the keys that follow.
        let reads_first = if self.is_typed { self.keyboard.listens() } else { self.serial.listens() };
        if reads_first == self.is_typed { self.keyboard.push(bytes) } else { self.serial.push(bytes) }
    }

    fn room_event(&self) -> &EventFd {
        self.serial.room_event()
    }
}
