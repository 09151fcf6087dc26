//! The samples of all numbers of VMs, as a table and as JSON.

use crate::bench::resources::Resources;
use crate::bench::sample::{Sample, Side, measure_in_child};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::thread;

/// The samples with one number of VMs.
#[derive(Debug)]
pub struct Row {
    /// The number of VMs that are alive at the same time.
    pub vms: usize,
    vmm: Vec<Sample>,
    bare: Vec<Sample>,
}

impl Row {
    /// Creates a row without samples.
    pub fn new(vms: usize) -> Self {
        Self { vms, vmm: Vec::new(), bare: Vec::new() }
    }

    /// Measures both sides once. The order of the sides alternates with the rounds.
    ///
    /// # Errors
    /// Prints the error, and returns its exit status.
    pub fn measure(&mut self, round: u32) -> Result<(), u8> {
        let order = if round.is_multiple_of(2) { [Side::Vmm, Side::Bare] } else { [Side::Bare, Side::Vmm] };
        for side in order {
            let sample = measure_in_child(side, self.vms)?;
            match side {
                Side::Vmm => self.vmm.push(sample),
                Side::Bare => self.bare.push(sample),
            }
        }
        Ok(())
    }

    /// Returns true if both sides have a sample.
    pub fn is_complete(&self) -> bool {
        !self.vmm.is_empty() && !self.bare.is_empty()
    }

    /// The samples of one side.
    pub fn samples(&self, side: Side) -> &[Sample] {
        match side {
            Side::Vmm => &self.vmm,
            Side::Bare => &self.bare,
        }
    }

    /// The median of a value over the samples of one side.
    fn median(&self, side: Side, value: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<f64> = self.samples(side).iter().map(value).collect();
        vmm::host::sort_by(&mut values, f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }

    /// The median of this VMM divided by that of the bare program.
    fn ratio(&self, value: impl Fn(&Sample) -> f64 + Copy) -> f64 {
        self.median(Side::Vmm, value) / self.median(Side::Bare, value)
    }

    fn side_as_json(&self, side: Side) -> Value {
        let median = |value: fn(&Sample) -> f64| self.median(side, value);
        let total = |value: fn(&Sample) -> u64| self.samples(side).iter().map(value).sum::<u64>();
        let samples = self.samples(side).iter();
        let worst = samples.clone().find(|sample| !sample.left_over.is_empty()).or(samples.last());
        let left_over = worst.map_or_else(Resources::default, |sample| sample.left_over);
        json!({
            "vms_per_second": 1e6 / median(Sample::wall),
            "wall_us": {
                "create": median(|sample| sample.create),
                "run": median(|sample| sample.run),
                "all": median(Sample::wall),
            },
            "cpu_us": {
                "create": median(|sample| sample.create_cpu),
                "run": median(|sample| sample.run_cpu),
                "all": median(Sample::cpu),
            },
            "memory_bytes": median(|sample| sample.memory),
            "descriptors": median(|sample| sample.descriptors),
            "made": total(|sample| sample.made),
            "verified": total(|sample| sample.verified),
            "left_over": left_over.as_json(),
        })
    }
}

/// Formats the table.
pub fn as_text(rows: &[Row]) -> String {
    let mut text = format!(
        "{:>6}  {:<4} {:>8} {:>10} {:>8} {:>8} {:>8} {:>8}  {:>9} {:>10}\n",
        "VMs", "side", "VMs/s", "create us", "run us", "CPU us", "KiB", "files", "CPU ratio", "wall ratio"
    );
    for row in rows {
        for side in [Side::Vmm, Side::Bare] {
            let median = |value: fn(&Sample) -> f64| row.median(side, value);
            let ratios = match side {
                Side::Vmm => format!("{:>9.3} {:>10.3}", row.ratio(Sample::cpu), row.ratio(Sample::wall)),
                Side::Bare => String::new(),
            };
            let line = format!(
                "{:>6}  {:<4} {:>8.0} {:>10.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}  {ratios}",
                row.vms,
                side.name(),
                1e6 / median(Sample::wall),
                median(|sample| sample.create),
                median(|sample| sample.run),
                median(Sample::cpu),
                median(|sample| sample.memory) / 1024.0,
                median(|sample| sample.descriptors),
            );
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

/// Converts the rows to JSON. `rounds` is the number that was requested; `complete` is false if some are missing.
pub fn as_json(rows: &[Row], guest: &str, rounds: u32, complete: bool) -> Value {
    let rows_as_json: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "vms": row.vms,
                "rounds": row.vmm.len().min(row.bare.len()),
                "vmm": row.side_as_json(Side::Vmm),
                "bare": row.side_as_json(Side::Bare),
                "ratio": { "cpu": row.ratio(Sample::cpu), "wall": row.ratio(Sample::wall) },
            })
        })
        .collect();
    json!({
        "bench": "scale",
        "version": 1,
        "guest": guest,
        "rounds": rounds,
        "threads": thread::available_parallelism().map_or(1, usize::from),
        "complete": complete,
        "rows": rows_as_json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cpu: f64) -> Sample {
        Sample { made: 1, verified: 1, run_cpu: cpu, run: cpu, ..Default::default() }
    }

    #[test]
    fn a_ratio_divides_the_medians() {
        let samples = |values: [f64; 3]| values.map(sample).to_vec();
        let row = Row { vms: 1, vmm: samples([9.0, 3.0, 6.0]), bare: samples([100.0, 1.0, 4.0]) };
        assert_eq!((row.ratio(Sample::cpu), row.ratio(Sample::wall)), (1.5, 1.5));
        let json = as_json(&[row], "real16-42", 3, true);
        assert_eq!(json["rows"][0]["vmm"]["verified"], 3);
        assert_eq!(json["rows"][0]["ratio"]["cpu"], 1.5);
    }
}
