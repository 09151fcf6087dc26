//! `vmm exercise`: checks an exercise file, or writes an example of one.

mod trial;

use crate::file_name::{check_dash, suggestion};
use crate::progress::Progress;
use crate::status;
use crate::streams::{print_stderr, print_stdout, report_error};
use ::exercise::Exercise;
use ::exercise::file::{EXAMPLE, Settings};
use clap::{Args, Subcommand};
use grades::Points;
use report::view::plural;
use simvirtio::abi;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::boot::Image;
use vmm::host::{printable, printable_text};
use vmm::machine::MachineKind;
use vmm::{Builder, Error};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm exercise new sum.toml                  an example with comments
  vmm exercise check sum.toml                finds mistakes, with their places

docs/exercises.md describes the format, and docs/exercise.schema.json is its schema for editors.

Exit status: 0 for a right file, 116 for a wrong one, 110 for a usage error.")]
pub(super) struct ExerciseArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find mistakes in an exercise
    #[command(after_help = "\
Examples:
  vmm exercise check sum.toml                finds mistakes, with their places
  vmm exercise check sum.toml && vmm grade sum.toml submissions/*

A guest that only halts runs on the machine of each task, so that its settings are tried.")]
    Check {
        /// The exercise, a TOML file
        file: PathBuf,
    },
    /// Write an example with comments
    #[command(after_help = "\
Examples:
  vmm exercise new sum.toml                  an example with comments
  vmm exercise new | less                    the same, on standard output")]
    New {
        /// File to write, which must not exist [default: standard output]
        file: Option<PathBuf>,
    },
}

/// Returns the exit status.
pub(super) fn main(arguments: &ExerciseArgs) -> u8 {
    match &arguments.command {
        Command::Check { file } => check(file),
        Command::New { file: None } => print_stdout(EXAMPLE),
        Command::New { file: Some(file) } => write(file),
    }
}

/// Reads an exercise. Prints its mistakes.
///
/// # Errors
/// It has mistakes, or cannot be read. The value is the exit status.
pub(super) fn open(file: &Path) -> Result<Exercise, u8> {
    if !file.exists() {
        let name = printable(file);
        let missing =
            format!("there is no exercise {name}: `vmm exercise new` writes an example{}", suggestion(file));
        let missing = Error::Config(missing);
        return Err(report_error(&missing));
    }
    let wrong = |problems: Vec<String>| {
        problems.iter().for_each(|problem| print_stderr(&format!("vmm: error: {problem}\n")));
        status::BAD_IMAGE
    };
    let exercise = Exercise::open(file).map_err(wrong)?;
    let progress = Progress::begin(false, || format!("checking {}", printable(file)));
    let mistakes = trial::mistakes(&exercise);
    drop(progress);
    match mistakes.is_empty() {
        true => Ok(exercise),
        false => Err(wrong(mistakes.iter().map(|mistake| exercise.line(mistake)).collect())),
    }
}

/// The wall-clock limit, as a multiple of the time limit.
const WALL_TIMES: u32 = 6;

/// The wall-clock limit of a run.
pub(super) fn wall_limit(settings: &Settings) -> Duration {
    settings.timeout.saturating_mul(WALL_TIMES)
}

/// Sets the machine and the limits of a task.
pub(super) fn with_settings(builder: Builder, settings: &Settings) -> Builder {
    builder
        .cpuid(true)
        .machine(settings.machine)
        .cpus(settings.cpus)
        .transport(settings.transport)
        .timeout(Some(settings.timeout))
        .wall_timeout(Some(wall_limit(settings)))
        .output_limit(Some(settings.output_limit))
}

/// The size of memory for an image: the setting, or else 1 MiB for a guest that is entered below it. Its size does not matter, so
/// that a large submission gets the memory and the devices of a small one. `None` for the default of the machine.
pub(super) fn memory(settings: &Settings, image: &Image) -> Option<u64> {
    let is_bare = matches!(settings.machine, None | Some(MachineKind::Bare));
    let is_small =
        image.protocol().is_none() && !image.ranges().is_empty() && image.entry().0 < abi::RAM_SIZE;
    settings.memory.or((is_bare && is_small).then_some(abi::RAM_SIZE))
}

fn check(file: &Path) -> u8 {
    let exercise = match open(file) {
        Ok(exercise) => exercise,
        Err(status) => return status,
    };
    let checks: usize = exercise.tasks.iter().map(|task| task.checks.len()).sum();
    print_stdout(&format!(
        "{}: right: {:?} has {}, {} and {}\n",
        printable(file),
        printable_text(&exercise.name),
        plural(exercise.tasks.len() as u64, "task"),
        plural(checks as u64, "check"),
        match exercise.points() {
            points if points == Points::whole(1) => "1 point".into(),
            points => format!("{points} points"),
        }
    ))
}

/// Writes the example to a new file.
fn write(file: &Path) -> u8 {
    if let Err(error) = check_dash("exercise new", file) {
        return report_error(&error);
    }
    let name = printable(file);
    let written = File::create_new(file).and_then(|mut to| to.write_all(EXAMPLE.as_bytes()));
    match written {
        Ok(()) => {
            print_stderr(&format!("vmm: wrote {name}: `vmm exercise check {name}` finds mistakes\n"));
            status::OK
        }
        Err(error) => {
            let what = format!("cannot write {name}: {error}: give the name of a new file");
            report_error(&Error::Config(what))
        }
    }
}
