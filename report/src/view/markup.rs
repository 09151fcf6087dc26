//! HTML for several parts of the page: escaped text, the legend, and bars.

use crate::view::labels::Labels;
use crate::view::table::duration;
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
            duration(all),
            percent(all),
        )?;
    }
    writeln!(to, "</div></div>")
}
