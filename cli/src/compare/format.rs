//! Numbers as people read them, and what the numbers say in sentences.

use crate::compare::Results;
use vmm::lab::{Ring, Row, Spread, Variant};

/// Three digits and a unit, such as `1.23 MB/s` for bytes per second.
pub fn rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second, &[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")])
}

/// Nanoseconds, such as `4.70 us`.
pub fn time(nanoseconds: f64) -> String {
    scaled(nanoseconds, &[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")])
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(scale, _)| value >= *scale).or(units.last());
    let (scale, unit) = fits.copied().unwrap_or((1.0, ""));
    format!("{} {unit}", digits(value / scale))
}

/// Three digits, or more of a large number.
pub fn digits(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A count that is the same in each round, or its median.
pub fn count(spread: Spread) -> String {
    let exact = if spread.is_exact() { "" } else { "~" };
    if spread.median.fract() == 0.0 {
        format!("{exact}{:.0}", spread.median)
    } else {
        format!("{exact}{:.3}", spread.median)
    }
}

/// How many times one is the other, such as `14` or `1.3`.
fn times(ratio: f64) -> String {
    if ratio >= 10.0 { format!("{ratio:.0}") } else { format!("{ratio:.1}") }
}

/// A sentence for each row, computed from its numbers: against a store per byte in the same ring, where that was measured.
pub fn conclusions(results: &Results<'_>) -> Vec<String> {
    let base = |ring: Ring| {
        results.rows.iter().copied().find(|row| row.ring == ring && row.variant == Variant::Byte)
    };
    results
        .rows
        .iter()
        .map(|row| conclusion(row, base(row.ring).filter(|base| base.variant != row.variant)))
        .collect()
}

fn conclusion(row: &Row, base: Option<&Row>) -> String {
    let mut text = format!(
        "{} in ring {}: {} a message and {} a round trip",
        row.variant,
        row.ring.number(),
        exits(row.exits_per_message()),
        count(row.exits_per_round_trip()),
    );
    match base {
        Some(base) => {
            let faster = row.bytes_per_second().median / base.bytes_per_second().median.max(1e-9);
            let sooner = base.round_trip(0.5).median / row.round_trip(0.5).median.max(1e-9);
            text += &format!(", {} times the bytes per second of a store per byte", times(faster));
            text += &match sooner {
                1.05.. => format!(", echoes in {} of its time", part(sooner)),
                0.95.. => ", echoes in the same time".into(),
                _ => format!(", echoes in {} times its time", times(1.0 / sooner.max(1e-9))),
            };
        }
        None => {
            let (rate, time) = (rate(row.bytes_per_second().median), time(row.round_trip(0.5).median));
            text += &format!(", {rate}, echoes in {time}");
        }
    }
    match row.device_busy() {
        Some(busy) => text + &format!("; the device's thread is busy {:.0} % of the time.", busy * 100.0),
        None => text + "; the device runs on the vCPU's thread, which stands still meanwhile.",
    }
}

fn exits(spread: Spread) -> String {
    let unit = if spread.median == 1.0 { "exit" } else { "exits" };
    format!("{} {unit}", count(spread))
}

/// The inverse of a ratio above 1, such as `0.8` or `1/49`.
fn part(ratio: f64) -> String {
    if ratio < 1.5 { format!("{:.1}", 1.0 / ratio) } else { format!("1/{ratio:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(rate(37_230.0), "37.2 kB/s");
        assert_eq!(rate(5.125e6), "5.12 MB/s");
        assert_eq!(time(1070.0), "1.07 us");
        assert_eq!(
            (time(0.0), time(12.0), time(3.4e9)),
            ("0.00 ns".into(), "12.0 ns".into(), "3.40 s".into())
        );
    }

    #[test]
    fn a_count_says_whether_it_is_exact() {
        let spread = |min, median, max| Spread { min, median, max };
        assert_eq!(count(spread(3.0, 3.0, 3.0)), "3");
        assert_eq!(count(spread(3.003, 3.003, 3.003)), "3.003");
        assert_eq!(count(spread(1.0, 2.0, 9.0)), "~2");
    }

    #[test]
    fn parts_are_short() {
        assert_eq!([1.2, 2.2, 121.7].map(part), ["0.8", "1/2", "1/122"]);
    }
}
