//! Builds an exercise with make.

use super::LabError;
use super::folder::host;
use crate::sys::{has_ended, keep_background_writers, kill_group};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vmm::Error;
use vmm::host::interrupted;

/// The longest build.
const LIMIT: Duration = Duration::from_secs(300);
/// The longest pause between two looks at the build.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs make in a folder, for its first target or for `target`. Its messages go to stderr. Returns true if it succeeded.
///
/// # Errors
/// There is no make, or it takes too long.
pub(super) fn make(folder: &Path, target: Option<&str>) -> Result<bool, LabError> {
    let mut command = Command::new("make");
    command.args(["--no-print-directory", "-s", "-C"]).arg(folder).args(target);
    keep_background_writers();
    // The build gets a process group of its own, so that all of it can be ended.
    command.stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LabError::Folder(
            "make is missing: install it, and gcc or rustc (Debian: apt-get install make gcc)".into(),
        ),
        _ => host("running make", error),
    })?;
    let started = Instant::now();
    let mut pause = Duration::from_micros(500);
    while !has_ended(&child) && !interrupted() && started.elapsed() < LIMIT {
        thread::sleep(pause);
        pause = pause.saturating_mul(2).min(PAUSE);
    }
    let is_late = !has_ended(&child);
    kill_group(&child);
    let status = child.wait().map_err(|error| host("waiting for make", error))?;
    if interrupted() {
        return Err(Error::Interrupted.into());
    }
    match is_late {
        true => Err(LabError::Folder(format!("make did not end within {} s", LIMIT.as_secs()))),
        false => Ok(status.success()),
    }
}
