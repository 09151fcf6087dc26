//! Many VMs in one process: runs `vmm bench scale`, which compares `vmm` with a bare program that makes the same calls.

use crate::row::{Baseline, Goal, Pair, Row, Unit};
use crate::scratch::Scratch;
use crate::sys;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The numbers of VMs that are alive at the same time.
const VMS: [u64; 4] = [1, 10, 100, 1000];

/// Runs `vmm bench scale` with `rounds` rounds for each number of VMs.
///
/// # Errors
/// The program failed: a guest did not leave 42, a resource was not released, or the host has too little memory. Or its
/// JSON is missing or wrong.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let (file, stderr) = (scratch.file("scale.json", b"")?, scratch.file("errors", b"")?);
    let errors = fs::File::create(&stderr).map_err(|error| error.to_string())?;
    let vms = VMS.map(|vms| vms.to_string()).join(",");
    let mut command = Command::new(vmm);
    command.args(["bench", "scale", "--vms", &vms, "--rounds", &rounds.to_string(), "--json"]).arg(&file);
    let ran = sys::run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors))?;
    if !ran.status.success() {
        let messages = fs::read_to_string(&stderr).unwrap_or_default();
        let last = vmm::host::printable_text(messages.lines().next_back().unwrap_or("nothing"));
        return Err(format!("vmm bench scale ended with {}: {last}", ran.status));
    }
    let text =
        fs::read(&file).map_err(|error| format!("cannot read the JSON of vmm bench scale: {error}"))?;
    let value = serde_json::from_slice(&text)
        .map_err(|error| format!("vmm bench scale did not write JSON: {error}"))?;
    rows(&value).ok_or_else(|| format!("unexpected JSON from vmm bench scale: {value}"))
}

fn rows(value: &Value) -> Option<Vec<Row>> {
    let row = |row: &Value| {
        let number = |place: &str| row.pointer(place)?.as_f64();
        let vms = row.get("vms")?.as_u64()?;
        let ratio = number("/ratio/cpu")?;
        // The JSON has the time of `vmm` and the ratio, each over all rounds. The time of the other follows from them.
        let against_bare = |ours: f64, ratio: f64| Pair { ours: vec![ours], other: vec![ours / ratio] };
        let goal = Goal {
            what: "CPU time per VM with N VMs alive, relative to the bare program with N VMs",
            unit: Unit::Ratio,
            limit: 1.1,
            value: ratio,
            error: 0.0,
        };
        Some(Row {
            id: format!("scale-{vms}"),
            title: match vms {
                1 => "cost per VM, 1 VM alive in the process".into(),
                _ => format!("cost per VM, {vms} VMs alive in the process"),
            },
            other: "bare program",
            baseline: Baseline::LowerBound,
            unit: Unit::Nanoseconds,
            how: "CPU time per VM, to create, run and destroy all of them",
            pair: against_bare(number("/vmm/cpu_us/all")? * 1e3, ratio),
            wall: against_bare(1e9 / number("/vmm/vms_per_second")?, number("/ratio/wall")?),
            goals: vec![goal],
        })
    };
    let rows = value.get("rows")?.as_array()?.iter().map(row).collect::<Option<Vec<_>>>()?;
    (!rows.is_empty()).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_number_of_vms_is_a_row_with_its_ratio() {
        let row = |vms: u64, ratio: f64| {
            json!({
                "vms": vms,
                "vmm": { "vms_per_second": 1000.0, "cpu_us": { "all": 250.0 } },
                "ratio": { "cpu": ratio, "wall": 1.0 },
            })
        };
        let rows = rows(&json!({ "rows": [row(1, 1.25), row(10, 1.0)] })).unwrap();
        assert_eq!(
            (rows.len(), rows[0].id.as_str(), rows[0].pair.ratio_of_medians()),
            (2, "scale-1", Some(1.25))
        );
        assert_eq!((&rows[0].pair.ours, &rows[1].wall.ours), (&vec![250_000.0], &vec![1_000_000.0]));
        assert!(!rows[0].goals[0].reached() && rows[1].goals[0].reached());
    }

    #[test]
    fn unexpected_json_is_refused() {
        for value in [json!({}), json!({ "rows": [] }), json!({ "rows": [{ "vms": 1 }] })] {
            assert!(rows(&value).is_none(), "{value}");
        }
    }
}
