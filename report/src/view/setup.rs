//! The setup of an observed program as tables: its calls to KVM, and the memory of its machines.

use crate::setup::{SavedCall, SavedSetup, SavedSlot};
use crate::view::table::{Cell, Row, Table, number, text};

/// Makes the tables that have rows.
pub(super) fn tables(setup: &SavedSetup) -> Vec<Table<'static>> {
    [calls(setup), memory(setup)].into_iter().filter(|table| table.len > 0).collect()
}

fn calls(setup: &SavedSetup) -> Table<'static> {
    let columns = vec![
        number("vm", "VM", ""),
        text("object", "call on"),
        text("call", "call"),
        number("times", "times", ""),
        text("words", "in words"),
        text("failure", "failed"),
    ];
    let row = |call: &SavedCall| -> Row {
        vec![
            call.vm.map_or(Cell::Nothing, |vm| Cell::Count(vm.into())),
            Cell::text(&call.object),
            Cell::text(&call.call),
            Cell::Count(call.times),
            Cell::text(&call.words),
            call.failure.as_deref().map_or(Cell::Nothing, Cell::text),
        ]
    };
    Table::new("setup", "Calls that built the machine", columns, setup.calls.iter().map(row).collect())
}

fn memory(setup: &SavedSetup) -> Table<'static> {
    let columns = vec![
        number("vm", "VM", ""),
        number("slot", "slot", ""),
        number("first", "first", ""),
        number("last", "last", ""),
        number("bytes", "bytes", ""),
        number("host", "host address", ""),
        text("flags", "flags"),
    ];
    let row = |slot: &SavedSlot| -> Row {
        vec![
            Cell::Count(slot.vm.into()),
            Cell::Count(slot.slot.into()),
            Cell::Hex(slot.first),
            Cell::Hex(slot.first.saturating_add(slot.size.saturating_sub(1))),
            Cell::Count(slot.size),
            Cell::Hex(slot.host),
            Cell::text(&slot.flags),
        ]
    };
    Table::new("memory", "Memory of the machine", columns, setup.memory.iter().map(row).collect())
}
