//! Formats numbers for readers, and writes the conclusions as sentences.

use crate::compare::Results;
use report::view::duration;
use vmm::lab::{Ring, Row, Spread, Variant};

/// Formats bytes per second with three digits and a unit, such as `1.23 MB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    // 999.95 kB/s is 1.00 MB/s, not 1000 kB/s.
    let (scale, unit) = match bytes_per_second {
        999.5e6.. => (1e9, "GB/s"),
        999.5e3.. => (1e6, "MB/s"),
        999.5.. => (1e3, "kB/s"),
        _ => (1.0, "B/s"),
    };
    format!("{} {unit}", digits(bytes_per_second / scale))
}

/// Formats nanoseconds with three digits and a unit, such as `4.70 us`.
pub fn time(nanoseconds: f64) -> String {
    duration(nanoseconds.round() as u64)
}

/// Formats a number with three digits, or with more if it is large.
pub fn digits(value: f64) -> String {
    match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats a count. If it differs between the rounds, formats its median after a `~`.
pub fn count(spread: Spread) -> String {
    let exact = if spread.is_exact() { "" } else { "~" };
    if spread.median.fract() == 0.0 {
        format!("{exact}{:.0}", spread.median)
    } else {
        format!("{exact}{:.3}", spread.median)
    }
}

/// Formats a ratio, such as `14` or `1.3`.
fn times(ratio: f64) -> String {
    if ratio >= 10.0 { format!("{ratio:.0}") } else { format!("{ratio:.1}") }
}

/// Writes a sentence for each row. It compares the row with a store per byte in the same ring, if that was measured.
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
        "{} in ring {}: {} per message and {} per round trip",
        row.variant,
        row.ring.number(),
        exits(row.exits_per_message()),
        count(row.exits_per_round_trip()),
    );
    match base {
        Some(base) => {
            let faster = row.bytes_per_second().median / base.bytes_per_second().median.max(1e-9);
            let sooner = base.round_trip(0.5).median / row.round_trip(0.5).median.max(1e-9);
            text += &format!(", {} times the throughput of a store per byte", times(faster));
            text += &match sooner {
                1.05.. => format!(", {} of its round-trip time", part(sooner)),
                0.95.. => ", the same round-trip time".into(),
                _ => format!(", {} times its round-trip time", times(1.0 / sooner.max(1e-9))),
            };
        }
        None => {
            let (rate, time) = (rate(row.bytes_per_second().median), time(row.round_trip(0.5).median));
            text += &format!(", {rate}, {time} per round trip");
        }
    }
    match row.device_busy() {
        Some(busy) => text + &format!("; the device's thread is busy {:.0} % of the time.", busy * 100.0),
        None => text + "; the device runs on the vCPU's thread, while the guest waits.",
    }
}

fn exits(spread: Spread) -> String {
    let unit = if spread.median == 1.0 { "exit" } else { "exits" };
    format!("{} {unit}", count(spread))
}

/// Formats the inverse of a ratio above 1, such as `0.8` or `1/49`.
fn part(ratio: f64) -> String {
    if ratio < 1.5 { format!("{:.1}", 1.0 / ratio) } else { format!("1/{ratio:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_have_three_digits_and_a_unit() {
        assert_eq!(rate(37_230.0), "37.2 kB/s");
        assert_eq!(rate(5.125e6), "5.12 MB/s");
        assert_eq!([999_600.0, 9_999.0, 99_990.0].map(rate), ["1.00 MB/s", "10.0 kB/s", "100 kB/s"]);
        assert_eq!(time(1070.0), "1.07 us");
        assert_eq!((time(0.0), time(12.0), time(3.4e9)), ("0 ns".into(), "12 ns".into(), "3.40 s".into()));
    }

    #[test]
    fn a_count_that_differs_between_rounds_is_marked() {
        let spread = |min, median, max| Spread { min, median, max };
        assert_eq!(count(spread(3.0, 3.0, 3.0)), "3");
        assert_eq!(count(spread(3.003, 3.003, 3.003)), "3.003");
        assert_eq!(count(spread(1.0, 2.0, 9.0)), "~2");
    }

    #[test]
    fn the_inverse_of_a_ratio_is_short() {
        assert_eq!([1.2, 2.2, 121.7].map(part), ["0.8", "1/2", "1/122"]);
    }
}
