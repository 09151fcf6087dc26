//! `vmm lab new`: writes the skeleton of a course.

use super::folder::{Folder, host, usage};
use super::{LabError, open};
use crate::streams::print_stderr;
use lab::{Course, Language};
use report::view::plural;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use vmm::host::printable;

/// Writes the files of a course. Returns the exit status.
///
/// # Errors
/// The folder has files, or cannot be written.
pub(super) fn create(name: &str, dir: &Path, language: Language) -> Result<u8, LabError> {
    let course = open(name)?;
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            let what = format!("{} has files: give the name of a new folder", printable(dir));
            return Err(usage(what));
        }
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir).map_err(failed)?,
        Err(error) => return Err(usage(format!("cannot use the folder {}: {error}", printable(dir)))),
    }
    let place = printable(dir);
    let written = write(&course, dir, name, language);
    let count = written.inspect_err(|_| print_stderr(&format!("vmm: {place} is incomplete: remove it\n")))?;
    let next = match course.exercises.is_empty() {
        true => format!("read {place}/README.md, then run `make` there"),
        false => format!("read {place}/README.md, then run `vmm lab check` there"),
    };
    print_stderr(&format!("vmm: wrote {} to {place}: {next}\n", plural(count, "file")));
    Ok(crate::status::OK)
}

/// Writes the files, and the state. Returns the number of files.
///
/// # Errors
/// One of them cannot be written.
fn write(course: &Course, dir: &Path, name: &str, language: Language) -> Result<u64, LabError> {
    let mut count = 0u64;
    for (path, content) in course.files(language) {
        let file = dir.join(path);
        let folder = file.parent().unwrap_or(dir);
        fs::create_dir_all(folder).map_err(failed)?;
        File::create_new(&file).and_then(|mut file| file.write_all(content)).map_err(failed)?;
        count = count.saturating_add(1);
    }
    Folder::new(dir, name, language).save()?;
    Ok(count)
}

fn failed(error: io::Error) -> LabError {
    host("writing the folder of the course", error)
}
