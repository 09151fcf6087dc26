//! What the text on a Linux machine's console tells: that there is any, that userland runs, and that the kernel has
//! panicked. A panic is nothing that a machine sees otherwise: with `panic=-1` it is a reset like any other.

use crate::host::printable_text;
use crate::profile::timeline::{Event, Timeline};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much of a line is looked at, in bytes.
pub(crate) const MAX_LINE: usize = 512;
/// What the kernel says at the end of a panic's first line.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// What the kernel says when it starts userland.
const USERLAND: (&[u8], &[u8]) = (b"Run /", b" as init process");

/// Looks at the console's text.
#[derive(Clone, Debug)]
pub struct BootProgress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    timeline: Arc<Timeline>,
    /// The text that says that userland runs; without one, the kernel's own.
    marker: Option<Vec<u8>>,
    line: Vec<u8>,
    begun: bool,
    userland: bool,
    panic: Option<String>,
}

impl BootProgress {
    /// Marks `timeline`. Userland runs when `marker` is seen, or when the kernel says so.
    pub fn new(timeline: Arc<Timeline>, marker: Option<&str>) -> Self {
        let marker = marker.map(|marker| marker.as_bytes().to_vec());
        let state = State { timeline, marker, line: Vec::new(), begun: false, userland: false, panic: None };
        Self(Arc::new(Mutex::new(state)))
    }

    /// More text has come.
    pub fn see(&self, text: &[u8]) {
        self.lock().see(text);
    }

    /// Why the kernel has panicked, if it has said so.
    pub fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn see(&mut self, text: &[u8]) {
        if !self.begun && !text.is_empty() {
            self.begun = true;
            self.timeline.mark(Event::FirstByte);
        }
        for &byte in text {
            if byte == b'\n' {
                self.end_of_line();
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
        // A marker need not end its line.
        if !self.userland && self.marker.as_deref().is_some_and(|marker| find(&self.line, marker).is_some()) {
            self.reached_userland();
        }
    }

    fn end_of_line(&mut self) {
        let line = self.line.as_slice();
        let runs = match &self.marker {
            Some(marker) => find(line, marker).is_some(),
            None => find(line, USERLAND.0).is_some() && find(line, USERLAND.1).is_some(),
        };
        if self.panic.is_none() {
            let reason = find(line, PANIC).and_then(|at| line.get(at.saturating_add(PANIC.len())..));
            self.panic = reason.map(|reason| printable_text(String::from_utf8_lossy(reason).trim()));
        }
        if runs && !self.userland {
            self.reached_userland();
        }
    }

    fn reached_userland(&mut self) {
        self.userland = true;
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
        let watch = BootProgress::new(timeline.clone(), marker);
        pieces.iter().for_each(|piece| watch.see(piece.as_bytes()));
        (timeline.marks().into_iter().map(|mark| mark.event).collect(), watch.panic())
    }

    #[test]
    fn the_kernel_says_when_userland_runs() {
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
    fn a_marker_is_seen_in_the_middle_of_a_line_and_once() {
        let seen = events(Some("REA"), &["abR", "EA", "DY\nREA\n", "Run /init as init process\n"]);
        assert_eq!(seen, (vec![Event::FirstByte, Event::Userland], None));
        assert_eq!(events(Some("no"), &["Run /init as init process\n"]).0, [Event::FirstByte]);
    }

    #[test]
    fn a_panic_has_a_reason_and_the_first_counts() {
        let text = [
            "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
            "---[ end Kernel panic - not syncing: another ]---\r\n",
        ];
        let reason = "VFS: Unable to mount root fs on unknown-block(0,0)";
        assert_eq!(events(None, &text).1.as_deref(), Some(reason));
    }

    #[test]
    fn a_line_without_end_fills_no_memory() {
        let watch = BootProgress::new(Arc::default(), None);
        (0..1000).for_each(|_| watch.see(&[b'x'; 100]));
        assert_eq!(watch.lock().line.len(), MAX_LINE);
    }
}
