//! `--core FILE`: an ELF core of a guest that did not end by itself.

use crate::file_name::check_inputs;
use crate::measure::MeasureArgs;
use crate::status::Failure;
use report::OutputFile;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::controller::Location;
use vmm::exit::Stop;
use vmm::host::{format_size, printable};
use vmm::{Machine, Report};

/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);

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
        check_inputs("--core", path, inputs().iter().map(PathBuf::as_path))?;
        Ok(Some(Self { file: OutputFile::open_within(path, WAIT)?, path: path.clone() }))
    }

    /// Writes the core of a guest after its run. Returns a message about it, and true if it is an error.
    pub fn write(self, machine: &mut Machine, report: &Report) -> (String, bool) {
        let Self { mut file, path } = self;
        let shown = printable(&path);
        let Some(signal) = signal(&report.stop) else {
            return (
                format!("wrote no core, because the guest ended by itself: {shown} is unchanged"),
                false,
            );
        };
        let first = report.stopped_by.and_then(|id| usize::try_from(id).ok()).unwrap_or(0);
        let unchanged = "the core is not saved, and an existing file is unchanged";
        let summary = match machine.write_core(first, signal, &mut file) {
            Ok(summary) => summary,
            Err(vmm::Error::Host { source, .. }) => {
                return (format!("{}; {unchanged}", file.failed(source)), true);
            }
            Err(error) => return (format!("{error}; {unchanged}"), true),
        };
        if let Err(error) = file.commit() {
            return (format!("{error}; {unchanged}"), true);
        }
        (wrote(&path, summary, report), false)
    }
}

/// The message about a core that was written.
fn wrote(path: &Path, summary: vmm::machine::CoreSummary, report: &Report) -> String {
    let shown = printable(path);
    let mut text = format!(
        "wrote the core, {} of {} of memory: `gdb GUEST {shown}` shows it",
        format_size(summary.written),
        format_size(summary.memory)
    );
    if report.location == Some(Location::Reset) {
        text += "; its registers are those of a reset vCPU, because this host loses them at a triple fault";
    }
    if !summary.has_all_mappings {
        text += "; it has only the first mappings of the guest's page tables";
    }
    text
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
