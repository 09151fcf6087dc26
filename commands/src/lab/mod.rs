//! `vmm lab`: courses with exercises. Writes a reader's folder, and checks the exercises in it.
//!
//! | module | contents |
//! |---|---|
//! | [`folder`] | the reader's folder, and what is done in it |
//! | [`create`] | a new folder |
//! | [`check`], [`build`] | builds and checks exercises |

mod build;
mod check;
mod create;
mod folder;

use crate::status::{self, HasStatus};
use crate::streams::{print_stdout, report_error};
use clap::{Args, Subcommand, ValueEnum};
use folder::Folder;
use lab::{Course, Language, NAMES};
use std::fmt::Write;
use std::path::PathBuf;
use vmm::Error;
use vmm::host::printable;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm lab new first-vmm my-vmm      the exercises of the book, in C
  vmm lab new so2 so2 --lang rust   the assignment of the SO2 course, in Rust
  cd my-vmm
  vmm lab check                     the first exercise that is not done
  vmm lab check 5                   the exercise of chapter 5
  vmm lab hint 5                    a hint, and each time one more
  vmm lab list                      the exercises, and which are done

Exit status: 0 if the exercises are done, 111 if one is not, 110 for a usage error, 115 if the host failed, for example without \
KVM, 116 if the folder is not that of a course, 117 if interrupted.")]
pub(super) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Write the skeleton of a course into a new folder
    #[command(after_help = "\
Examples:
  vmm lab new first-vmm my-vmm              from the first ioctl to Linux, in C
  vmm lab new first-vmm my-vmm --lang rust  the same in Rust, not C
  vmm lab new so2 so2                       SO2: `make` grades it
  vmm lab new kev kev                       project 2 of KeV on KVM

Exit status: 0 if all files are written, 110 for a usage error, such as a folder that has files, 115 if a file cannot be written.")]
    New {
        /// Course: first-vmm, so2 or kev
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(NAMES))]
        course: String,
        /// Folder to write, which must be empty or not exist
        dir: PathBuf,
        /// Language of your programs
        #[arg(long, value_enum, default_value_t)]
        lang: LanguageArg,
    },
    /// Build an exercise with make, and check it
    #[command(after_help = "\
Examples:
  vmm lab check             the first exercise that is not done
  vmm lab check 5           the exercise of chapter 5
  vmm lab check --all       all exercises
  vmm lab check 5 --seed 7  the same random values each time

A `+` marks a check that passed, and a `-` a check that failed, with the reason.

Exit status: 0 if the exercises are done, 111 if one is not, 110 for a usage error, 115 if the host failed, 116 if the folder is \
not that of a course, 117 if interrupted.")]
    Check(check::CheckArgs),
    /// Show a hint for an exercise, and each time one more
    #[command(after_help = "\
Examples:
  vmm lab hint 5        the next hint
  vmm lab hint 5 --all  all of them, the last of which is nearly the solution

Exit status: 0, 110 for a usage error, 116 if the folder is not that of a course.")]
    Hint {
        /// Number of the exercise [default: the first one that is not done] or, for so2 and kev, of the task
        number: Option<u32>,
        /// Show all hints
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
    /// List the exercises, and which are done; outside of a course's folder, the courses
    #[command(after_help = "\
Examples:
  vmm lab list             in the folder of a course
  vmm lab list -C my-vmm   in another one

Exit status: 0, 110 for a usage error, 116 if the folder is not that of a course.")]
    List {
        #[command(flatten)]
        place: Place,
    },
}

// A doc comment would become the description of the subcommands.
#[derive(Clone, Debug, Args)]
struct Place {
    /// Folder of the course [default: the current folder, or one above it]
    #[arg(short = 'C', long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The reason why a course cannot be used.
#[derive(Debug, thiserror::Error)]
enum LabError {
    /// The folder is not that of a course, or its exercise cannot be built.
    #[error("{0}")]
    Folder(String),
    #[error(transparent)]
    Vmm(#[from] Error),
}

impl HasStatus for LabError {
    fn status(&self) -> u8 {
        match self {
            Self::Folder(_) => status::BAD_IMAGE,
            Self::Vmm(error) => error.status(),
        }
    }
}

/// A language of a course.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LanguageArg {
    /// C, with gcc
    #[default]
    C,
    /// Rust, with rustc and without crates
    Rust,
}

impl From<LanguageArg> for Language {
    fn from(argument: LanguageArg) -> Self {
        match argument {
            LanguageArg::C => Self::C,
            LanguageArg::Rust => Self::Rust,
        }
    }
}

/// Runs the subcommand. Returns the exit status.
pub(super) fn main(arguments: &LabArgs) -> u8 {
    let done = match &arguments.command {
        LabCommand::New { course, dir, lang } => create::create(course, dir, (*lang).into()),
        LabCommand::Check(arguments) => check::main(arguments),
        LabCommand::Hint { number, all, place } => hint(place, *number, *all),
        LabCommand::List { place } => list(place),
    };
    done.unwrap_or_else(|error| report_error(&error))
}

/// Unpacks a course that exists.
///
/// # Errors
/// The courses of this program are damaged.
fn open(name: &str) -> Result<Course, LabError> {
    let course = Course::open(name).map_err(|error| LabError::Folder(error.to_string()))?;
    course.ok_or_else(|| folder::usage(format!("there is no course {name}")))
}

/// Shows the next hint. Returns the exit status.
fn hint(place: &Place, number: Option<u32>, all: bool) -> Result<u8, LabError> {
    let mut folder = Folder::find(place.dir.as_deref())?;
    let course = open(&folder.course)?;
    let (number, name, hints) = match course.exercises.is_empty() {
        true => {
            let (number, task) = folder.task(&course, number)?;
            (number, format!("task {number} ({})", task.title), task.hints.as_slice())
        }
        false => {
            let exercise = folder.exercise(&course, number)?;
            let name = format!("exercise {} ({})", exercise.number, exercise.title);
            (exercise.number, name, exercise.hints.as_slice())
        }
    };
    let shown = match all {
        true => hints.len(),
        false => folder.hints(number).saturating_add(1).min(hints.len()),
    };
    let mut text = format!("{name}, hint {shown} of {}:\n", hints.len());
    for hint in hints.iter().take(shown).skip(if all { 0 } else { shown.saturating_sub(1) }) {
        text += &format!("\n{}\n", hint.trim());
    }
    let printed = print_stdout(&text);
    folder.change(|folder| folder.set_hints(number, shown))?;
    Ok(printed)
}

/// Lists the exercises of a folder, or the courses. Returns the exit status.
fn list(place: &Place) -> Result<u8, LabError> {
    let folder = match Folder::find(place.dir.as_deref()) {
        Err(_) if place.dir.is_none() => return courses(),
        found => found?,
    };
    let course = open(&folder.course)?;
    let mut text = format!("{} ({}), in {}\n", course.title, folder.course, printable(&folder.path));
    let width = course.exercises.iter().map(|exercise| exercise.title.len()).max().unwrap_or(0);
    // Writing to a String cannot fail.
    for exercise in &course.exercises {
        let mark = if folder.is_done(exercise.number) { "done" } else { "" };
        let _ = writeln!(
            text,
            "  {:>2}  {mark:<4}  {:<width$}  {}/",
            exercise.number, exercise.title, exercise.folder
        );
    }
    for (number, task) in (1..).zip(&course.tasks) {
        let _ = writeln!(text, "  {number:>2}  {}", task.title);
    }
    if course.exercises.is_empty() {
        text += "`make` builds and grades all of it\n";
    }
    Ok(print_stdout(&text))
}

/// Lists the courses. Returns the exit status.
fn courses() -> Result<u8, LabError> {
    let mut text = String::from("courses, of which `vmm lab new COURSE DIR` writes a folder:\n");
    for name in NAMES {
        text += &format!("  {name:<10} {}\n", open(name)?.title);
    }
    Ok(print_stdout(&text))
}
