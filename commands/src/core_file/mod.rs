//! `--core FILE`: an ELF core of a guest that did not end by itself, or that still runs (`live.rs`).

mod live;

pub use live::LiveCores;

use crate::file_name::check_inputs;
use crate::measure::MeasureArgs;
use crate::status::Failure;
use report::OutputFile;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::controller::Location;
use vmm::exit::Stop;
use vmm::host::{format_size, printable};
use vmm::machine::{CoreCause, CoreSummary};
use vmm::memory::{Gpa, GuestMemory};
use vmm::{Error, Machine, Report};

/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);
/// The end of the message about a core that could not be written.
const UNCHANGED: &str = "the core is not saved, and an existing file is unchanged";

/// The file of `--core`, which is opened before the run.
pub struct CoreFile {
    file: OutputFile,
    path: PathBuf,
}

impl CoreFile {
    /// Opens the file, if the user asked for a core. `inputs` returns the files that the run reads.
    ///
    /// # Errors
    /// It cannot be written, or is an input.
    pub fn open(
        arguments: &MeasureArgs,
        inputs: impl FnOnce() -> Vec<PathBuf>,
    ) -> Result<Option<Self>, Failure> {
        let Some(path) = &arguments.core else { return Ok(None) };
        Self::open_at(path, &inputs()).map(Some)
    }

    fn open_at(path: &Path, inputs: &[PathBuf]) -> Result<Self, Failure> {
        check_inputs("--core", path, inputs.iter().map(PathBuf::as_path))?;
        Ok(Self { file: OutputFile::open_within(path, WAIT)?, path: path.into() })
    }

    /// Writes the core of a guest after its run. Returns a message about it, and true if it is an error.
    pub fn write(self, machine: &mut Machine, report: &Report) -> (String, bool) {
        let Some(signal) = signal(&report.stop) else {
            let shown = printable(&self.path);
            return (format!("wrote no core to {shown}, because the guest ended by itself"), false);
        };
        let first = report.stopped_by.and_then(|id| usize::try_from(id).ok()).unwrap_or(0);
        let note = note(machine.memory());
        let cause = CoreCause { first, signal, vmcoreinfo: note.as_deref() };
        match self.save(note.is_some(), |file| machine.write_core(cause, file)) {
            Ok(mut text) => {
                if report.location == Some(Location::Reset) {
                    text += "; its registers are those of a reset vCPU, because this host loses them at a triple fault";
                }
                (text, false)
            }
            Err(text) => (text, true),
        }
    }

    /// Writes the core with `write`, and puts it in its place. Returns a message about it.
    ///
    /// # Errors
    /// The message about a core that could not be written.
    fn save(
        self,
        is_linux: bool,
        write: impl FnOnce(&mut OutputFile) -> Result<CoreSummary, Error>,
    ) -> Result<String, String> {
        let Self { mut file, path } = self;
        let summary = match write(&mut file) {
            Ok(summary) => summary,
            Err(Error::Host { source, .. }) => {
                return Err(format!("{}; {UNCHANGED}", file.failed(source)));
            }
            Err(error) => return Err(format!("{error}; {UNCHANGED}")),
        };
        file.commit().map_err(|error| format!("{error}; {UNCHANGED}"))?;
        let shown = printable(&path);
        let (written, memory) = (format_size(summary.written), format_size(summary.memory));
        let mut text = format!("wrote the core, {written} of {memory} of memory: ");
        text += &match is_linux {
            true => format!("`drgn -c {shown}` and `crash VMLINUX {shown}` show it"),
            false => format!("`gdb GUEST {shown}` shows it"),
        };
        if !summary.has_all_mappings {
            text += "; it has only the first mappings of the guest's page tables";
        }
        Ok(text)
    }
}

/// The note in which a Linux kernel describes itself.
fn note(memory: &GuestMemory) -> Option<Vec<u8>> {
    let end = memory.ranges().map(|(_, last)| last.0.saturating_add(1)).max()?;
    debug::vmcoreinfo(end, &|address, bytes| memory.read(Gpa(address), bytes))
}

/// The number of the signal that debuggers show as the cause. `None` if the guest ended by itself: there is no core then.
fn signal(stop: &Stop) -> Option<u8> {
    const INTERRUPTED: u8 = 2;
    const ILLEGAL: u8 = 4;
    const ABORTED: u8 = 6;
    const SEGMENTATION: u8 = 11;
    const ALARM: u8 = 14;
    Some(match stop {
        Stop::EmulationFailure(_) => ILLEGAL,
        Stop::Panicked(_) => ABORTED,
        Stop::Timeout(_) | Stop::WallTimeout(_) => ALARM,
        Stop::Interrupted | Stop::Quit => INTERRUPTED,
        stop if stop.is_orderly() => return None,
        _ => SEGMENTATION,
    })
}
