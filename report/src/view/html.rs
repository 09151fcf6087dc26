//! A report as one page for a browser. The page needs no network, and shows everything without scripts. Scripts add
//! sorting, filters, the button for the colours and the zoom of the timeline.

use crate::view::labels;
use crate::view::markup::{escape, legend, micro, shown, write_bars};
use crate::view::profile;
use crate::view::table::{Cell, Column, Table, View, plural};
use crate::view::{Source, plot, timeline};
use crate::{Saved, SavedSamples};
use std::collections::HashSet;
use std::io::{self, Write};
use vmm::host::{printable_text, sort_by};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The maximum number of rows of a table in a page.
pub(super) const MOST_ROWS: usize = 1200;
/// The number of rows from which on a table has a filter.
const FILTERED: usize = 9;
/// The maximum number of devices with a bar.
const BARS: usize = 12;

/// The text about the flame graph of samples by time.
const FLAME: &str = "Each box is a function, above the one that calls it. Its width is its share of the samples. A box at the end \
                     tells if KVM or the VMM worked for the function.";
/// The text about the flame graph of exits.
const FLAME_OF_EXITS: &str = "Each box is a function, above the one that calls it. Its width is its share of the exits. The box at \
                              the end is the site of the exits.";

/// The samples that the page shows. A comparison shows none.
fn samples<'a>(a: &'a Source, b: Option<&Source>) -> Option<&'a SavedSamples> {
    match (&a.saved, b) {
        (Saved::Profile(profile), None) => profile.samples.as_ref(),
        _ => None,
    }
}

/// Writes the page.
pub(super) fn write(to: &mut impl Write, view: &View<'_>, a: &Source, b: Option<&Source>) -> io::Result<()> {
    write_head(to, view)?;
    write_header(to, view)?;
    let timeline = b.is_none().then(|| timeline::title(&a.saved));
    write_nav(to, view, timeline, samples(a, b).is_some())?;
    writeln!(to, "<main id=\"main\" tabindex=\"-1\">")?;
    write_time(to, a, b)?;
    if let Some(samples) = samples(a, b) {
        let how = if samples.rate.is_some() { FLAME } else { FLAME_OF_EXITS };
        writeln!(
            to,
            "<section id=\"flame\"><h2>Flame graph</h2>\n<p class=\"how\">{how}</p>\n<div style=\"overflow-x:auto\">"
        )?;
        samples.write_svg(to)?;
        writeln!(to, "</div></section>")?;
    }
    match (&a.saved, b) {
        (_, Some(_)) => {}
        (Saved::Trace(trace, _), None) => timeline::of_trace(to, trace)?,
        (Saved::Profile(profile), None) => timeline::of_profile(to, profile, timeline::title(&a.saved))?,
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

/// Returns the name of the page's kind, for its title and its header.
fn kind(view: &View<'_>) -> &'static str {
    match view.kind {
        "profile" => "Profile of VM exits",
        "trace" => "Trace of VM exits",
        _ => "Difference of VM exits",
    }
}

/// Writes the head element. Its policy forbids all access to a network.
fn write_head(to: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    let (title, kind) = (escape(&Cell::text(&view.title).shown()), kind(view));
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}: {kind}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    )
}

/// Writes the title, the headline and the single values.
fn write_header(to: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    write!(to, "<a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header>\n")?;
    write!(to, "<div class=\"top\"><p class=\"kind\">{}</p>", kind(view))?;
    writeln!(to, "<button id=\"theme\" type=\"button\" hidden>Dark</button></div>")?;
    writeln!(to, "<h1>{}</h1>", escape(&Cell::text(&view.title).shown()))?;
    if !view.subtitle.is_empty() {
        writeln!(to, "<p class=\"subtitle\">{}</p>", escape(&Cell::text(&view.subtitle).shown()))?;
    }
    if !view.headline.is_empty() {
        writeln!(
            to,
            "<p class=\"headline\">{}</p>",
            escape(&micro(&printable_text(&view.headline))).replace(" %", "&nbsp;%")
        )?;
    }
    writeln!(to, "<dl class=\"facts {}\">", view.kind)?;
    for (_, name, value) in view.facts.iter().filter(|(_, _, value)| *value != Cell::Nothing) {
        writeln!(to, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), shown(value))?;
    }
    writeln!(to, "</dl>\n</header>")
}

/// Writes the links to the sections.
fn write_nav(
    to: &mut impl Write,
    view: &View<'_>,
    timeline: Option<&'static str>,
    flame: bool,
) -> io::Result<()> {
    let pictures = [
        ("time", "Where the time goes", true),
        ("flame", "Flame graph", flame),
        ("timeline", timeline.unwrap_or_default(), timeline.is_some()),
        ("latencies", "Latencies", true),
    ];
    let pictures = pictures.into_iter().filter(|(.., shown)| *shown).map(|(key, title, _)| (key, title));
    writeln!(to, "<nav aria-label=\"Sections\">")?;
    for (key, title) in pictures.chain(view.tables.iter().map(|table| (table.key, table.title))) {
        writeln!(to, "<a href=\"#{key}\">{}</a>", escape(title))?;
    }
    writeln!(to, "</nav>")
}

/// Writes bars for the devices that take most time.
fn write_time(to: &mut impl Write, a: &Source, b: Option<&Source>) -> io::Result<()> {
    let labels = labels::of_both(a.summary.processor, b.unwrap_or(a).summary.processor);
    writeln!(to, "<section id=\"time\"><h2>Where the time goes</h2>\n{}", legend(labels))?;
    match b {
        None => {
            let devices = profile::devices(&a.summary.machine.sites);
            for device in devices.iter().take(BARS) {
                write_bars(to, &device.name, &[("", device.kvm, device.vmm)], whole(a))?;
            }
            write_rest(to, devices.len())?;
        }
        Some(b) => write_times(to, a, b)?,
    }
    writeln!(to, "</section>")
}

/// Writes two bars for each device, one for A and one for B.
fn write_times(to: &mut impl Write, a: &Source, b: &Source) -> io::Result<()> {
    let [of_a, of_b] = [a, b].map(|source| escape(&source.name));
    writeln!(
        to,
        "<p class=\"how\">A is {of_a}, B is {of_b}. Percentages are of the whole time of A or B, whichever is longer.</p>"
    )?;
    let [of_a, of_b] = [a, b].map(|source| profile::devices(&source.summary.machine.sites));
    let mut names: Vec<_> =
        of_a.iter().chain(&of_b).map(|device| (device.time(), device.name.as_str())).collect();
    sort_by(&mut names, |one, next| next.cmp(one));
    let mut known = HashSet::new();
    names.retain(|(_, name)| known.insert(*name));
    for (_, name) in names.iter().take(BARS) {
        let [(kvm_a, vmm_a), (kvm_b, vmm_b)] = [&of_a, &of_b].map(|devices| {
            let device = devices.iter().find(|device| device.name == *name);
            device.map_or((0, 0), |device| (device.kvm, device.vmm))
        });
        write_bars(to, name, &[("A", kvm_a, vmm_a), ("B", kvm_b, vmm_b)], whole(a).max(whole(b)))?;
    }
    write_rest(to, names.len())
}

/// Returns the time of all exits.
fn whole(source: &Source) -> u64 {
    profile::total(&source.summary.machine.in_kvm, &source.summary.machine.in_vmm)
}

fn write_rest(to: &mut impl Write, devices: usize) -> io::Result<()> {
    match devices.saturating_sub(BARS) {
        0 => Ok(()),
        more => {
            writeln!(to, "<p class=\"more\">{} in the table below.</p>", plural(more as u64, "more device"))
        }
    }
}

/// Returns the order of the columns in a page. In the sites, the columns that identify the site come first.
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
    writeln!(to, "<table id=\"{key}-table\">")?;
    write_heads(to, &columns)?;
    writeln!(to, "<tbody>")?;
    // Records are in the order of time. All other tables have their most important rows first.
    let (which, first) = match table.key {
        "records" => ("last", table.len.saturating_sub(MOST_ROWS)),
        _ => ("first", 0),
    };
    for row in table.rows_from(first).take(MOST_ROWS) {
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
            "<p class=\"more\">The {which} {MOST_ROWS} of {} rows. <code>--format csv</code> writes all of them.</p>",
            table.len
        )?;
    }
    writeln!(to, "</section>")
}

fn write_heads(to: &mut impl Write, columns: &[&Column]) -> io::Result<()> {
    writeln!(to, "<thead>")?;
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
    for column in columns {
        let class = class_of(if column.number { "number" } else { "" }, column);
        // Two columns can have the same head in different groups.
        let label = match column.key {
            "exits_share" => "share of exits".into(),
            "time_share" => "share of time".into(),
            _ => [column.group, column.head].join(" "),
        };
        let label = escape(label.trim());
        write!(to, "<th scope=\"col\"{class} data-label=\"{label}\">{}</th>", escape(column.head))?;
    }
    writeln!(to, "</tr>\n</thead>")
}

/// The attribute for the classes of a cell. A narrow screen leaves out the columns with details.
fn class_of(class: &str, column: &Column) -> String {
    let is_detail =
        ["p50_ns", "p99_ns", "max_ns", "width", "elements"].iter().any(|end| column.key.ends_with(end));
    match (class, is_detail) {
        ("", false) => String::new(),
        (class, false) => format!(" class=\"{class}\""),
        ("", true) => " class=\"detail\"".into(),
        (class, true) => format!(" class=\"{class} detail\""),
    }
}

fn write_cell(to: &mut impl Write, cell: &Cell, column: &Column) -> io::Result<()> {
    let class = match (cell, column.number) {
        (Cell::Ratio(ratio), _) if *ratio >= 1.05 => "number worse",
        (Cell::Ratio(ratio), _) if *ratio <= 0.95 => "number better",
        (Cell::Hex(_), _) => "hex",
        (_, true) => "number",
        _ => "",
    };
    let class = class_of(class, column);
    let sorted_by = cell.sorted_by().map(|by| format!(" data-v=\"{}\"", escape(&by))).unwrap_or_default();
    let share = match cell {
        Cell::Share(share) => format!(" style=\"--share-of:{:.2}%\"", share * 100.0),
        _ => String::new(),
    };
    write!(to, "<td{class}{sorted_by}{share}>{}</td>", shown(cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_is_escaped() {
        assert_eq!(escape("<a href='x' title=\"&\">"), "&lt;a href=&#39;x&#39; title=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn script_and_style_have_no_end_tags_and_no_network_access() {
        for part in [STYLE, SCRIPT] {
            for bad in ["</", "<!--", "http:", "https:", "@import", "fetch(", "innerHTML", "eval(", "XMLHttp"]
            {
                assert!(!part.contains(bad), "{bad}");
            }
        }
    }
}
