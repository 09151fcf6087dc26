//! The timeline of a page: the boot marks and the time of each vCPU for a profile, the records of each vCPU for a trace.

use crate::Saved;
use crate::profile::SavedProfile;
use crate::trace::{Record, SavedTrace};
use crate::view::labels;
use crate::view::markup::{escape, legend, time, write_bars};
use crate::view::table::Cell;
use crate::view::trace::{self, Names};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Write};
use vmm::host::sort_by_key;

/// The maximum number of records in the data of a page: the last ones. For earlier records it only has counts.
pub(super) const MOST_RECORDS: usize = 50_000;
/// The number of equal parts of the time in which records are counted.
const BINS: usize = 500;
/// The most records of a trace with a bar of their own, because they are long.
const MOST_LONG: usize = 100;
/// A long record takes this many times the median.
const LONG: u64 = 10;

/// The title of the section. A profile without boot marks has no times of events.
pub(super) fn title(saved: &Saved) -> &'static str {
    match saved {
        Saved::Profile(profile) if profile.marks.is_empty() => "Time of each vCPU",
        _ => "Timeline",
    }
}

/// Writes the boot marks, and the time of each vCPU in KVM and in the VMM.
pub(super) fn of_profile(to: &mut impl Write, profile: &SavedProfile, title: &str) -> io::Result<()> {
    writeln!(to, "<section id=\"timeline\"><h2>{title}</h2>")?;
    let end = profile.marks.iter().map(|mark| mark.at_ns).max().unwrap_or(0);
    if !profile.marks.is_empty() {
        writeln!(to, "<h3>Boot marks, since the start of the program</h3>\n<ol class=\"marks\">")?;
        let mut before = 0;
        for mark in &profile.marks {
            let percent = |time: u64| 100.0 * time as f64 / end.max(1) as f64;
            let since = mark.at_ns.saturating_sub(before);
            writeln!(
                to,
                "<li><span class=\"name\">{}</span><span class=\"track\"><span class=\"phase\" \
                 style=\"left:{:.3}%;width:{:.3}%\"></span></span><span class=\"sum\">at {} <span class=\"of\">after {}, \
                 {} exits</span></span></li>",
                escape(&Cell::text(&mark.event).shown()),
                percent(before.min(mark.at_ns)),
                percent(since),
                time(mark.at_ns),
                time(since),
                mark.exits
            )?;
            before = mark.at_ns;
        }
        writeln!(to, "</ol>")?;
    }
    let elapsed = profile.elapsed_ns;
    match profile.marks.is_empty() {
        true => writeln!(to, "<p class=\"how\">Of the {} of the run.</p>", time(elapsed))?,
        false => writeln!(to, "<h3>Time of each vCPU in the {} of the run</h3>", time(elapsed))?,
    }
    for (index, vcpu) in profile.vcpus.iter().enumerate() {
        let name = format!("vCPU {}", vcpu.id.map_or(index as u64, Into::into));
        write_bars(to, &name, &[("", vcpu.in_kvm.sum, vcpu.in_vmm.sum)], elapsed)?;
    }
    writeln!(to, "</section>")
}

/// Returns the time when the first record entered KVM, and the time when the VMM finished the last one.
fn span(trace: &SavedTrace) -> (u64, u64) {
    let begin = |record: &Record| record.when.saturating_sub(record.in_kvm.into());
    let end = |record: &Record| record.when.saturating_add(record.in_vmm.into());
    let from = trace.records.first().map_or(0, begin);
    let to = trace.records.iter().map(end).max().unwrap_or(0);
    (from, to.max(from.saturating_add(1)))
}

/// Counts the records of each vCPU in each part of the time.
fn counts(trace: &SavedTrace, from: u64, to: u64) -> Vec<[u32; BINS]> {
    let mut lanes = vec![[0u32; BINS]; trace.vcpus as usize];
    for record in &trace.records {
        let part = (record.when.saturating_sub(from) as f64 / (to.saturating_sub(from)).max(1) as f64
            * BINS as f64) as usize;
        let bin = lanes
            .get_mut(usize::from(record.vcpu))
            .and_then(|lane| lane.get_mut(part.min(BINS.saturating_sub(1))));
        if let Some(bin) = bin {
            *bin = bin.saturating_add(1);
        }
    }
    lanes
}

/// The longest records of each vCPU: at most [`MOST_LONG`], and only those that take [`LONG`] times the median.
fn longest(trace: &SavedTrace) -> Vec<Vec<&Record>> {
    let length = |record: &Record| u64::from(record.in_kvm).saturating_add(record.in_vmm.into());
    let mut records: Vec<_> = trace.records.iter().filter(|record| !record.next_element).collect();
    sort_by_key(&mut records, |record| Reverse(length(record)));
    let median = records.get(records.len() / 2).map_or(0, |record| length(record));
    let is_long = |record: &&&Record| length(record) > median.saturating_mul(LONG);
    let mut lanes = vec![Vec::new(); trace.vcpus as usize];
    for record in records.iter().take(MOST_LONG).take_while(is_long) {
        if let Some(lane) = lanes.get_mut(usize::from(record.vcpu)) {
            lane.push(*record);
        }
    }
    lanes
}

/// Writes a lane for each vCPU with the number of records over time. The script makes it zoomable.
pub(super) fn of_trace(to: &mut impl Write, trace: &SavedTrace) -> io::Result<()> {
    let labels = labels::of(trace.processor);
    let (from, until) = span(trace);
    let lanes = counts(trace, from, until);
    let long = longest(trace);
    let highest = lanes.iter().flatten().copied().max().unwrap_or(0).max(1);
    writeln!(
        to,
        "<section id=\"timeline\"><h2 id=\"timeline-title\">Timeline</h2>\n<p class=\"how\" id=\"timeline-how\">Records of each vCPU over \
         time. A bar at the top is one of the longest exits. <span class=\"scripted\" hidden>Zoom in to see each record, with its time {} above and in the VMM below. Mouse: drag \
         to move, Ctrl and wheel to zoom, click to select a record. Keys: <kbd>+</kbd> and <kbd>-</kbd> zoom, <kbd>&larr;</kbd> and \
         <kbd>&rarr;</kbd> move, <kbd>0</kbd> shows all, <kbd>.</kbd> selects the next record and <kbd>,</kbd> the previous one.</span></p>\n{}",
        labels.time,
        legend(labels)
    )?;
    writeln!(
        to,
        "<div class=\"controls\" role=\"group\" aria-label=\"Timeline\" hidden><button type=\"button\" data-do=\"in\" aria-label=\"Zoom \
         in\">+</button><button type=\"button\" data-do=\"out\" aria-label=\"Zoom out\">&minus;</button><button type=\"button\" \
         data-do=\"left\" aria-label=\"Earlier\">&larr;</button><button type=\"button\" data-do=\"right\" \
         aria-label=\"Later\">&rarr;</button><button type=\"button\" data-do=\"all\">All</button> <output id=\"range\"></output></div>"
    )?;
    writeln!(
        to,
        "<div class=\"lanes\" id=\"lanes\" role=\"group\" aria-labelledby=\"timeline-title\" aria-describedby=\"timeline-how\">"
    )?;
    let at = |when: u64| 1000.0 * when.saturating_sub(from) as f64 / until.saturating_sub(from).max(1) as f64;
    for (vcpu, (bins, long)) in lanes.iter().zip(&long).enumerate() {
        let mut path = String::new();
        for (bin, count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (left, height) = (bin.saturating_mul(2), 44.0 * f64::from(*count) / f64::from(highest));
            path += &format!("M{left} 48v-{height:.1}h2V48Z");
        }
        let bars = long.iter().map(|record| {
            let start = at(record.when.saturating_sub(record.in_kvm.into()));
            let width = at(record.when.saturating_add(record.in_vmm.into())) - start;
            format!("M{start:.1} 0h{:.1}v5h-{0:.1}Z", width.max(1.0))
        });
        let bars: String = bars.collect();
        let records: u64 = bins.iter().map(|count| u64::from(*count)).sum();
        writeln!(
            to,
            "<div class=\"lane\"><span class=\"name\">vCPU {vcpu}<small>{records} records</small></span><svg viewBox=\"0 0 1000 48\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{records} records of vCPU {vcpu}\"><path class=\"count\" \
             d=\"{path}\"/><path class=\"long\" d=\"{bars}\"/></svg></div>"
        )?;
    }
    write!(to, "<div class=\"times\" id=\"times\"><span></span><div>")?;
    for (class, part) in
        [("", 0), (" class=\"between\"", 1), ("", 2), (" class=\"between\"", 3), (" class=\"last\"", 4)]
    {
        let when = from.saturating_add((until.saturating_sub(from) / 4).saturating_mul(part));
        let (left, when) = (part.saturating_mul(25), time(when));
        write!(to, "<span{class} style=\"left:{left}%\">{when}</span>")?;
    }
    writeln!(to, "</div></div></div>")?;
    writeln!(to, "<p id=\"record\" class=\"record\" aria-live=\"polite\"></p></section>")
}

/// Writes the data for the script: the last records by columns, and the counts of all records.
pub(super) fn write_data(to: &mut impl Write, trace: &SavedTrace) -> io::Result<()> {
    let (from, until) = span(trace);
    let names = trace::names(trace);
    let mut sites: HashMap<(String, Option<u64>, u8), usize> = HashMap::new();
    let mut shown: Vec<String> = Vec::new();
    let skipped = trace.records.len().saturating_sub(MOST_RECORDS);
    let records = trace.records.get(skipped..).unwrap_or_default();
    let of = |record: &Record| {
        let next = sites.len();
        let key = (record.reason.to_string(), record.place, record.width);
        *sites.entry(key).or_insert_with(|| {
            shown.push(name(record, &names));
            next
        })
    };
    let indexes: Vec<usize> = records.iter().map(of).collect();
    write!(
        to,
        "{{\"vcpus\":{},\"guest\":\"{}\",\"skipped\":{skipped},\"from\":\"{from}\",\"span\":{}",
        trace.vcpus,
        labels::of(trace.processor).time,
        until.saturating_sub(from)
    )?;
    let texts = serde_json::to_string(&shown).map_err(io::Error::from)?;
    // An end tag or a comment in a text would end the script element. Both begin with `<`.
    write!(to, ",\"sites\":{}", texts.replace('<', "\\u003c"))?;
    let flags = |record: &Record| u8::from(record.next_element) | u8::from(record.fault) << 1;
    write_column(to, "when", records, |record| record.when.saturating_sub(from).to_string())?;
    write_column(to, "vcpu", records, |record| record.vcpu.to_string())?;
    write_column(to, "kvm", records, |record| record.in_kvm.to_string())?;
    write_column(to, "vmm", records, |record| record.in_vmm.to_string())?;
    write_column(to, "flags", records, |record| flags(record).to_string())?;
    let hex = |value: Option<u64>| value.map_or("0".into(), |value| format!("\"{value:#x}\""));
    write_column(to, "value", records, |record| hex(record.value))?;
    write_column(to, "rip", records, |record| hex(record.rip))?;
    write_column(to, "site", &indexes, usize::to_string)?;
    write!(to, ",\"counts\":[")?;
    for (index, lane) in counts(trace, from, until).iter().enumerate() {
        let bins: Vec<_> = lane.iter().map(u32::to_string).collect();
        write!(to, "{}[{}]", if index == 0 { "" } else { "," }, bins.join(","))?;
    }
    write!(to, "]}}")
}

fn write_column<T>(
    to: &mut impl Write,
    name: &str,
    rows: &[T],
    value: impl Fn(&T) -> String,
) -> io::Result<()> {
    write!(to, ",\"{name}\":[")?;
    for (index, row) in rows.iter().enumerate() {
        write!(to, "{}{}", if index == 0 { "" } else { "," }, value(row))?;
    }
    write!(to, "]")
}

/// Returns reason, place, width and device of a record as text.
fn name(record: &Record, names: &Names<'_>) -> String {
    let place = record.place.map(|place| format!(" {place:#x}")).unwrap_or_default();
    let width = match record.width {
        0 => String::new(),
        width => format!(", {} bits", Cell::Width(width).shown()),
    };
    let device = match trace::device(record, names) {
        Cell::Nothing => String::new(),
        device => format!(", {}", device.shown()),
    };
    format!("{}{place}{width}{device}", record.reason)
}
