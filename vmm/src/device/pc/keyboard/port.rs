//! The host's end of the keyboard: the keys of the terminal become keys of the guest's keyboard.

use super::TerminalKeys;
use crate::console::host::Port;
use crate::device::pc::i8042::I8042;
use crate::host::EventFd;
use std::sync::{Arc, Mutex, TryLockError};

/// A function that returns true if the guest accepts the keyboard's interrupt.
pub(crate) type Accepts = Box<dyn Fn() -> bool + Send>;

/// The host's end of the keyboard, which it shares with the vCPUs.
pub(crate) struct KeyboardPort {
    keyboard: Arc<Mutex<I8042>>,
    /// Signalled when the guest has read all keys.
    drained: Arc<EventFd>,
    keys: TerminalKeys,
    accepts: Accepts,
}

impl KeyboardPort {
    /// Creates the host's end of a keyboard. Keys wait until the guest polls the controller, or `accepts` returns true:
    /// an interrupt that arrives before would be lost, and the driver's initialisation throws away what it finds.
    pub(crate) fn new(keyboard: Arc<Mutex<I8042>>, drained: Arc<EventFd>, accepts: Accepts) -> Self {
        Self { keyboard, drained, keys: TerminalKeys::default(), accepts }
    }

    /// True if the guest reads the keyboard. A vCPU that holds the controller is taken to read it.
    pub(crate) fn listens(&self) -> bool {
        let Ok(mut keyboard) = self.keyboard.try_lock() else { return true };
        if !keyboard.listens() && keyboard.has_interrupt() && (self.accepts)() {
            keyboard.listen();
        }
        keyboard.listens()
    }
}

impl Port for KeyboardPort {
    fn push(&mut self, bytes: &[u8]) -> usize {
        if !self.listens() {
            return 0;
        }
        let mut keyboard = match self.keyboard.try_lock() {
            Ok(keyboard) => keyboard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A vCPU holds the lock.
            Err(TryLockError::WouldBlock) => return 0,
        };
        let mut taken = 0usize;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let (stroke, length) = self.keys.next(rest);
            if stroke.is_some_and(|stroke| !keyboard.press(&stroke)) {
                break;
            }
            taken = taken.saturating_add(length.max(1));
        }
        taken.min(bytes.len())
    }

    fn room_event(&self) -> &EventFd {
        &self.drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::bus::Device;
    use crate::host::event;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn read(keyboard: &Mutex<I8042>, offset: u64) -> u64 {
        keyboard.lock().unwrap().read(offset, 1).continue_value().unwrap()
    }

    /// Reads a byte of the keyboard as a driver does. `None` if there is none.
    fn byte(keyboard: &Mutex<I8042>) -> Option<u64> {
        (read(keyboard, 4) & 1 != 0).then(|| read(keyboard, 0))
    }

    #[test]
    fn keys_wait_for_the_interrupt_and_a_flood_arrives_complete() {
        let (line, drained) = (event().unwrap(), Arc::new(event().unwrap()));
        let keyboard = Arc::new(Mutex::new(I8042::with_keyboard(
            Some(line.try_clone().unwrap()),
            Some(drained.clone()),
        )));
        let accepts = Arc::new(AtomicBool::new(false));
        let accepted = accepts.clone();
        let mut port =
            KeyboardPort::new(keyboard.clone(), drained, Box::new(move || accepted.load(Ordering::Relaxed)));
        let typed = b"aB\x1b[A".repeat(500);
        assert_eq!((port.push(&typed), read(&keyboard, 4) & 1), (0, 0));
        accepts.store(true, Ordering::Relaxed);
        let (mut sent, mut seen) = (0, Vec::new());
        while sent < typed.len() {
            let taken = port.push(&typed[sent..]);
            assert_ne!(taken, 0, "the guest has read everything");
            sent += taken;
            assert_ne!(line.read().unwrap(), 0);
            seen.extend(std::iter::from_fn(|| byte(&keyboard)));
            assert_ne!(port.room_event().read().unwrap(), 0);
        }
        let once = [0x1e, 0x9e, 0x2a, 0x30, 0xb0, 0xaa, 0xe0, 0x48, 0xe0, 0xc8];
        assert_eq!(seen, once.repeat(500));
    }

    #[test]
    fn a_guest_that_polls_gets_keys_without_an_interrupt() {
        let drained = Arc::new(event().unwrap());
        let keyboard = Arc::new(Mutex::new(I8042::with_keyboard(None, Some(drained.clone()))));
        let mut port = KeyboardPort::new(keyboard.clone(), drained, Box::new(|| false));
        assert_eq!(port.push(b"x"), 0);
        (0..8).for_each(|_| assert_eq!(byte(&keyboard), None));
        assert_ne!(port.room_event().read().unwrap(), 0);
        assert_eq!((port.push(b"x"), byte(&keyboard), byte(&keyboard)), (1, Some(0x2d), Some(0xad)));
    }
}
