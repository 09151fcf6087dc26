//! The progress of work that takes more than two seconds: one line on stderr, if that is a terminal. It is drawn again twice a second,
//! and erased before any other text.

use crate::streams::{moves_cursor, print_undrawn};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Work that ends sooner has no line.
const PATIENCE: Duration = Duration::from_secs(2);
/// The time between two drawings, and at least between another text and the line.
const INTERVAL: Duration = Duration::from_millis(500);

/// The line of this process.
static LINE: Mutex<Line> = Mutex::new(Line { text: None, from: None, is_drawn: false });
/// Wakes the thread that draws.
static ENDED: Condvar = Condvar::new();

struct Line {
    /// `None` if there is nothing to show, or nothing is going on.
    text: Option<String>,
    /// The start of the work, and the time of the next drawing.
    from: Option<(Instant, Instant)>,
    is_drawn: bool,
}

fn lock() -> MutexGuard<'static, Line> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    fn erase(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            print_undrawn("\r\x1b[K");
        }
    }
}

/// Work whose progress is shown until this value is dropped.
#[must_use]
pub(crate) struct Progress(());

impl Progress {
    /// Begins work, which `text` describes. Without a terminal, or if the user wants it `quiet`, no thread starts.
    pub(crate) fn begin(quiet: bool, text: impl FnOnce() -> String) -> Option<Self> {
        if quiet || !moves_cursor(&io::stderr()) {
            return None;
        }
        Self::start(text())
    }

    fn start(text: String) -> Option<Self> {
        let now = Instant::now();
        let mut line = lock();
        line.text = Some(text);
        line.from = Some((now, now.checked_add(PATIENCE)?));
        drop(line);
        // Without the thread there is no line, and the work goes on.
        let started = thread::Builder::new().name("progress".into()).spawn(draw_until_end);
        started.is_ok().then_some(Self(()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        end();
    }
}

/// Changes the description of the work, if it is shown.
pub(crate) fn say(text: impl FnOnce() -> String) {
    if is_shown() {
        change(text());
    }
}

fn is_shown() -> bool {
    lock().text.is_some()
}

fn change(text: String) {
    lock().text = Some(text);
}

/// Erases the line, before another text. It is drawn again later.
pub(crate) fn erase() {
    let mut line = lock();
    line.erase();
    if let Some((_, next)) = &mut line.from {
        *next = (*next).max(Instant::now().checked_add(INTERVAL).unwrap_or(*next));
    }
}

/// Erases the line for good.
pub(crate) fn end() {
    let mut line = lock();
    line.erase();
    line.text = None;
    ENDED.notify_all();
}

/// Draws the line until the work ends.
fn draw_until_end() {
    let mut line = lock();
    while let (Some(text), Some((start, next))) = (&line.text, line.from) {
        if Instant::now() >= next {
            print_undrawn(&drawing(text, start.elapsed(), vmm::host::terminal_width()));
            line.is_drawn = true;
        }
        line = ENDED.wait_timeout(line, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The characters that draw the line on a terminal with this number of columns. A line that fills them would begin another one.
fn drawing(text: &str, elapsed: Duration, columns: Option<usize>) -> String {
    let line = format!("vmm: {text} ({} s)", elapsed.as_secs());
    let room = columns.unwrap_or(80).saturating_sub(1);
    let line: String = line.chars().take(room).collect();
    format!("\r{line}\x1b[K")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_stays_within_the_terminal() {
        let of = |columns| drawing("reading run.trace", Duration::from_millis(3999), columns);
        assert_eq!(of(Some(120)), "\rvmm: reading run.trace (3 s)\x1b[K");
        assert_eq!(of(None), of(Some(80)));
        assert_eq!(of(Some(10)), "\rvmm: read\x1b[K");
        assert_eq!(of(Some(0)), "\r\x1b[K");
    }
}
