//! `--format`: the results of grades on stdout and in files.

use crate::file_name::{ResultFormat, check_extension, check_inputs};
use crate::outputs::different;
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout, report_error};
use clap::Args;
use grades::{Format, Grade, Options, View};
use report::OutputFile;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::Error;
use vmm::host::printable_text;

/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(next_help_heading = "Results")]
pub(super) struct OutputArgs {
    /// Write the results in a format: text, json, jsonl, csv, junit, tap, gradescope, github or vmchecker; to stdout, or to FILE and
    /// then text to stdout; can be repeated (docs/grading.md) [default: text]
    #[arg(long = "format", value_name = "FORMAT[=FILE]")]
    formats: Vec<OsString>,

    /// Reader of the results: a student does not see what the exercise hides [default: student for text, teacher for json, jsonl,
    /// csv, junit and tap; the other formats are always for students]
    #[arg(long, value_enum)]
    view: Option<ViewArg>,

    /// Show students the checks that the exercise hides until its deadline
    #[arg(long)]
    after_deadline: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ViewArg {
    /// All details
    Teacher,
    /// The part that the exercise shows students
    Student,
}

/// A format, and its file. Without one, stdout.
struct Target {
    format: Format,
    file: Option<PathBuf>,
}

impl Target {
    /// Parses `FORMAT` or `FORMAT=FILE`.
    ///
    /// # Errors
    /// There is no such format, or no file after `=`.
    fn parse(text: &OsStr) -> Result<Self, Error> {
        let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
        let name = parts.next().and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
        let file = parts.next().map(|file| PathBuf::from(OsStr::from_bytes(file)));
        let reason = match Format::from_name(name) {
            Some(_) if file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) => {
                "there is no file after =".into()
            }
            Some(format) => return Ok(Self { format, file }),
            None => format!("the formats are {}", Format::NAMES.join(", ")),
        };
        Err(Error::Config(format!("--format {}: {reason}", printable_text(&text.to_string_lossy()))))
    }
}

impl OutputArgs {
    /// The files of the results.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.formats.iter().filter_map(|text| Target::parse(text).ok()?.file).collect()
    }
}

/// The format that the extension of a file must not contradict.
fn result_format(format: Format) -> ResultFormat {
    match format {
        Format::Text => ResultFormat::Text,
        Format::Json | Format::Gradescope => ResultFormat::Json,
        Format::Csv => ResultFormat::Csv,
        other => ResultFormat::Other(other.name()),
    }
}

/// The places of the results. The files are open before the runs.
pub(super) struct Outputs {
    stdout: Format,
    files: Vec<(Format, OutputFile)>,
    view: Option<View>,
    after_deadline: bool,
}

impl Outputs {
    /// Opens the files. `submissions` is the number of grades, and `inputs` are the files that no result may replace.
    ///
    /// # Errors
    /// Two formats go to one place, a file is an input or cannot be written, or a format is for one submission only.
    pub(super) fn open(
        arguments: &OutputArgs,
        submissions: usize,
        inputs: &[&Path],
    ) -> Result<Self, Failure> {
        let mut stdout = None;
        let mut places: Vec<(&str, &Path)> = Vec::new();
        let targets: Vec<Target> =
            arguments.formats.iter().map(|text| Target::parse(text)).collect::<Result<_, _>>()?;
        for Target { format, file } in &targets {
            if format.is_for_one() && submissions != 1 {
                return Err(
                    Error::Config(grades::Unwritable::Number(*format, submissions).to_string()).into()
                );
            }
            if let Some(path) = file {
                check_extension("--format", path, result_format(*format))?;
                check_inputs("--format", path, inputs.iter().copied())?;
                places.push(("--format", path));
            } else if let Some(other) = stdout.replace(*format) {
                let what = format!(
                    "--format {} and --format {} both write to stdout: give a file for one of them, such as --format {1}=FILE",
                    other.name(),
                    format.name()
                );
                return Err(Error::Config(what).into());
            }
        }
        different(&places)?;
        let to_files = targets.iter().filter_map(|target| Some((target.format, target.file.as_ref()?)));
        let files = to_files.map(|(format, path)| Ok((format, OutputFile::open_within(path, WAIT)?)));
        Ok(Self {
            files: files.collect::<Result<_, Failure>>()?,
            stdout: stdout.unwrap_or(Format::Text),
            view: arguments.view.map(|view| match view {
                ViewArg::Teacher => View::Teacher,
                ViewArg::Student => View::Student,
            }),
            after_deadline: arguments.after_deadline,
        })
    }

    /// The format of stdout.
    pub(super) fn stdout(&self) -> Format {
        self.stdout
    }

    /// True if the deadline of the exercise has passed.
    pub(super) fn deadline_passed(&self) -> bool {
        self.after_deadline
    }

    /// The evidence of one submission, as text.
    pub(super) fn text(&self, grade: &Grade) -> String {
        let one = std::slice::from_ref(grade);
        Format::Text.write(one, self.options(Format::Text)).unwrap_or_default()
    }

    /// The options of a format.
    pub(super) fn options(&self, format: Format) -> Options {
        let default = if format == Format::Text { View::Student } else { View::Teacher };
        Options { view: self.view.unwrap_or(default), deadline_passed: self.after_deadline }
    }

    /// Writes the results, and then a remark on stderr. Returns the exit status: 0 if all submissions have all points.
    pub(super) fn write(self, grades: &[Grade], remark: &str) -> u8 {
        let printed = self.print(grades);
        print_stderr(remark);
        self.write_files(grades, printed)
    }

    /// Writes the results to stdout. Returns the exit status.
    pub(super) fn print(&self, grades: &[Grade]) -> u8 {
        match self.stdout.write(grades, self.options(self.stdout)) {
            Ok(text) => print_stdout(&text),
            Err(error) => unwritable(&error),
        }
    }

    /// Writes the files. `printed` is the status of stdout. Returns the exit status: 0 if all submissions have all points.
    pub(super) fn write_files(mut self, grades: &[Grade], printed: u8) -> u8 {
        let mut result = printed;
        for (format, file) in std::mem::take(&mut self.files) {
            let written = match format.write(grades, self.options(format)) {
                Ok(text) => put(file, &text),
                Err(error) => unwritable(&error),
            };
            result = if result == status::OK { written } else { result };
        }
        match result {
            status::OK if grades.iter().any(|grade| grade.error.is_some()) => status::HOST_ERROR,
            status::OK if grades.iter().all(Grade::is_full) => status::OK,
            status::OK => status::WRONG_RESULT,
            failed => failed,
        }
    }
}

/// Writes a file. Returns the exit status.
fn put(mut file: OutputFile, text: &str) -> u8 {
    let written = file.write_all(text.as_bytes()).map_err(|source| file.failed(source));
    match written.and_then(|()| file.commit()) {
        Ok(()) => status::OK,
        Err(error) => report_error(&error),
    }
}

/// Reports a format that cannot hold the grades. Returns the exit status.
fn unwritable(error: &grades::Unwritable) -> u8 {
    print_stderr(&format!("vmm: error: {error}\n"));
    status::HOST_ERROR
}
