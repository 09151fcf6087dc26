//! The grades on stdout and in files, in the formats of `--format`.

use super::json;
use super::list::file_names;
use super::progress::Progress;
use super::text::{self, Reader};
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout, report_error};
use grades::Grade;
use report::OutputFile;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use vmm::Error;
use vmm::host::{printable, printable_text};

/// A format, and the file to which it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    kind: Kind,
    /// `None` is standard output.
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Jsonl,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = match text.split_once('=') {
            Some((_, "")) => return Err("give the name of a file after =".into()),
            Some((name, file)) => (name, Some(file.into())),
            None => (text, None),
        };
        let kind = match name {
            "text" => Kind::Text,
            "jsonl" => Kind::Jsonl,
            _ => return Err("the formats are text and jsonl".into()),
        };
        Ok(Self { kind, file })
    }
}

impl Kind {
    /// Grades in this format.
    ///
    /// # Errors
    /// They cannot be written in it.
    fn write(self, grades: &[Grade], reader: Reader) -> Result<String, Error> {
        match self {
            Self::Text => {
                let of_grade = |grade| heading(grade) + &text::of_grade(grade, reader);
                Ok(grades.iter().map(of_grade).collect::<String>() + &text::table(grades))
            }
            Self::Jsonl => grades.iter().map(|grade| Ok(json::line(grade)? + "\n")).collect(),
        }
    }
}

fn heading(grade: &Grade) -> String {
    format!("{}:\n", grade.submission)
}

/// The outputs of a batch.
pub struct Outputs {
    stdout: Kind,
    reader: Reader,
    /// True if there are several submissions.
    is_batch: bool,
    files: Vec<(Kind, OutputFile)>,
    feedback: Option<Feedback>,
    /// The status of standard output.
    printed: u8,
}

impl Outputs {
    /// Opens the files of these formats.
    ///
    /// # Errors
    /// Two formats go to standard output or to the same file, or a file cannot be written.
    pub fn open(
        formats: &[Format],
        reader: Reader,
        names: &[String],
        feedback: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut stdout = None;
        let mut files: Vec<(Kind, OutputFile)> = Vec::new();
        for Format { kind, file } in formats {
            let Some(path) = file else {
                if stdout.replace(*kind).is_some() {
                    let twice = "two formats go to standard output: give one of them a file, such as --format jsonl=FILE";
                    return Err(Error::Config(twice.into()).into());
                }
                continue;
            };
            let file = OutputFile::open(path)?;
            if files.iter().any(|(_, other)| other.takes_the_place_of(&file)) {
                let name = printable(path);
                return Err(
                    Error::Config(format!("two formats go to the file {name}: give two files")).into()
                );
            }
            files.push((*kind, file));
        }
        let feedback = feedback.map(|folder| Feedback::open(folder, names)).transpose()?;
        let stdout = stdout.unwrap_or(Kind::Text);
        Ok(Self { stdout, reader, is_batch: names.len() > 1, files, feedback, printed: status::OK })
    }

    /// Prints a grade. `index` is its place in the batch.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn add(&mut self, index: usize, grade: &Grade, progress: &mut Progress) -> Result<(), Failure> {
        if let Some(feedback) = &self.feedback {
            feedback.write(index, grade)?;
        }
        progress.clear();
        if let Some(error) = &grade.error {
            print_stderr(&format!("vmm: {} has no grade: {error}\n", grade.submission));
        }
        let text = match self.stdout {
            Kind::Jsonl => json::line(grade)? + "\n",
            Kind::Text if self.is_batch => heading(grade) + &text::of_grade(grade, self.reader),
            Kind::Text if grade.error.is_some() => return Ok(()),
            Kind::Text => text::of_grade(grade, self.reader),
        };
        if self.printed == status::OK {
            self.printed = print_stdout(&text);
        }
        Ok(())
    }

    /// Writes the files, and prints the table. Returns the exit status.
    pub fn finish(self, grades: &[Grade]) -> u8 {
        let table = if self.is_batch { text::table(grades) } else { String::new() };
        let mut failed = match self.stdout {
            Kind::Text if self.printed == status::OK => print_stdout(&table),
            Kind::Text => self.printed,
            Kind::Jsonl => {
                print_stderr(&table);
                self.printed
            }
        };
        for (kind, mut file) in self.files {
            let written = kind.write(grades, self.reader).map_err(Failure::from).and_then(|text| {
                file.write_all(text.as_bytes()).map_err(|error| file.failed(error))?;
                Ok(file.commit()?)
            });
            if let Err(error) = written {
                failed = report_error(&error);
            }
        }
        match failed {
            status::OK if grades.iter().any(|grade| grade.error.is_some()) => status::HOST_ERROR,
            status::OK if grades.iter().any(|grade| grade.earned() != grade.points()) => status::WRONG_RESULT,
            failed => failed,
        }
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
    fn write(&self, index: usize, grade: &Grade) -> Result<(), Error> {
        let Some(name) = self.names.get(index) else { return Ok(()) };
        let place = self.folder.join(format!("{name}.txt"));
        let temporary = self.folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let text = format!(
            "{}: {}\n\n{}",
            printable_text(&grade.exercise),
            grade.submission,
            text::of_grade(grade, Reader::Student)
        );
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &place));
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            Error::Host { operation: "writing a feedback file", source }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_has_a_name_and_perhaps_a_file() {
        let of = |text: &str| text.parse::<Format>();
        assert_eq!(of("text"), Ok(Format { kind: Kind::Text, file: None }));
        assert_eq!(of("jsonl=a=b"), Ok(Format { kind: Kind::Jsonl, file: Some("a=b".into()) }));
        assert!(of("jsonl=").is_err() && of("xml").is_err() && of("").is_err());
    }
}
