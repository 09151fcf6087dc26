//! The places of the outputs of a batch: none is in a submission, whose program could read or replace it.

use super::list::Submission;
use crate::grade::GradeArgs;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use vmm::Error;
use vmm::host::printable;

/// The identity of a folder.
type Folder = (u64, u64);

fn folder(path: &Path) -> Option<Folder> {
    let found = fs::metadata(path).ok()?;
    found.is_dir().then(|| (found.dev(), found.ino()))
}

/// The place in `of` of a folder above a file.
fn folder_above(file: &Path, of: &[Option<Folder>]) -> Option<usize> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut above = fs::canonicalize(parent).ok()?;
    loop {
        let this = folder(&above);
        let place = of.iter().position(|one| one.is_some() && *one == this);
        if place.is_some() || !above.pop() {
            return place;
        }
    }
}

fn refuse(option: &str, path: &Path, what: &str) -> Error {
    Error::Config(format!("{option} {} is in {what}: give a place elsewhere", printable(path)))
}

/// Checks that no output is in a submission, and no details for teachers in the folder for students.
///
/// # Errors
/// One is.
pub fn check(arguments: &GradeArgs, submissions: &[Submission]) -> Result<(), Error> {
    let (batch, formats) = (&arguments.batch, arguments.output.files());
    if batch.results.is_none() && batch.feedback.is_none() && formats.is_empty() {
        return Ok(());
    }
    let mut folders = Vec::new();
    for submission in submissions {
        folders.push(folder(&submission.path));
    }
    let outside = |option: &str, path: &Path, file: &Path, of: &[Option<Folder>]| match folder_above(file, of)
    {
        Some(place) => {
            let name = submissions.get(place).map_or("", |submission| &submission.name);
            Err(refuse(
                option,
                path,
                &format!("the submission {name}, whose program could read or replace it"),
            ))
        }
        None => Ok(()),
    };
    if let Some(path) = &batch.results {
        outside("--results", path, path, &folders)?;
        let students = batch.feedback.as_deref().and_then(folder);
        if students.is_some() && folder_above(path, &[students]).is_some() {
            return Err(refuse(
                "--results",
                path,
                "the folder of --feedback, and has details that students must not see",
            ));
        }
    }
    if let Some(path) = &batch.feedback {
        // An existing folder may be a submission itself.
        outside("--feedback", path, &path.join("student"), &folders)?;
        outside("--feedback", path, path, &folders)?;
    }
    // A student grades the own folder, in which the results then are: examples in docs/grading.md.
    let here = folder(Path::new("."));
    for one in &mut folders {
        one.take_if(|one| Some(*one) == here);
    }
    formats.iter().try_for_each(|path| outside("--format", path, path, &folders))
}
