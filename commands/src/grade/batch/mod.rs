//! Batches: grades submissions for an exercise in a file, each in a process of its own.
//!
//! | module | contents |
//! |---|---|
//! | [`args`], [`list`], [`shard`] | the options, and the submissions |
//! | [`engine`] | several processes at the same time |
//! | [`process`], [`child`] | the process of a submission, from both sides |
//! | [`results`], [`merge`], [`digest`] | results files |
//! | [`output`], [`places`], [`progress`] | what is printed, and feedback files |

mod args;
mod child;
mod digest;
mod engine;
mod list;
mod merge;
mod output;
mod places;
mod process;
mod progress;
mod results;
mod shard;

use super::exercise::find;
use super::{GradeArgs, check_host, failed, interrupted};
use crate::status::{self, Failure};
use crate::streams::{print_stderr, report_error};
use ::exercise::Exercise;
use ::exercise::file::Task;
pub use args::BatchArgs;
use child::Order;
use clap::ValueEnum;
use engine::Event;
use grades::Grade;
use list::{Submission, Submissions};
use output::Outputs;
use process::Launcher;
use progress::Progress;
use results::{Content, Header, Results};
use shard::Shard;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::Error;
use vmm::host::{printable, printable_text};

/// The most runs of a check of the time that can take as long as a run may.
const MEASURED_RUNS: u32 = 8;
/// The open files of a job while its process starts: both ends of three pipes, and of one that reports an error.
const FILES_PER_JOB: u64 = 8;
/// The open files for other purposes, with some spare.
const OTHER_FILES: u64 = 32;
/// The time that a process may take besides its runs.
const SLACK: Duration = Duration::from_secs(30);

/// Joins the results files of shards. Returns the exit status.
pub fn merge(arguments: &GradeArgs) -> u8 {
    let batch = &arguments.batch;
    let foreign = arguments.foreign_to_exercises().or_else(|| batch.foreign_to_merge());
    let foreign = foreign.or_else(|| arguments.vmm.seed.map(|_| "--seed"));
    match foreign.or_else(|| arguments.vcpu.map(|_| "--vcpu")) {
        Some(option) => {
            let what = format!("{option} is not for `vmm grade merge`, which runs nothing: leave it out");
            report_error(&Error::Config(what))
        }
        None => merge::main(&paths(arguments), arguments),
    }
}

/// Grades submissions for an exercise. Returns the exit status.
pub fn main(file: &Path, arguments: &GradeArgs) -> u8 {
    if arguments.batch.child {
        return child::main(file, &paths(arguments), arguments.settings(), arguments.jail);
    }
    if let Some(option) = arguments.foreign_to_exercises() {
        let what =
            format!("{option} is not for an exercise in a file, which has its own settings: leave it out");
        return report_error(&Error::Config(what));
    }
    let exercise = match crate::exercise::open(file) {
        Ok(exercise) => exercise,
        Err(status) => return status,
    };
    match Batch::prepare(&exercise, arguments).and_then(|batch| batch.run(file, &exercise, arguments)) {
        Ok(status) => status,
        Err(Refused::Results(what)) => {
            print_stderr(&format!("vmm: error: {what}\n"));
            status::BAD_IMAGE
        }
        Err(Refused::Failed(_)) if vmm::host::interrupted() => interrupted(),
        Err(Refused::Failed(error)) => failed(&error),
    }
}

/// The paths on the command line.
fn paths(arguments: &GradeArgs) -> Vec<PathBuf> {
    let first = arguments.vmm.program().map(PathBuf::from);
    first.into_iter().chain(arguments.batch.more.iter().cloned()).collect()
}

/// The reason why a batch is not graded.
enum Refused {
    /// The results file cannot be gone on with.
    Results(String),
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A results file that cannot be written, as an error of the host.
fn host(what: String) -> Error {
    Error::Host { operation: "writing the results", source: io::Error::other(what) }
}

/// A batch that can begin.
struct Batch {
    submissions: Submissions,
    header: Header,
    results: Option<Results>,
    /// The grades that a results file has already, by their places.
    graded: Vec<Option<Grade>>,
    outputs: Outputs,
}

impl Batch {
    /// Finds the submissions, and opens all files.
    ///
    /// # Errors
    /// There is nothing to grade, a file cannot be used, or the results file belongs to another batch.
    fn prepare(exercise: &Exercise, arguments: &GradeArgs) -> Result<Self, Refused> {
        let batch = &arguments.batch;
        let shard = batch.shard.unwrap_or(Shard::ALL);
        let submissions = Submissions::find(paths(arguments), batch.from.as_deref(), shard)?;
        if let [only] = &submissions.list[..] {
            find::check_folder(exercise, &only.path).map_err(Error::Config)?;
        }
        places::check(arguments, &submissions.list)?;
        let opened = batch.results.as_deref().map(|path| (path, Results::open(path, batch.resume)));
        let (mut results, content) = match opened {
            None => (None, None),
            Some((_, Ok((results, content)))) => (Some(results), content),
            Some((_, Err(what))) => return Err(Refused::Results(what)),
        };
        let before = content.as_ref().map(|Content { header, .. }| header.seed);
        if batch.shard.is_some() && arguments.vmm.seed.or(before).is_none() {
            let what = "--shard needs --seed N, with the same number for each shard";
            return Err(Error::Config(what.into()).into());
        }
        let random = || RandomState::new().hash_one(0) & u64::from(u32::MAX);
        let header = Header {
            exercise: printable_text(&exercise.name),
            digest: digest::digest(exercise),
            seed: arguments.vmm.seed.or(before).unwrap_or_else(random),
            submissions: submissions.names.len(),
            names: submissions.digest(),
            shard,
            program: env!("CARGO_PKG_VERSION").into(),
        };
        let outputs = Outputs::open(arguments, &submissions.names)?;
        let mut graded = vec![None; header.submissions];
        match (content, &mut results) {
            (Some(content), _) => {
                let path = batch.results.as_deref().map(printable).unwrap_or_default();
                check_same(&content.header, &header, &path)?;
                let mut of_names = content.grades.iter().zip(&submissions.names);
                if let Some((Some(grade), name)) = of_names
                    .find(|(grade, name)| grade.as_ref().is_some_and(|grade| grade.submission != **name))
                {
                    let found = printable_text(&grade.submission);
                    let what =
                        format!("the results file {path} has a grade of {found} in the place of {name}");
                    return Err(Refused::Results(what));
                }
                graded = content.grades;
                let is_error = |grade: &mut Grade| grade.error.is_some();
                graded.iter_mut().for_each(|grade| drop(grade.take_if(is_error)));
            }
            (None, Some(results)) => results.begin(&header).map_err(host)?,
            (None, None) => {}
        }
        Ok(Self { submissions, header, results, graded, outputs })
    }

    /// Grades the submissions that have no grade. Returns the exit status.
    ///
    /// # Errors
    /// The host failed.
    fn run(self, file: &Path, exercise: &Exercise, arguments: &GradeArgs) -> Result<u8, Refused> {
        let Self { submissions, header, results, graded, outputs } = self;
        let (list, kept) = (submissions.list, graded.iter().flatten().count());
        let todo: Vec<Submission> = list
            .iter()
            .filter(|submission| !matches!(graded.get(submission.index), Some(Some(_))))
            .cloned()
            .collect();
        let mut desk = Desk {
            order: list.iter().map(|submission| submission.index).collect(),
            printed: 0,
            grades: graded,
            results,
            outputs,
            progress: Progress::new(todo.len()),
        };
        desk.print()?;
        if !todo.is_empty() {
            check_host(arguments.settings())?;
            let order = Order { seed: header.seed, digest: header.digest, parent: std::process::id() };
            let launcher = launcher(file, exercise, arguments, order)?;
            let empty = Grade {
                submission: String::new(),
                exercise: header.exercise.clone(),
                seed: header.seed,
                error: None,
                tasks: Vec::new(),
                milliseconds: 0,
            };
            let jobs = possible_jobs(arguments.batch.jobs().min(todo.len()));
            engine::run(&launcher, &todo, jobs, &empty, &mut |event| desk.see(event))?;
        }
        let Desk { progress, results, outputs, grades, .. } = desk;
        drop(progress);
        if let Some(mut results) = results {
            results.sync().map_err(host)?;
        }
        let grades: Vec<Grade> = grades.into_iter().flatten().collect();
        if grades.len() < list.len() {
            return Ok(cut_short(grades.len(), list.len(), arguments.batch.results.as_deref()));
        }
        let status = outputs.finish(&grades);
        if kept > 0 {
            print_stderr(&format!("vmm: {kept} of {} grades were in the results file\n", list.len()));
        }
        if grades.iter().any(|grade| grade.error.is_some()) {
            print_stderr("vmm: not every submission has a grade: the reasons are above\n");
        }
        let what = if list.len() == 1 { "this grade" } else { "these grades" };
        print_stderr(&format!("vmm: --seed {} repeats {what}\n", header.seed));
        Ok(status)
    }
}

/// Checks that a results file belongs to this batch.
///
/// # Errors
/// It does not.
fn check_same(found: &Header, header: &Header, path: &str) -> Result<(), Refused> {
    let shard =
        (found.shard != header.shard).then(|| format!("is for shard {}, not {}", found.shard, header.shard));
    match found.difference(header).or(shard) {
        None => Ok(()),
        Some(difference) => Err(Refused::Results(format!(
            "the results file {path} {difference}: give the same exercise, submissions, seed and shard, or another file"
        ))),
    }
}

/// Prints that a batch was interrupted. Returns the exit status.
fn cut_short(done: usize, all: usize, results: Option<&Path>) -> u8 {
    let Some(path) = results else {
        print_stderr(&format!(
            "vmm: grading was interrupted after {done} of {all} submissions; with --results FILE, --resume goes on\n"
        ));
        return status::INTERRUPTED;
    };
    let path = printable(path);
    print_stderr(&format!(
        "vmm: grading was interrupted; {path} has {done} of {all} grades, and --resume goes on with it\n"
    ));
    status::INTERRUPTED
}

/// The number of submissions that are graded at the same time, as far as this process may open files. Says so if it is less than
/// `wanted`.
fn possible_jobs(wanted: usize) -> usize {
    let limit = crate::sys::open_files().unwrap_or(u64::MAX);
    let possible = limit.saturating_sub(OTHER_FILES) / FILES_PER_JOB;
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
    if wanted > possible {
        print_stderr(&format!(
            "vmm: note: {wanted} jobs need more open files than the limit of {limit} permits, so {possible} run at the same time: \
             give --jobs {possible}, or raise the limit (ulimit -n)\n"
        ));
    }
    wanted.min(possible)
}

/// The longest time of a task.
fn longest(task: &Task) -> Duration {
    let measured = task.checks.iter().filter(|check| check.time.is_some()).count();
    let runs = u32::try_from(measured).unwrap_or(u32::MAX).saturating_mul(MEASURED_RUNS).saturating_add(1);
    crate::exercise::wall_limit(&task.settings).saturating_mul(runs)
}

/// The command for the processes of a batch.
fn launcher(
    file: &Path,
    exercise: &Exercise,
    arguments: &GradeArgs,
    order: Order,
) -> Result<Launcher, Error> {
    let mut options: Vec<OsString> = Vec::new();
    if let Some(vcpu) = arguments.vcpu.and_then(|vcpu| vcpu.to_possible_value()) {
        options.extend(["--vcpu".into(), vcpu.get_name().into()]);
    }
    options.extend(arguments.jail.argument());
    let limit = exercise.tasks.iter().map(longest).fold(SLACK, Duration::saturating_add);
    Launcher::new(file, options, order, limit)
        .map_err(|source| Error::Host { operation: "finding this program", source })
}

/// The grades that are there, and the outputs that take them in the order of the batch.
struct Desk {
    /// The places of the submissions.
    order: Vec<usize>,
    /// The number of grades that were printed.
    printed: usize,
    /// By their places in the batch.
    grades: Vec<Option<Grade>>,
    results: Option<Results>,
    outputs: Outputs,
    progress: Progress,
}

impl Desk {
    /// Prints the grades whose turn it is.
    ///
    /// # Errors
    /// A file cannot be written.
    fn print(&mut self) -> Result<(), Failure> {
        while let Some(index) = self.order.get(self.printed)
            && let Some(Some(grade)) = self.grades.get(*index)
        {
            self.outputs.add(*index, grade)?;
            self.printed = self.printed.saturating_add(1);
        }
        Ok(())
    }

    /// Takes a grade.
    ///
    /// # Errors
    /// A file cannot be written.
    fn see(&mut self, event: Event) -> Result<(), Failure> {
        if let Event::Done(submission, grade) = event {
            if let Some(results) = &mut self.results {
                results.add(submission.index, &grade).map_err(host)?;
            }
            self.progress.count();
            if let Some(place) = self.grades.get_mut(submission.index) {
                *place = Some(grade);
            }
            self.print()?;
        }
        Ok(())
    }
}
