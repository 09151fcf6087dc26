//! Advice about a profile: the exits that a guest could save, and the way to do it.

use crate::profile::{SavedSite, SavedVcpu};
use crate::view::table::plural;
use vmm::exit::Reason;

/// Fewer exits than this are not worth a change.
const LEAST: u64 = 8;
/// Advice is given about this part of all exits or more: a quarter.
const PART: u64 = 4;
/// The ports of PCI's configuration space.
const PCI: std::ops::RangeInclusive<u64> = 0xcf8..=0xcff;

/// A kind of exits that a guest can save.
struct Rule {
    /// Selects the exits.
    is_one: fn(&SavedSite) -> bool,
    /// The purpose of the exits, as a part of a sentence.
    exits: &'static str,
    /// The way to save them.
    advice: &'static str,
}

const RULES: [Rule; 6] = [
    Rule {
        is_one: |site| is_at(site, Reason::MmioRead, "simvirtio TX tail"),
        exits: "read TX tail",
        advice: "read it once for each batch of bytes, or poll (--transport polling)",
    },
    Rule {
        is_one: |site| is_at(site, Reason::MmioWrite, "simvirtio TX head"),
        exits: "store TX head",
        advice: "store it once for each batch of bytes, or poll (--transport polling)",
    },
    Rule {
        is_one: |site| is_at(site, Reason::PioIn, "serial line status"),
        exits: "read the line status of the serial port",
        advice: "wait for its interrupt, or use another console (Linux: --console virtio)",
    },
    Rule {
        is_one: |site| is_at(site, Reason::PioOut, "serial data"),
        exits: "write one byte each to the serial port",
        advice: "use a console that takes whole texts (Linux: --console virtio)",
    },
    Rule {
        is_one: |site| {
            is_at(site, Reason::PioOut, "debug console")
                && site.elements == site.exits
                && site.width == Some(1)
        },
        exits: "print one byte each",
        advice: "print a whole text with `rep outsb`, which makes one exit",
    },
    Rule {
        is_one: |site| {
            matches!(site.reason, Reason::PioIn | Reason::PioOut)
                && site.place.is_some_and(|port| PCI.contains(&port))
        },
        exits: "look for PCI devices, and there are none",
        advice: "leave the search out (Linux: pci=off)",
    },
];

fn is_at(site: &SavedSite, reason: Reason, device: &str) -> bool {
    site.reason == reason && site.device.as_deref() == Some(device)
}

/// Returns the sentence about the most exits that can be saved. `None` if they are few.
pub(super) fn advice(machine: &SavedVcpu) -> Option<String> {
    let exits_of = |rule: &Rule| {
        let sites = machine.sites.iter().filter(|site| (rule.is_one)(site));
        sites.fold(0, |sum: u64, site| sum.saturating_add(site.exits))
    };
    let found = RULES.iter().map(|rule| (exits_of(rule), rule));
    // Of two with as many exits, the first.
    let (exits, rule) = found.rev().max_by_key(|(exits, _)| *exits)?;
    let is_much = exits >= LEAST && exits.saturating_mul(PART) >= machine.exits;
    is_much.then(|| format!("{exits} of {} {}: {}", plural(machine.exits, "exit"), rule.exits, rule.advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::profile::tests::{machine, site};

    fn of(reason: Reason, place: u64, device: &str, exits: u64) -> SavedSite {
        let device = Some(device).filter(|device| !device.is_empty());
        SavedSite { exits, elements: exits, width: Some(1), ..site(reason, Some(place), device, 1) }
    }

    fn told(exits: u64, sites: Vec<SavedSite>) -> Option<String> {
        advice(&SavedVcpu { exits, ..machine(sites) })
    }

    #[test]
    fn the_most_exits_that_can_be_saved_are_named() {
        let sites = vec![
            of(Reason::MmioWrite, 0x10_0010, "simvirtio TX head", 14),
            of(Reason::MmioRead, 0x10_0014, "simvirtio TX tail", 15),
            of(Reason::Hlt, 0, "", 11),
        ];
        assert_eq!(
            told(40, sites).unwrap(),
            "15 of 40 exits read TX tail: read it once for each batch of bytes, or poll (--transport polling)"
        );
        let bytes = of(Reason::PioOut, 0xe9, "debug console", 20);
        assert!(told(20, vec![bytes.clone()]).unwrap().starts_with("20 of 20 exits print one byte each"));
        let pci = [of(Reason::PioOut, 0xcf8, "", 50), of(Reason::PioIn, 0xcfc, "PCI configuration", 50)];
        assert!(told(120, pci.into()).unwrap().starts_with("100 of 120 exits look for PCI devices"));
        // A text in one exit, few exits, and a small part of all.
        assert_eq!(told(20, vec![SavedSite { elements: 400, ..bytes.clone() }]), None);
        assert_eq!(told(7, vec![of(Reason::PioOut, 0xe9, "debug console", 7)]), None);
        assert_eq!(told(81, vec![bytes]), None);
        assert_eq!(told(0, vec![]), None);
    }
}
