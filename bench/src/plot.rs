//! A plot of the ratios: a self-contained SVG file that follows the reader's light or dark colour scheme.
//!
//! The plot has two panels with different scales. Compared with a bare loop, a difference of one percent matters;
//! compared with another program, only a factor does.

use crate::results::Results;
use crate::row::{Baseline, Row, Summary, Unit};
use crate::table::number;
use std::fmt::Write as _;

/// The width of the picture, and of the margins left and right of a panel.
const WIDTH: f64 = 820.0;
const LEFT: f64 = 310.0;
const RIGHT: f64 = 110.0;
/// The height of a row, of the space above and below the rows of a panel, and of the header of the picture.
const LINE: f64 = 24.0;
const HEAD: f64 = 46.0;
const FOOT: f64 = 30.0;
const TOP: f64 = 44.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1c1c1e } \
.small { font-size: 11px; fill: #5a5a60 } .head { font-weight: 600 } \
.back { fill: #ffffff } .grid { stroke: #d9d9de } .one { stroke: #5a5a60 } .goal { stroke: #b3541e; stroke-dasharray: 4 3 } \
.spread { stroke: #1f6fb2; stroke-width: 6; stroke-opacity: .35 } .dot { fill: #1f6fb2 } \
@media (prefers-color-scheme: dark) { \
text { fill: #ececf0 } .small { fill: #a6a6ae } .back { fill: #17171a } .grid { stroke: #36363c } .one { stroke: #a6a6ae } \
.goal { stroke: #f0a070 } .spread { stroke: #6db6f2 } .dot { fill: #6db6f2 } }";

/// One row of a panel.
struct Line<'a> {
    title: &'a str,
    other: &'static str,
    ratio: Summary,
    limit: Option<f64>,
}

/// The horizontal axis of a panel: maps a ratio to an x coordinate.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// Returns a scale that covers all of `lines`, and 1.
    fn of(lines: &[Line], log: bool) -> Self {
        let values =
            || lines.iter().flat_map(|line| [Some(line.ratio.q1), Some(line.ratio.q3), line.limit]).flatten();
        let (low, high) = (values().fold(1.0, f64::min), values().fold(1.0, f64::max));
        if log {
            let power = |value: f64| 10f64.powf(value);
            return Self {
                low: power(low.max(1e-6).log10().floor()),
                high: power(high.log10().ceil().max(0.0)),
                log,
            };
        }
        let step = 0.02;
        Self { low: ((low - 0.005) / step).floor() * step, high: ((high + 0.005) / step).ceil() * step, log }
    }

    fn x(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value.max(1e-9) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Returns the ratios that have a grid line.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
            return (low..=high).map(|power| 10f64.powi(power)).collect();
        }
        let steps = ((self.high - self.low) / 0.02).round().max(1.0);
        let every = (steps / 8.0).ceil();
        let count = (steps / every).floor() as u32;
        (0..=count).map(|tick| self.low + f64::from(tick) * every * 0.02).collect()
    }
}

/// Escapes text for SVG.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn lines(rows: &[Row], baseline: Baseline) -> Vec<Line<'_>> {
    let selected = rows.iter().filter(|row| row.baseline == baseline);
    let lines = selected.filter_map(|row| {
        let limit = row.goals.iter().find(|goal| goal.unit == Unit::Ratio).map(|goal| goal.limit);
        Some(Line { title: &row.title, other: row.other, ratio: row.pair.ratios()?, limit })
    });
    lines.collect()
}

/// Draws the plot. Returns `None` if no row has a ratio.
pub fn svg(results: &Results) -> Option<String> {
    let panels = [
        (
            "Compared with bare loops and programs (lower bounds)",
            lines(&results.rows, Baseline::LowerBound),
            false,
        ),
        ("Compared with QEMU at the same work", lines(&results.rows, Baseline::OtherProgram), true),
    ];
    let panels: Vec<_> = panels.into_iter().filter(|(_, lines, _)| !lines.is_empty()).collect();
    if panels.is_empty() {
        return None;
    }
    let height =
        TOP + panels.iter().map(|(_, lines, _)| HEAD + FOOT + LINE * lines.len() as f64).sum::<f64>();
    let host = &results.host;
    let about = escape(&format!(
        "{}, {} CPUs, Linux {}, {}, {}",
        host.processor, host.cpus, host.kernel, host.kvm, host.date
    ));
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"title desc\">\n\
         <title id=\"title\">Cost of vmm relative to bare programs and QEMU</title>\n<desc id=\"desc\">{}</desc>\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"16\" y=\"24\" class=\"small\">{about}</text>\n",
        escape(&description(&panels))
    );
    let mut y = TOP;
    for (title, lines, log) in &panels {
        panel(&mut svg, y, title, lines, &Scale::of(lines, *log));
        y += HEAD + FOOT + LINE * lines.len() as f64;
    }
    svg += "</svg>\n";
    Some(svg)
}

/// Describes the plot in text, for screen readers.
fn description(panels: &[(&str, Vec<Line>, bool)]) -> String {
    let mut words = String::from("Ratios: below 1, vmm costs less.");
    for (title, lines, _) in panels {
        let _ = write!(words, " {title}:");
        for line in lines {
            let _ = write!(
                words,
                " {}, relative to {}: {};",
                line.title,
                line.other,
                number(line.ratio.median, Unit::Ratio)
            );
        }
    }
    words
}

/// Draws a panel with its title and grid.
fn panel(svg: &mut String, top: f64, title: &str, lines: &[Line], scale: &Scale) {
    let (first, bottom) = (top + HEAD, top + HEAD + LINE * lines.len() as f64);
    let _ = writeln!(svg, "<text x=\"16\" y=\"{}\" class=\"head\">{}</text>", top + 18.0, escape(title));
    for tick in scale.ticks() {
        let x = scale.x(tick);
        let label = if scale.log { format!("{tick}") } else { format!("{tick:.2}") };
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            first - 8.0,
            bottom + 16.0
        );
    }
    let one = scale.x(1.0);
    let _ = writeln!(
        svg,
        "<line class=\"one\" x1=\"{one:.1}\" y1=\"{:.1}\" x2=\"{one:.1}\" y2=\"{bottom:.1}\"/>",
        first - 8.0
    );
    for (place, line) in lines.iter().enumerate() {
        plot_row(svg, first + LINE * (place as f64 + 0.5), line, scale);
    }
}

/// Draws one row of a panel, centred at the height `middle`.
fn plot_row(svg: &mut String, middle: f64, line: &Line, scale: &Scale) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 12.0,
        middle + 4.5,
        escape(line.title)
    );
    if let Some(limit) = line.limit {
        let x = scale.x(limit);
        let _ = writeln!(
            svg,
            "<line class=\"goal\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"><title>goal: at most {limit}</title></line>",
            middle - LINE / 2.0,
            middle + LINE / 2.0
        );
    }
    let Summary { q1, median, q3, .. } = line.ratio;
    let shown = number(median, Unit::Ratio);
    let _ = writeln!(
        svg,
        "<line class=\"spread\" x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\"/>\
             <circle class=\"dot\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"4\"><title>{shown} [{q1:.3}, {q3:.3}]</title></circle>\
             <text x=\"{:.1}\" y=\"{:.1}\">{shown} <tspan class=\"small\">{}</tspan></text>",
        scale.x(q1),
        scale.x(q3),
        scale.x(median),
        WIDTH - RIGHT + 8.0,
        middle + 4.5,
        escape(line.other.split(' ').next().unwrap_or_default())
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn a_scale_covers_all_values_and_one() {
        let line = |q1, q3, limit| Line {
            title: "",
            other: "",
            ratio: Summary { count: 1, min: q1, q1, median: q1, q3, max: q3, error: 0.0 },
            limit,
        };
        let scale = Scale::of(&[line(1.01, 1.02, Some(1.03))], false);
        assert!(scale.low <= 1.0 && scale.high >= 1.03, "{} {}", scale.low, scale.high);
        assert!(scale.x(1.0) < scale.x(1.01) && scale.x(1.03) <= WIDTH - RIGHT);
        assert!(scale.ticks().len() < 10);
        let scale = Scale::of(&[line(0.03, 0.04, None)], true);
        assert_eq!((scale.ticks().len(), scale.x(1.0)), (3, WIDTH - RIGHT));
        assert_eq!(scale.x(0.0), LEFT);
    }

    #[test]
    fn the_plot_is_well_formed_and_escaped() {
        let svg = svg(&example()).unwrap();
        assert!(svg.contains("A &lt;fast&gt; &amp; &quot;good&quot; processor"));
        let opened =
            |tag: &str| svg.matches(&format!("<{tag} ")).count() + svg.matches(&format!("<{tag}>")).count();
        for tag in ["svg", "text", "title", "desc", "style", "circle", "tspan"] {
            assert_eq!(opened(tag), svg.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(
            svg.contains("A, relative to bare loop: 1.010;") && svg.contains("prefers-color-scheme: dark")
        );
        assert!(svg.contains("goal: at most 1.03"));
        assert!(super::svg(&Results::default()).is_none());
    }
}
