//! The option `--sample`: samples of the guest, their files, and the lines about them.

use crate::file_name::{check_dash, check_inputs};
use crate::measure::ResultArgs;
use crate::names::Names;
use crate::status::{self, Failure};
use crate::streams::print_stderr;
use clap::Args;
use debug::{Registers, Stack, Symbols, backtrace};
use report::stacks::{StackFormat, hottest};
use report::view::{duration, plural};
use report::{OutputFile, Samples};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm::host::printable;
use vmm::machine::{Frame, MAX_SAMPLE_RATE, Processor, SampleBy, Sampling, Unwinder};
use vmm::profile::MAX_STACKS;
use vmm::{Error, Machine, Report};

/// The rate without one of the user's.
const DEFAULT_RATE: &str = "1000";
/// The longest wait for the reader of a file that is a pipe.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Args)]
pub(super) struct SampleArgs {
    /// Interrupt the vCPUs RATE times a second, 1 to 10000, and show in which functions of the guest they are; with `exits`
    /// each exit is a sample instead [default RATE: 1000]
    #[arg(long, value_name = "RATE|exits", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_RATE, conflicts_with = "gdb", value_parser = parse_by)]
    sample: Option<By>,

    /// Write the samples to FILE: a flame graph (svg), folded stacks (folded), a profile for profiler.firefox.com
    /// (firefox) or for pprof (pprof); can be repeated
    /// [default FORMAT: by the extension: .svg, .folded, .json or .pb]
    #[arg(long, value_name = "[FORMAT=]FILE", requires = "sample", value_parser = parse_file)]
    sample_file: Vec<Target>,
}

/// The value of `--sample`.
#[derive(Clone, Copy, Debug)]
struct By(SampleBy);

/// A file of `--sample-file`.
#[derive(Clone, Debug)]
struct Target {
    format: StackFormat,
    path: PathBuf,
}

fn parse_by(text: &str) -> Result<By, String> {
    if text == "exits" {
        return Ok(By(SampleBy::Exits));
    }
    let rate = crate::args::parse_number(text).ok().and_then(|rate| u32::try_from(rate).ok());
    let rate = rate.filter(|rate| (1..=MAX_SAMPLE_RATE).contains(rate));
    rate.map(|rate| By(SampleBy::Rate(rate)))
        .ok_or_else(|| format!("give 1 to {MAX_SAMPLE_RATE} samples a second, or exits"))
}

fn parse_file(text: &str) -> Result<Target, String> {
    let named = |name: &str| {
        Some(match name {
            "svg" => StackFormat::Svg,
            "folded" => StackFormat::Folded,
            "firefox" => StackFormat::Firefox,
            "pprof" => StackFormat::Pprof,
            _ => return None,
        })
    };
    if let Some((format, path)) = text.split_once('=').and_then(|(name, path)| Some((named(name)?, path))) {
        return match path {
            "" => Err("give a file after the format, such as svg=guest.svg".into()),
            path => Ok(Target { format, path: path.into() }),
        };
    }
    let extension = Path::new(text).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let format = match extension.to_ascii_lowercase().as_str() {
        "json" => Some(StackFormat::Firefox),
        "pb" => Some(StackFormat::Pprof),
        other => named(other),
    };
    format.map(|format| Target { format, path: text.into() }).ok_or_else(|| {
        "the extension names no format: use .svg, .folded, .json or .pb, or give svg=, folded=, firefox= or pprof= before the file"
            .into()
    })
}

impl SampleArgs {
    /// True if the user wants samples.
    pub(super) fn is_given(&self) -> bool {
        self.sample.is_some()
    }

    /// The files of the samples.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.sample_file.iter().map(|target| target.path.as_path())
    }

    /// Checks that the samples are seen: `--quiet` without a file hides them.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn check_shown(&self, results: &ResultArgs) -> Result<(), Error> {
        if self.is_given() && results.hides_profile() && self.sample_file.is_empty() {
            let what = "--quiet hides the samples of --sample: give --sample-file or --profile, or leave out --quiet";
            return Err(Error::Config(what.into()));
        }
        Ok(())
    }

    /// Lets a machine take samples, if the user wants some. Callers are found with the symbols of the guest whose image is at
    /// `bases`, or with frame pointers if there is no image before the run.
    pub(super) fn begin(
        &self,
        machine: &mut Machine,
        bases: &[u64],
        names: impl FnOnce() -> Result<Names, Failure>,
    ) -> Result<(), Failure> {
        let Some(By(by)) = self.sample else { return Ok(()) };
        let symbols = match bases.is_empty() {
            true => None,
            false => {
                let ram = machine.memory().ranges().next().map_or(0, |(_, last)| last.0.saturating_add(1));
                names()?.symbols(bases, ram, machine.memory())
            }
        };
        let unwinder = symbols.map(|symbols| Box::new(Callers(symbols)) as Box<dyn Unwinder>);
        machine.sample(Some(Sampling { by, unwinder }));
        Ok(())
    }
}

/// Finds callers with the symbols of a guest.
struct Callers(Symbols);

impl Unwinder for Callers {
    fn callers(&mut self, frame: &Frame) -> Vec<u64> {
        let Frame { rip, rsp, rbp, rbx, width, .. } = *frame;
        let registers = Registers { rip, rsp, rbp, rbx, width };
        backtrace(&registers, Stack { start: rsp, bytes: &frame.stack }, &self.0)
    }
}

/// The files of the samples. They are opened before the run, so that a wrong path is reported before it.
pub(super) struct SampleFiles<'a>(Vec<(&'a Target, OutputFile)>);

impl<'a> SampleFiles<'a> {
    /// Opens the files. `inputs` are the files that the run reads.
    ///
    /// # Errors
    /// One of them cannot be written, or is an input.
    pub(super) fn open(arguments: &'a SampleArgs, inputs: &[PathBuf]) -> Result<Self, Failure> {
        let mut files: Vec<(&Target, OutputFile)> = Vec::new();
        for target in &arguments.sample_file {
            check_dash("--sample-file", &target.path)?;
            check_inputs("--sample-file", &target.path, inputs.iter().map(PathBuf::as_path))?;
            files.push((target, OutputFile::open_within(&target.path, WAIT)?));
        }
        Ok(Self(files))
    }

    /// Writes the files. Prints each one on stderr, or why it could not be written. Returns the exit status.
    pub(super) fn write(self, samples: Option<&Samples>, guest: &str, quiet: bool) -> u8 {
        let mut status = status::OK;
        for (target, file) in self.0 {
            match write(file, samples, target.format, guest) {
                Ok(()) if quiet => {}
                Ok(()) => print_stderr(&format!("vmm: wrote the samples: {}\n", printable(&target.path))),
                Err(error) => {
                    print_stderr(&format!(
                        "vmm: error: {error}; the samples are not saved, and an existing file is unchanged\n"
                    ));
                    status = status::HOST_ERROR;
                }
            }
        }
        status
    }
}

fn write(
    mut file: OutputFile,
    samples: Option<&Samples>,
    format: StackFormat,
    guest: &str,
) -> Result<(), Failure> {
    let none = Samples::default();
    let mut to = BufWriter::with_capacity(1 << 16, &mut file);
    let written = samples.unwrap_or(&none).write(&mut to, format, guest).and_then(|()| to.flush());
    // Dropping a BufWriter writes its buffer again, which could block on a file that already failed.
    let _ = to.into_parts();
    written.map_err(|source| file.failed(source))?;
    Ok(file.commit()?)
}

/// The lines about the samples of a run. Empty if none were to be taken.
pub(super) fn lines(report: &Report, samples: Option<&Samples>) -> String {
    let (Some(taken), Some(samples)) = (&report.samples, samples) else { return String::new() };
    let count = taken.stacks.total();
    let mut text = String::from("vmm: ");
    // Writing to a String cannot fail.
    let _ = match (taken.by, count) {
        (SampleBy::Rate(_), 0) => write!(text, "no samples: the run was too short"),
        (SampleBy::Rate(rate), _) => write!(text, "{}, at most {rate} a second", plural(count, "sample")),
        (SampleBy::Exits, _) => write!(text, "{} with their stacks", plural(count, "exit")),
    };
    if count > 0 {
        let threads = if report.processor == Processor::Soft { 1 } else { report.vcpus.len().max(1) };
        let whole = report.elapsed.as_nanos() as f64 * threads as f64;
        let _ = write!(
            text,
            "; taking them took {}, {} each, {:.1}% of the run{}",
            duration(taken.cost),
            duration(taken.cost.checked_div(count).unwrap_or(0)),
            100.0 * taken.cost as f64 / whole.max(1.0),
            if taken.by == SampleBy::Exits { "" } else { ", without the exits for them" }
        );
    }
    text.push('\n');
    if samples.lost > 0 {
        let _ = writeln!(
            text,
            "vmm: the stacks of {} are not kept: the guest has more than {MAX_STACKS} different ones",
            plural(samples.lost, "of the samples")
        );
    }
    text + &hottest(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_files_are_read() {
        let by = |text: &str| parse_by(text).map(|by| by.0);
        assert_eq!(by("1"), Ok(SampleBy::Rate(1)));
        assert_eq!(by("10000"), Ok(SampleBy::Rate(10_000)));
        assert_eq!(by("exits"), Ok(SampleBy::Exits));
        for bad in ["0", "10001", "-1", "", "1.5", "exit", "4294967297"] {
            assert_eq!(by(bad).unwrap_err(), "give 1 to 10000 samples a second, or exits", "{bad}");
        }
        let file = |text: &str| parse_file(text).map(|file| (file.format, file.path));
        assert_eq!(file("a.svg"), Ok((StackFormat::Svg, "a.svg".into())));
        assert_eq!(file("x/a.JSON"), Ok((StackFormat::Firefox, "x/a.JSON".into())));
        assert_eq!(file("pprof=a.gz"), Ok((StackFormat::Pprof, "a.gz".into())));
        assert_eq!(file("a=b.folded"), Ok((StackFormat::Folded, "a=b.folded".into())));
        for bad in ["a", "a.txt.gz", "", "svg="] {
            assert!(file(bad).is_err(), "{bad}");
        }
    }
}
