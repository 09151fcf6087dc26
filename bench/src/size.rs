//! The peak memory of a run and the size of the program, compared with QEMU.

use crate::loops;
use crate::qemu;
use crate::row::{Against, Goal, Pair, Row, Unit};
use crate::scratch::Scratch;
use crate::sys;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The goal for both rows: 3 MB.
const LIMIT: f64 = 3e6;

/// Measures `rounds` runs of `vmm`, and of QEMU if it is installed.
///
/// # Errors
/// A program could not run or ended with the wrong status, or a file could not be read.
pub fn run(rounds: usize, vmm: &Path, qemu: Option<&Path>) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let firmware = scratch.file("tiny.fw", &loops::firmware(&loops::real_console(0)))?;
    let (mut memory, mut size) = (Pair::default(), Pair::default());
    for _ in 0..rounds {
        let mut command = Command::new(vmm);
        command.args(["run", "simvirtio"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        memory.ours.push(peak(&mut command, 0)?);
        if let Some(qemu) = qemu {
            memory.other.push(peak(&mut qemu::command(qemu, &firmware), qemu::ENDED)?);
        }
        if vmm::interrupted() {
            break;
        }
    }
    size.ours.push(length(vmm)?);
    if let Some(qemu) = qemu {
        size.other.push(length(qemu)?);
    }
    let row = |id: &str, title: &str, how, pair: Pair, what, value: Option<f64>| Row {
        id: id.into(),
        title: title.into(),
        other: "QEMU microvm",
        against: Against::Program,
        unit: Unit::Bytes,
        how,
        goals: value
            .map(|value| Goal { what, unit: Unit::Bytes, limit: LIMIT, value, error: 0.0 })
            .into_iter()
            .collect(),
        pair,
        wall: Pair::default(),
    };
    // The goal is for the worst run.
    let most = memory.ours.iter().copied().reduce(f64::max);
    let file = size.ours.first().copied();
    Ok(vec![
        row(
            "peak-memory",
            "peak RSS of `vmm run simvirtio`",
            "VmHWM at the end of the process; QEMU runs a guest that ends at once",
            memory,
            "peak RSS of `vmm run`",
            most,
        ),
        row(
            "program-size",
            "program size, stripped",
            "size of the file, without shared libraries",
            size,
            "program size, stripped",
            file,
        ),
    ])
}

/// Returns the peak memory of a program in bytes. The program must end with `status`.
fn peak(command: &mut Command, status: i32) -> Result<f64, String> {
    match sys::peak_memory(command)? {
        (bytes, ended) if ended.code() == Some(status) => Ok(bytes as f64),
        (_, ended) => Err(format!("{command:?} ended with {ended}, not with exit status {status}")),
    }
}

/// Returns the size of a file in bytes.
fn length(path: &Path) -> Result<f64, String> {
    let found =
        fs::metadata(path).map_err(|error| format!("cannot read the size of {}: {error}", path.display()))?;
    Ok(found.len() as f64)
}
