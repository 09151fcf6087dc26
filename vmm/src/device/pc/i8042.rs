//! The 8042 keyboard controller on ports 0x60 and 0x64, as far as kernels use it: it passes its self-test, has no
//! keyboard and no mouse, and resets the machine. Without it, reads of the status port would return a constant, and a
//! kernel would poll the port for seconds. [`SystemControl`] is between the two ports, at 0x61.
//!
//! "8042 Keyboard Controller", IBM PC AT Technical Reference, section 1; the commands are those of Linux's
//! `include/linux/i8042.h`.

use crate::device::bus::{Device, DeviceName};
use crate::device::pc::system_control::SystemControl;
use crate::exit::Stop;
use std::ops::ControlFlow;

/// The first port, for data. The last port is for status and commands.
pub const PORT: u16 = 0x60;
/// The number of ports.
pub const PORTS: u16 = 5;

/// Status: a byte is ready to be read.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self-test has passed.
const SYSTEM: u8 = 1 << 2;
/// Control byte: the keyboard and the mouse are disabled.
const BOTH_OFF: u8 = 0x30;

/// The controller, and system control port B between its ports.
#[derive(Debug)]
pub struct I8042 {
    output: Option<u8>,
    control: u8,
    /// The command whose data byte the guest writes next.
    pending: Option<u8>,
    system_control: SystemControl,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            output: None,
            control: BOTH_OFF | SYSTEM,
            pending: None,
            system_control: SystemControl::default(),
        }
    }
}

impl I8042 {
    /// A controller with this port between its ports.
    pub fn with_system_control(system_control: SystemControl) -> Self {
        Self { system_control, ..Self::default() }
    }

    fn command(&mut self, command: u8) -> ControlFlow<Stop> {
        self.pending = None;
        match command {
            // Pulse the reset line.
            0xfe => return ControlFlow::Break(Stop::Rebooted),
            0x20 => self.output = Some(self.control),
            // Self-test passed.
            0xaa => self.output = Some(0x55),
            // Tests of the keyboard and mouse interfaces: 1 reports a stuck clock line, so nothing is connected.
            0xa9 | 0xab => self.output = Some(1),
            0x60 | 0xd1 | 0xd3 | 0xd4 => self.pending = Some(command),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn data(&mut self, data: u8) {
        match self.pending.take() {
            Some(0x60) => self.control = data,
            // The loopback test of the mouse interface fails, because there is no mouse: another byte comes back.
            Some(0xd3) => self.output = Some(!data),
            _ => {}
        }
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(match offset {
            0 => self.output.take().unwrap_or(0).into(),
            1 => self.system_control.read(0, size)?,
            4 => {
                let full = if self.output.is_some() { OUTPUT_FULL } else { 0 };
                (SYSTEM | full).into()
            }
            _ => u64::MAX,
        })
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let byte = data.to_le_bytes()[0];
        match offset {
            0 => self.data(byte),
            1 => self.system_control.write(0, size, data)?,
            4 => self.command(byte)?,
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        match offset {
            1 => self.system_control.name(0),
            _ => DeviceName::device("i8042"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &mut I8042, offset: u64) -> u64 {
        device.read(offset, 1).continue_value().unwrap()
    }

    #[test]
    fn the_self_test_passes_and_no_keyboard_or_mouse_is_found() {
        let mut device = I8042::default();
        for (command, answer) in [(0xaa, 0x55), (0xab, 1), (0xa9, 1), (0x20, 0x34)] {
            assert_eq!(read(&mut device, 4) & 1, 0);
            assert!(device.write(4, 1, command).is_continue());
            assert_eq!((read(&mut device, 4) & 1, read(&mut device, 0)), (1, answer), "{command:#x}");
        }
        assert_eq!(read(&mut device, 0), 0);
    }

    #[test]
    fn the_control_byte_reads_back_and_the_mouse_loopback_fails() {
        let mut device = I8042::default();
        for (offset, data) in [(4, 0x60), (0, 0x47), (4, 0x20)] {
            assert!(device.write(offset, 1, data).is_continue());
        }
        assert_eq!(read(&mut device, 0), 0x47);
        assert!(device.write(4, 1, 0xd3).is_continue() && device.write(0, 1, 0x5a).is_continue());
        assert_eq!(read(&mut device, 0), 0xa5);
    }

    #[test]
    fn a_reset_ends_the_run() {
        assert!(matches!(I8042::default().write(4, 1, 0xfe), ControlFlow::Break(Stop::Rebooted)));
        assert!(I8042::default().write(0, 1, 0xfe).is_continue());
    }
}
