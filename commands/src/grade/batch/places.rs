//! The places of the outputs of a batch: none is in a submission, whose program could read or replace it.

use super::list::Submission;
use crate::grade::GradeArgs;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::printable;

/// The identity of a folder.
type Folder = (u64, u64);

/// The folders above a file, from the root down. Empty if its folder does not exist.
fn folders(file: &Path) -> Vec<Folder> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent).unwrap_or_default();
    parent.ancestors().filter_map(folder).collect()
}

fn folder(path: &Path) -> Option<Folder> {
    let found = fs::metadata(path).ok().filter(|found| found.is_dir())?;
    Some((found.dev(), found.ino()))
}

/// Checks that no output is in a submission, and no details for teachers in the folder for students.
///
/// # Errors
/// One is.
pub fn check(arguments: &GradeArgs, submissions: &[Submission]) -> Result<(), Error> {
    let batch = &arguments.batch;
    let files = || {
        let formats = arguments.output.files().into_iter().map(|file| ("--format", file));
        batch.results.clone().into_iter().map(|file| ("--results", file)).chain(formats)
    };
    // An existing folder for feedback may be a submission itself.
    let feedback = batch.feedback.as_ref().map(|path| {
        let above = if path.is_dir() { folders(&path.join("student")) } else { folders(path) };
        ("--feedback", above, path.clone())
    });
    let outputs: Vec<_> =
        files().map(|(option, path)| (option, folders(&path), path)).chain(feedback).collect();
    let refuse = |option: &str, path: &Path, what: String| {
        Err(Error::Config(format!("{option} {} is in {what}: give a place elsewhere", printable(path))))
    };
    // A student grades the own folder, in which the results then are: examples in docs/grading.md.
    let here = folder(Path::new("."));
    if !outputs.is_empty() {
        for submission in submissions {
            let Some(own) = folder(&submission.path) else { continue };
            let is_inside = |(option, above, _): &&(&str, Vec<Folder>, PathBuf)| {
                above.contains(&own) && !(*option == "--format" && here == Some(own))
            };
            if let Some((option, _, path)) = outputs.iter().find(is_inside) {
                let what =
                    format!("the submission {}, whose program could read or replace it", submission.name);
                return refuse(option, path, what);
            }
        }
    }
    let students = batch.feedback.as_deref().and_then(folder);
    let in_feedback = |file: &Path| students.is_some_and(|students| folders(file).contains(&students));
    match batch.results.as_deref().filter(|results| in_feedback(results)) {
        Some(results) => refuse(
            "--results",
            results,
            "the folder of --feedback, and has details that students must not see".into(),
        ),
        None => Ok(()),
    }
}
