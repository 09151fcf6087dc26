//! Cold start: from the start of the program to its end with a tiny guest, next to a bare program that makes the same
//! machine by the same calls to KVM.
//!
//! What counts is the CPU time of each, in user and kernel mode, from `wait4`: KVM's part of the end of a process is in it.
//! Wall time has the waiting for a processor in it, too.

use crate::row::{Against, Goal, Row, Unit, cpu, interleave, wall};
use crate::scratch::{Scratch, compile};
use crate::sys;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The bare program's source.
const BARE: &str = include_str!("../bare/cold-start.c");
/// The guest: the bare program has the same one.
const GUEST: &str = "real16-42";

/// Starts both in turn, so many times each.
///
/// # Errors
/// gcc is missing, or a guest does not end as it should.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let bare = compile(&scratch, "cold-start", BARE, &[])?;
    let start = |program: &PathBuf| {
        let mut command = Command::new(program);
        if program == vmm {
            command.args(["run", GUEST]);
        }
        let ran = sys::run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
        match ran.status.success() {
            true => Ok(ran.cost),
            false => {
                Err(format!("{} ended with {}, and its guest should leave 42", program.display(), ran.status))
            }
        }
    };
    let programs = [vmm.to_owned(), bare];
    // Once each for what is cached from then on.
    programs.iter().try_for_each(|program| start(program).map(drop))?;
    let costs = interleave(rounds, &programs, start)?;
    let [ours, bare] = costs.as_slice() else { return Ok(Vec::new()) };
    let pair = cpu(ours, bare);
    let goal = pair.ratios().map(|ratio| Goal {
        what: "cold start over the bare program",
        unit: Unit::Ratio,
        limit: 1.15,
        value: ratio.median,
        error: ratio.error,
    });
    Ok(vec![Row {
        id: "cold-start".into(),
        title: "cold start, `vmm run real16-42`".into(),
        other: "bare program",
        against: Against::Floor,
        unit: Unit::Nanoseconds,
        how: "CPU time of the whole process",
        wall: wall(ours, bare),
        goals: goal.into_iter().collect(),
        pair,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_no_result() {
        let refused = run(1, Path::new("/bin/false")).unwrap_err();
        assert!(refused.contains("/bin/false ended with exit status: 1"), "{refused}");
    }
}
