//! The results as JSON; `docs/compare.md` describes the format.

use crate::compare::Results;
use crate::compare::format::conclusions;
use serde_json::{Value, json};
use vmm::lab::{Row, Spread};

/// The version of the format.
const VERSION: u32 = 1;

/// Formats the results as a JSON document, in whole lines.
pub fn text(results: &Results<'_>) -> String {
    let workload = results.workload;
    let document = json!({
        "format": "vmm-compare",
        "version": VERSION,
        "program": concat!("vmm ", env!("CARGO_PKG_VERSION")),
        "workload": {
            "bytes": workload.bytes,
            "messages": workload.messages,
            "echo_bytes": workload.echo,
            "queue_len": workload.queue_len,
        },
        "rounds": results.rounds,
        "interrupted": results.interrupted,
        "rows": results.rows.iter().map(|row| object(row)).collect::<Vec<_>>(),
        "conclusions": conclusions(results),
    });
    format!("{document:#}\n")
}

fn object(row: &Row) -> Value {
    json!({
        "variant": row.variant.name(),
        "transport": row.variant.transport().to_string(),
        "ring": row.ring.number(),
        "rounds": row.rounds(),
        "exits_per_message": spread(row.exits_per_message()),
        "exits_per_round_trip": spread(row.exits_per_round_trip()),
        "bytes_per_second": spread(row.bytes_per_second()),
        "round_trip_p50_ns": spread(row.round_trip(0.5)),
        "round_trip_p99_ns": spread(row.round_trip(0.99)),
        "vcpu_seconds": spread(row.vcpu_seconds()),
        "device_seconds": row.device_seconds().map(spread),
        "device_busy": row.device_busy(),
    })
}

fn spread(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}
