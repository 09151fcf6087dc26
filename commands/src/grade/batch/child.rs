//! The process of a submission: `vmm grade --child EXERCISE SUBMISSION`. It grades one submission, and writes the grade to stdout
//! as a line of JSON.
//!
//! The parent writes a line with the seed, the digest of the exercise, and its own process number to stdin. They are not on the
//! command line, which other processes can read.

use crate::grade::batch::digest::digest;
use crate::grade::{Settings, exercise};
use crate::jail::{Jail, JailArgs, Rights};
use crate::status::{self, HasStatus};
use crate::streams::{print_stdout, report_error};
use crate::sys::die_with;
use ::exercise::Exercise;
use ::exercise::file::Kind;
use grades::{Grade, Options, Task};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;
use vmm::Error;
use vmm::host::{printable, printable_text};

/// The longest line of the parent.
const MAX_LINE: u64 = 128;

/// The values that the parent decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The seed of the random numbers.
    pub seed: u64,
    /// The digest of the exercise.
    pub digest: u64,
    /// The process number of the parent.
    pub parent: u32,
}

impl Order {
    /// The line for the child.
    pub fn line(self) -> String {
        format!("{} {:x} {}\n", self.seed, self.digest, self.parent)
    }

    /// Parses the line of a parent.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let order = Self {
            seed: words.next()?.parse().ok()?,
            digest: u64::from_str_radix(words.next()?, 16).ok()?,
            parent: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(order)
    }
}

/// Grades the submission of the parent. Returns the exit status.
pub fn main(file: &Path, submissions: &[PathBuf], settings: Settings, jail: JailArgs) -> u8 {
    let own = jail.prepare(true);
    let started = Instant::now();
    let prepared = match prepare(file, submissions) {
        Ok(prepared) => prepared,
        Err(error) => return report_error(&error),
    };
    let graded = grade(&prepared, settings, own, jail);
    let failed = graded.as_ref().err().map_or(status::OK, HasStatus::status);
    let (tasks, error) = match graded {
        Ok(tasks) => (tasks, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let Prepared { exercise, submission, order } = prepared;
    let grade = Grade {
        submission: printable(submission),
        exercise: printable_text(&exercise.name),
        seed: order.seed,
        error,
        tasks,
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    print_stdout(&(grade.to_json(Options::default()) + "\n")).max(failed)
}

/// All that the grade of a submission needs, except the submission's own files.
struct Prepared<'a> {
    exercise: Exercise,
    submission: &'a Path,
    order: Order,
}

/// Reads the order of the parent, and the exercise.
///
/// # Errors
/// There is no parent, or the exercise has changed since the parent read it.
fn prepare<'a>(file: &Path, submissions: &'a [PathBuf]) -> Result<Prepared<'a>, Error> {
    let usage = || Error::Config("--child is for the processes that vmm grade starts: leave it out".into());
    let mut line = String::new();
    let read = io::stdin().lock().take(MAX_LINE).read_to_string(&mut line);
    let order = read.ok().and_then(|_| Order::parse(&line)).ok_or_else(usage)?;
    let [submission] = submissions else { return Err(usage()) };
    die_with(order.parent).map_err(|source| Error::Host { operation: "grading a submission", source })?;
    let changed = || Error::Config(format!("{} was changed while the batch ran", printable(file)));
    let exercise = Exercise::open(file).map_err(|_| changed())?;
    match digest(&exercise) == order.digest {
        true => Ok(Prepared { exercise, submission, order }),
        false => Err(changed()),
    }
}

/// Grades the submission.
///
/// # Errors
/// The host failed.
fn grade(
    prepared: &Prepared,
    settings: Settings,
    own: Option<Jail>,
    jail: JailArgs,
) -> Result<Vec<Task>, Error> {
    if prepared.submission.symlink_metadata().is_err() {
        let name = printable(prepared.submission);
        return Err(Error::Config(format!("the submission {name} is no longer there")));
    }
    // Up to here the process has read files of the teacher only, and from here on those of the student.
    // A VMM is another program, and has a jail of its own: this process could not start it from inside of one.
    let tasks = &prepared.exercise.tasks;
    let observes = tasks.iter().any(|task| task.settings.kind == Kind::Vmm);
    if let Some(jail) = own.filter(|_| !observes) {
        let initrds = tasks.iter().filter_map(|task| task.settings.initrd.clone());
        // A machine for Linux gets random numbers for the kernel.
        let is_linux = tasks.iter().any(|task| task.settings.kind == Kind::Linux);
        let random = is_linux.then(|| PathBuf::from("/dev/urandom"));
        let read = initrds.chain(random).chain([prepared.submission.to_owned()]).collect();
        jail.enter(&Rights { read, builds: true, ..Rights::default() }, None)?;
    }
    exercise::grade(&prepared.exercise, prepared.submission, prepared.order.seed, settings, jail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_parent_is_a_line() {
        let order = Order { seed: u64::MAX, digest: 0xabc, parent: 7 };
        assert_eq!(Order::parse(&order.line()), Some(order));
        for wrong in ["", "\n", "1 2 3", "1 2\n", "1 2 3 4\n", "1 g 3\n", "-1 2 3\n"] {
            assert_eq!(Order::parse(wrong), None, "{wrong:?}");
        }
    }
}
