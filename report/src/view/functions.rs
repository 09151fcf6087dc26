//! The exits by function or by line of the guest's code.

use crate::SavedProfile;
use crate::code::{SavedAddress, SavedName, by_place};
use crate::profile::{SavedProcessor, SavedVcpu};
use crate::view::labels;
use crate::view::profile::{SITE, UNCLAIMED};
use crate::view::table::{Cell, Row, Table, View, number, plural, text};
use crate::view::text as text_view;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write as _;
use vmm::exit::Reason;
use vmm::host::{sort_by, sort_by_key};

/// The number of rows of the table after a run. One more line sums up the others.
const ROWS: usize = 24;
/// The number of sites that are named in a row.
const NAMED: usize = 3;

/// The parts of the guest's code whose exits are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The functions.
    Function,
    /// The source lines.
    Line,
}

/// A site: reason, place and width.
type Key = (Reason, Option<u64>, Option<u8>);

/// The sums of each site.
type BySite = HashMap<Key, Sums>;

/// Sums over exits.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    exits: u64,
    kvm: u64,
    vmm: u64,
    /// The exits whose instruction is not sure.
    unsure: u64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.exits = self.exits.saturating_add(other.exits);
        self.kvm = self.kvm.saturating_add(other.kvm);
        self.vmm = self.vmm.saturating_add(other.vmm);
        self.unsure = self.unsure.saturating_add(other.unsure);
    }

    fn time(&self) -> u64 {
        self.kvm.saturating_add(self.vmm)
    }

    /// The mean times of an exit in the processor and in the VMM.
    fn means(&self) -> [u64; 2] {
        [self.kvm, self.vmm].map(|time| time.checked_div(self.exits).unwrap_or(0))
    }
}

/// The exits of a function or line.
struct Group {
    /// The function; without a name, the address.
    function: String,
    line: Option<String>,
    sums: Sums,
    /// The exits by site, most exits first.
    sites: Vec<(Key, Sums)>,
}

/// The functions or lines, most exits first.
fn groups(addresses: &[SavedAddress], names: &[SavedName], by: By) -> Vec<Group> {
    let names = by_place(names);
    let mut groups: HashMap<(String, Option<&str>), (Sums, BySite)> = HashMap::new();
    for address in addresses {
        let name = address.rip.and_then(|rip| names.get(&(rip, address.reason)));
        let function = match (name, address.rip) {
            (Some(name), _) => name.function.clone(),
            (None, Some(rip)) => format!("{rip:#x}"),
            (None, None) => "unknown address".into(),
        };
        let line = name.filter(|_| by == By::Line).and_then(|name| name.line.as_deref());
        let SavedAddress { reason, place, width, exits, in_kvm_ns: kvm, in_vmm_ns: vmm, .. } = *address;
        let is_unsure = name.is_some_and(|name| name.unsure);
        let sums = Sums { exits, kvm, vmm, unsure: if is_unsure { exits } else { 0 } };
        let (all, sites) = groups.entry((function, line)).or_default();
        all.add(sums);
        sites.entry((reason, place, width)).or_default().add(sums);
    }
    let groups = groups.into_iter().map(|((function, line), (sums, sites))| {
        let mut sites: Vec<_> = sites.into_iter().collect();
        sort_by_key(&mut sites, |(key, sums)| (Reverse(sums.exits), *key));
        Group { function, line: line.map(Into::into), sums, sites }
    });
    let mut groups: Vec<_> = groups.collect();
    sort_by(&mut groups, |a, b| {
        let key = |group: &Group| (Reverse(group.sums.exits), Reverse(group.sums.time()));
        key(a).cmp(&key(b)).then_with(|| (&a.function, &a.line).cmp(&(&b.function, &b.line)))
    });
    groups
}

/// The name of a site, such as `PIO out 0xe9`.
fn site_name((reason, place, _): &Key) -> String {
    match place {
        Some(place) => format!("{reason} {place:#x}"),
        None => reason.to_string(),
    }
}

/// Adds the tables of the guest's code to a report: if its names are known, or if they are asked for. Those that are asked for
/// become the main table.
pub(super) fn add(view: &mut View<'_>, profile: &SavedProfile, by: Option<By>) {
    if profile.addresses.is_empty() || by.is_none() && profile.names.is_empty() {
        return;
    }
    let groups = groups(&profile.addresses, &profile.names, by.unwrap_or(By::Function));
    let unsure = groups.iter().fold(0u64, |sum, group| sum.saturating_add(group.sums.unsure));
    if unsure > 0 {
        view.notes.push(unsure_note(unsure));
    }
    if profile.names.is_empty() {
        view.notes
            .push("The functions have no names: give the file with the symbols (--symbols FILE).".into());
    }
    let tables = [by_function(&groups, profile, by), by_site(&groups, profile, by)];
    let at = if by.is_some() { 0 } else { view.tables.len().min(1) };
    if by.is_some() {
        view.main = "functions";
    }
    view.tables.splice(at..at, tables);
}

fn unsure_note(exits: u64) -> String {
    format!(
        "The instruction of {} is not sure: RIP may be at it or behind it, and the other instruction is in another function \
         or line.",
        plural(exits, "exit")
    )
}

fn by_function(groups: &[Group], profile: &SavedProfile, by: Option<By>) -> Table<'static> {
    let labels = labels::of(profile.processor);
    let mut columns = vec![
        number("exits", "exits", ""),
        number("exits_share", "share", ""),
        number("time_ns", "time", ""),
        number("time_share", "share", ""),
        number("in_kvm_mean_ns", "mean", labels.time),
        number("in_vmm_mean_ns", "mean", "in the VMM"),
        text("function", "function"),
    ];
    if by == Some(By::Line) {
        columns.push(text("line", "line"));
    }
    columns.extend([number("unsure", "not sure", ""), text("sites", "exits at")]);
    let whole = groups.iter().fold(Sums::default(), |mut sums, group| {
        sums.add(group.sums);
        sums
    });
    let row = |group: &Group| -> Row {
        let Sums { exits, unsure, .. } = group.sums;
        let [kvm, vmm] = group.sums.means();
        let mut row = vec![
            Cell::Count(exits),
            Cell::share(exits, whole.exits),
            Cell::Nanoseconds(group.sums.time()),
            Cell::share(group.sums.time(), whole.time()),
            Cell::Nanoseconds(kvm),
            Cell::Nanoseconds(vmm),
            Cell::text(&group.function),
        ];
        if by == Some(By::Line) {
            row.push(group.line.as_deref().map_or(Cell::Nothing, Cell::text));
        }
        let named = group.sites.iter().take(NAMED);
        let named = named.map(|(key, sums)| format!("{} {}", sums.exits, site_name(key)));
        let mut named: Vec<_> = named.collect();
        if group.sites.len() > NAMED {
            named.push("...".into());
        }
        let unsure = if unsure == 0 { Cell::Nothing } else { Cell::Count(unsure) };
        row.extend([unsure, Cell::text(&named.join(", "))]);
        row
    };
    let title = if by == Some(By::Line) { "By line of the guest" } else { "By function of the guest" };
    Table::new("functions", title, columns, groups.iter().map(row).collect())
}

fn by_site(groups: &[Group], profile: &SavedProfile, by: Option<By>) -> Table<'static> {
    let labels = labels::of(profile.processor);
    let mut columns = vec![
        number("exits", "exits", ""),
        number("time_ns", "time", ""),
        number("in_kvm_mean_ns", "mean", labels.time),
        number("in_vmm_mean_ns", "mean", "in the VMM"),
        text("function", "function"),
    ];
    if by == Some(By::Line) {
        columns.push(text("line", "line"));
    }
    columns.extend(SITE);
    let mut rows = Vec::new();
    for group in groups {
        for (key, sums) in &group.sites {
            let [kvm, vmm] = sums.means();
            let mut row = vec![
                Cell::Count(sums.exits),
                Cell::Nanoseconds(sums.time()),
                Cell::Nanoseconds(kvm),
                Cell::Nanoseconds(vmm),
                Cell::text(&group.function),
            ];
            if by == Some(By::Line) {
                row.push(group.line.as_deref().map_or(Cell::Nothing, Cell::text));
            }
            row.extend(site_cells(key, &profile.machine));
            rows.push(row);
        }
    }
    Table::new("function_sites", "By function and site", columns, rows)
}

/// The cells of [`SITE`].
fn site_cells((reason, place, width): &Key, machine: &SavedVcpu) -> [Cell; 4] {
    let device = match place {
        None => Cell::Nothing,
        Some(_) => Cell::text(device(&(*reason, *place, *width), machine).unwrap_or(UNCLAIMED)),
    };
    let place = match place {
        Some(place) => Cell::Hex(*place),
        None if reason.has_place() => Cell::text("other"),
        None => Cell::Nothing,
    };
    [Cell::text(&reason.to_string()), place, width.map_or(Cell::Nothing, Cell::Width), device]
}

/// The device at a site.
fn device<'a>(key: &Key, machine: &'a SavedVcpu) -> Option<&'a str> {
    machine.sites.iter().find(|site| site.key() == *key)?.device.as_deref()
}

/// A row of the table after a run.
fn short_row(sums: &Sums, machine: &SavedVcpu, what: &str) -> Row {
    let [kvm, vmm] = sums.means();
    let share = Cell::share(sums.exits, machine.exits);
    vec![Cell::Count(sums.exits), share, Cell::Microseconds(kvm), Cell::Microseconds(vmm), Cell::text(what)]
}

/// Returns the exits of a run by function or line as text, with the sites of each of them, most exits first.
///
/// The columns are those of [`exit_table`](crate::view::exit_table), without elements. The text is empty if no addresses were
/// recorded.
pub fn function_table(
    addresses: &[SavedAddress],
    names: &[SavedName],
    by: By,
    machine: &SavedVcpu,
    processor: SavedProcessor,
) -> String {
    let groups = groups(addresses, names, by);
    let columns = vec![
        number("exits", "exits", "").wide(8),
        number("exits_share", "share", "").wide(6),
        number(
            "in_kvm_mean_us",
            if processor == SavedProcessor::Soft { "us in CPU" } else { "us in KVM" },
            "",
        )
        .wide(8),
        number("in_vmm_mean_us", "us in VMM", "").wide(8),
        text("function", if by == By::Line { "line, and its sites" } else { "function, and its sites" }),
    ];
    let mut rows = Vec::new();
    for group in &groups {
        let what = match &group.line {
            Some(line) => format!("{} ({line})", group.function),
            None => group.function.clone(),
        };
        rows.push(short_row(&group.sums, machine, &what));
        for (key, sums) in &group.sites {
            let device = device(key, machine).map(|device| format!("  {device}")).unwrap_or_default();
            rows.push(short_row(sums, machine, &format!("  {}{device}", site_name(key))));
        }
    }
    let more = rows.len().saturating_sub(ROWS);
    rows.truncate(ROWS);
    if rows.is_empty() {
        return String::new();
    }
    let mut written = Vec::new();
    // A write to memory does not fail, and every cell is UTF-8.
    let _ = text_view::write_rows(&mut written, &Table::new("functions", "", columns, rows));
    let mut text = String::from_utf8_lossy(&written).into_owned();
    // Writing to a String does not fail.
    if more > 0 {
        let _ = writeln!(text, "  and {}: `vmm report` shows them all", plural(more as u64, "more row"));
    }
    let unsure = groups.iter().fold(0u64, |sum, group| sum.saturating_add(group.sums.unsure));
    if unsure > 0 {
        let _ = writeln!(text, "vmm: {}", unsure_note(unsure));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Format, Source, write};
    use crate::{Saved, SavedError};

    fn address(rip: Option<u64>, place: u64, exits: u64) -> SavedAddress {
        SavedAddress {
            rip,
            reason: Reason::PioOut,
            place: Some(place),
            width: Some(1),
            exits,
            elements: exits,
            in_kvm_ns: exits.saturating_mul(2000),
            in_vmm_ns: exits.saturating_mul(100),
        }
    }

    fn name(rip: u64, function: &str, line: u32, unsure: bool) -> SavedName {
        let line = Some(format!("a.c:{line}"));
        SavedName { rip, reason: Reason::PioOut, function: function.into(), offset: 4, line, unsure }
    }

    fn profile() -> SavedProfile {
        let addresses = vec![
            address(Some(1), 0xe9, 5),
            address(Some(2), 0xe9, 3),
            address(Some(3), 0x80, 1),
            address(None, 0x80, 1),
        ];
        let names = vec![name(1, "putc", 7, false), name(2, "putc", 8, true)];
        let vcpu = SavedVcpu { exits: 10, elements: 10, ..SavedVcpu::default() };
        SavedProfile { vcpus: vec![vcpu.clone()], machine: vcpu, addresses, names, ..SavedProfile::default() }
    }

    fn csv(profile: SavedProfile, by: By) -> String {
        let source = Source::new("a".into(), Saved::Profile(profile.into())).by(Some(by));
        let mut written = Vec::new();
        write(&mut written, Format::Csv, &source, None).unwrap();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn exits_are_summed_up_by_function_and_by_line() {
        let text = csv(profile(), By::Function);
        let rows: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            rows,
            [
                "8,0.800000,16800,0.800000,2000,100,putc,3,8 PIO out 0xe9",
                "1,0.100000,2100,0.100000,2000,100,0x3,,1 PIO out 0x80",
                "1,0.100000,2100,0.100000,2000,100,unknown address,,1 PIO out 0x80",
            ]
        );
        let text = csv(profile(), By::Line);
        assert!(
            text.lines().nth(1).unwrap().contains("5,0.500000,") && text.contains("putc,a.c:8,3,"),
            "{text}"
        );
    }

    #[test]
    fn the_table_after_a_run_has_the_sites_of_each_function() {
        let SavedProfile { addresses, names, machine, .. } = profile();
        let text = function_table(&addresses, &names, By::Function, &machine, SavedProcessor::Kvm);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "     exits   share us in KVM us in VMM  function, and its sites");
        assert_eq!(lines[1], "         8   80.0%      2.00      0.10  putc");
        assert_eq!(lines[2], "         8   80.0%      2.00      0.10    PIO out 0xe9");
        assert!(lines[7].starts_with("vmm: The instruction of 3 exits is not sure"), "{text}");
        assert_eq!(function_table(&[], &names, By::Line, &machine, SavedProcessor::Kvm), "");
    }

    #[test]
    fn names_are_kept_in_a_file_and_old_files_have_none() {
        let mut written = Vec::new();
        profile().write(&mut written).unwrap();
        assert_eq!(SavedProfile::read(&written), Ok(profile()));
        let mut old = Vec::new();
        let without = SavedProfile { addresses: Vec::new(), names: Vec::new(), ..profile() };
        without.write(&mut old).unwrap();
        let text = String::from_utf8(old.clone()).unwrap();
        assert!(!text.contains("\"names\"") && !text.contains("\"addresses\""), "{text}");
        assert_eq!(SavedProfile::read(&old), Ok(without));
        let many = SavedProfile {
            addresses: vec![address(None, 1, 1); crate::code::MOST_ADDRESSES + 1],
            ..profile()
        };
        let mut written = Vec::new();
        many.write(&mut written).unwrap();
        assert!(matches!(SavedProfile::read(&written), Err(SavedError::Damaged { .. })));
    }
}
