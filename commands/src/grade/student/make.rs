//! Builds a student's project.

use crate::grade::student::capture::Capture;
use crate::jail::JailArgs;
use crate::status::Failure;
use crate::streams::print_stderr;
use jail::{Place, Use};
use observe::{Ending, Engine, Options, Program, Stops, Streams};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use vmm::host::{printable, printable_text};

/// The largest parts of make's output that are shown: of its beginning and of its end, in bytes.
const MOST_OUTPUT: usize = 2048;

/// Runs `make` in a folder.
///
/// # Errors
/// It failed; its output is on stderr.
pub(super) fn make(folder: &OsStr, limit: Duration, jail: JailArgs) -> Result<(), Failure> {
    let program = Program::find("make".as_ref())?;
    let failed = |source: io::Error| vmm::Error::Host { operation: "running make", source };
    let (errors, writer) = Capture::start(MOST_OUTPUT).map_err(failed)?;
    let streams = Streams { stdin: Stdio::null(), stdout: Stdio::null(), stderr: writer };
    let arguments = ["-C".into(), folder.to_owned()];
    // A Makefile is a stranger's program, too.
    let jail = jail.confinement(true, &program, &[], Some(Place::new(folder, Use::All)));
    let options = Options { timeout: Some(limit), jail, ..Options::default() };
    let ran =
        observe::observe_captive(&program, &arguments, options, streams, &mut Unobserved, &mut |_, _| {})?;
    if vmm::host::interrupted() {
        return Err(vmm::Error::Interrupted.into());
    }
    let errors = errors.finish().text();
    let what = match ran.ending {
        Ending::Ended(status) if status.success() => return Ok(()),
        Ending::Ended(_) => "failed".into(),
        Ending::Timeout(limit) => format!("did not end within {} s", limit.as_secs_f64()),
    };
    let lines: String = errors.lines().map(|line| format!("vmm: make: {}\n", printable_text(line))).collect();
    print_stderr(&lines);
    let folder = printable(Path::new(folder));
    Err(vmm::Error::Config(format!(
        "make {what} in {folder}, so there is nothing to grade: mend the project first"
    ))
    .into())
}

/// An engine that sees nothing.
struct Unobserved;

impl Engine for Unobserved {
    fn name(&self) -> &'static str {
        "none"
    }
    fn prepare(&mut self, _: &mut std::process::Command, _: Stops, _: bool) -> Result<(), observe::Error> {
        Ok(())
    }
    fn wakes(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn collect(&mut self, _: &mut dyn FnMut(observe::Event)) {}
    fn finish(&mut self, _: &mut dyn FnMut(observe::Event)) {}
    fn leave(&mut self) {}
}
