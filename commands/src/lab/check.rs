//! `vmm lab check`: builds exercises, and checks them as `vmm grade` does.

use super::folder::Folder;
use super::{LabError, Place, build, open};
use crate::grade::grade_folder;
use crate::jail::JailArgs;
use crate::processor::VcpuArg;
use crate::progress::Progress;
use crate::status;
use crate::streams::{print_stderr, print_stdout};
use clap::Args;
use exercise::read::Files;
use grades::{Format, Grade, Options};
use lab::{Course, Exercise};
use report::view::plural;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;
use vmm::Error;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Number of the exercise [default: the first one that is not done]
    number: Option<u32>,

    /// Check all exercises
    #[arg(long, conflicts_with = "number")]
    all: bool,

    /// Seed of the random texts and numbers [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Processor of exercises that are guests. A VMM needs KVM
    #[arg(long, value_enum)]
    vcpu: Option<VcpuArg>,

    #[command(flatten)]
    jail: JailArgs,

    #[command(flatten)]
    place: Place,
}

/// Checks exercises. Returns the exit status.
///
/// # Errors
/// The folder is not that of a course, an exercise cannot be built, or the host failed.
pub(super) fn main(arguments: &CheckArgs) -> Result<u8, LabError> {
    vmm::host::catch_interrupts();
    let mut folder = Folder::find(arguments.place.dir.as_deref())?;
    let course = open(&folder.course)?;
    if course.exercises.is_empty() {
        return whole(&folder);
    }
    if arguments.all {
        return all(arguments, &mut folder, &course);
    }
    if arguments.number.is_none() && folder.next(&course).is_none() {
        print_stderr("vmm: all exercises are done (--all checks them again)\n");
        return Ok(status::OK);
    }
    let exercise = folder.exercise(&course, arguments.number)?;
    let (grade, result) = check(arguments, &mut folder, exercise)?;
    let name = format!("exercise {} ({})", exercise.number, exercise.title);
    print_stderr(&match (grade.is_full(), folder.next(&course)) {
        (true, None) => format!("vmm: {name} is done, and so are all exercises\n"),
        (true, Some(next)) => {
            format!("vmm: {name} is done; the next one is {} ({})\n", next.number, next.title)
        }
        (false, _) => format!(
            "vmm: {name} is not done: `vmm lab hint {}` helps, and --seed {} repeats this check\n",
            exercise.number, grade.seed
        ),
    });
    Ok(result)
}

/// Checks all exercises. Returns the exit status.
///
/// # Errors
/// The host failed.
fn all(arguments: &CheckArgs, folder: &mut Folder, course: &Course) -> Result<u8, LabError> {
    let mut result = status::OK;
    for exercise in &course.exercises {
        print_stderr(&format!("vmm: exercise {} ({})\n", exercise.number, exercise.title));
        let checked = match check(arguments, folder, exercise) {
            // One exercise that cannot be built does not hide the others.
            Err(LabError::Folder(what)) => {
                print_stderr(&format!("vmm: error: {what}\n"));
                folder.change(|folder| folder.set_done(exercise.number, false))?;
                status::WRONG_RESULT
            }
            checked => checked?.1,
        };
        result = result.max(checked);
    }
    let done = course.exercises.iter().filter(|exercise| folder.is_done(exercise.number)).count();
    print_stderr(&format!("vmm: {done} of {} done\n", plural(course.exercises.len() as u64, "exercise")));
    Ok(result)
}

/// Builds and checks an exercise, prints the result, and notes it. Returns the grade and the exit status.
///
/// # Errors
/// It cannot be built, or the host failed.
fn check(arguments: &CheckArgs, folder: &mut Folder, exercise: &Exercise) -> Result<(Grade, u8), LabError> {
    if !build::make(&folder.path, Some(&exercise.folder))? {
        let what = format!("make {} failed: mend the first error above, and check again", exercise.folder);
        return Err(LabError::Folder(what));
    }
    let started = Instant::now();
    let parsed = exercise::Exercise::parse(&exercise.check, Files::Embedded(&exercise.hidden));
    let parsed = parsed.map_err(|problems| {
        let first = problems.into_iter().next().map(|problem| problem.message).unwrap_or_default();
        Error::Config(format!(
            "the checks of exercise {} of this program are damaged: {first}",
            exercise.number
        ))
    })?;
    let random = || RandomState::new().hash_one(0) & u64::from(u32::MAX);
    let seed = arguments.seed.unwrap_or_else(random);
    let processor = arguments.vcpu.map(Into::into);
    let progress = Progress::begin(false, || format!("checking {}", exercise.folder));
    let tasks = grade_folder(&parsed, &folder.path.join(&exercise.folder), seed, processor, arguments.jail);
    drop(progress);
    let tasks = tasks?;
    let grade = Grade {
        submission: exercise.folder.clone(),
        exercise: parsed.name,
        seed,
        error: None,
        tasks,
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    let text = Format::Text.write(std::slice::from_ref(&grade), Options::default()).unwrap_or_default();
    let result = match print_stdout(&text) {
        status::OK if grade.is_full() => status::OK,
        status::OK => status::WRONG_RESULT,
        failed => failed,
    };
    folder.change(|folder| folder.set_done(exercise.number, grade.is_full()))?;
    Ok((grade, result))
}

/// Builds and grades a course without exercises, whose Makefile does both. Returns the exit status.
///
/// # Errors
/// Make cannot be run, or takes too long.
fn whole(folder: &Folder) -> Result<u8, LabError> {
    Ok(if build::make(&folder.path, None)? { status::OK } else { status::WRONG_RESULT })
}
