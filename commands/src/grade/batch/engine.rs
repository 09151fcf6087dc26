//! Grades the submissions of a batch, several at the same time.

use super::list::Submission;
use super::process::{Failed, Launcher};
use crate::status::Failure;
use grades::Grade;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use vmm::host::interrupted;

/// The time between two events.
const WAIT: Duration = Duration::from_millis(200);

/// An event of a batch.
pub enum Event<'a> {
    /// A submission is done.
    Done(&'a Submission, Grade),
    /// Some time has passed.
    Waited,
}

/// Grades submissions. `empty` is a grade without tasks. Returns after an interruption without the grades that were missing.
///
/// # Errors
/// `see` could not go on. The submissions that are being graded are still waited for.
pub fn run(
    launcher: &Launcher,
    submissions: &[Submission],
    jobs: usize,
    empty: &Grade,
    see: &mut dyn FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (to, from) = channel();
    thread::scope(|scope| {
        for _ in 0..jobs.min(submissions.len()) {
            let (to, next, is_over) = (to.clone(), &next, &is_over);
            scope.spawn(move || {
                while !interrupted() && !is_over.load(Ordering::Relaxed) {
                    let Some(submission) = submissions.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let Some(grade) = grade(launcher, submission, empty) else { break };
                    if to.send((submission, grade)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(to);
        let mut failed = Ok(());
        loop {
            match from.recv_timeout(WAIT) {
                Ok((submission, grade)) if failed.is_ok() => {
                    failed = see(Event::Done(submission, grade));
                    is_over.store(failed.is_err(), Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if failed.is_ok() => failed = see(Event::Waited),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break failed,
            }
        }
    })
}

/// The grade of a submission. `None` if the batch was interrupted.
fn grade(launcher: &Launcher, submission: &Submission, empty: &Grade) -> Option<Grade> {
    let started = Instant::now();
    let base = Grade { submission: submission.name.clone(), ..empty.clone() };
    match launcher.grade(&submission.path) {
        // The parent decides these three.
        Ok(grade) => {
            Some(Grade { submission: base.submission, exercise: base.exercise, seed: base.seed, ..grade })
        }
        Err(Failed::Interrupted) => None,
        Err(Failed::Process(_)) if interrupted() => None,
        Err(Failed::Process(reason)) => {
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Some(Grade { error: Some(reason), milliseconds, ..base })
        }
    }
}
