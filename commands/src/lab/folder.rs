//! The folder of a course, and what its reader has done in it: a small file of lines `KEY = VALUE`.

use super::LabError;
use crate::sys::user;
use exercise::read::read_file;
use lab::{Course, Exercise, Language, Task};
use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use vmm::Error;
use vmm::host::{printable, printable_text};

/// The file with the state.
const STATE: &str = ".vmm-lab";
/// The longest wait for another change of the state.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest state, in bytes.
const MAX_STATE: usize = 64 << 10;

/// The folder of a course.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) course: String,
    language: String,
    /// The exercises that are done, in order. Vectors are smaller in the program than maps.
    done: Vec<u32>,
    /// The number of hints that were shown for an exercise.
    hints: Vec<(u32, usize)>,
}

impl Folder {
    /// A new folder.
    pub(super) fn new(path: &Path, course: &str, language: Language) -> Self {
        Self {
            path: path.into(),
            course: course.into(),
            language: language.name().into(),
            done: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Finds the folder: `dir`, or the current one or one above it.
    ///
    /// # Errors
    /// None of them is the folder of a course.
    pub(super) fn find(dir: Option<&Path>) -> Result<Self, LabError> {
        let here = std::env::current_dir().map_err(|error| host("finding the current folder", error))?;
        let candidates: Vec<&Path> = match dir {
            Some(dir) => vec![dir],
            None => here.ancestors().collect(),
        };
        let found = candidates.into_iter().find(|path| path.join(STATE).exists());
        let Some(path) = found else {
            let place = dir.map_or("this folder".into(), printable);
            return Err(wrong(format!(
                "{place} is not the folder of a course: `vmm lab new first-vmm DIR` writes one, and -C DIR names it"
            )));
        };
        if dir.is_none() && path != here && is_of_another_user(&path.join(STATE)) {
            let place = printable(path);
            return Err(wrong(format!(
                "the course in {place} belongs to another user, whose Makefile would run: -C {place} uses it all the same"
            )));
        }
        Self::read(path)
    }

    fn read(path: &Path) -> Result<Self, LabError> {
        let file = path.join(STATE);
        let bytes = read_file(&file, MAX_STATE)
            .map_err(|error| wrong(format!("cannot read {}: {error}", printable(&file))))?;
        Self::parse(path, &String::from_utf8_lossy(&bytes))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, LabError> {
        let mut folder = Self::new(path, "", Language::C);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let understood =
                line.split_once('=').and_then(|(key, value)| folder.set(key.trim(), value.trim()));
            if understood.is_none() {
                let file = printable(&path.join(STATE));
                let line = printable_text(line);
                return Err(wrong(format!("{file}:{number}: {line:?} is not understood: remove the line")));
            }
        }
        match lab::NAMES.contains(&folder.course.as_str()) {
            true => Ok(folder),
            false => Err(wrong(format!(
                "{} names no course of this program: write course = {}",
                printable(&path.join(STATE)),
                lab::NAMES.join(", or ")
            ))),
        }
    }

    /// Takes a line of the file.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "course" => self.course = value.into(),
            "language" => self.language = Language::ALL.iter().find(|one| one.name() == value)?.name().into(),
            "done" => {
                self.done = value.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
            }
            "hints" => {
                let one = |word: &str| {
                    let (number, shown) = word.split_once(':')?;
                    Some((number.parse().ok()?, shown.parse().ok()?))
                };
                self.hints = value.split_whitespace().map(one).collect::<Option<_>>()?;
            }
            _ => return None,
        }
        Some(())
    }

    /// Changes the state. Another process may have changed the file in the meantime, so it is read again.
    ///
    /// # Errors
    /// The state cannot be read or written.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), LabError> {
        let folder =
            File::open(&self.path).map_err(|error| host("opening the folder of the course", error))?;
        lock(&folder);
        *self = Self::read(&self.path)?;
        change(self);
        self.save()
    }

    /// Writes the state.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn save(&self) -> Result<(), LabError> {
        let mut text = String::from("# The state of this folder, which `vmm lab` keeps.\n");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "course = {}\nlanguage = {}", self.course, self.language);
        let done: Vec<_> = self.done.iter().map(ToString::to_string).collect();
        let hints: Vec<_> = self.hints.iter().map(|(number, shown)| format!("{number}:{shown}")).collect();
        let _ = writeln!(text, "done = {}\nhints = {}", done.join(" "), hints.join(" "));
        let (file, new) = (self.path.join(STATE), self.path.join(format!("{STATE}.new")));
        // A file that is left there may be a link to another place, or a pipe.
        let _ = fs::remove_file(&new);
        let saved = File::create_new(&new)
            .and_then(|mut new| new.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&new, &file));
        if saved.is_err() {
            let _ = fs::remove_file(&new);
        }
        saved.map_err(|error| host("writing the state of the course (.vmm-lab)", error))
    }

    /// True if an exercise is done.
    pub(super) fn is_done(&self, number: u32) -> bool {
        self.done.contains(&number)
    }

    /// Notes if an exercise is done.
    pub(super) fn set_done(&mut self, number: u32, is_done: bool) {
        self.done.retain(|other| *other != number);
        if is_done {
            let at = self.done.partition_point(|other| *other < number);
            self.done.insert(at, number);
        }
    }

    /// The number of hints that were shown for an exercise.
    pub(super) fn hints(&self, number: u32) -> usize {
        self.hints.iter().find(|(other, _)| *other == number).map_or(0, |(_, shown)| *shown)
    }

    /// Notes the number of hints that were shown.
    pub(super) fn set_hints(&mut self, number: u32, shown: usize) {
        self.hints.retain(|(other, _)| *other != number);
        self.hints.push((number, shown));
    }

    /// The first exercise that is not done.
    pub(super) fn next<'a>(&self, course: &'a Course) -> Option<&'a Exercise> {
        course.exercises.iter().find(|exercise| !self.is_done(exercise.number))
    }

    /// The exercise with this number, or the first one that is not done.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn exercise<'a>(
        &self,
        course: &'a Course,
        number: Option<u32>,
    ) -> Result<&'a Exercise, LabError> {
        let last = course.exercises.last().map_or(0, |last| last.number);
        let missing = |number| usage(format!("there is no exercise {number}: they are 1 to {last}"));
        match number {
            Some(number) => course.exercise(number).ok_or_else(|| missing(number)),
            None => self
                .next(course)
                .ok_or_else(|| usage("all exercises are done: give the number of one".into())),
        }
    }

    /// The task with this number, or the first one whose hints were not all shown. For a course without exercises.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn task<'a>(
        &self,
        course: &'a Course,
        number: Option<u32>,
    ) -> Result<(u32, &'a Task), LabError> {
        let mut tasks = (1..).zip(&course.tasks);
        let found = match number {
            Some(number) => tasks.find(|(other, _)| *other == number),
            None => tasks.find(|(other, task)| self.hints(*other) < task.hints.len()),
        };
        found.ok_or_else(|| {
            let last = course.tasks.len();
            usage(match number {
                Some(number) => format!("there is no task {number}: they are 1 to {last}"),
                None => format!("all hints were shown: give the number of a task, 1 to {last}"),
            })
        })
    }
}

/// True if a file, which may be a link, belongs to a user other than this one and root.
fn is_of_another_user(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|data| ![0, user()].contains(&data.uid()))
}

/// A file or a folder that cannot be used.
fn wrong(what: String) -> LabError {
    LabError::Folder(what)
}

/// Locks a folder until the file is closed. A file system may lack locks, and another process may keep its lock. After some time
/// the change goes on without it: then two changes at the same time can lose one.
fn lock(folder: &File) {
    let started = Instant::now();
    while matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) && started.elapsed() < LOCK_TIMEOUT {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A mistake of the command line.
pub(super) fn usage(what: String) -> LabError {
    LabError::Vmm(Error::Config(what))
}

/// A failure of the host.
pub(super) fn host(operation: &'static str, source: io::Error) -> LabError {
    LabError::Vmm(Error::Host { operation, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_written_and_read() {
        let temporary = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(temporary.path(), "first-vmm", Language::Rust);
        folder.set_done(3, true);
        folder.set_done(1, true);
        folder.set_hints(4, 2);
        folder.save().unwrap();
        let read = Folder::find(Some(temporary.path())).unwrap();
        assert_eq!((read.course.as_str(), read.language.as_str()), ("first-vmm", "rust"));
        assert!(read.is_done(1) && !read.is_done(2) && read.is_done(3));
        assert_eq!((read.hints(4), read.hints(1)), (2, 0));
        for wrong in ["course = other\n", "done = 1 x\n", "hints = 1\n", "x\n", "language = go\n", ""] {
            assert!(Folder::parse(temporary.path(), wrong).is_err(), "{wrong}");
        }
    }
}
