//! The grades of a batch: on stdout as they come, in the files of `--format`, and in a file for each student.

use super::list::file_names;
use crate::grade::GradeArgs;
use crate::grade::output;
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout};
use grades::{Format, Grade, Stream};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use vmm::Error;
use vmm::host::printable;

/// The outputs of a batch.
pub struct Outputs {
    outputs: output::Outputs,
    /// The format of stdout, if it is written grade by grade. Text is, too, and has no stream.
    stream: Option<Stream>,
    /// True if there are several submissions.
    is_batch: bool,
    feedback: Option<Feedback>,
    /// The status of standard output.
    printed: u8,
}

impl Outputs {
    /// Opens the files for the submissions with these names.
    ///
    /// # Errors
    /// Two formats go to standard output or to the same file, or a file cannot be written.
    pub fn open(arguments: &GradeArgs, names: &[String]) -> Result<Self, Failure> {
        let outputs = output::Outputs::open(&arguments.output, names.len(), &arguments.inputs())?;
        let folder = arguments.batch.feedback.as_deref();
        let feedback = folder.map(|folder| Feedback::open(folder, names)).transpose()?;
        let stream = Stream::new(outputs.stdout(), outputs.options(outputs.stdout()));
        let printed = stream.map_or(status::OK, |stream| print_stdout(&stream.begin()));
        Ok(Self { outputs, stream, is_batch: names.len() > 1, feedback, printed })
    }

    /// Prints a grade, and writes the file of the student. `index` is its place in the batch.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, index: usize, grade: &Grade) -> Result<(), Failure> {
        if let Some(feedback) = &self.feedback {
            feedback.write(index, grade, self.outputs.deadline_passed())?;
        }
        if let Some(error) = &grade.error {
            print_stderr(&format!("vmm: {} has no grade: {error}\n", grade.submission));
        }
        let text = match (&mut self.stream, self.outputs.stdout()) {
            (Some(stream), _) => stream.add(grade),
            (None, Format::Text) if self.is_batch => {
                format!("{}:\n{}", grade.submission, self.outputs.text(grade))
            }
            (None, Format::Text) if grade.error.is_none() => self.outputs.text(grade),
            _ => return Ok(()),
        };
        if self.printed == status::OK {
            self.printed = print_stdout(&text);
        }
        Ok(())
    }

    /// Writes the rest of stdout, and the files. A table goes to stderr if stdout has another format. Returns the exit status.
    pub fn finish(self, grades: &[Grade]) -> u8 {
        let table = || Format::Text.write(grades, self.outputs.options(Format::Text)).unwrap_or_default();
        let table = if self.is_batch { table() } else { String::new() };
        let printed = match (self.stream, self.outputs.stdout()) {
            _ if self.printed != status::OK => self.printed,
            (Some(stream), _) => print_stdout(&stream.end()),
            (None, Format::Text) => print_stdout(&table),
            (None, _) => self.outputs.print(grades),
        };
        if self.outputs.stdout() != Format::Text {
            print_stderr(&table);
        }
        self.outputs.write_files(grades, printed)
    }
}

/// A directory with a text for each student.
struct Feedback {
    folder: PathBuf,
    /// The names of the files, by the places in the batch.
    names: Vec<String>,
}

impl Feedback {
    /// Makes the directory.
    ///
    /// # Errors
    /// It cannot be made.
    fn open(folder: &Path, names: &[String]) -> Result<Self, Error> {
        let failed = |error| Error::Config(format!("--feedback {}: {error}", printable(folder)));
        fs::create_dir_all(folder).map_err(failed)?;
        Ok(Self { folder: folder.into(), names: file_names(names) })
    }

    /// Writes the text for a student. An existing text is replaced as a whole.
    ///
    /// # Errors
    /// The file cannot be written.
    fn write(&self, index: usize, grade: &Grade, deadline_passed: bool) -> Result<(), Error> {
        let Some(name) = self.names.get(index) else { return Ok(()) };
        let place = self.folder.join(format!("{name}.txt"));
        let temporary = self.folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let text = grades::feedback(grade, deadline_passed);
        // Only a new file: another one of this name may be a link to elsewhere.
        let _ = fs::remove_file(&temporary);
        let made = fs::File::options().write(true).create_new(true).open(&temporary);
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        let written = written.and_then(|()| fs::rename(&temporary, &place));
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            Error::Host { operation: "writing a feedback file", source }
        })
    }
}
