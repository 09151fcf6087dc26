//! The progress of a batch: one line on a terminal, which is drawn again.

use crate::streams::print_stderr;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The time between two drawings.
const INTERVAL: Duration = Duration::from_millis(200);

/// The progress of a batch.
pub struct Progress {
    started: Instant,
    /// The number of submissions to grade.
    total: usize,
    done: usize,
    is_terminal: bool,
    drawn: Option<Instant>,
    is_visible: bool,
}

impl Progress {
    pub fn new(total: usize) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let is_terminal = io::stderr().is_terminal() && !is_dumb;
        Self { started: Instant::now(), total, done: 0, is_terminal, drawn: None, is_visible: false }
    }

    /// Counts a submission that is done.
    pub fn count(&mut self) {
        self.done = self.done.saturating_add(1);
    }

    /// Draws the line, if it is time.
    pub fn draw(&mut self) {
        let is_early = self.drawn.is_some_and(|drawn| drawn.elapsed() < INTERVAL);
        // A short batch needs none.
        if !self.is_terminal || self.started.elapsed() < INTERVAL || is_early && self.is_visible {
            return;
        }
        self.drawn = Some(Instant::now());
        self.is_visible = true;
        print_stderr(&format!("\r{}\x1b[K", line(self.done, self.total, self.started.elapsed())));
    }

    /// Removes the line, so that another line can be printed.
    pub fn clear(&mut self) {
        if self.is_visible {
            print_stderr("\r\x1b[K");
            self.is_visible = false;
        }
    }
}

/// The text of the line.
fn line(done: usize, total: usize, elapsed: Duration) -> String {
    let left = total.saturating_sub(done);
    let counted = format!("{done} of {total} graded");
    let each = u32::try_from(done).ok().and_then(|done| elapsed.checked_div(done));
    let Some(each) = each else { return counted };
    let seconds = each.saturating_mul(u32::try_from(left).unwrap_or(u32::MAX)).as_secs();
    match seconds / 60 {
        0 => format!("{counted}, about {seconds} s left"),
        minutes => format!("{counted}, about {minutes} min left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_an_estimate() {
        let of = |done, seconds| line(done, 60, Duration::from_secs(seconds));
        assert_eq!(of(0, 5), "0 of 60 graded");
        assert_eq!(of(20, 10), "20 of 60 graded, about 20 s left");
        assert_eq!(of(1, 10), "1 of 60 graded, about 9 min left");
        assert_eq!(of(60, 10), "60 of 60 graded, about 0 s left");
    }
}
