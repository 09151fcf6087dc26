//! Cold start: from the start of the program to its end with a tiny guest, next to a bare program that makes the same
//! machine by the same calls to KVM.
//!
//! What counts is the CPU time of the process, from `wait4`: KVM's part of its end is in it.

use crate::qemu::Scratch;
use crate::row::{Against, Goal, Row, Unit, cpu, interleave, wall};
use crate::sys;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The bare program's source.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The guest: the bare program has the same one.
const GUEST: &str = "real16-42";
/// The most that a start may cost, over the bare program's.
const LIMIT: f64 = 1.15;
/// The program that `make static` builds, beside the other.
const STATIC: &str = "vmm-static";

/// Starts `vmm`, the static one where it is there, and the bare program by turns, so many times each. The goal is that of the
/// static program, or of the other one where it is not there.
///
/// # Errors
/// gcc is missing, or a guest does not end as it should.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let mut programs = vec![compile(&scratch)?, vmm.to_path_buf()];
    programs.extend(Some(vmm.with_file_name(STATIC)).filter(|path| path.is_file()));
    let costs = interleave(rounds, &programs, |program| start(program, *program != programs[0]))?;
    let bare = costs.first().map_or(&[][..], Vec::as_slice);
    let ours = ["cold-start", "cold-start-static"].into_iter().zip(costs.iter().skip(1));
    let last = programs.len() - 2;
    let rows = ours.enumerate().map(|(place, (id, ours))| {
        let pair = cpu(ours, bare);
        let ratios = pair.ratios().filter(|_| place == last);
        let linked = if place == 0 { "as cargo builds it" } else { "the static program" };
        Row {
            id: id.into(),
            title: format!("cold start of `vmm run {GUEST}`, {linked}"),
            other: "bare program",
            against: Against::Floor,
            unit: Unit::Nanoseconds,
            how: "CPU time from the start of a process to its end; the bare program is static C with the same calls to KVM",
            goals: ratios
                .map(|ratios| Goal {
                    what: "cold start over the bare program",
                    unit: Unit::Ratio,
                    limit: LIMIT,
                    value: ratios.median,
                    error: ratios.error,
                })
                .into_iter()
                .collect(),
            pair,
            wall: wall(ours, bare),
        }
    });
    Ok(rows.collect())
}

/// Builds the bare program with the options that its source names.
fn compile(scratch: &Scratch) -> Result<PathBuf, String> {
    let source = scratch.file("cold-start.c", BARE.as_bytes())?;
    let program = source.with_extension("");
    let compiler = env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let built = Command::new(&compiler).args(["-O2", "-static", "-o"]).args([&program, &source]).output();
    match built {
        Ok(output) if output.status.success() => Ok(program),
        Ok(output) => {
            Err(format!("the bare program does not compile: {}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => Err(format!("{} cannot be started: {error}", compiler.display())),
    }
}

/// What a program costs that prints into nothing and ends well.
fn start(program: &Path, is_vmm: bool) -> Result<sys::Cost, String> {
    let mut command = Command::new(program);
    if is_vmm {
        command.args(["run", GUEST]);
    }
    let ran = sys::run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    if !ran.status.success() {
        return Err(format!(
            "{} ended with {}, and its guest should leave 42",
            program.display(),
            ran.status
        ));
    }
    Ok(ran.cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_costs_time_and_its_failure_is_told() {
        assert!(start(Path::new("true"), false).unwrap().wall > 0.0);
        assert!(start(Path::new("false"), false).unwrap_err().contains("should leave 42"));
        assert!(start(Path::new("/no/such/program"), false).is_err());
    }

    #[test]
    fn the_bare_program_compiles() {
        let scratch = Scratch::new().unwrap();
        assert!(compile(&scratch).unwrap().is_file());
    }
}
