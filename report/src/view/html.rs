//! A report as one page for a browser, with nothing outside of it: no network, and all there is to read without
//! scripts. Scripts add sorting, filters, the theme's button and the timeline's zoom.

use crate::Saved;
use crate::view::markup::{LEGEND, escape, write_bars};
use crate::view::profile::{self, DeviceTotals};
use crate::view::table::{Cell, Column, Table, View};
use crate::view::{Source, plot, timeline};
use std::io::{self, Write};
use vmm::host::printable_text;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Rows of a table that a page has at most: of more, the last.
pub(super) const MOST_ROWS: usize = 1200;
/// Tables of so many rows can be filtered.
const FILTERED: usize = 9;
/// Devices that have a bar.
const BARS: usize = 12;

/// Writes the page.
pub(super) fn write(to: &mut impl Write, view: &View<'_>, a: &Source, b: Option<&Source>) -> io::Result<()> {
    let title = escape(&Cell::text(&view.title).shown());
    let kind = match view.kind {
        "profile" => "Profile of VM exits",
        "trace" => "Trace of VM exits",
        _ => "Difference of VM exits",
    };
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}: {kind}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    )?;
    write!(to, "<a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header>\n")?;
    write!(to, "<div class=\"top\"><p class=\"kind\">{kind}</p>")?;
    writeln!(to, "<button id=\"theme\" type=\"button\" hidden>Dark</button></div>")?;
    writeln!(to, "<h1>{title}</h1>")?;
    if !view.subtitle.is_empty() {
        writeln!(to, "<p class=\"subtitle\">{}</p>", escape(&Cell::text(&view.subtitle).shown()))?;
    }
    if !view.headline.is_empty() {
        writeln!(
            to,
            "<p class=\"headline\">{}</p>",
            escape(&printable_text(&view.headline)).replace(" %", "&nbsp;%")
        )?;
    }
    writeln!(to, "<dl class=\"facts {}\">", view.kind)?;
    for (_, name, value) in view.facts.iter().filter(|(_, _, value)| *value != Cell::Nothing) {
        writeln!(to, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(&value.shown()))?;
    }
    writeln!(to, "</dl>\n</header>")?;
    let pictures = [("time", "Where the time goes"), ("timeline", "Timeline"), ("latencies", "Latencies")];
    let pictures = pictures.iter().filter(|(key, _)| *key != "timeline" || b.is_none()).copied();
    writeln!(to, "<nav aria-label=\"Sections\">")?;
    for (key, title) in pictures.chain(view.tables.iter().map(|table| (table.key, table.title))) {
        writeln!(to, "<a href=\"#{key}\">{}</a>", escape(title))?;
    }
    writeln!(to, "</nav>\n<main id=\"main\" tabindex=\"-1\">")?;
    write_time(to, a, b)?;
    match (&a.saved, b) {
        (_, Some(_)) => {}
        (Saved::Trace(trace, _), None) => timeline::of_trace(to, trace)?,
        (Saved::Profile(profile), None) => timeline::of_profile(to, profile)?,
    }
    plot::write(to, a, b)?;
    view.tables.iter().try_for_each(|table| write_table(to, table))?;
    writeln!(to, "</main>\n<footer>")?;
    for note in &view.notes {
        writeln!(to, "<p>{}</p>", escape(&printable_text(note)))?;
    }
    writeln!(to, "</footer>")?;
    if let (Saved::Trace(trace, _), None) = (&a.saved, b) {
        write!(to, "<script type=\"application/json\" id=\"data\">")?;
        timeline::write_data(to, trace)?;
        writeln!(to, "</script>")?;
    }
    writeln!(to, "<script>\n{SCRIPT}</script>\n</body>\n</html>")
}

/// Bars for the devices that cost most.
fn write_time(to: &mut impl Write, a: &Source, b: Option<&Source>) -> io::Result<()> {
    writeln!(to, "<section id=\"time\"><h2>Where the time goes</h2>\n{LEGEND}")?;
    let sum =
        |source: &Source| profile::total(&source.summary.machine.in_kvm, &source.summary.machine.in_vmm);
    let of = |source: &Source| profile::devices(&source.summary.machine.sites);
    match b {
        None => {
            let devices = of(a);
            for device in devices.iter().take(BARS) {
                write_bars(to, &device.name, &[("", device.kvm, device.vmm)], sum(a))?;
            }
            write_rest(to, devices.len())?;
        }
        Some(b) => {
            writeln!(to, "<p class=\"how\">Parts are of the time of the one that took longer.</p>")?;
            let (of_a, of_b) = (of(a), of(b));
            let whole = sum(a).max(sum(b));
            let mut names: Vec<_> =
                of_a.iter().chain(&of_b).map(|device| (device.time(), device.name.as_str())).collect();
            names.sort_by(|one, next| next.cmp(one));
            let mut known = std::collections::HashSet::new();
            names.retain(|(_, name)| known.insert(*name));
            for (_, name) in names.iter().take(BARS) {
                let times = |devices: &[DeviceTotals]| {
                    let device = devices.iter().find(|device| device.name == *name);
                    device.map_or((0, 0), |device| (device.kvm, device.vmm))
                };
                let (a, b) = (times(&of_a), times(&of_b));
                write_bars(to, name, &[("A", a.0, a.1), ("B", b.0, b.1)], whole)?;
            }
            write_rest(to, names.len())?;
        }
    }
    writeln!(to, "</section>")
}

fn write_rest(to: &mut impl Write, devices: usize) -> io::Result<()> {
    match devices.saturating_sub(BARS) {
        0 => Ok(()),
        more => writeln!(to, "<p class=\"more\">And {more} more, in the table below.</p>"),
    }
}

/// The columns in the order of a page: first what a row is about.
fn order(table: &Table<'_>) -> Vec<usize> {
    let about = |column: &Column| ["reason", "place", "width", "device"].contains(&column.key);
    let first = table.key == "sites";
    let (mut order, rest): (Vec<_>, Vec<_>) =
        (0..).zip(&table.columns).partition(|(_, column)| first && about(column));
    order.extend(rest);
    order.into_iter().map(|(index, _)| index).collect()
}

fn write_table(to: &mut impl Write, table: &Table<'_>) -> io::Result<()> {
    let (key, title) = (table.key, escape(table.title));
    writeln!(to, "<section id=\"{key}\"><h2 id=\"{key}-title\">{title}</h2>")?;
    if table.len >= FILTERED {
        writeln!(
            to,
            "<p class=\"filter\" hidden><label>Filter <input type=\"search\" data-table=\"{key}-table\" \
             autocomplete=\"off\" spellcheck=\"false\"></label> <output>{} rows</output></p>",
            table.len.min(MOST_ROWS)
        )?;
    }
    let order = order(table);
    let columns: Vec<_> = order.iter().filter_map(|index| table.columns.get(*index)).collect();
    writeln!(to, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"{key}-title\">")?;
    writeln!(to, "<table id=\"{key}-table\">\n<thead>")?;
    if columns.iter().any(|column| !column.group.is_empty()) {
        write!(to, "<tr class=\"groups\">")?;
        for group in columns.chunk_by(|one, next| one.group == next.group) {
            let name = group.first().map_or("", |column| column.group);
            let (tag, scope) = if name.is_empty() { ("td", "") } else { ("th", " scope=\"colgroup\"") };
            write!(to, "<{tag} colspan=\"{}\"{scope}>{}</{tag}>", group.len(), escape(name))?;
        }
        writeln!(to, "</tr>")?;
    }
    write!(to, "<tr>")?;
    for column in &columns {
        let class = if column.number { " class=\"number\"" } else { "" };
        // Two columns may have the same head; their groups tell them apart.
        let label = match column.key {
            "exits_share" => "share of exits".into(),
            "time_share" => "share of time".into(),
            _ => [column.group, column.head].join(" "),
        };
        let label = escape(label.trim());
        write!(to, "<th scope=\"col\"{class} data-label=\"{label}\">{}</th>", escape(column.head))?;
    }
    writeln!(to, "</tr>\n</thead>\n<tbody>")?;
    for row in table.rows_from(table.len.saturating_sub(MOST_ROWS)) {
        write!(to, "<tr>")?;
        for index in &order {
            let (Some(cell), Some(column)) = (row.get(*index), table.columns.get(*index)) else { continue };
            write_cell(to, cell, column)?;
        }
        writeln!(to, "</tr>")?;
    }
    writeln!(to, "</tbody>\n</table></div>")?;
    if table.len > MOST_ROWS {
        writeln!(
            to,
            "<p class=\"more\">The last {MOST_ROWS} of {}. All are in --format csv.</p>",
            table.len
        )?;
    }
    writeln!(to, "</section>")
}

fn write_cell(to: &mut impl Write, cell: &Cell, column: &Column) -> io::Result<()> {
    let class = match (cell, column.number) {
        (Cell::Ratio(ratio), _) if *ratio >= 1.05 => " class=\"number worse\"",
        (Cell::Ratio(ratio), _) if *ratio <= 0.95 => " class=\"number better\"",
        (Cell::Hex(_), _) => " class=\"hex\"",
        (_, true) => " class=\"number\"",
        _ => "",
    };
    let sorted_by = cell.sorted_by().map(|by| format!(" data-v=\"{}\"", escape(&by))).unwrap_or_default();
    let share = match cell {
        Cell::Share(share) => format!(" style=\"--share-of:{:.2}%\"", share * 100.0),
        _ => String::new(),
    };
    write!(to, "<td{class}{sorted_by}{share}>{}</td>", escape(&cell.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_a_text() {
        assert_eq!(escape("<a href='x' title=\"&\">"), "&lt;a href=&#39;x&#39; title=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn the_script_and_the_style_do_not_end_early_and_ask_for_nothing() {
        for part in [STYLE, SCRIPT] {
            for bad in ["</", "<!--", "http:", "https:", "@import", "fetch(", "innerHTML", "eval(", "XMLHttp"]
            {
                assert!(!part.contains(bad), "{bad}");
            }
        }
    }
}
