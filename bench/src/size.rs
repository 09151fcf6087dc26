//! The peak memory of a run and the size of the program, compared with QEMU.

use crate::loops;
use crate::qemu::{self, Qemu};
use crate::row::{Baseline, Goal, Pair, Row, Unit};
use crate::scratch::Scratch;
use crate::sys;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The goal for the peak memory.
const MEMORY_LIMIT: f64 = 3e6;
/// The goal for the size of the program, with everything in it.
const SIZE_LIMIT: f64 = 6e6;

/// Measures `rounds` runs of `vmm`, and of QEMU if it runs here, and the sizes of both programs.
///
/// # Errors
/// A program could not run or ended with the wrong status, or a file could not be read.
pub fn run(rounds: usize, vmm: &Path, qemu: Option<&Qemu>) -> Result<Vec<Row>, String> {
    let memory = peak_memory(rounds, vmm, qemu)?;
    let other_size = qemu.map(|qemu| file_size(qemu.program())).transpose()?;
    let size = Pair { ours: vec![file_size(vmm)?], other: other_size.into_iter().collect() };
    // The goal is for the worst run.
    let most = memory.ours.iter().copied().reduce(f64::max);
    let file = size.ours.first().copied();
    Ok(vec![
        row(
            "peak-memory",
            "peak RSS of `vmm run simvirtio`",
            "VmHWM at the end of the process; QEMU runs a guest that ends at once",
            memory,
            ("peak RSS of `vmm run`", MEMORY_LIMIT),
            most,
        ),
        row(
            "program-size",
            "program size, stripped",
            "size of the file, without shared libraries",
            size,
            ("program size, stripped", SIZE_LIMIT),
            file,
        ),
    ])
}

/// Returns a row with a goal for `value`: its name and its limit.
fn row(
    id: &str,
    title: &str,
    how: &'static str,
    pair: Pair,
    (what, limit): (&'static str, f64),
    value: Option<f64>,
) -> Row {
    let goal = value.map(|value| Goal { what, unit: Unit::Bytes, limit, value, error: 0.0 });
    Row {
        id: id.into(),
        title: title.into(),
        other: "QEMU microvm",
        baseline: Baseline::OtherProgram,
        unit: Unit::Bytes,
        how,
        goals: goal.into_iter().collect(),
        pair,
        wall: Pair::default(),
    }
}

/// Returns the peak memory of `rounds` runs of both programs.
fn peak_memory(rounds: usize, vmm: &Path, qemu: Option<&Qemu>) -> Result<Pair, String> {
    let scratch = Scratch::new()?;
    let firmware = scratch.file("tiny.fw", &loops::firmware(&loops::console_guest(0)))?;
    let mut memory = Pair::default();
    for _ in 0..rounds {
        let mut command = Command::new(vmm);
        command.args(["run", "simvirtio"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        memory.ours.push(peak_of(&mut command, 0)?);
        if let Some(qemu) = qemu {
            memory.other.push(peak_of(&mut qemu::qemu_command(qemu, &firmware), qemu::EXIT_STATUS)?);
        }
        if vmm::host::interrupted() {
            break;
        }
    }
    Ok(memory)
}

/// Returns the peak memory of a program in bytes. The program must end with `status`.
fn peak_of(command: &mut Command, status: i32) -> Result<f64, String> {
    match sys::peak_memory(command)? {
        (bytes, ended) if ended.code() == Some(status) => Ok(bytes as f64),
        (_, ended) => Err(format!("{command:?} ended with {ended}, not with exit status {status}")),
    }
}

/// Returns the size of a file in bytes.
fn file_size(path: &Path) -> Result<f64, String> {
    let metadata =
        fs::metadata(path).map_err(|error| format!("cannot read the size of {}: {error}", path.display()))?;
    Ok(metadata.len() as f64)
}
