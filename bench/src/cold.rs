//! Cold start: a whole run of the program with a tiny guest. The baseline is a bare program that makes the same machine
//! with the same calls to KVM.
//!
//! The result is the CPU time of the process from `wait4`, which includes the work of KVM at the end of the process.

use crate::row::{Baseline, Goal, Row, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys::run_silently;
use std::path::Path;

/// The source of the bare program.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The guest. The bare program has the same one.
const GUEST: &str = "real16-42";
/// The name of the program that `make static` builds, in the folder of the other one.
const STATIC: &str = "vmm-static";

/// Runs copies of the bare program, `vmm`, and the static `vmm` if it exists, in turn and `rounds` times each.
///
/// # Errors
/// gcc is missing, or a program could not run or ended with a failure.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let bare = compile(&scratch, "cold-start", BARE, &["-static"])?;
    let with_guest = |program| (program, vec!["run", GUEST]);
    let mut programs = vec![(bare, vec![]), with_guest(vmm.to_path_buf())];
    programs.extend(Some(vmm.with_file_name(STATIC)).filter(|path| path.is_file()).map(with_guest));
    // Run each once, so that the files are in the page cache.
    for program in &mut programs {
        program.0 = scratch.copy(&program.0)?;
        run_silently(&program.0, &program.1)?;
    }
    let costs = interleave(rounds, &programs, |program| run_silently(&program.0, &program.1))?;
    let Some((bare, ours)) = costs.split_first() else { return Ok(Vec::new()) };
    // The last number is the goal: the largest ratio to the bare program.
    let kinds = [
        (
            "cold-start",
            "dynamically linked",
            "cold start, dynamically linked, relative to the bare program",
            1.3,
        ),
        (
            "cold-start-static",
            "statically linked",
            "cold start, statically linked (`make static`), relative to the bare program",
            1.1,
        ),
    ];
    let rows = kinds.into_iter().zip(ours).map(|((id, linked, what, limit), ours)| {
        let pair = cpu(ours, bare);
        let goal = pair.ratios().map(|ratio| Goal::of_median(what, Unit::Ratio, limit, ratio));
        Row {
            id: id.into(),
            title: format!("cold start, {linked}"),
            other: "bare program",
            baseline: Baseline::LowerBound,
            unit: Unit::Nanoseconds,
            how: "CPU time of `vmm run real16-42` from start to end; the bare program is static C with the same calls to KVM",
            goals: goal.into_iter().collect(),
            pair,
            wall: wall(ours, bare),
        }
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_a_cost_and_a_failure_has_a_message() {
        assert!(run_silently(Path::new("true"), &[]).unwrap().wall > 0.0);
        assert!(run_silently(Path::new("false"), &["x"]).unwrap_err().contains("false x ended with exit"));
        assert!(run_silently(Path::new("/no/such/program"), &[]).is_err());
    }

    #[test]
    fn the_bare_program_compiles() {
        let scratch = Scratch::new().unwrap();
        assert!(compile(&scratch, "cold-start", BARE, &["-static"]).unwrap().is_file());
    }
}
