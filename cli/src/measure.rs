//! What is told of a run: the options for it, and the files that `--profile` and `--trace` write.

use crate::say::say;
use crate::status::{self, Failure};
use crate::summary;
use clap::Args;
use report::{FileError, OutputFile, SavedProfile, SavedTrace};
use std::path::PathBuf;
use vmm::host::printable;
use vmm::{Builder, Error, Report};

#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    /// Do not count and time exits
    #[arg(long, conflicts_with_all = ["profile", "trace"])]
    no_profile: bool,

    /// Write counts and times of all exits to a file, json=FILE, for `vmm report`
    #[arg(long, value_name = "json=FILE", value_parser = parse_profile)]
    profile: Option<ProfileFile>,

    /// Write the last exits to a file, one by one with the guest's RIP, for `vmm report`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// How many exits a trace has, up to 4194304; each vCPU takes 88 bytes for each
    #[arg(long, value_name = "N", default_value_t = TRACE_EXITS, requires = "trace")]
    trace_exits: usize,

    /// Of what is said after the run, only the first line
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// How many exits a trace has, unless the user says otherwise.
const TRACE_EXITS: usize = 65_536;

/// As without an option.
impl Default for MeasureArgs {
    fn default() -> Self {
        Self { no_profile: false, profile: None, trace: None, trace_exits: TRACE_EXITS, quiet: false }
    }
}

/// The file of a profile.
#[derive(Clone, Debug)]
struct ProfileFile(PathBuf);

fn parse_profile(text: &str) -> Result<ProfileFile, String> {
    match text.split_once('=') {
        Some(("json", file)) if !file.is_empty() => Ok(ProfileFile(file.into())),
        _ => Err("give json=FILE, such as json=profile.json; `vmm report` makes other formats of it".into()),
    }
}

impl MeasureArgs {
    /// A machine that is measured so.
    pub fn apply(&self, builder: Builder) -> Builder {
        let trace = self.trace.as_ref().map(|_| self.trace_exits);
        let counted = !self.no_profile;
        let counters = counted && (!self.quiet || self.profile.is_some());
        builder.profile(counted).trace(trace).kernel_counters(counters)
    }
}

/// The files that a run leaves behind, opened before it begins.
pub struct Files<'a> {
    arguments: &'a MeasureArgs,
    profile: Option<OutputFile>,
    trace: Option<OutputFile>,
}

impl<'a> Files<'a> {
    /// Opens the files.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn open(arguments: &'a MeasureArgs) -> Result<Self, Failure> {
        let profile = arguments.profile.as_ref().map(|file| OutputFile::open(&file.0)).transpose()?;
        let trace = arguments.trace.as_deref().map(OutputFile::open).transpose()?;
        if let (Some(one), Some(other)) = (&profile, &trace)
            && one.takes_the_place_of(other)
        {
            let what = "the profile and the trace are one file: give each a file of its own";
            return Err(Error::Config(what.into()).into());
        }
        Ok(Self { arguments, profile, trace })
    }

    /// Fills the files from a run of the guest of this name, and says on stderr where they are, or what is missing.
    /// Returns `status`, or that of a host's error where there was none before.
    pub fn fill(self, name: &str, report: &Report, status: u8) -> u8 {
        let ended = summary::ending(report);
        let mut failures = Vec::new();
        let mut done = Vec::new();
        if let (Some(to), Some(file)) = (self.profile, &self.arguments.profile) {
            match SavedProfile::capture(name, &ended, report).map(|profile| write_profile(&profile, to)) {
                Some(Err(error)) => failures
                    .push(format!("{error}; the profile is lost, and a file that was there is as it was")),
                Some(Ok(())) => {
                    done.push(format!("profile written: see it with `vmm report {}`", printable(&file.0)));
                }
                None => {}
            }
        }
        if let (Some(to), Some(path)) = (self.trace, &self.arguments.trace) {
            match SavedTrace::capture(name, &ended, report).map(|trace| write_trace(&trace, to)) {
                Some(Err(error)) => failures.push(error),
                Some(Ok(())) => {
                    done.push(format!("trace written: see it with `vmm report {}`", printable(path)));
                }
                None => {}
            }
        }
        failures.iter().for_each(|failure| say(&format!("vmm: error: {failure}\n")));
        if !self.arguments.quiet {
            done.iter().for_each(|line| say(&format!("vmm: {line}\n")));
        }
        if failures.is_empty() || status != status::OK { status } else { status::HOST_ERROR }
    }
}

fn write_profile(profile: &SavedProfile, mut to: OutputFile) -> Result<(), FileError> {
    match profile.write(&mut to) {
        Ok(()) => to.commit(),
        Err(source) => Err(to.failed(source)),
    }
}

/// A trace that is cut short is worth keeping.
fn write_trace(trace: &SavedTrace, mut to: OutputFile) -> Result<(), String> {
    match trace.write(&mut to) {
        Ok(_) => to.commit().map_err(|error| error.to_string()),
        Err(cut) => {
            let what = format!("the trace is {cut}");
            let error = to.failed(cut.source);
            let lost = format!("{error}; the trace is lost, and a file that was there is as it was");
            // One without a record is worth less than what may have been there.
            if cut.records == 0 {
                return Err(lost);
            }
            to.commit().map_or(Err(lost), |()| Err(format!("{error}; {what}")))
        }
    }
}
