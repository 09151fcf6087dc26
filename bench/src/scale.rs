//! Many VMs at once: the program's own `vmm bench scale`, a round at a time.

use crate::qemu::Scratch;
use crate::row::{Against, Goal, Pair, Row, Unit};
use crate::sys;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// How many VMs are alive at once.
const VMS: [u64; 4] = [1, 10, 100, 1000];
/// The most that a VM may cost, over the bare program's.
const LIMIT: f64 = 1.1;

/// Measures so many rounds for each number of VMs.
///
/// # Errors
/// `vmm bench scale` ends with another status than 0: then a guest did not leave 42, something was left over, or the host
/// has no room.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let mut rows = Vec::new();
    for vms in VMS {
        let (mut cpu, mut wall) = (Pair::default(), Pair::default());
        for _ in 0..rounds {
            let file = scratch.file("scale.json", b"")?;
            let mut command = Command::new(vmm);
            command.args(["bench", "scale", "--rounds", "1", "--vms", &vms.to_string(), "--json"]).arg(&file);
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let ran = match sys::run(quiet) {
                Err(_) if vmm::interrupted() => break,
                ran => ran?,
            };
            if !ran.status.success() {
                return Err(format!(
                    "vmm bench scale --vms {vms} ended with {}: run it to see why",
                    ran.status
                ));
            }
            let text = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let [ours, bare] = parse(&text).ok_or("vmm bench scale wrote something else than its figures")?;
            cpu.ours.push(ours.0);
            cpu.other.push(bare.0);
            wall.ours.push(ours.1);
            wall.other.push(bare.1);
        }
        rows.push(row(vms, cpu, wall));
        if vmm::interrupted() {
            break;
        }
    }
    Ok(rows)
}

fn row(vms: u64, pair: Pair, wall: Pair) -> Row {
    let goal = pair.ratios().map(|ratios| Goal {
        what: "N VMs over bare at the same N",
        unit: Unit::Ratio,
        limit: LIMIT,
        value: ratios.median,
        error: ratios.error,
    });
    Row {
        id: format!("scale-{vms}"),
        title: format!("one of {vms} VMs at once"),
        other: "bare program",
        against: Against::Floor,
        unit: Unit::Nanoseconds,
        how: "CPU time of each VM, made, run and dropped, while all are alive in one process (vmm bench scale)",
        pair,
        wall,
        goals: goal.into_iter().collect(),
    }
}

/// CPU and wall time of a VM, in nanoseconds: this program's and the bare one's.
fn parse(text: &[u8]) -> Option<[(f64, f64); 2]> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let row = value.get("rows")?.get(0)?;
    let of = |side: &str| {
        let side = row.get(side)?;
        let time = |clock: &str| Some(side.get(clock)?.get("all")?.as_f64()? * 1e3);
        Some((time("cpu_us")?, time("wall_us")?))
    };
    Some([of("vmm")?, of("bare")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let text = br#"{"rows":[{"vmm":{"cpu_us":{"all":2},"wall_us":{"all":3}},
            "bare":{"cpu_us":{"all":1.5},"wall_us":{"all":1}}}]}"#;
        assert_eq!(parse(text), Some([(2000.0, 3000.0), (1500.0, 1000.0)]));
        for text in ["", "{}", "{\"rows\":[]}", "{\"rows\":[{\"vmm\":{}}]}"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_goal_is_for_the_rounds_own_ratios() {
        let pair = Pair { ours: vec![1.0, 20.0, 3.0], other: vec![1.0, 10.0, 2.0] };
        let row = row(10, pair, Pair::default());
        assert_eq!(row.goals.first().map(|goal| (goal.value, goal.reached())), Some((1.5, false)));
    }
}
