//! `vmm bench scale`: many VMs that are alive in one process at the same time.
//!
//! For each measurement this program starts itself again, so that both sides start in the same state. The sides
//! alternate, and the result is the median.

use crate::args::{in_range, parse_number};
use crate::bench::bare;
use crate::bench::pass::{self, VmmFactory};
use crate::bench::sample::Side;
use crate::bench::sys::raise_descriptor_limit;
use crate::bench::table::{self, Row};
use crate::file_name::{ResultFormat, check_extension};
use crate::processor::{VcpuArg, check_kvm};
use crate::progress::{self, Progress};
use crate::status::{self, Failure};
use crate::streams::{print_stderr, print_stdout, report_error};
use clap::Args;
use guest::Guest;
use report::OutputFile;
use report::view::plural;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use vmm::boot::Image;
use vmm::machine::Processor;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine};

/// The guest of all VMs. It leaves 42 and halts.
const GUEST: &str = "real16-42";
/// The largest value of `--vms`.
const MAX_VMS: usize = 10_000;
/// The largest value of `--rounds`.
const MAX_ROUNDS: u32 = 1000;
/// The file descriptors of a VM: one for the VM, one for its vCPU.
const DESCRIPTORS_PER_VM: u64 = 2;
/// The file descriptors that a process needs for other purposes, with some spare.
const OTHER_DESCRIPTORS: u64 = 32;
/// The least number of VMs for a measurement. If fewer are alive at the same time, there are several passes.
const MIN_VMS_MADE: usize = 50;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm bench scale                          1, 10, 100 and 1000 VMs
  vmm bench scale --vms 200 --rounds 11    200 VMs, measured eleven times
  vmm bench scale --json scale.json        the results also as JSON

Each VM has 1 MiB of memory, one vCPU and all devices of `vmm run`, and runs real16-42. The first VM runs when all are \
alive. The bare program makes the same calls to KVM, and does nothing else. The table shows medians per VM. KiB is the \
growth of the process (RSS) while all VMs are alive. A ratio is vmm divided by the bare program.

Exit status: 0 if all guests left 42 and all resources were released; 111 if a guest did not leave 42; 115 if a \
resource was not released, or the host failed; 117 if interrupted (the table then has the rounds so far).")]
pub struct ScaleArgs {
    /// Numbers of VMs that are alive at the same time, each 1 to 10000
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = parse_vms)]
    vms: Vec<usize>,

    /// Number of measurements for each number of VMs, 1 to 1000
    #[arg(long, value_name = "R", default_value = "5", value_parser = parse_number)]
    rounds: u64,

    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Kind of processor: only KVM can be measured
    #[arg(long, value_enum, hide = true)]
    vcpu: Option<VcpuArg>,

    /// Measure one side in this process, and print JSON for the parent process
    #[arg(long, hide = true, value_enum)]
    only: Option<Side>,
}

fn parse_vms(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_VMS).contains(count));
    count.ok_or_else(|| format!("give numbers from 1 to {MAX_VMS}, such as 1,10,100"))
}

/// Measures and prints the results. Returns the exit status.
pub fn main(arguments: &ScaleArgs) -> u8 {
    vmm::host::catch_interrupts();
    let (guest, rounds, json) = match prepare(arguments) {
        Ok(prepared) => prepared,
        Err(error) => return report_error(&error),
    };
    if let Some(side) = arguments.only {
        return measure_here(side, guest, arguments.vms.first().copied().unwrap_or(1));
    }
    let progress = Progress::begin(false, || "measuring".into());
    let (rows, measured) = measure_all(&arguments.vms, rounds);
    drop(progress);
    let written = write_results(&rows, rounds, measured == status::OK, json);
    if measured == status::INTERRUPTED {
        print_stderr(match rows.is_empty() {
            true => "vmm: interrupted: no round is complete, so there are no results\n",
            false => "vmm: interrupted: the results have only the rounds before the interruption\n",
        });
    }
    match measured.max(written) {
        status::OK => check_samples(&rows),
        failed => failed,
    }
}

/// The instruction of a guest that only ends.
const HLT: u8 = 0xf4;

/// Finds the guest, checks the options and the host, and opens the file of `--json`.
///
/// # Errors
/// A value is out of range, the file cannot be written, the host allows too few file descriptors, or it has no KVM.
fn prepare(arguments: &ScaleArgs) -> Result<(&'static Guest, u32, Option<OutputFile>), Failure> {
    let Some(guest) = guest::find(GUEST) else {
        return Err(Error::Config(format!("this build lacks the guest {GUEST}")).into());
    };
    check_kvm("bench scale", arguments.vcpu)?;
    let rounds = in_range("--rounds", arguments.rounds, 1, MAX_ROUNDS)?;
    if let Some(path) = &arguments.json {
        check_extension("--json", path, ResultFormat::Json)?;
    }
    let json = arguments.json.as_deref().map(OutputFile::open).transpose()?;
    arguments.vms.iter().try_for_each(|vms| check_descriptors(*vms))?;
    // A host without KVM is explained here, and not by the bare program.
    let image = Image::flat(vec![HLT], Mode::Real, Gpa(0)).map_err(Error::from)?;
    Machine::builder(image).processor(Some(Processor::Kvm)).build()?;
    Ok((guest, rounds, json))
}

/// Checks that the process can open the file descriptors of `vms` VMs.
///
/// # Errors
/// It cannot.
fn check_descriptors(vms: usize) -> Result<(), Error> {
    let limit = raise_descriptor_limit()
        .map_err(|source| Error::Host { operation: "reading the limit of open files", source })?;
    let needed = DESCRIPTORS_PER_VM.saturating_mul(vms as u64).saturating_add(OTHER_DESCRIPTORS);
    if needed <= limit {
        return Ok(());
    }
    let fit = limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS_PER_VM;
    Err(Error::Host {
        operation: "creating the VMs",
        source: io::Error::other(format!(
            "--vms {vms} needs {needed} file descriptors, but the limit is {limit}, which is enough for {fit} VMs: \
             give a smaller --vms, or raise the limit (ulimit -n)"
        )),
    })
}

/// Measures one side in this process, and prints the result as JSON. Returns the exit status.
fn measure_here(side: Side, guest: &'static Guest, vms: usize) -> u8 {
    let passes = MIN_VMS_MADE.div_ceil(vms.max(1));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let measured = match side {
        Side::Vmm => pass::measure(&VmmFactory(guest), vms, passes, threads),
        Side::Bare => bare::Host::new(guest)
            .map_err(pass::bare_error)
            .and_then(|host| pass::measure(&host, vms, passes, threads)),
    };
    match measured {
        Ok(measured) => print_stdout(&format!("{}\n", measured.as_json())),
        Err(Error::Interrupted) => status::INTERRUPTED,
        Err(_) if vmm::host::interrupted() => status::INTERRUPTED,
        Err(error) => report_error(&error),
    }
}

/// Measures all rows, and shows the progress. Stops at the first failure. Returns the rows that have a sample of both
/// sides, and the exit status.
fn measure_all(vms: &[usize], rounds: u32) -> (Vec<Row>, u8) {
    let mut rows = Vec::new();
    for &vms in vms {
        let mut row = Row::new(vms);
        for round in 1..=rounds {
            let now = format!("{} at the same time, round {round} of {rounds}", plural(vms as u64, "VM"));
            log::info!("{now}");
            progress::say(|| now);
            if let Err(status) = row.measure(round) {
                rows.extend(row.is_complete().then_some(row));
                return (rows, status);
            }
        }
        rows.push(row);
    }
    (rows, status::OK)
}

/// Prints the table, and writes the file of `--json`. Does nothing if there are no rows. Returns the exit status.
fn write_results(rows: &[Row], rounds: u32, complete: bool, json: Option<OutputFile>) -> u8 {
    if rows.is_empty() {
        return status::OK;
    }
    let printed = print_stdout(&table::as_text(rows));
    let Some(mut to) = json else { return printed };
    let text = format!("{:#}\n", table::as_json(rows, GUEST, rounds, complete));
    let written = match to.write_all(text.as_bytes()) {
        Ok(()) => to.commit(),
        Err(source) => Err(to.failed(source)),
    };
    match written {
        Ok(()) => printed,
        Err(error) => report_error(&error),
    }
}

/// Checks that all guests left 42, and that all resources were released. Prints the first error. Returns the exit
/// status.
fn check_samples(rows: &[Row]) -> u8 {
    for (row, side) in rows.iter().flat_map(|row| [(row, Side::Vmm), (row, Side::Bare)]) {
        let samples = row.samples(side);
        let (vms, name) = (plural(row.vms as u64, "VM"), side.name());
        if samples.iter().any(|sample| sample.verified != sample.made) {
            print_stderr(&format!("vmm: error: {vms} ({name}): a guest did not leave 42\n"));
            return status::WRONG_RESULT;
        }
        if let Some(sample) = samples.iter().find(|sample| !sample.left_over.is_empty()) {
            let left_over = sample.left_over.as_json();
            print_stderr(&format!("vmm: error: {vms} ({name}): resources were not released: {left_over}\n"));
            return status::HOST_ERROR;
        }
    }
    if rows.iter().flat_map(|row| row.samples(Side::Vmm)).any(|sample| sample.left_over.timers.is_none()) {
        print_stderr(
            "vmm: note: timers were not checked, because this kernel does not list them in /proc/self/timers\n",
        );
    }
    status::OK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_vms_must_be_in_range() {
        assert_eq!(["1", "10000"].map(parse_vms), [Ok(1), Ok(10_000)]);
        for wrong in ["0", "10001", "", "x", "-1", "1e3"] {
            assert!(parse_vms(wrong).is_err(), "{wrong}");
        }
    }
}
