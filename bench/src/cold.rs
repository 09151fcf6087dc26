//! Cold start: from the start of the program to its end with a tiny guest, next to a bare program that makes the same
//! machine by the same calls to KVM.
//!
//! What counts is the CPU time of the process, from `wait4`: KVM's part of its end is in it.

use crate::row::{Against, Goal, Row, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys;
use std::path::Path;
use std::process::{Command, Stdio};

/// The bare program's source.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The guest: the bare program has the same one.
const GUEST: &str = "real16-42";
/// The most that a start may cost, over the bare program's.
const LIMIT: f64 = 1.15;
/// The program that `make static` builds, beside the other.
const STATIC: &str = "vmm-static";

/// Starts `vmm`, the static one too where it is there, and the bare program by turns, so many times each.
///
/// # Errors
/// gcc is missing, or a guest does not end as it should.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let bare = compile(&scratch, "cold-start", BARE, &[])?;
    let mut programs = vec![bare, vmm.to_path_buf()];
    programs.extend(Some(vmm.with_file_name(STATIC)).filter(|path| path.is_file()));
    // Once each for what is cached from then on.
    for (place, program) in programs.iter().enumerate() {
        start(program, place > 0)?;
    }
    let costs = interleave(rounds, &programs, |program| start(program, *program != programs[0]))?;
    let Some((bare, ours)) = costs.split_first() else { return Ok(Vec::new()) };
    let kinds = [
        ("cold-start", "as cargo builds it", "cold start over the bare program"),
        ("cold-start-static", "as one static file", "the same of the static program (`make static`)"),
    ];
    let rows = kinds.into_iter().zip(ours).map(|((id, linked, what), ours)| {
        let pair = cpu(ours, bare);
        let goal = pair.ratios().map(|ratio| Goal {
            what,
            unit: Unit::Ratio,
            limit: LIMIT,
            value: ratio.median,
            error: ratio.error,
        });
        Row {
            id: id.into(),
            title: format!("cold start, {linked}"),
            other: "bare program",
            against: Against::Floor,
            unit: Unit::Nanoseconds,
            how: "CPU time of `vmm run real16-42` from its start to its end; the bare program is static C with the same calls to KVM",
            goals: goal.into_iter().collect(),
            pair,
            wall: wall(ours, bare),
        }
    });
    Ok(rows.collect())
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
        assert!(compile(&scratch, "cold-start", BARE, &[]).unwrap().is_file());
    }
}
