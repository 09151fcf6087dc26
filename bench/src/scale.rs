//! Many VMs at once: the program's own `vmm bench scale`, next to a bare program that does the same.

use crate::row::{Against, Goal, Pair, Row, Unit};
use crate::scratch::Scratch;
use crate::sys;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// How many VMs are alive at once.
const VMS: [u64; 4] = [1, 10, 100, 1000];

/// Runs `vmm bench scale` with so many rounds for each number of VMs.
///
/// # Errors
/// It ends with another status than 0: then a guest did not leave 42, something was left over, or the host has no room.
pub fn run(rounds: usize, vmm: &Path) -> Result<Vec<Row>, String> {
    let scratch = Scratch::new()?;
    let (file, said) = (scratch.file("scale.json", b"")?, scratch.file("errors", b"")?);
    let errors = fs::File::create(&said).map_err(|error| error.to_string())?;
    let vms = VMS.map(|vms| vms.to_string()).join(",");
    let mut command = Command::new(vmm);
    command.args(["bench", "scale", "--vms", &vms, "--rounds", &rounds.to_string(), "--json"]).arg(&file);
    let ran = sys::run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors))?;
    if !ran.status.success() {
        let said = fs::read_to_string(&said).unwrap_or_default();
        let last = vmm::host::printable_text(said.lines().next_back().unwrap_or("nothing"));
        return Err(format!("vmm bench scale ended with {}: {last}", ran.status));
    }
    let text =
        fs::read(&file).map_err(|error| format!("what vmm bench scale wrote cannot be read: {error}"))?;
    let value =
        serde_json::from_slice(&text).map_err(|error| format!("vmm bench scale wrote no JSON: {error}"))?;
    rows(&value).ok_or_else(|| format!("vmm bench scale wrote something else: {value}"))
}

fn rows(value: &Value) -> Option<Vec<Row>> {
    let row = |row: &Value| {
        let number = |place: &str| row.pointer(place)?.as_f64();
        let vms = row.get("vms")?.as_u64()?;
        let ratio = number("/ratio/cpu")?;
        // It tells its own time and the ratio, each over all of its rounds.
        let against_bare = |ours: f64, ratio: f64| Pair { ours: vec![ours], other: vec![ours / ratio] };
        let goal = Goal {
            what: "N VMs over bare at the same N",
            unit: Unit::Ratio,
            limit: 1.1,
            value: ratio,
            error: 0.0,
        };
        Some(Row {
            id: format!("scale-{vms}"),
            title: match vms {
                1 => "1 VM in a process".into(),
                _ => format!("each of {vms} VMs alive in one process"),
            },
            other: "bare program",
            against: Against::Floor,
            unit: Unit::Nanoseconds,
            how: "CPU time of making, running and dropping one VM of that many",
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
    fn what_is_no_result_is_refused() {
        for value in [json!({}), json!({ "rows": [] }), json!({ "rows": [{ "vms": 1 }] })] {
            assert!(rows(&value).is_none(), "{value}");
        }
    }
}
