//! The 8042 keyboard controller on ports 0x60 and 0x64. It has a keyboard, or nothing is connected; there is no mouse. It
//! also resets the machine. [`SystemControl`] is between the two ports, at 0x61.
//!
//! Linux needs no keyboard, and its machine has none. But without a controller, reads of the status port would return a
//! constant, and a kernel would poll the port for seconds.
//!
//! "8042 Keyboard Controller", IBM PC AT Technical Reference, section 1; IBM PS/2 Hardware Interface Technical Reference,
//! "Keyboard and Auxiliary Device Controller".

use crate::device::bus::{Device, DeviceName};
use crate::device::pc::keyboard::{Keyboard, Stroke, translated};
use crate::device::pc::system_control::SystemControl;
use crate::exit::Stop;
use crate::host::{EventFd, signal};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The first port, for data. The last port is for status and commands.
pub const PORT: u16 = 0x60;
/// The number of ports.
pub const PORTS: u16 = 5;
/// The keyboard's interrupt: the number of the input of the I/O interrupt controller.
pub const IRQ: u32 = 1;

/// Status: a byte is ready to be read.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self-test has passed.
const SYSTEM: u8 = 1 << 2;
/// Status: the last write was a command, not data.
const COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 1 << 4;
/// Control byte: a byte of the keyboard raises the interrupt.
const INTERRUPT: u8 = 1 << 0;
/// Control byte: the keyboard is disabled.
const KEYBOARD_OFF: u8 = 1 << 4;
/// Control byte: the keyboard and the mouse are disabled.
const BOTH_OFF: u8 = 0x30;
/// Control byte: the mouse is disabled.
const MOUSE_OFF: u8 = 1 << 5;
/// Control byte: scan codes of set 2 are translated into those of set 1.
const TRANSLATE: u8 = 1 << 6;
/// Output port: the processor runs, and address line 20 is open.
const RUNNING: u8 = 1 << 0;
const OUTPUT_PORT: u8 = RUNNING | 1 << 1;
/// The prefix of the scan code of a key that was released.
const RELEASED: u8 = 0xf0;
/// After this number of consecutive reads of the status the guest is taken to wait for a key.
const MIN_STATUS_READS: u32 = 8;

/// The controller, and system control port B between its ports.
#[derive(Debug)]
pub struct I8042 {
    output: Option<u8>,
    control: u8,
    /// The command whose data byte the guest writes next.
    pending: Option<u8>,
    last_was_command: bool,
    /// The bytes of memory of the controller that commands read and write, without the first one, which is `control`.
    memory: [u8; 32],
    keyboard: Option<Keyboard>,
    /// Set after the prefix of a released key, if codes are translated.
    is_released: bool,
    /// Raises the keyboard's interrupt.
    line: Option<EventFd>,
    /// Signalled when the guest has read all bytes of the keyboard.
    drained: Option<Arc<EventFd>>,
    /// True if the guest reads the keyboard. Keys that arrive before would be lost.
    listens: bool,
    /// The number of consecutive reads of the status.
    status_reads: u32,
    system_control: SystemControl,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            output: None,
            control: BOTH_OFF | SYSTEM,
            pending: None,
            last_was_command: false,
            memory: [0; 32],
            keyboard: None,
            is_released: false,
            line: None,
            drained: None,
            listens: false,
            status_reads: 0,
            system_control: SystemControl::default(),
        }
    }
}

impl I8042 {
    /// Creates a controller with a keyboard, in the state in which a BIOS leaves it: enabled, with its interrupt and the
    /// translation. It raises its interrupt through `line`, and signals `drained` when the guest has read all keys.
    pub(crate) fn with_keyboard(line: Option<EventFd>, drained: Option<Arc<EventFd>>) -> Self {
        Self {
            control: INTERRUPT | SYSTEM | MOUSE_OFF | TRANSLATE,
            keyboard: Some(Keyboard::default()),
            line,
            drained,
            ..Self::default()
        }
    }

    /// True if the guest reads the keyboard.
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// Accepts keys from now on.
    pub(crate) fn listen(&mut self) {
        self.listens = true;
    }

    /// True if a key raises an interrupt.
    pub(crate) fn has_interrupt(&self) -> bool {
        self.line.is_some() && self.control & (INTERRUPT | KEYBOARD_OFF) == INTERRUPT
    }

    /// Presses and releases a key. Returns false if the keyboard is off, or has no room for it.
    pub(crate) fn press(&mut self, stroke: &Stroke) -> bool {
        let is_on = self.control & KEYBOARD_OFF == 0;
        let Some(keyboard) = self.keyboard.as_mut().filter(|keyboard| is_on && keyboard.has_room(stroke))
        else {
            return false;
        };
        keyboard.press(stroke);
        self.take_from_keyboard();
        true
    }

    /// Moves the next byte of the keyboard into the empty output buffer, and raises the interrupt.
    fn take_from_keyboard(&mut self) {
        if self.output.is_some() || self.control & KEYBOARD_OFF != 0 {
            return;
        }
        let Some(keyboard) = &mut self.keyboard else { return };
        while let Some(byte) = keyboard.take() {
            if self.control & TRANSLATE == 0 {
                self.output = Some(byte);
            } else if byte == RELEASED {
                self.is_released = true;
                continue;
            } else {
                let bit = if std::mem::take(&mut self.is_released) { 0x80 } else { 0 };
                self.output = Some(translated(byte) | bit);
            }
            break;
        }
        if self.output.is_some() && self.control & INTERRUPT != 0 {
            self.line.iter().for_each(signal);
        }
    }

    /// A controller with this port between its ports.
    pub fn with_system_control(system_control: SystemControl) -> Self {
        Self { system_control, ..Self::default() }
    }

    fn command(&mut self, command: u8) -> ControlFlow<Stop> {
        self.pending = None;
        match command {
            // Pulse lines of the output port, among them the reset line.
            0xf0..=0xff if command & RUNNING == 0 => return ControlFlow::Break(Stop::Rebooted),
            0x20 => self.output = Some(self.control),
            0x21..=0x3f => self.output = self.memory.get(usize::from(command & 0x1f)).copied(),
            // Self-test passed.
            0xaa => self.output = Some(0x55),
            // No password is installed.
            0xa4 => self.output = Some(0xf1),
            // Tests of the keyboard and mouse interfaces: 1 reports a stuck clock line, so nothing is connected.
            0xab => self.output = Some(u8::from(self.keyboard.is_none())),
            0xa9 => self.output = Some(1),
            0xad => self.control |= KEYBOARD_OFF,
            0xae => self.control &= !KEYBOARD_OFF,
            // Input port: the keyboard is not locked.
            0xc0 => self.output = Some(0x80),
            0xd0 => {
                let full = if self.output.is_some() { 1 << 4 } else { 0 };
                self.output = Some(OUTPUT_PORT | full);
            }
            // Test inputs: the lines of the keyboard's clock and data.
            0xe0 => self.output = Some(0),
            0x60..=0x7f | 0xd1..=0xd4 => self.pending = Some(command),
            _ => {}
        }
        self.take_from_keyboard();
        ControlFlow::Continue(())
    }

    fn data(&mut self, data: u8) -> ControlFlow<Stop> {
        match self.pending.take() {
            // There is no mouse to enable.
            Some(0x60) if self.keyboard.is_some() => self.control = data | MOUSE_OFF,
            Some(0x60) => self.control = data,
            Some(command @ 0x61..=0x7f) => {
                if let Some(byte) = self.memory.get_mut(usize::from(command & 0x1f)) {
                    *byte = data;
                }
            }
            Some(0xd1) if data & RUNNING == 0 => return ControlFlow::Break(Stop::Rebooted),
            // As if the byte came from the keyboard.
            Some(0xd2) => {
                self.output = Some(data);
                if self.control & INTERRUPT != 0 {
                    self.line.iter().for_each(signal);
                }
            }
            // The loopback test of the mouse interface fails, because there is no mouse: another byte comes back.
            Some(0xd3) => self.output = Some(!data),
            Some(_) => {}
            None => self.send_to_keyboard(data),
        }
        self.take_from_keyboard();
        ControlFlow::Continue(())
    }

    /// Sends a byte to the keyboard, which enables it.
    fn send_to_keyboard(&mut self, data: u8) {
        if let Some(keyboard) = &mut self.keyboard {
            self.control &= !KEYBOARD_OFF;
            self.is_released = false;
            keyboard.receive(data);
        }
    }

    fn read_data(&mut self) -> u8 {
        self.status_reads = 0;
        let byte = self.output.take().unwrap_or(0);
        self.take_from_keyboard();
        if self.output.is_none() && self.keyboard.as_ref().is_some_and(Keyboard::is_empty) {
            self.signal_drained();
        }
        byte
    }

    fn signal_drained(&self) {
        self.drained.iter().for_each(|drained| signal(drained));
    }

    fn read_status(&mut self) -> u8 {
        self.status_reads = self.status_reads.saturating_add(1);
        if self.status_reads >= MIN_STATUS_READS && !self.listens {
            self.listens = true;
            self.signal_drained();
        }
        let full = if self.output.is_some() { OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { COMMAND } else { 0 };
        SYSTEM | UNLOCKED | full | command
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        ControlFlow::Continue(match offset {
            0 => self.read_data().into(),
            1 => self.system_control.read(0, size)?,
            4 => self.read_status().into(),
            _ => u64::MAX,
        })
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        let byte = data.to_le_bytes()[0];
        if offset != 1 {
            self.status_reads = 0;
        }
        match offset {
            0 => {
                self.last_was_command = false;
                self.data(byte)
            }
            1 => self.system_control.write(0, size, data),
            4 => {
                self.last_was_command = true;
                self.command(byte)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn name(&self, offset: u64) -> DeviceName {
        match offset {
            0 => DeviceName::register("i8042", "data"),
            1 => self.system_control.name(0),
            4 => DeviceName::register("i8042", "status"),
            _ => DeviceName::device("i8042"),
        }
    }

    fn reset(&mut self) {
        let (line, drained) = (self.line.take(), self.drained.take());
        *self = match self.keyboard {
            Some(_) => Self::with_keyboard(line, drained),
            None => Self::default(),
        };
    }
}

#[cfg(test)]
mod tests;
