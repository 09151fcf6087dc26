//! The results as Markdown tables, which are also readable in a terminal.

use crate::results::Results;
use crate::row::{Goal, Row, Summary, Unit};
use std::fmt::Write as _;

/// Formats a number with its unit and about three significant digits.
pub fn number(value: f64, unit: Unit) -> String {
    let scaled = |value: f64, unit: &str| {
        let digits = match value.abs() {
            ..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        format!("{value:.digits$} {unit}")
    };
    match (unit, value.abs()) {
        (Unit::Nanoseconds, ..1e3) => scaled(value, "ns"),
        (Unit::Nanoseconds, ..1e6) => scaled(value / 1e3, "us"),
        (Unit::Nanoseconds, ..1e9) => scaled(value / 1e6, "ms"),
        (Unit::Nanoseconds, _) => scaled(value / 1e9, "s"),
        (Unit::Bytes, ..1e3) => format!("{value:.0} bytes"),
        (Unit::Bytes, ..1e6) => scaled(value / 1e3, "kB"),
        (Unit::Bytes, _) => scaled(value / 1e6, "MB"),
        (Unit::Count, _) => format!("{value}"),
        (Unit::Ratio, _) => format!("{value:.3}"),
    }
}

/// Returns the results as Markdown.
pub fn markdown(results: &Results) -> String {
    let host = &results.host;
    // Writing to a String cannot fail.
    let mut text = String::new();
    let cpus = if host.cpus == 1 { "1 CPU".into() } else { format!("{} CPUs", host.cpus) };
    let _ = writeln!(
        text,
        "{}: {}, {cpus}, Linux {}, {}.{}\n",
        host.date,
        host.processor,
        host.kernel,
        host.kvm,
        if results.interrupted { " Interrupted: these are the results until then." } else { "" }
    );
    text += &goals(&results.rows);
    text += "| row | vmm | other | other is | vmm / other | difference |\n|---|---|---|---|---|---|\n";
    for row in &results.rows {
        text += &line(row);
    }
    text += "\nNumbers are medians of the rounds, with the quartiles in brackets. A ratio or difference is the median of the \
             ratios or differences of the rounds. The number after ± is a standard error.\n";
    for (what, why) in &results.skipped {
        let _ = writeln!(text, "\nNot measured: {what}: {why}.");
    }
    text
}

fn line(row: &Row) -> String {
    let spread = |summary: Summary| {
        let one = |value| number(value, row.unit);
        match summary.count {
            1 => one(summary.median),
            _ => format!("{} [{}, {}]", one(summary.median), one(summary.q1), one(summary.q3)),
        }
    };
    let shown = |numbers: &[f64]| Summary::of(numbers).map_or_else(|| "-".into(), spread);
    let error = |summary: Summary, unit, digits: String| match summary.count {
        ..4 => digits,
        _ => format!("{digits} ± {}", number(summary.error, unit)),
    };
    let ratio = row.pair.ratios().map(|ratio| error(ratio, Unit::Ratio, number(ratio.median, Unit::Ratio)));
    let added = row.pair.differences().map(|added| error(added, row.unit, number(added.median, row.unit)));
    let other = if row.pair.other.is_empty() { "" } else { row.other };
    format!(
        "| {} | {} | {} | {other} | {} | {} |\n",
        row.title,
        shown(&row.pair.ours),
        shown(&row.pair.other),
        ratio.unwrap_or_default(),
        added.unwrap_or_default()
    )
}

/// Returns the table of goals. If several rows share a goal, the table shows the worst row.
pub fn goals(rows: &[Row]) -> String {
    let mut worst: Vec<(&Goal, &Row, usize)> = Vec::new();
    for (row, goal) in rows.iter().flat_map(|row| row.goals.iter().map(move |goal| (row, goal))) {
        match worst.iter_mut().find(|(known, ..)| known.what == goal.what) {
            Some((known, at, count)) => {
                *count += 1;
                if goal.value > known.value || goal.value.is_nan() {
                    (*known, *at) = (goal, row);
                }
            }
            None => worst.push((goal, row, 1)),
        }
    }
    if worst.is_empty() {
        return String::new();
    }
    let mut text = String::from("| goal | at most | measured | |\n|---|---|---|---|\n");
    for (goal, row, count) in worst {
        let one = |value| number(value, goal.unit);
        let error = if goal.error > 0.0 { format!(" ± {}", one(goal.error)) } else { String::new() };
        let of = if count > 1 { format!(", the worst of {count}: {}", row.title) } else { String::new() };
        let verdict = match goal.reached() {
            true => "reached".into(),
            false => format!("missed by {}", one(goal.value - goal.limit)),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {}{error}{of} | {verdict} |",
            goal.what,
            one(goal.limit),
            one(goal.value)
        );
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (value, unit, text) in [
            (4612.0, Unit::Nanoseconds, "4.61 us"),
            (61.24, Unit::Nanoseconds, "61.2 ns"),
            (-3.0, Unit::Nanoseconds, "-3.00 ns"),
            (23.9e6, Unit::Nanoseconds, "23.9 ms"),
            (1.5e9, Unit::Nanoseconds, "1.50 s"),
            (2_175_168.0, Unit::Bytes, "2.18 MB"),
            (512.0, Unit::Bytes, "512 bytes"),
            (0.0, Unit::Count, "0"),
            (0.25, Unit::Count, "0.25"),
            (1.0254, Unit::Ratio, "1.025"),
        ] {
            assert_eq!(number(value, unit), text);
        }
    }

    #[test]
    fn the_goals_table_shows_the_worst_row_of_each_goal() {
        let text = goals(&example().rows);
        assert_eq!(
            text,
            "| goal | at most | measured | |\n|---|---|---|---|\n\
             | ratio | 1.030 | 1.100 ± 0.010, the worst of 2: B | missed by 0.070 |\n\
             | size | 3.00 MB | 2.00 MB | reached |\n\n"
        );
        assert_eq!(goals(&[]), "");
    }

    /// A number as [`number`] prints it, in the smallest unit of its kind, and half of its last digit.
    fn parse(text: &str) -> (f64, f64) {
        let mut words = text.split(' ');
        let digits = words.next().unwrap();
        let scale = match words.next() {
            Some("us" | "kB") => 1e3,
            Some("ms" | "MB") => 1e6,
            Some("s") => 1e9,
            _ => 1.0,
        };
        let decimals = digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        (digits.parse::<f64>().unwrap() * scale, scale * 0.5 / 10f64.powi(decimals as i32))
    }

    #[test]
    fn the_goals_in_the_documentation_have_correct_verdicts() {
        let text = include_str!("../../docs/benchmarks.md");
        let table = text.lines().skip_while(|line| *line != "| goal | at most | measured | |").skip(2);
        let rows: Vec<_> = table.map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |")).collect();
        assert_eq!(rows.len(), 10);
        for row in rows {
            let [_, limit, measured, verdict] = row.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("not four cells: {row}")
            };
            let value = measured.split([',', '±']).next().unwrap().trim();
            let ((limit, limit_error), (value, value_error)) = (parse(limit), parse(value));
            match verdict.strip_prefix("missed by ") {
                Some(excess) => {
                    let (excess, excess_error) = parse(excess);
                    let difference = (value - limit - excess).abs();
                    assert!(value > limit && difference <= limit_error + value_error + excess_error, "{row}");
                }
                None => assert!(verdict == "reached" && value <= limit, "{row}"),
            }
        }
    }

    #[test]
    fn each_line_has_as_many_cells_as_its_header() {
        let text = markdown(&example());
        let table: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).collect();
        let cells = |line: &str| line.matches('|').count();
        assert!(table.iter().all(|line| [5, 7].contains(&cells(line))), "{text}");
        assert!(text.contains("| A | 1.01 us [1.01 us, 1.01 us] | 1.00 us [1.00 us, 1.00 us] | bare loop | 1.010 ± 0.000 | 10.0 ns ± 0.00 ns |"), "{text}");
        assert!(text.contains("| size | 2.00 MB | - |  |  |  |"), "{text}");
        assert!(text.contains("Not measured: qemu: it is not installed."), "{text}");
    }
}
