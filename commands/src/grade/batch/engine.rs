//! Grades the submissions of a batch, several at the same time.

use super::list::Submission;
use super::process::{Failed, Launcher};
use crate::status::Failure;
use grades::Grade;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmm::Error;
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
    let jobs = jobs.min(submissions.len());
    let inbox = Inbox { graded: Mutex::new((Vec::new(), jobs)), news: Condvar::new() };
    thread::scope(|scope| {
        let mut failed: Result<(), Failure> = Ok(());
        for number in 0..jobs {
            let started = thread::Builder::new().spawn_scoped(scope, || {
                let _leaving = Leaving(&inbox);
                while !interrupted() && !is_over.load(Ordering::Relaxed) {
                    let Some(submission) = submissions.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let Some(grade) = grade(launcher, submission, empty) else { break };
                    inbox.put(|graded, _| graded.push((submission, grade)));
                }
            });
            // The threads that there are grade all submissions.
            if let Err(source) = started {
                inbox.put(|_, jobs| *jobs = jobs.saturating_sub(1));
                if number == 0 {
                    failed = Err(Error::Host { operation: "starting a thread", source }.into());
                }
            }
        }
        loop {
            let (graded, jobs) = inbox.take();
            let events = graded.into_iter().map(|(submission, grade)| Event::Done(submission, grade));
            for event in events.chain([Event::Waited]) {
                failed = failed.and_then(|()| see(event));
            }
            is_over.store(failed.is_err(), Ordering::Relaxed);
            if jobs == 0 {
                break failed;
            }
        }
    })
}

/// The grades that are ready, and the number of threads that are at work.
struct Inbox<'a> {
    graded: Mutex<(Vec<(&'a Submission, Grade)>, usize)>,
    news: Condvar,
}

impl<'a> Inbox<'a> {
    /// Changes the content, and wakes the thread in `take`.
    fn put(&self, change: impl FnOnce(&mut Vec<(&'a Submission, Grade)>, &mut usize)) {
        let mut content = self.graded.lock().unwrap_or_else(PoisonError::into_inner);
        let (graded, jobs) = &mut *content;
        change(graded, jobs);
        self.news.notify_one();
    }

    /// Takes the grades, after waiting a while for one.
    fn take(&self) -> (Vec<(&'a Submission, Grade)>, usize) {
        let content = self.graded.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle =
            |content: &mut (Vec<(&Submission, Grade)>, usize)| content.0.is_empty() && content.1 > 0;
        let waited = self.news.wait_timeout_while(content, WAIT, is_idle);
        let mut content = waited.unwrap_or_else(PoisonError::into_inner).0;
        (std::mem::take(&mut content.0), content.1)
    }
}

/// Counts a thread out at its end, even if it panics.
struct Leaving<'a, 'b>(&'a Inbox<'b>);

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.0.put(|_, jobs| *jobs = jobs.saturating_sub(1));
    }
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
