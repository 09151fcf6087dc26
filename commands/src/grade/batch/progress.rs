//! The progress of a batch.

use crate::progress;
use std::time::{Duration, Instant};

/// The number of submissions that are done.
pub struct Progress {
    started: Instant,
    /// The number of submissions to grade.
    total: usize,
    done: usize,
    _shown: Option<progress::Progress>,
}

impl Progress {
    /// Begins a batch of `total` submissions.
    pub fn new(total: usize) -> Self {
        let shown = progress::Progress::begin(false, || line(0, total, Duration::ZERO));
        Self { started: Instant::now(), total, done: 0, _shown: shown }
    }

    /// Counts a submission that is done.
    pub fn count(&mut self) {
        self.done = self.done.saturating_add(1);
        progress::say(|| line(self.done, self.total, self.started.elapsed()));
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
