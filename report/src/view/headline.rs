//! The first sentence about a profile: advice, and the exits that cost most.

use crate::SavedProfile;
use crate::profile::{SavedProcessor, SavedSite, SavedVcpu};
use crate::view::advice::advice;
use crate::view::profile::{UNNAMED, device_of, devices, total};
use crate::view::table::{Cell, duration, plural};
use std::cmp::Reverse;

/// Returns the sentence about a profile. Empty if the run had no exits.
pub(super) fn headline(profile: &SavedProfile) -> String {
    let most = match profile.processor {
        SavedProcessor::Kvm => of_time(&profile.machine),
        SavedProcessor::Soft => of_exits(&profile.machine),
    };
    match advice(&profile.machine) {
        Some(advice) => format!("{advice}; {most}"),
        None => most,
    }
}

/// The device whose exits take most time, and the costliest of its sites.
fn of_time(machine: &SavedVcpu) -> String {
    let whole = total(&machine.in_kvm, &machine.in_vmm);
    let devices = devices(&machine.sites);
    let Some(most) = devices.first().filter(|_| whole > 0) else { return String::new() };
    let mut sentence = format!(
        "most time: {}, {} of {} in {}",
        most.name,
        share(most.time(), whole),
        duration(whole),
        plural(most.exits, "exit")
    );
    let sites = machine.sites.iter().filter(|site| device_of(site, &devices) == most.name);
    let costliest = sites.max_by_key(|site| (total(&site.in_kvm, &site.in_vmm), Reverse(site.key())));
    if let Some(site) = costliest.filter(|_| most.sites > 1) {
        let time = total(&site.in_kvm, &site.in_vmm);
        sentence += &format!("; its costliest site: {}, {}", named(site, &most.name), share(time, whole));
    }
    sentence
}

/// The device with most exits, and the commonest of its sites. On the software processor an exit costs next to nothing: the
/// time before it is that of the guest's own instructions, and at first of their decoding.
fn of_exits(machine: &SavedVcpu) -> String {
    let devices = devices(&machine.sites);
    let most = devices.iter().max_by_key(|device| (device.exits, Reverse(&device.name)));
    let Some(most) = most.filter(|most| most.exits > 0) else { return String::new() };
    let whole = machine.exits;
    let mut sentence =
        format!("most exits: {}, {} of {}", most.name, share(most.exits, whole), plural(whole, "exit"));
    let sites = machine.sites.iter().filter(|site| device_of(site, &devices) == most.name);
    let commonest = sites.max_by_key(|site| (site.exits, Reverse(site.key())));
    if let Some(site) = commonest.filter(|_| most.sites > 1) {
        sentence +=
            &format!("; its commonest site: {}, {}", named(site, &most.name), share(site.exits, whole));
    }
    sentence
}

fn share(part: u64, whole: u64) -> String {
    Cell::share(part, whole).shown().replace('%', " %")
}

/// The name of a site, with the register of its device.
fn named(site: &SavedSite, device: &str) -> String {
    let register = site.device.as_deref().filter(|name| *name != device && *name != UNNAMED);
    let register = register.map(|name| format!(" ({})", Cell::text(name).shown())).unwrap_or_default();
    format!("{}{register}", site.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::profile::tests::{machine, site};
    use vmm::exit::Reason;

    fn registers() -> SavedVcpu {
        machine(vec![
            site(Reason::MmioWrite, Some(0x10_0010), Some("simvirtio TX head"), 600),
            site(Reason::MmioRead, Some(0x10_0014), Some("simvirtio TX tail"), 200),
            site(Reason::PioOut, Some(0xf4), Some("exit port"), 100),
            site(Reason::PioOut, Some(0x1234), None, 60),
            site(Reason::Hlt, None, None, 30),
            site(Reason::MmioRead, None, None, 10),
        ])
    }

    #[test]
    fn the_device_with_most_time_comes_first() {
        assert_eq!(
            of_time(&registers()),
            "most time: simvirtio, 80.0 % of 2.00 us in 4 exits; its costliest site: MMIO write 0x100010 (simvirtio TX \
             head), 60.0 %"
        );
    }

    /// The first exit has the time of the decoding, but is one of many.
    #[test]
    fn on_the_software_processor_exits_are_counted() {
        let mut machine = machine(vec![
            site(Reason::MmioRead, Some(0x10_0000), Some("simvirtio magic"), 1_000_000),
            site(Reason::MmioWrite, Some(0x10_0010), Some("simvirtio TX head"), 6),
            site(Reason::PioOut, Some(0xe9), Some("debug console"), 5),
        ]);
        machine.exits = 12;
        machine.sites[1].exits = 8;
        let profile = SavedProfile { processor: SavedProcessor::Soft, machine, ..SavedProfile::default() };
        assert_eq!(
            headline(&profile),
            "8 of 12 exits store TX head: store it once for each batch of bytes, or poll (--transport polling); most \
             exits: simvirtio, 83.3 % of 12 exits; its commonest site: MMIO write 0x100010 (simvirtio TX head), 66.7 %"
        );
    }

    #[test]
    fn a_profile_without_exits_has_no_headline() {
        for processor in [SavedProcessor::Kvm, SavedProcessor::Soft] {
            assert_eq!(headline(&SavedProfile { processor, ..SavedProfile::default() }), "");
        }
    }

    #[test]
    fn a_hostile_device_name_is_printable_and_still_found() {
        let machine = machine(vec![
            site(Reason::PioOut, Some(1), Some("\u{1b}[2J a"), 1),
            site(Reason::PioOut, Some(2), Some("\u{1b}[2J b"), 2),
        ]);
        let sentence = of_time(&machine);
        assert!(
            sentence.starts_with(
                "most time: \\u{1b}[2J, 100.0 % of 6 ns in 4 exits; its costliest site: PIO out 0x2"
            ),
            "{sentence}"
        );
    }
}
