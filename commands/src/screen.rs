//! The text screen of a classic PC after a run: as text on standard output, or in the file of `--screen`.

use crate::file_name::{ResultFormat, check_extension, check_inputs};
use crate::status;
use crate::streams::{print_stderr, print_stdout};
use report::{FileError, OutputFile};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::Error;
use vmm::host::printable;
use vmm::machine::{MachineKind, Screen};

/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);
/// The line before the screen, if the guest has also printed text.
const TITLE: &str = "--- screen ---\n";

/// The file of `--screen`. It is opened before the run, so that a wrong path is reported before it.
pub struct ScreenFile<'a> {
    path: &'a Path,
    file: OutputFile,
}

impl<'a> ScreenFile<'a> {
    /// Opens the file. `inputs` are the files that the run reads.
    ///
    /// # Errors
    /// It cannot be written, or is an input.
    pub fn open(path: &'a Path, inputs: &[PathBuf]) -> Result<Self, status::Failure> {
        check_extension("--screen", path, ResultFormat::Text)?;
        check_inputs("--screen", path, inputs.iter().map(PathBuf::as_path))?;
        Ok(Self { path, file: OutputFile::open_within(path, WAIT)? })
    }

    /// Writes the screen: an image if the name ends in .png, otherwise text. Without a screen the file stays as it was.
    /// Returns the exit status.
    pub fn write(self, screen: Option<&Screen>) -> u8 {
        let name = printable(self.path);
        let Some(screen) = screen else {
            print_stderr(&format!(
                "vmm: --screen {name} is not written: the guest has not put text on its screen\n"
            ));
            return status::OK;
        };
        let is_image = self.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        let bytes = if is_image { screen.png() } else { screen.text().into_bytes() };
        let failure = write(self.file, &bytes).err();
        failure.iter().for_each(|failure| print_stderr(&format!("vmm: error: {failure}\n")));
        if failure.is_none() { status::OK } else { status::HOST_ERROR }
    }
}

fn write(mut file: OutputFile, bytes: &[u8]) -> Result<(), FileError> {
    match file.write_all(bytes) {
        Ok(()) => file.commit(),
        Err(source) => Err(file.failed(source)),
    }
}

/// Prints the screen on standard output, after the text that the guest has printed, if any. Returns the exit status.
pub fn print(screen: &Screen, last_byte: Option<u8>) -> u8 {
    let before = match last_byte {
        None => String::new(),
        Some(b'\n') => TITLE.into(),
        Some(_) => format!("\n{TITLE}"),
    };
    print_stdout(&(before + &screen.text()))
}

/// Checks that a machine of this kind has the devices of `--console`, if that is given.
///
/// # Errors
/// It has none of them.
pub fn check_input(machine: Option<MachineKind>, is_given: bool) -> Result<(), Error> {
    match machine == Some(MachineKind::Bare) && is_given {
        true => Err(Error::Config(
            "--console is for a classic PC, and this machine is bare: give --machine pc, or leave out --console".into(),
        )),
        false => Ok(()),
    }
}

/// Checks that a machine of this kind, or that of Linux (`None`), has a screen for `--screen`.
///
/// # Errors
/// It has none.
pub fn check(machine: Option<MachineKind>, file: Option<&Path>) -> Result<(), Error> {
    let has_screen = matches!(machine, Some(MachineKind::Pc | MachineKind::Bios));
    match file.filter(|_| !has_screen) {
        None => Ok(()),
        Some(file) if machine.is_none() => Err(Error::Config(format!(
            "--screen {} is for kernels with a text screen, and the machine of Linux has none: leave it out",
            printable(file)
        ))),
        Some(file) => Err(Error::Config(format!(
            "--screen {} needs a machine with a text screen: give --machine pc",
            printable(file)
        ))),
    }
}
