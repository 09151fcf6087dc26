//! The events that the console text of a Linux machine shows: the first text, the start of userland, and a kernel panic.
//! Only the console shows a panic: with `panic=-1`, the machine sees the same reset as after a reboot.

use crate::host::printable_text;
use crate::profile::timeline::{Event, Timeline};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The maximum length of a line that is searched, in bytes. The rest of a longer line is ignored.
pub(crate) const MAX_LINE: usize = 512;
/// The text in a panic's first line, before the reason.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// The two parts of the kernel's message when it starts userland. The path is between them.
const USERLAND: (&[u8], &[u8]) = (b"Run /", b" as init process");

/// The kernel's message before it halts the machine for good.
const HALTED: &[u8] = b"reboot: System halted";

/// Watches the text on the console.
#[derive(Clone, Debug)]
pub struct BootProgress(Arc<Mutex<State>>);

/// The progress of a boot.
#[derive(Clone, Debug)]
pub(super) struct SoFar {
    /// The number of bytes that the console has shown.
    pub(super) bytes: u64,
    /// True if userland has started.
    pub(super) in_userland: bool,
    /// True if the console has shown the message of a halt.
    pub(super) is_halted: bool,
    /// The last complete line, and the text after it.
    pub(super) last_lines: String,
    /// The reason of the kernel's panic.
    pub(super) panic: Option<String>,
}

#[derive(Debug)]
struct State {
    timeline: Arc<Timeline>,
    /// The text that marks the start of userland. `None` for the kernel's own message.
    marker: Option<Vec<u8>>,
    /// The current line, up to [`MAX_LINE`] bytes.
    line: Vec<u8>,
    /// The line before it.
    last_line: Vec<u8>,
    /// The number of bytes that the console has shown.
    bytes: u64,
    /// True if userland has started.
    in_userland: bool,
    is_halted: bool,
    panic: Option<String>,
}

impl BootProgress {
    /// Marks the events in `timeline`. Userland starts at the text `marker`; without one, at the kernel's message.
    pub fn new(timeline: Arc<Timeline>, marker: Option<&str>) -> Self {
        let marker = marker.map(|marker| marker.as_bytes().to_vec());
        let state = State {
            timeline,
            marker,
            line: Vec::new(),
            last_line: Vec::new(),
            bytes: 0,
            in_userland: false,
            is_halted: false,
            panic: None,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Reads more console text. Returns true if it has the message of a halt.
    pub fn see(&self, text: &[u8]) -> bool {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.is_halted);
        state.see(text);
        let now = state.is_halted;
        state.is_halted |= before;
        now
    }

    /// Forgets the message of a halt: it was not one.
    pub(super) fn forget_halt(&self) {
        self.lock().is_halted = false;
    }

    /// The progress that the console has shown so far.
    pub(super) fn so_far(&self) -> SoFar {
        let state = self.lock();
        let lines = [state.last_line.as_slice(), b"\n", &state.line].concat();
        SoFar {
            bytes: state.bytes,
            in_userland: state.in_userland,
            is_halted: state.is_halted,
            last_lines: String::from_utf8_lossy(&lines).into_owned(),
            panic: state.panic.clone(),
        }
    }

    /// The reason of the kernel's panic. `None` if the console has not shown one.
    pub fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn see(&mut self, text: &[u8]) {
        if self.bytes == 0 && !text.is_empty() {
            self.timeline.mark(Event::FirstByte);
        }
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        for &byte in text {
            if byte == b'\n' {
                self.end_of_line();
                std::mem::swap(&mut self.line, &mut self.last_line);
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
        // A marker counts before its line ends.
        if !self.in_userland
            && self.marker.as_deref().is_some_and(|marker| find(&self.line, marker).is_some())
        {
            self.reached_userland();
        }
    }

    fn end_of_line(&mut self) {
        let line = self.line.as_slice();
        let starts_userland = match &self.marker {
            Some(marker) => find(line, marker).is_some(),
            None => find(line, USERLAND.0).is_some() && find(line, USERLAND.1).is_some(),
        };
        if self.panic.is_none() {
            let reason = find(line, PANIC).and_then(|at| line.get(at.saturating_add(PANIC.len())..));
            self.panic = reason.map(|reason| printable_text(String::from_utf8_lossy(reason).trim()));
        }
        self.is_halted |= find(line, HALTED).is_some();
        if starts_userland && !self.in_userland {
            self.reached_userland();
        }
    }

    fn reached_userland(&mut self) {
        self.in_userland = true;
        self.timeline.mark(Event::Userland);
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(marker: Option<&str>, pieces: &[&str]) -> (Vec<Event>, Option<String>) {
        let timeline = Arc::new(Timeline::default());
        let progress = BootProgress::new(timeline.clone(), marker);
        pieces.iter().for_each(|piece| _ = progress.see(piece.as_bytes()));
        (timeline.marks().into_iter().map(|mark| mark.event).collect(), progress.panic())
    }

    #[test]
    fn the_kernel_message_marks_the_start_of_userland() {
        let text = [
            "",
            "[    0.1] Linux\r\n[    0.5] Run /in",
            "it as init process\r\n",
            "Run /b as init process\n",
        ];
        assert_eq!(events(None, &text), (vec![Event::FirstByte, Event::Userland], None));
        assert_eq!(events(None, &["Run /init now\n"]), (vec![Event::FirstByte], None));
    }

    #[test]
    fn a_marker_in_the_middle_of_a_line_counts_once() {
        let seen = events(Some("REA"), &["abR", "EA", "DY\nREA\n", "Run /init as init process\n"]);
        assert_eq!(seen, (vec![Event::FirstByte, Event::Userland], None));
        assert_eq!(events(Some("no"), &["Run /init as init process\n"]).0, [Event::FirstByte]);
    }

    #[test]
    fn the_reason_of_the_first_panic_is_kept() {
        let text = [
            "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
            "---[ end Kernel panic - not syncing: another ]---\r\n",
        ];
        let reason = "VFS: Unable to mount root fs on unknown-block(0,0)";
        assert_eq!(events(None, &text).1.as_deref(), Some(reason));
    }

    #[test]
    fn the_message_of_a_halt_counts_at_the_end_of_its_line_until_it_is_forgotten() {
        let progress = BootProgress::new(Arc::default(), None);
        let seen =
            ["[    2.1] reboot: System", " halted", "\n", "x\n"].map(|piece| progress.see(piece.as_bytes()));
        assert_eq!((seen, progress.so_far().is_halted), ([false, false, true, false], true));
        progress.forget_halt();
        assert!(!progress.so_far().is_halted);
    }

    #[test]
    fn an_endless_line_uses_bounded_memory() {
        let progress = BootProgress::new(Arc::default(), None);
        (0..1000).for_each(|_| _ = progress.see(&[b'x'; 100]));
        assert_eq!(progress.lock().line.len(), MAX_LINE);
    }
}
