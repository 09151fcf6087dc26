//! The result of one measuring process, and the parent's side of that process.

use crate::bench::resources::Resources;
use crate::status;
use crate::streams::report_error;
use clap::ValueEnum;
use serde_json::Value;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vmm::Error;

/// The time limit of one process, plus a limit for each VM.
const TIME_LIMIT: (Duration, Duration) = (Duration::from_secs(120), Duration::from_millis(100));

/// The program that creates the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// This VMM.
    Vmm,
    /// The bare program.
    Bare,
}

impl Side {
    /// The name in tables, in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Bare => "bare",
        }
    }
}

/// The result of one process. Times are in microseconds per VM.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The number of VMs that were created.
    pub made: u64,
    /// The number of guests that left 42.
    pub verified: u64,
    /// The wall time to create a VM.
    pub create: f64,
    /// The wall time to run a VM and drop it.
    pub run: f64,
    /// The CPU time to create a VM.
    pub create_cpu: f64,
    /// The CPU time to run a VM and drop it.
    pub run_cpu: f64,
    /// The memory of a VM, in bytes.
    pub memory: f64,
    /// The number of file descriptors of a VM.
    pub descriptors: f64,
    /// The resources that the process did not release.
    pub left_over: Resources,
}

impl Sample {
    /// Reads the JSON of a process with `vms` VMs.
    pub fn parse(text: &[u8], vms: usize) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let made = value.get("made")?.as_u64().filter(|made| *made > 0)?;
        let per_vm =
            |phase: &str, clock: &str| Some(value.get(phase)?.get(clock)?.as_f64()? * 1e6 / made as f64);
        Some(Self {
            made,
            verified: value.get("verified")?.as_u64()?,
            create: per_vm("create", "wall")?,
            run: per_vm("run", "wall")?,
            create_cpu: per_vm("create", "cpu")?,
            run_cpu: per_vm("run", "cpu")?,
            memory: value.get("memory")?.as_f64()? / vms as f64,
            descriptors: value.get("descriptors")?.as_f64()? / vms as f64,
            left_over: Resources::parse(value.get("left_over")?)?,
        })
    }

    /// The wall time of a VM from its creation to its end.
    pub fn wall(&self) -> f64 {
        self.create + self.run
    }

    /// The CPU time of a VM from its creation to its end.
    pub fn cpu(&self) -> f64 {
        self.create_cpu + self.run_cpu
    }
}

/// Starts this program again to measure one side with `vms` VMs, and waits for the result.
///
/// # Errors
/// Prints the error, and returns its exit status.
pub fn measure_in_child(side: Side, vms: usize) -> Result<Sample, u8> {
    let failed = |source| report_error(&Error::Host { operation: "running vmm as a child process", source });
    let mut child = Command::new("/proc/self/exe")
        .args(["bench", "scale", "--only", side.name(), "--vms", &vms.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let limit = TIME_LIMIT.0 + TIME_LIMIT.1 * u32::try_from(vms).unwrap_or(u32::MAX);
    let started = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(ended)) => break ended,
            Ok(None) if vmm::host::interrupted() || started.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                if vmm::host::interrupted() {
                    return Err(status::INTERRUPTED);
                }
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            // The child's output fits into the pipe, so it can be read after the end.
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(failed(error)),
        }
    };
    if vmm::host::interrupted() {
        return Err(status::INTERRUPTED);
    }
    let mut text = Vec::new();
    let mut stdout = child.stdout.take();
    stdout.iter_mut().try_for_each(|stdout| stdout.read_to_end(&mut text).map(drop)).map_err(failed)?;
    let sample = Sample::parse(&text, vms).filter(|_| ended.success());
    sample.ok_or_else(|| match ended.code().and_then(|code| u8::try_from(code).ok()) {
        // The child has printed its error.
        Some(code @ 110..120) => code,
        _ => failed(io::Error::other(format!("it ended with {ended}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_json_is_refused() {
        for text in ["", "{}", "[]", "{\"made\":0}", "{\"made\":1,\"verified\":1}"] {
            assert!(Sample::parse(text.as_bytes(), 1).is_none(), "{text}");
        }
    }
}
