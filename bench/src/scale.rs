//! Many VMs at once: the program's own `vmm bench scale`, and the worst of its ratios.

use serde_json::Value;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};

/// How many VMs are alive at once, in the order of the results.
pub const VMS: [u64; 4] = [1, 10, 100, 1000];

/// What came of one number of VMs. Times in microseconds and memory in bytes, for each VM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scale {
    /// How many were alive at once.
    pub vms: u64,
    /// VMs made, run and dropped in a second, on all cores.
    pub per_second: f64,
    /// CPU time.
    pub cpu: f64,
    /// Memory of the process that each has.
    pub memory: f64,
    /// File descriptors that each has.
    pub descriptors: f64,
    /// CPU time over the bare program's.
    pub cpu_ratio: f64,
    /// Wall time over the bare program's.
    pub wall_ratio: f64,
}

/// What came of all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaleResult {
    /// One for each of [`VMS`].
    pub rows: Vec<Scale>,
    /// The worst ratio of CPU time, and with how many VMs it was.
    pub worst: (f64, u64),
}

/// Runs the `vmm` beside this program, so many rounds for each of [`VMS`].
///
/// # Errors
/// It is missing, or ends with another status than 0: then a guest did not leave 42, something was left over, or the host
/// has no room.
pub fn run(rounds: usize) -> Result<ScaleResult, String> {
    let program = env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let folder = program.parent().ok_or("this program is in no folder")?;
    let vmm = folder.join("vmm");
    let file = Temporary(env::temp_dir().join(format!("vmm-bench-scale-{}.json", process::id())));
    let vms = VMS.map(|vms| vms.to_string()).join(",");
    let ended = Command::new(&vmm)
        .args(["bench", "scale", "--vms", &vms, "--rounds", &rounds.to_string(), "--json"])
        .arg(&file.0)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", vmm.display()))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let last = said.lines().next_back().unwrap_or("nothing").to_owned();
        return Err(format!("vmm bench scale ended with {}: {last}", ended.status));
    }
    let text = fs::read(&file.0).map_err(|error| format!("{}: {error}", file.0.display()))?;
    let value = serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.0.display()))?;
    parse(&value).ok_or_else(|| format!("vmm bench scale wrote something else: {value}"))
}

/// A file that goes with it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn parse(value: &Value) -> Option<ScaleResult> {
    let row = |row: &Value| {
        let number = |place: &str| row.pointer(place)?.as_f64();
        Some(Scale {
            vms: row.get("vms")?.as_u64()?,
            per_second: number("/vmm/vms_per_second")?,
            cpu: number("/vmm/cpu_us/all")?,
            memory: number("/vmm/memory_bytes")?,
            descriptors: number("/vmm/descriptors")?,
            cpu_ratio: number("/ratio/cpu")?,
            wall_ratio: number("/ratio/wall")?,
        })
    };
    let rows: Vec<_> = value.get("rows")?.as_array()?.iter().map(row).collect::<Option<_>>()?;
    let worst = rows.iter().map(|row| (row.cpu_ratio, row.vms)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(ScaleResult { rows, worst })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_worst_ratio_is_found() {
        let row = |vms: u64, ratio: f64| {
            json!({
                "vms": vms,
                "vmm": { "vms_per_second": 1.0, "cpu_us": { "all": 2.0 }, "memory_bytes": 3.0, "descriptors": 2.0 },
                "ratio": { "cpu": ratio, "wall": 1.0 },
            })
        };
        let result = parse(&json!({ "rows": [row(1, 1.01), row(10, 1.2), row(100, 0.9)] })).unwrap();
        assert_eq!((result.worst, result.rows.len()), ((1.2, 10), 3));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for value in [json!({}), json!({ "rows": [] }), json!({ "rows": [{ "vms": 1 }] })] {
            assert!(parse(&value).is_none(), "{value}");
        }
    }
}
