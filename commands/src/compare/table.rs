//! The results as text: a table, bars, and a sentence for each row.

use crate::compare::Results;
use crate::compare::format::{conclusions, count, digits, rate, time};
use libm::log10;
use report::view::plural;
use std::fmt::{self, Write};
use vmm::lab::{Row, Spread};

/// The width of the longest bar, in characters.
const BAR: f64 = 40.0;

/// Formats the results, in whole lines.
pub fn text(results: &Results<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, results);
    text
}

fn write(to: &mut String, results: &Results<'_>) -> fmt::Result {
    let workload = results.workload;
    let rounds = results.rows.iter().map(|row| row.rounds()).min().unwrap_or(0);
    writeln!(
        to,
        "Workload: a message of {}, then {} of {}, through queues of {} bytes.",
        plural(workload.bytes.into(), "byte"),
        plural(workload.messages.into(), "round trip"),
        plural(workload.echo.into(), "byte"),
        workload.queue_len,
    )?;
    writeln!(
        to,
        "The values are medians of {rounds} of {} interleaved rounds; brackets show the smallest and the largest.",
        results.rounds,
    )?;
    writeln!(to)?;
    let head = ["ring", "exits per", "bytes per second", "round trip p50", "p99", "vCPU ms", "device ms"];
    writeln!(
        to,
        "{:<16} {:>4} {:>9} {:>9}  {:<30} {:<25} {:<11} {:>8} {:>9}",
        "", head[0], head[1], "exits per", head[2], head[3], head[4], head[5], head[6]
    )?;
    writeln!(to, "{:<16} {:>4} {:>9} {:>9}", "", "", "message", "echo")?;
    for row in &results.rows {
        write_row(to, row)?;
    }
    if results.rows.is_empty() {
        return writeln!(to, "No round is complete, so there are no values.");
    }
    writeln!(to)?;
    bars(
        to,
        results,
        "Bytes per second, logarithmic: more is better",
        |row| row.bytes_per_second().median,
        rate,
    )?;
    bars(
        to,
        results,
        "Round trip, median, logarithmic: less is better",
        |row| row.round_trip(0.5).median,
        time,
    )?;
    for sentence in conclusions(results) {
        writeln!(to, "{sentence}")?;
    }
    Ok(())
}

fn write_row(to: &mut String, row: &Row) -> fmt::Result {
    let milliseconds = |spread: Spread| digits(spread.median * 1e3);
    writeln!(
        to,
        "{:<16} {:>4} {:>9} {:>9}  {:<30} {:<25} {:<11} {:>8} {:>9}",
        row.variant,
        row.ring.number(),
        count(row.exits_per_message()),
        count(row.exits_per_round_trip()),
        spread(row.bytes_per_second(), rate),
        spread(row.round_trip(0.5), time),
        time(row.round_trip(0.99).median),
        milliseconds(row.vcpu_seconds()),
        row.device_seconds().map_or("(vCPU)".into(), milliseconds),
    )
}

/// Formats a median. If the values differ, the smallest and the largest follow in brackets, with their unit.
fn spread(spread: Spread, shown: fn(f64) -> String) -> String {
    match spread.is_exact() {
        true => shown(spread.median),
        false => format!("{} ({})", shown(spread.median), range(&shown(spread.min), &shown(spread.max))),
    }
}

/// Formats a range of two values with units, such as `1.20-2.00 us` or `900 ns-2.00 us`.
fn range(low: &str, high: &str) -> String {
    match (low.split_once(' '), high.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number}-{high}"),
        _ => format!("{low}-{high}"),
    }
}

/// Writes a bar for each row. Its length is proportional to the logarithm of the value.
fn bars(
    to: &mut String,
    results: &Results<'_>,
    title: &str,
    value: impl Fn(&Row) -> f64,
    shown: fn(f64) -> String,
) -> fmt::Result {
    writeln!(to, "{title}")?;
    let (low, high) = bounds(results.rows.iter().map(|row| value(row)));
    for row in &results.rows {
        let length = (position(value(row), low, high) * BAR).round() as usize;
        let bar = "#".repeat(length.max(1));
        writeln!(to, "  {:<16} ring {}  {bar} {}", row.variant, row.ring.number(), shown(value(row)))?;
    }
    writeln!(to)
}

/// Returns the powers of ten below and above all values.
pub fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if values.is_empty() {
        return (1.0, 10.0);
    }
    let power = |exponent: f64| 10f64.powi(exponent as i32);
    let low = power(log10(low).floor());
    (low, power(log10(high).ceil()).max(low * 10.0))
}

/// Returns the position of a value between `low` and `high` on a logarithmic scale, from 0 to 1.
pub fn position(value: f64, low: f64, high: f64) -> f64 {
    let span = log10(high / low).max(f64::MIN_POSITIVE);
    (log10(value.max(f64::MIN_POSITIVE) / low) / span).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_logarithmic_and_bounded() {
        let (low, high) = bounds([37_000.0, 5.0e6].into_iter());
        assert!((low - 1e4).abs() < 1e-6 && (high - 1e7).abs() < 1e-3, "{low} {high}");
        assert_eq!(bounds(std::iter::empty()), (1.0, 10.0));
        let (low, high) = bounds([1000.0].into_iter());
        assert!(high >= low * 9.9);
        assert_eq!(position(100.0, 1.0, 1e4), 0.5);
        assert_eq!((position(0.0, 1.0, 10.0), position(1e9, 1.0, 10.0)), (0.0, 1.0));
        assert!(position(f64::NAN, 1.0, 10.0) <= 1.0);
    }

    #[test]
    fn both_ends_of_a_range_have_a_unit() {
        let values = |min, max| Spread { median: 1500.0, min, max };
        assert_eq!(spread(values(900.0, 2000.0), time), "1.50 us (900 ns-2.00 us)");
        assert_eq!(spread(values(1200.0, 2000.0), time), "1.50 us (1.20-2.00 us)");
        // The median has another unit than the ends.
        assert_eq!(spread(values(700.0, 800.0), time), "1.50 us (700-800 ns)");
        assert_eq!(spread(values(900.0, 2e6), rate), "1.50 kB/s (900 B/s-2.00 MB/s)");
        assert_eq!(spread(Spread { median: 5.0, min: 5.0, max: 5.0 }, time), "5 ns");
    }
}
