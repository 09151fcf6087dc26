//! The short exit table that `vmm` prints after a run.

use crate::profile::{SavedProcessor, SavedSite, SavedTimes, SavedVcpu};
use crate::view::profile::{SITE, site_cells};
use crate::view::table::{Cell, Column, Row, Table, number, plural};
use crate::view::text;
use std::fmt::Write as _;

/// The number of sites that get a row. One more line sums up the others.
const ROWS: usize = 24;
/// The width of the columns of counts. Together with the gap before it, a column is 10 characters wide.
const COUNT: usize = 8;
/// The width of the share column: `100.0%` fits.
const SHARE: usize = 6;

/// Returns the exit table of a vCPU or machine as text, one line per site, most exits first.
///
/// Its columns are the exits, their share of all exits, the mean times in the processor and in the VMM in microseconds,
/// and the site: reason, place, width in bits, and device. A column of elements follows the share if their number differs
/// from the number of exits. After 24 sites, a last line sums up the others. The text is empty if the run had no exits.
pub fn exit_table(machine: &SavedVcpu, processor: SavedProcessor) -> String {
    let (shown, rest) = machine.sites.split_at_checked(ROWS).unwrap_or((&machine.sites, &[]));
    if shown.is_empty() {
        return String::new();
    }
    let elements = machine.elements != machine.exits;
    let rows = shown.iter().map(|site| row(site, machine.exits, elements)).collect();
    let table = Table::new("exits", "", columns(elements, processor), rows);
    let mut written = Vec::new();
    // A write to memory does not fail, and every cell is UTF-8.
    let _ = text::write_rows(&mut written, &table);
    let mut text = String::from_utf8_lossy(&written).into_owned();
    if !rest.is_empty() {
        let exits = rest.iter().fold(0u64, |sum, site| sum.saturating_add(site.exits));
        let share = Cell::share(exits, machine.exits).shown();
        let sites = plural(rest.len() as u64, "more site");
        // A write to a String does not fail.
        let _ = writeln!(text, "  {exits:>COUNT$}  {share:>SHARE$}  at {sites}");
    }
    text
}

fn columns(elements: bool, processor: SavedProcessor) -> Vec<Column> {
    let in_processor = match processor {
        SavedProcessor::Kvm => "us in KVM",
        SavedProcessor::Soft => "us in CPU",
    };
    let mut columns =
        vec![number("exits", "exits", "").wide(COUNT), number("exits_share", "share", "").wide(SHARE)];
    if elements {
        columns.push(number("elements", "elements", "").wide(COUNT));
    }
    columns.extend([
        number("in_kvm_mean_us", in_processor, "").wide(COUNT),
        number("in_vmm_mean_us", "us in VMM", "").wide(COUNT),
    ]);
    let [reason, place, width, device] = SITE;
    columns.extend([reason.wide(17), place.wide(12), width.wide(5), device]);
    columns
}

fn row(site: &SavedSite, exits: u64, elements: bool) -> Row {
    let mean = |times: &SavedTimes| Cell::Microseconds(times.mean());
    let mut row = vec![Cell::Count(site.exits), Cell::share(site.exits, exits)];
    if elements {
        row.push(Cell::Count(site.elements));
    }
    row.extend([mean(&site.in_kvm), mean(&site.in_vmm)]);
    row.extend(site_cells(site));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::exit::Reason;

    fn site(reason: Reason, place: Option<u64>, device: Option<&str>, exits: u64) -> SavedSite {
        let times =
            |mean: u64| SavedTimes { count: exits, sum: mean.saturating_mul(exits), ..SavedTimes::default() };
        SavedSite {
            reason,
            place,
            width: place.map(|_| 4),
            device: device.map(Into::into),
            exits,
            elements: exits,
            in_kvm: times(21_060),
            in_vmm: times(95),
        }
    }

    fn machine(sites: Vec<SavedSite>) -> SavedVcpu {
        let sum = |of: fn(&SavedSite) -> u64| sites.iter().map(of).sum();
        let (exits, elements) = (sum(|site| site.exits), sum(|site| site.elements));
        SavedVcpu { exits, elements, sites, ..SavedVcpu::default() }
    }

    #[test]
    fn the_columns_line_up() {
        let machine = machine(vec![
            site(Reason::MmioRead, Some(0x10_0014), Some("simvirtio TX tail"), 15),
            site(Reason::PioOut, Some(0x42), None, 4),
            site(Reason::Hlt, None, None, 1),
        ]);
        assert_eq!(
            exit_table(&machine, SavedProcessor::Kvm),
            "     exits   share us in KVM us in VMM  reason             place         width  device
        15   75.0%     21.06      0.10  MMIO read          0x100014         32  simvirtio TX tail
         4   20.0%     21.06      0.10  PIO out            0x42             32  unclaimed
         1    5.0%     21.06      0.10  HLT
"
        );
    }

    #[test]
    fn string_io_adds_a_column_of_elements() {
        let mut machine = machine(vec![site(Reason::PioOut, Some(0xe9), Some("debugcon"), 1)]);
        machine.sites[0].elements = 14;
        machine.elements = 14;
        assert_eq!(
            exit_table(&machine, SavedProcessor::Kvm),
            "     exits   share  elements us in KVM us in VMM  reason             place         width  device
         1  100.0%        14     21.06      0.10  PIO out            0xe9             32  debugcon
"
        );
    }

    #[test]
    fn the_last_line_sums_up_the_sites_without_a_row() {
        let sites = (0..ROWS as u64 + 2).map(|port| site(Reason::PioIn, Some(port), None, 2));
        let text = exit_table(&machine(sites.collect()), SavedProcessor::Kvm);
        assert_eq!(text.lines().count(), 1 + ROWS + 1);
        assert_eq!(text.lines().last(), Some("         4    7.7%  at 2 more sites"));
    }

    #[test]
    fn a_profile_without_exits_has_no_table() {
        assert_eq!(exit_table(&SavedVcpu::default(), SavedProcessor::Soft), "");
    }

    #[test]
    fn a_hostile_device_name_is_printable() {
        let text = exit_table(
            &machine(vec![site(Reason::PioOut, Some(1), Some("\u{1b}[2J\n"), 1)]),
            SavedProcessor::Soft,
        );
        assert!(text.ends_with("  \\u{1b}[2J\\n\n"), "{text:?}");
    }
}
