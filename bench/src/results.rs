//! The results of a run, and their JSON format (`docs/benchmarks.md`).

use crate::host::Host;
use crate::row::{Goal, Pair, Row, Summary};
use serde_json::{Value, json};

/// The version of the JSON format.
const VERSION: u32 = 1;

/// The results of a run of this program.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The host and the date.
    pub host: Host,
    /// The rows, in the order of the measurements.
    pub rows: Vec<Row>,
    /// The name of each measurement, or side of a measurement, that failed, and the reason.
    pub skipped: Vec<(String, String)>,
    /// True if the user interrupted the run before its end.
    pub interrupted: bool,
}

impl Results {
    /// Adds the rows that have numbers.
    pub fn add(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows.into_iter().filter(|row| !row.pair.ours.is_empty()));
    }

    /// Notes what was not measured, and the reason, if there is one. Prints it on stderr.
    pub fn skip(&mut self, skipped: Option<(String, String)>) {
        if let Some((what, why)) = skipped {
            crate::note(&format!("{what}: not measured: {why}"));
            self.skipped.push((what, why));
        }
    }

    /// Returns the results as JSON.
    pub fn json(&self) -> Value {
        let Host { processor, cpus, kernel, kvm, date } = &self.host;
        let skipped = self.skipped.iter().map(|(what, why)| json!({ "what": what, "why": why }));
        json!({
            "format": "vmm-bench",
            "version": VERSION,
            "program": concat!("vmm ", env!("CARGO_PKG_VERSION")),
            "date": date,
            "host": { "processor": processor, "cpus": cpus, "kernel": kernel, "kvm": kvm },
            "interrupted": self.interrupted,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "skipped": skipped.collect::<Vec<_>>(),
        })
    }
}

fn row(row: &Row) -> Value {
    json!({
        "id": row.id,
        "title": row.title,
        "unit": row.unit.name(),
        "how": row.how,
        "against": row.baseline.name(),
        "other": (!row.pair.other.is_empty()).then_some(row.other),
        "measured": pair(&row.pair),
        "wall": (!row.wall.ours.is_empty()).then(|| pair(&row.wall)),
        "goals": row.goals.iter().map(goal).collect::<Vec<_>>(),
    })
}

fn pair(pair: &Pair) -> Value {
    json!({
        "ours": Summary::of(&pair.ours).map(summary),
        "other": Summary::of(&pair.other).map(summary),
        "ratio": pair.ratios().map(summary),
        "ratio_of_medians": pair.ratio_of_medians(),
        "difference": pair.differences().map(summary),
    })
}

fn summary(summary: Summary) -> Value {
    let Summary { count, min, q1, median, q3, max, error } = summary;
    json!({ "count": count, "min": min, "q1": q1, "median": median, "q3": q3, "max": max, "error": error })
}

fn goal(goal: &Goal) -> Value {
    json!({
        "what": goal.what,
        "unit": goal.unit.name(),
        "limit": goal.limit,
        "value": goal.value,
        "error": goal.error,
        "reached": goal.reached(),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::row::{Baseline, Unit};

    /// Two rows that share a goal, one row without a baseline, and a measurement that failed.
    pub fn example() -> Results {
        let goal = |what, limit, value, error, unit| Goal { what, unit, limit, value, error };
        let row = |title: &str, ours: Vec<f64>, other: Vec<f64>, unit, goals| Row {
            id: title.to_lowercase(),
            title: title.into(),
            other: "bare loop",
            baseline: if other.is_empty() { Baseline::OtherProgram } else { Baseline::LowerBound },
            unit,
            how: "by hand",
            pair: Pair { ours, other },
            wall: Pair::default(),
            goals,
        };
        let ratio = |value| vec![goal("ratio", 1.03, value, 0.01, Unit::Ratio)];
        let mut results = Results {
            host: Host {
                processor: "A <fast> & \"good\" processor".into(),
                cpus: 2,
                kernel: "6.1".into(),
                kvm: "kvm_amd".into(),
                date: "2026-11-22".into(),
            },
            skipped: vec![("qemu".into(), "it is not installed".into())],
            ..Default::default()
        };
        results.add(vec![
            row("A", vec![1010.0; 4], vec![1000.0; 4], Unit::Nanoseconds, ratio(1.01)),
            row("B", vec![1100.0; 4], vec![1000.0; 4], Unit::Nanoseconds, ratio(1.1)),
            row("size", vec![2e6], vec![], Unit::Bytes, vec![goal("size", 3e6, 2e6, 0.0, Unit::Bytes)]),
            row("nothing", vec![], vec![], Unit::Bytes, vec![]),
        ]);
        results
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let json = example().json();
        assert_eq!((&json["format"], &json["version"]), (&json!("vmm-bench"), &json!(1)));
        assert_eq!(json["host"]["cpus"], 2);
        assert_eq!(json["rows"].as_array().unwrap().len(), 3, "a row without numbers is left out");
        let first = &json["rows"][0];
        assert_eq!(
            (&first["id"], &first["unit"], &first["against"]),
            (&json!("a"), &json!("ns"), &json!("floor"))
        );
        assert_eq!((&first["measured"]["ratio"]["median"], &first["wall"]), (&json!(1.01), &json!(null)));
        assert_eq!(first["measured"]["ours"]["count"], 4);
        assert_eq!(json["rows"][1]["goals"][0]["reached"], false);
        assert_eq!(
            (&json["rows"][2]["other"], &json["rows"][2]["measured"]["ratio"]),
            (&json!(null), &json!(null))
        );
        assert_eq!(json["skipped"][0], json!({ "what": "qemu", "why": "it is not installed" }));
    }
}
