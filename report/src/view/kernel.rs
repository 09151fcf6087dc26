//! KVM's own counters next to the counts of the VMM, with the reason for each difference.

use crate::SavedProfile;
use crate::profile::SavedVcpu;
use crate::view::table::{Cell, Table, number, text};
use vmm::exit::Reason;

/// A counter of KVM, the count of the VMM to compare it with, and the reasons in that count. No reasons means all.
const COMPARED: [(&str, &str, &[Reason]); 4] = [
    ("exits", "all exits", &[]),
    ("mmio_exits", "MMIO reads and writes", &[Reason::MmioRead, Reason::MmioWrite]),
    // Guests make hypercalls through a port.
    ("io_exits", "PIO in and out, hypercalls", &[Reason::PioIn, Reason::PioOut, Reason::Hypercall]),
    ("halt_exits", "HLT", &[Reason::Hlt]),
];

/// Makes the table of the counters, summed over all vCPUs. Returns `None` if the host has no counters.
pub(super) fn table(profile: &SavedProfile) -> Option<Table<'static>> {
    let counters = profile.machine.kernel.as_ref()?;
    let columns = vec![
        text("counter", "counter"),
        number("kvm", "KVM", ""),
        number("ours", "ours", ""),
        text("compares_with", "compares with"),
        text("why", "why they differ"),
    ];
    let compared = COMPARED.iter().filter_map(|(name, what, reasons)| {
        let kvm = counters.get(*name).copied();
        let ours = count(&profile.machine, reasons);
        // The file omits counters that are 0.
        let kvm = kvm.unwrap_or(0);
        if kvm == 0 && ours == 0 {
            return None;
        }
        let why = why(name, kvm, ours).into();
        Some(vec![Cell::text(name), Cell::Count(kvm), Cell::Count(ours), Cell::text(what), Cell::Text(why)])
    });
    let others = counters.iter().filter(|(name, _)| !COMPARED.iter().any(|(known, ..)| known == name));
    let others = others.map(|(name, value)| {
        vec![Cell::text(name), Cell::Count(*value), Cell::Nothing, Cell::Nothing, Cell::Nothing]
    });
    let rows = compared.chain(others).collect();
    Some(Table::new("kernel", "KVM's own counters", columns, rows))
}

/// Returns the number of exits with these reasons, or of all exits.
fn count(machine: &SavedVcpu, reasons: &[Reason]) -> u64 {
    if reasons.is_empty() {
        return machine.exits;
    }
    let sites = machine.sites.iter().filter(|site| reasons.contains(&site.reason));
    sites.fold(0, |sum, site| sum.saturating_add(site.exits))
}

/// Returns the reason for the difference between KVM's number and ours.
fn why(name: &str, kvm: u64, ours: u64) -> &'static str {
    match name {
        _ if kvm == ours => "they agree",
        "exits" if kvm > ours => {
            "KVM also counts the exits that the kernel handled itself (page faults, timers, interrupts, its own devices)"
        }
        "exits" => {
            "on this host one exit of the processor can cover several emulated instructions or elements, and each of \
             them is an exit to the VMM"
        }
        "io_exits" if kvm == 0 => {
            "KVM counts only port accesses that the processor traps, and on this host the kernel emulated the instructions"
        }
        "io_exits" if kvm > ours => "KVM also counts accesses to ports that the kernel handled itself",
        "halt_exits" if kvm > ours => "KVM also counts each HLT that the kernel handled itself",
        "mmio_exits" if kvm > ours => {
            "KVM also counts retried accesses, and those that caused no exit to the VMM"
        }
        _ => "KVM counts each instruction or trap once, so this counter misses some exits to the VMM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::SavedSite;
    use std::collections::BTreeMap;

    #[test]
    fn a_counter_with_a_matching_count_is_compared() {
        let site = SavedSite {
            reason: Reason::PioOut,
            place: Some(0xe9),
            width: Some(1),
            device: None,
            exits: 5,
            elements: 5,
            in_kvm: Default::default(),
            in_vmm: Default::default(),
        };
        let kernel = BTreeMap::from([("exits".into(), 9u64), ("insn_emulation".into(), 7)]);
        let machine = SavedVcpu { exits: 5, sites: vec![site], kernel: Some(kernel), ..SavedVcpu::default() };
        let mut profile = SavedProfile { machine, ..SavedProfile::default() };
        let table = table(&profile).unwrap();
        let rows: Vec<Vec<_>> = table.rows().map(|row| row.iter().map(Cell::shown).collect()).collect();
        assert_eq!(rows[0][..4], ["exits", "9", "5", "all exits"]);
        assert!(rows[0][4].contains("that the kernel handled itself"));
        assert_eq!(rows[1][..3], ["io_exits", "0", "5"]);
        assert!(rows[1][4].contains("on this host the kernel emulated"));
        assert_eq!(rows[2], ["insn_emulation", "7", "", "", ""]);
        assert_eq!(why("exits", 5, 5), "they agree");
        assert!(why("exits", 1, 5).contains("can cover several"));
        profile.machine.kernel = None;
        assert!(super::table(&profile).is_none());
    }
}
