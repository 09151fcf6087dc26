//! Int 9 and 16h: the keyboard. Keys wait in a ring in the data area, as on a PC.
//!
//! IBM PC AT Technical Reference, "Keyboard BIOS" and "Scan codes".

use super::Bios;
use super::call::{Call, ZERO};
use super::chips;
use super::system::Answer;
use crate::exit::Stop;
use simvirtio::abi;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Places in the data area.
const SHIFTS: u64 = 0x417;
const HEAD: u64 = 0x41a;
const TAIL: u64 = 0x41c;
const RING_START: u64 = 0x480;
const RING_END: u64 = 0x482;
const DATA: u64 = 0x400;

/// Bits of the shift keys: right and left shift, control, alternate, caps lock.
const RIGHT_SHIFT: u8 = 1;
const LEFT_SHIFT: u8 = 1 << 1;
const CONTROL: u8 = 1 << 2;
const ALTERNATE: u8 = 1 << 3;
const CAPS_LOCK: u8 = 1 << 6;

/// The time that a guest with a timer of its own waits for input before it serves interrupts again.
const INPUT_PAUSE: Duration = Duration::from_millis(20);
/// Queries without a key in a row, after which a query waits a little: the guest only polls.
const POLLS: u32 = 64;
const POLL_PAUSE: Duration = Duration::from_millis(1);

/// The characters of the keys by scan code, from 0x01 on: without and with a shift key. Zero: no character.
const KEYS: &[u8; 57] = b"\x1b1234567890-=\x08\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
const SHIFTED: &[u8; 57] = b"\x1b!@#$%^&*()_+\x08\0QWERTYUIOP{}\r\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

/// The keys of a terminal's sequences `ESC [ letter`: the letter and the scan code.
const SEQUENCES: [(u8, u8); 6] =
    [(b'A', 0x48), (b'B', 0x50), (b'C', 0x4d), (b'D', 0x4b), (b'H', 0x47), (b'F', 0x4f)];
/// The low byte of a key that has no character and is not on the old keyboard.
const EXTENDED: u8 = 0xe0;

/// The key that makes a character: the scan code in the high byte. A character without a key has the code 0.
fn key_of(character: u8) -> u16 {
    let character = match character {
        b'\n' => b'\r',
        0x7f => 8,
        other => other,
    };
    let find = |keys: &[u8; 57], wanted: u8| keys.iter().position(|key| *key == wanted && wanted != 0);
    let at = find(KEYS, character)
        .or_else(|| find(SHIFTED, character))
        // Control and a letter.
        .or_else(|| find(KEYS, character | 0x60).filter(|_| (1..=26).contains(&character)));
    let scan_code = at.and_then(|at| u8::try_from(at.saturating_add(1)).ok()).unwrap_or(0);
    u16::from_be_bytes([scan_code, character])
}

impl Bios {
    /// Answers int 16h.
    pub(super) fn keyboard_call(&mut self, call: &mut Call<'_>) -> ControlFlow<Stop, Answer> {
        let function = call.ah();
        let is_old = function < 0x10;
        match function {
            0x00 | 0x10 => {
                // The wait for a key does not count towards the time limit, unless no key can come.
                let since = self.awaits_key.take().filter(|_| self.has_controllers);
                self.extend_limit(since);
                let start = Instant::now();
                self.take_input(call, if self.has_controllers { INPUT_PAUSE } else { Duration::ZERO })?;
                let Some(key) = first(call) else {
                    if self.input_ended && chips::has_no_handler(call.memory) {
                        // A terminal that hangs up ends the input, too.
                        self.deadline.must_end().map_or(ControlFlow::Continue(()), ControlFlow::Break)?;
                        log::warn!("the guest waits for a key, and its input has ended");
                        return ControlFlow::Break(Stop::Halted);
                    }
                    self.awaits_key = (!self.times_keys).then_some(start);
                    return ControlFlow::Continue(Answer::Wait);
                };
                remove_first(call);
                call.set_ax(of_keyboard(key, is_old));
            }
            0x01 | 0x11 => {
                let pause = if self.polls < POLLS { Duration::ZERO } else { POLL_PAUSE };
                self.take_input(call, pause)?;
                let key = first(call);
                self.polls = if key.is_some() { 0 } else { self.polls.saturating_add(1) };
                if let Some(key) = key {
                    call.set_ax(of_keyboard(key, is_old));
                }
                call.set_flag(ZERO, key.is_none());
            }
            0x02 | 0x12 => call.set_al(call.byte(SHIFTS)),
            // The rate of repetition.
            0x03 => {}
            0x05 => {
                let is_full = !append(call, call.cx());
                call.set_al(is_full.into());
            }
            _ => return ControlFlow::Continue(Answer::Missing),
        }
        ControlFlow::Continue(Answer::Done)
    }

    /// Moves the time limit by the time since `since`, in which the guest waited for a key.
    pub(super) fn extend_limit(&self, since: Option<Instant>) {
        if let Some(since) = since.filter(|_| !self.input_ended) {
            self.deadline.extend_by_wait_since(since);
        }
    }

    /// Moves the input of the machine into the ring, as far as there is room. Waits at most `timeout` for it.
    pub(super) fn take_input(&mut self, call: &mut Call<'_>, timeout: Duration) -> ControlFlow<Stop> {
        if let Err(error) = self.input.fetch(Some(timeout)) {
            return ControlFlow::Break(Stop::InputFailed(Arc::new(error)));
        }
        while has_room(call) {
            let Some(byte) = self.input.next() else { break };
            let is_last = !self.input.has_next() && !self.input.may_wait();
            if byte == abi::END_OF_INPUT && is_last {
                self.input_ended = true;
                break;
            }
            let key = self.key(byte);
            append(call, key);
        }
        ControlFlow::Continue(())
    }

    /// The key of a byte of the input, and of those of a terminal's sequence.
    fn key(&mut self, byte: u8) -> u16 {
        let rest = (self.input.peek(0), self.input.peek(1));
        let (0x1b, (Some(b'['), Some(letter))) = (byte, rest) else { return key_of(byte) };
        // The bytes after another ESC are keys themselves.
        let Some((_, scan_code)) = SEQUENCES.iter().find(|(of, _)| *of == letter) else {
            return key_of(byte);
        };
        let _sequence = (self.input.next(), self.input.next());
        u16::from_be_bytes([*scan_code, EXTENDED])
    }

    /// Int 9: a scan code of the keyboard.
    pub(super) fn scan_code(&mut self, call: &mut Call<'_>, code: u8) {
        let is_extended = std::mem::replace(&mut self.extended, code == EXTENDED);
        let (key, released) = (code & 0x7f, code & 0x80 != 0);
        let shift = match key {
            0x2a => LEFT_SHIFT,
            0x36 => RIGHT_SHIFT,
            0x1d => CONTROL,
            0x38 => ALTERNATE,
            _ => 0,
        };
        let shifts = call.byte(SHIFTS);
        if shift != 0 {
            // An extended shift belongs to another key.
            if !(is_extended && matches!(key, 0x2a | 0x36)) {
                call.set_byte(SHIFTS, if released { shifts & !shift } else { shifts | shift });
            }
            return;
        }
        if released || code == EXTENDED {
            return;
        }
        if key == 0x3a {
            return call.set_byte(SHIFTS, shifts ^ CAPS_LOCK);
        }
        append(call, translated(key, shifts, is_extended));
    }
}

/// The key of a scan code, with the shift keys that are down.
fn translated(key: u8, shifts: u8, is_extended: bool) -> u16 {
    let at = usize::from(key).wrapping_sub(1);
    let plain = KEYS.get(at).copied().unwrap_or(0);
    let is_shifted = shifts & (LEFT_SHIFT | RIGHT_SHIFT) != 0;
    let is_capital = plain.is_ascii_lowercase() && shifts & CAPS_LOCK != 0;
    let character = match is_shifted != is_capital {
        true => SHIFTED.get(at).copied().unwrap_or(0),
        false => plain,
    };
    let character = match shifts {
        _ if is_extended && !matches!(key, 0x1c | 0x35) => EXTENDED,
        _ if shifts & ALTERNATE != 0 => 0,
        _ if shifts & CONTROL != 0 && plain.is_ascii_lowercase() => plain & 0x1f,
        _ => character,
    };
    u16::from_be_bytes([key, character])
}

/// The key as the functions of the old keyboard return it.
fn of_keyboard(key: u16, is_old: bool) -> u16 {
    let [code, character] = key.to_be_bytes();
    u16::from_be_bytes([code, if is_old && character == EXTENDED { 0 } else { character }])
}

/// The offset in the ring after `offset`.
fn after(call: &Call<'_>, offset: u16) -> u16 {
    let next = offset.wrapping_add(2);
    if next >= call.word(RING_END) { call.word(RING_START) } else { next }
}

fn first(call: &Call<'_>) -> Option<u16> {
    let head = call.word(HEAD);
    (head != call.word(TAIL)).then(|| call.word(DATA.wrapping_add(head.into())))
}

fn remove_first(call: &mut Call<'_>) {
    let next = after(call, call.word(HEAD));
    call.set_word(HEAD, next);
}

fn has_room(call: &Call<'_>) -> bool {
    after(call, call.word(TAIL)) != call.word(HEAD)
}

/// Appends a key. False if the ring is full.
fn append(call: &mut Call<'_>, key: u16) -> bool {
    if !has_room(call) {
        return false;
    }
    let tail = call.word(TAIL);
    call.set_word(DATA.wrapping_add(tail.into()), key);
    let next = after(call, tail);
    call.set_word(TAIL, next);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_the_scan_codes_of_their_keys() {
        for (character, key) in [
            (b'a', 0x1e61),
            (b'A', 0x1e41),
            (b'1', 0x0231),
            (b'!', 0x0221),
            (b'\n', 0x1c0d),
            (b' ', 0x3920),
            (0x1b, 0x011b),
            (8, 0x0e08),
            (0x7f, 0x0e08),
            (b'/', 0x352f),
            (3, 0x2e03),
            (0xe4, 0x00e4),
        ] {
            assert_eq!(key_of(character), key, "{character:#x}");
        }
    }

    #[test]
    fn shift_keys_change_characters() {
        for (key, shifts, extended, expected) in [
            (0x1e, 0, false, 0x1e61),
            (0x1e, LEFT_SHIFT, false, 0x1e41),
            (0x1e, CAPS_LOCK, false, 0x1e41),
            (0x1e, CAPS_LOCK | RIGHT_SHIFT, false, 0x1e61),
            (0x02, CAPS_LOCK, false, 0x0231),
            (0x2e, CONTROL, false, 0x2e03),
            (0x1e, ALTERNATE, false, 0x1e00),
            (0x48, 0, true, 0x48e0),
            (0x3b, 0, false, 0x3b00),
        ] {
            assert_eq!(translated(key, shifts, extended), expected, "{key:#x} {shifts:#x}");
        }
    }
}
