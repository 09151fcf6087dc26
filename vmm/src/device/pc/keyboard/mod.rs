//! A PS/2 keyboard: its commands, its three sets of scan codes, and its buffer of 16 bytes. The keyboard controller
//! ([`super::i8042`]) connects it with the guest.
//!
//! IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)": "Commands from the System", "Commands
//! to the System", "Keyboard Scan Codes".

mod keys;
mod layout;
pub(crate) mod port;

pub(crate) use keys::TerminalKeys;
use layout::Key;
pub(super) use layout::translated;
use std::collections::VecDeque;

/// The most bytes that wait for the controller.
const BUFFER: usize = 16;
/// The byte that takes the place of those that found the buffer full, in the sets 2 and 3. In set 1 it is 0xFF.
const OVERRUN: u8 = 0x00;
/// The answers.
const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// The identifier of a keyboard with 101 or 102 keys.
const IDENTIFIER: [u8; 2] = [0xab, 0x83];

/// The keyboard.
#[derive(Debug)]
pub(crate) struct Keyboard {
    buffer: VecDeque<u8>,
    /// The command whose parameter is next.
    command: Option<u8>,
    /// The set of scan codes: 1 to 3.
    set: u8,
    is_scanning: bool,
    /// The lights: scroll lock, num lock, caps lock.
    lights: u8,
    rate: u8,
    /// The last byte that was sent, for the command to send it again.
    last: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            buffer: VecDeque::new(),
            command: None,
            set: 2,
            is_scanning: true,
            lights: 0,
            rate: 0x2b,
            last: SELF_TEST_PASSED,
        }
    }
}

impl Keyboard {
    /// Takes the next byte for the controller.
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.buffer.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    /// True if no byte waits for the controller.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Handles a byte from the controller: a command, or the parameter of one.
    pub(super) fn receive(&mut self, byte: u8) {
        // A parameter has its highest bit clear. Otherwise the byte is a new command.
        match self.command.take().filter(|_| byte < 0x80) {
            Some(command) => self.parameter(command, byte),
            None => self.begin(byte),
        }
    }

    fn begin(&mut self, command: u8) {
        match command {
            // Lights; scan codes; rate; and the kinds of single keys, whose numbers follow.
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.command = Some(command);
                self.send(&[ACKNOWLEDGE]);
            }
            0xee => self.send(&[ECHO]),
            0xf2 => self.send(&[ACKNOWLEDGE, IDENTIFIER[0], IDENTIFIER[1]]),
            // Enable, disable, and the default settings.
            0xf4..=0xf6 => {
                self.buffer.clear();
                if command != 0xf4 {
                    (self.set, self.rate, self.lights) = (2, 0x2b, 0);
                }
                self.is_scanning = command != 0xf5;
                self.send(&[ACKNOWLEDGE]);
            }
            // The kinds of all keys. Each key reports that it was pressed and released, whatever its kind.
            0xf7..=0xfa => self.send(&[ACKNOWLEDGE]),
            0xfe => self.send(&[self.last]),
            0xff => {
                *self = Self::default();
                self.send(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    fn parameter(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (0xed, _) => self.lights = byte & 7,
            (0xf0, 0) => return self.send(&[ACKNOWLEDGE, self.set]),
            (0xf0, 1..=3) => self.set = byte,
            (0xf0, _) => return self.send(&[RESEND]),
            (0xf3, _) => self.rate = byte,
            // More numbers of keys may follow.
            _ => self.command = Some(command),
        }
        self.send(&[ACKNOWLEDGE]);
    }

    /// True if the buffer has room for all bytes of a key with its modifiers.
    pub(super) fn has_room(&self, stroke: &Stroke) -> bool {
        self.is_scanning && self.buffer.len().saturating_add(stroke.codes(self.set).len()) <= BUFFER
    }

    /// Presses and releases a key with its modifiers.
    pub(super) fn press(&mut self, stroke: &Stroke) {
        if self.is_scanning {
            self.send(&stroke.codes(self.set));
        }
    }

    /// Puts bytes into the buffer. If it is full, the last byte in it becomes the one for an overrun.
    fn send(&mut self, bytes: &[u8]) {
        let overrun = if self.set == 1 { !OVERRUN } else { OVERRUN };
        for byte in bytes {
            if self.buffer.len() < BUFFER {
                self.buffer.push_back(*byte);
            } else if let Some(last) = self.buffer.back_mut() {
                *last = overrun;
            }
        }
    }
}

/// A key that is pressed and released, with the modifiers that are held meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stroke {
    key: Key,
    shift: bool,
    control: bool,
    alt: bool,
}

impl Stroke {
    /// The scan codes of the stroke in a set, as the keyboard sends them. Those of one stroke fit into the buffer.
    fn codes(&self, set: u8) -> Vec<u8> {
        let held = [(self.control, layout::CONTROL), (self.alt, layout::ALT), (self.shift, layout::SHIFT)];
        let held: Vec<Key> = held.into_iter().filter_map(|(is_held, key)| is_held.then_some(key)).collect();
        let mut codes = Vec::new();
        held.iter().chain([&self.key]).for_each(|key| codes.extend(key.pressed(set)));
        [&self.key].into_iter().chain(held.iter().rev()).for_each(|key| codes.extend(key.released(set)));
        codes
    }
}

#[cfg(test)]
mod tests;
