//! The results as a picture: bars on a logarithmic scale, in one SVG file without external parts, for light and dark
//! displays.

use crate::compare::Results;
use crate::compare::format::{conclusions, rate, time};
use crate::compare::table::{bounds, position};
use std::fmt::{self, Write};
use vmm::lab::{Ring, Row};

/// The width of the picture.
const WIDTH: f64 = 860.0;
/// The width of the names at the left.
const LEFT: f64 = 200.0;
/// The width of the numbers at the right.
const RIGHT: f64 = 110.0;
/// The height of a bar with its gap.
const LINE: f64 = 24.0;
/// The height of a panel's title.
const TITLE: f64 = 46.0;
/// The height of a panel's scale.
const SCALE: f64 = 30.0;

const STYLE: &str = "
  svg { background: var(--paper); font: 13px system-ui, sans-serif; }
  svg { --paper: #ffffff; --ink: #1c1c1e; --faint: #6b6b70; --line: #d8d8dc; --ring0: #b45309; --ring3: #1d4ed8; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #17181a; --ink: #ececf0; --faint: #a0a0a8; --line: #3a3b40; --ring0: #f59e0b; --ring3: #7aa2ff; }
  }
  text { fill: var(--ink); }
  .title { font-size: 15px; font-weight: 600; }
  .faint { fill: var(--faint); font-size: 11px; }
  .grid { stroke: var(--line); stroke-width: 1; }
  .ring0 { fill: var(--ring0); }
  .ring3 { fill: var(--ring3); }
  .spread { stroke: var(--ink); stroke-width: 1.5; }
";

/// The bar of a row in a panel: its value, and the ends of the line over it.
struct Bar {
    value: f64,
    from: f64,
    to: f64,
}

/// A panel, which shows one value of all rows.
struct Panel {
    title: &'static str,
    format: fn(f64) -> String,
    bar: fn(&Row) -> Bar,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "Bytes per second (more is better); the line spans all rounds",
        format: rate,
        bar: |row| {
            let spread = row.bytes_per_second();
            Bar { value: spread.median, from: spread.min, to: spread.max }
        },
    },
    Panel {
        title: "Round trip of an echo (less is better); the line ends at p99",
        format: time,
        bar: |row| {
            let median = row.round_trip(0.5).median;
            Bar { value: median, from: median, to: row.round_trip(0.99).median }
        },
    },
    Panel {
        title: "Processor time of a round, vCPU and device together (less is better)",
        format: time,
        bar: |row| {
            let device = row.device_seconds().map_or(0.0, |spread| spread.median);
            let value = (row.vcpu_seconds().median + device) * 1e9;
            Bar { value, from: value, to: value }
        },
    },
];

/// Draws the picture. Returns the whole file.
pub fn picture(results: &Results<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, results);
    text
}

fn write(to: &mut String, results: &Results<'_>) -> fmt::Result {
    let panel = TITLE + SCALE + LINE * results.rows.len() as f64;
    let height = 40.0 + panel * PANELS.len() as f64 + 10.0;
    let workload = results.workload;
    writeln!(
        to,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title description\">"
    )?;
    writeln!(to, "<title id=\"title\">Cost of the SIMVIRTIO transports, measured by vmm compare</title>")?;
    let sentences = conclusions(results).join(" ");
    writeln!(to, "<desc id=\"description\">{}</desc>", escaped(&sentences))?;
    writeln!(to, "<style>{STYLE}</style>")?;
    let about = format!(
        "A message of {} bytes and {} round trips, through queues of {} bytes; logarithmic scales.",
        workload.bytes, workload.messages, workload.queue_len
    );
    writeln!(to, "<text x=\"12\" y=\"24\" class=\"faint\">{}</text>", escaped(&about))?;
    for (x, ring, name) in [(WIDTH - 150.0, "ring0", "ring 0"), (WIDTH - 75.0, "ring3", "ring 3")] {
        writeln!(to, "<rect x=\"{x}\" y=\"14\" width=\"11\" height=\"11\" class=\"{ring}\"/>")?;
        writeln!(to, "<text x=\"{}\" y=\"24\">{name}</text>", x + 16.0)?;
    }
    for (index, description) in PANELS.iter().enumerate() {
        write_panel(to, results, description, 40.0 + panel * index as f64)?;
    }
    writeln!(to, "</svg>")
}

/// The place of a panel in the picture, and its scale.
struct Scale {
    top: f64,
    bottom: f64,
    low: f64,
    high: f64,
}

impl Scale {
    /// The horizontal position of a value.
    fn x(&self, value: f64) -> f64 {
        LEFT + position(value, self.low, self.high) * (WIDTH - LEFT - RIGHT)
    }
}

fn write_panel(to: &mut String, results: &Results<'_>, panel: &Panel, top: f64) -> fmt::Result {
    let bars: Vec<(&Row, Bar)> = results.rows.iter().map(|row| (*row, (panel.bar)(row))).collect();
    let (low, high) = bounds(bars.iter().flat_map(|(_, bar)| [bar.value, bar.from, bar.to]));
    let scale = Scale { top, bottom: top + TITLE + LINE * bars.len() as f64, low, high };
    writeln!(to, "<text x=\"12\" y=\"{:.1}\" class=\"title\">{}</text>", top + 26.0, escaped(panel.title))?;
    write_grid(to, panel, &scale)?;
    for (index, (row, bar)) in bars.iter().enumerate() {
        write_bar(to, panel, &scale, row, bar, top + TITLE + LINE * index as f64)?;
    }
    Ok(())
}

/// Writes a line and a number for each power of ten.
fn write_grid(to: &mut String, panel: &Panel, scale: &Scale) -> fmt::Result {
    let bottom = scale.bottom;
    let mut mark = scale.low;
    while mark <= scale.high * 1.001 {
        let x = scale.x(mark);
        writeln!(
            to,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" class=\"grid\"/>",
            scale.top + TITLE - 6.0
        )?;
        let label = (panel.format)(mark * 1.000_001).replace(".00", "").replace(".0 ", " ");
        writeln!(
            to,
            "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"faint\" text-anchor=\"middle\">{}</text>",
            bottom + 14.0,
            escaped(&label)
        )?;
        mark *= 10.0;
    }
    Ok(())
}

/// Writes the name of a row, its bar, the line over the bar, and the value.
fn write_bar(to: &mut String, panel: &Panel, scale: &Scale, row: &Row, bar: &Bar, y: f64) -> fmt::Result {
    let class = if row.ring == Ring::Zero { "ring0" } else { "ring3" };
    let name = escaped(&format!("{}, ring {}", row.variant, row.ring.number()));
    let value = escaped(&(panel.format)(bar.value));
    writeln!(to, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0, y + 14.0)?;
    let width = (scale.x(bar.value) - LEFT).max(1.0);
    writeln!(
        to,
        "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" class=\"{class}\"><title>{name}: {value}</title></rect>",
        y + 2.0
    )?;
    let (from, end) = (scale.x(bar.from), scale.x(bar.to));
    if end - from > 1.0 {
        let middle = y + 10.0;
        writeln!(
            to,
            "<line x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{end:.1}\" y2=\"{middle:.1}\" class=\"spread\"/>"
        )?;
    }
    let label = scale.x(bar.value).max(end) + 6.0;
    writeln!(to, "<text x=\"{label:.1}\" y=\"{:.1}\">{value}</text>", y + 14.0)
}

/// Escapes a text for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn a_picture_without_rows_is_valid() {
        let workload = vmm::lab::Workload::default();
        let results = Results { workload, rounds: 1, rows: Vec::new(), interrupted: true };
        let text = picture(&results);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
