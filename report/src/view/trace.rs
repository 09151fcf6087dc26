//! A trace as tables: its records one by one, and the sums over them.

use crate::code::by_place;
use crate::trace::Record;
use crate::view::labels;
use crate::view::profile;
use crate::view::table::{Cell, Row, Table, View, number, plural, text};
use crate::{Cut, SavedProfile, SavedTrace};
use std::collections::HashMap;

/// The names of the devices of a trace by reason, place and width.
pub(super) type Names<'a> = HashMap<(vmm::exit::Reason, u64, u8), &'a str>;

pub(super) fn names(trace: &SavedTrace) -> Names<'_> {
    let devices = trace.devices.iter();
    devices.map(|device| ((device.reason, device.place, device.width), device.device.as_str())).collect()
}

/// Makes the report about a trace. `summary` is the sum over its records.
pub(super) fn view<'a>(trace: &'a SavedTrace, cut: Option<Cut>, summary: &'a SavedProfile) -> View<'a> {
    let summed_up = profile::view(summary);
    let records = trace.records.len() as u64;
    let first = trace.records.first().map_or(0, |record| record.when);
    let last = trace.records.last().map_or(0, |record| record.when);
    let clock = summed_up.facts.iter().find(|(key, ..)| *key == "clock").map(|(.., cell)| cell.clone());
    let mut notes: Vec<_> = cut.iter().map(|cut| format!("{cut}.")).collect();
    match trace.seen.saturating_sub(records) {
        0 => {}
        1 => notes.push("1 element before the first record is not in the trace.".into()),
        lost => notes.push(format!("{lost} elements before the first record are not in the trace.")),
    }
    notes.extend(summed_up.notes);
    let mut tables = vec![records_table(trace)];
    tables.extend(
        summed_up.tables.into_iter().filter(|table| ["sites", "devices", "vcpus"].contains(&table.key)),
    );
    View {
        kind: "trace",
        title: if trace.guest.is_empty() { "a trace".into() } else { trace.guest.clone() },
        subtitle: trace.ended.clone(),
        facts: [
            ("elapsed_ns", "ran for", Cell::Nanoseconds(trace.elapsed_ns)),
            ("record_count", "records", Cell::Count(records)),
            ("seen", "elements in the run", Cell::Count(trace.seen)),
            ("first_ns", "first record at", Cell::Nanoseconds(first)),
            ("last_ns", "last record at", Cell::Nanoseconds(last)),
            ("vcpu_count", "vCPUs", Cell::Count(trace.vcpus.into())),
            ("clock", "clock", clock.unwrap_or(Cell::Nothing)),
            ("processor", "processor", Cell::text(trace.processor.name())),
            ("program", "written by", Cell::text(&trace.program)),
        ]
        .into_iter()
        .chain(profile::origin(summary))
        .collect(),
        headline: summed_up.headline,
        notes,
        tables,
        main: "records",
    }
}

/// Makes the table of the records, one row each.
fn records_table(trace: &SavedTrace) -> Table<'_> {
    let mut columns = vec![
        number("when_ns", "time, ms", ""),
        number("delta_ns", "delta", ""),
        number("vcpu", "vCPU", ""),
        text("reason", "reason"),
        text("place", "place"),
        number("width", "width", ""),
        text("value", "value"),
        text("rip", "RIP"),
    ];
    let named = !trace.names.is_empty();
    if named {
        columns.extend([text("function", "function"), text("line", "line")]);
    }
    columns.extend([
        number("in_kvm_ns", labels::of(trace.processor).time, ""),
        number("in_vmm_ns", "in the VMM", ""),
        text("element", "no exit"),
        text("fault", "#GP"),
        text("device", "device"),
    ]);
    let (names, code) = (names(trace), by_place(&trace.names));
    let row = move |index: usize| -> Row {
        let Some(record) = trace.records.get(index) else { return Row::new() };
        let before = index.checked_sub(1).and_then(|index| trace.records.get(index));
        let since = record.when.saturating_sub(before.map_or(record.when, |before| before.when));
        let place = record.place.map_or(Cell::Nothing, Cell::Hex);
        let width = if record.width == 0 { Cell::Nothing } else { Cell::Width(record.width) };
        let hex = |value: Option<u64>| value.map_or(Cell::Nothing, Cell::Hex);
        let mut row = vec![
            Cell::Instant(record.when),
            Cell::Nanoseconds(since),
            Cell::Count(record.vcpu.into()),
            Cell::text(&record.reason.to_string()),
            place,
            width,
            hex(record.value),
            hex(record.rip),
        ];
        if named {
            let name = record.rip.and_then(|rip| code.get(&(rip, record.reason)));
            row.extend([
                name.map_or(Cell::Nothing, |name| Cell::text(&name.place())),
                name.and_then(|name| name.line.as_deref()).map_or(Cell::Nothing, Cell::text),
            ]);
        }
        row.extend([
            Cell::Nanoseconds(record.in_kvm.into()),
            Cell::Nanoseconds(record.in_vmm.into()),
            Cell::Flag(record.next_element),
            Cell::Flag(record.fault),
            device(record, &names),
        ]);
        row
    };
    Table::lazy("records", "The last exits", columns, trace.records.len(), row)
}

/// Returns the name of a record's device.
pub(super) fn device(record: &Record, names: &Names<'_>) -> Cell {
    match record.place {
        Some(place) => {
            let name = names.get(&(record.reason, place, record.width));
            name.map_or(Cell::Nothing, |name| Cell::text(name))
        }
        None => Cell::Nothing,
    }
}

/// Returns the remark on a trace in a comparison, if it does not cover the whole run.
pub(super) fn caveat(trace: &SavedTrace, cut: Option<Cut>, side: &str) -> Option<String> {
    let (records, seen) = (trace.records.len() as u64, trace.seen);
    let cut = cut.map(|cut| format!("; {cut}")).unwrap_or_default();
    (records != seen || !cut.is_empty()).then(|| {
        format!(
            "{side} is a trace: its counts cover {records} of the {} of the run{cut}.",
            plural(seen, "element")
        )
    })
}
