//! HTML for several parts of the page: escaped text, the legend, and bars.

use crate::view::labels::Labels;
use crate::view::table::{Cell, duration};
use std::io::{self, Write};

/// Escapes a text for use between tags, or in quotes as the value of an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// A duration in a page, where the unit of microseconds has its own letter.
pub(super) fn time(nanoseconds: u64) -> String {
    micro(&duration(nanoseconds))
}

/// A cell in a page, escaped.
pub(super) fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Nanoseconds(nanoseconds) => time(*nanoseconds),
        cell => escape(&cell.shown()),
    }
}

/// Replaces `us` behind a number by the sign for microseconds.
pub(super) fn micro(text: &str) -> String {
    let mut parts = text.split(" us");
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_unit = replaced.ends_with(|c: char| c.is_ascii_digit())
            && !part.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        replaced += if is_unit { " \u{b5}s" } else { " us" };
        replaced += part;
    }
    replaced
}

/// The legend of the two colours.
pub(super) fn legend(labels: &Labels) -> String {
    format!(
        "<p class=\"legend\"><span class=\"swatch kvm\"></span> {} <span class=\"swatch vmm\"></span> in the VMM</p>",
        labels.legend
    )
}

/// A bar: its tag, the time in KVM and the time in the VMM.
pub(super) type Bar = (&'static str, u64, u64);

/// Writes a row of bars, each with its time and its share of `whole`.
pub(super) fn write_bars(to: &mut impl Write, name: &str, bars: &[Bar], whole: u64) -> io::Result<()> {
    let percent = |part: u64| 100.0 * part as f64 / whole.max(1) as f64;
    writeln!(to, "<div class=\"bars\"><span class=\"name\">{}</span><div>", escape(name))?;
    for (tag, kvm, vmm) in bars {
        let (all, tag) = (kvm.saturating_add(*vmm), escape(tag));
        writeln!(
            to,
            "<div class=\"bar\"><span class=\"tag\">{tag}</span><span class=\"track\"><span class=\"part kvm\" \
             style=\"width:{:.3}%\"></span><span class=\"part vmm\" style=\"width:{:.3}%\"></span></span>\
             <span class=\"sum\">{} <span class=\"of\">{:.1} %</span></span></div>",
            percent(*kvm).min(100.0),
            percent(*vmm).min(100.0),
            time(all),
            percent(all),
        )?;
    }
    writeln!(to, "</div></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_unit_of_a_number_is_replaced() {
        assert_eq!(micro("2.00 us in 4 exits, 1 us"), "2.00 \u{b5}s in 4 exits, 1 \u{b5}s");
        assert_eq!(micro("a us, 3 user, 4 us_x,us"), "a us, 3 user, 4 us_x,us");
        assert_eq!(time(1500), "1.50 \u{b5}s");
    }
}
