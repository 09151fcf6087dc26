//! The samples of a run by function of the guest.

use crate::SavedProfile;
use crate::stacks::functions;
use crate::view::duration;
use crate::view::table::{Cell, Table, View, number, text};

/// Adds the table, and a note about the samples, if there are some.
pub(super) fn add(view: &mut View<'_>, profile: &SavedProfile) {
    let Some(saved) = &profile.samples else { return };
    // A profile that was read has been checked.
    let Ok(samples) = saved.samples() else { return };
    let total = samples.total();
    let columns = vec![
        number("own", "self", ""),
        number("own_share", "share", ""),
        number("total", "total", ""),
        number("total_share", "share", ""),
        text("function", "function"),
    ];
    let rows = functions(&samples).into_iter().map(|function| {
        vec![
            Cell::Count(function.own),
            Cell::share(function.own, total),
            Cell::Count(function.all),
            Cell::share(function.all, total),
            Cell::text(function.name),
        ]
    });
    view.tables.push(Table::new("samples", "Samples by function", columns, rows.collect()));
    let what = match saved.rate {
        Some(rate) => format!("{total} samples, {rate} a second"),
        None => format!("{total} exits with their stacks"),
    };
    view.notes
        .push(format!("{what}; taking them took {}, without the exits for it.", duration(saved.cost_ns)));
}
