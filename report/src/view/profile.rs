//! A profile as tables: sites, devices, vCPUs, KVM's own counters, and the marks of a boot.

use crate::SavedProfile;
use crate::profile::{ClockSource, SavedProcessor, SavedSite, SavedTimes, SavedVcpu, split_device};
use crate::view::headline;
use crate::view::kernel;
use crate::view::labels::{self, Labels};
use crate::view::setup;
use crate::view::table::{Cell, Column, Row, Table, View, number, plural, text};
use std::cmp::Reverse;
use std::collections::HashMap;
use vmm::exit::Reason;
use vmm::host::{sort_by, sort_by_key};

const VMM: &str = "in the VMM";
/// The device of accesses that no device claims.
pub(super) const UNCLAIMED: &str = "unclaimed";
const SINCE: &str = "since previous mark";

/// Makes the report about a profile.
pub(super) fn view(profile: &SavedProfile) -> View<'_> {
    let (machine, labels) = (&profile.machine, labels::of(profile.processor));
    let clock = match profile.clock.source {
        ClockSource::Tsc => format!("TSC, {:.3} MHz", profile.clock.khz as f64 / 1e3),
        ClockSource::Monotonic => "CLOCK_MONOTONIC".into(),
    };
    let clock = match profile.clock.steps {
        0 => clock,
        steps => format!("{clock}, went backwards {}", plural(steps, "time")),
    };
    let mut tables = vec![sites(machine, labels), by_device(machine, labels), vcpus(profile, labels)];
    tables.extend(kernel::table(profile));
    if !profile.marks.is_empty() {
        tables.push(marks(profile));
    }
    tables.extend(profile.setup.iter().flat_map(setup::tables));
    View {
        kind: "profile",
        title: profile.guest.clone(),
        subtitle: profile.ended.clone(),
        facts: [
            ("elapsed_ns", "ran for", Cell::Nanoseconds(profile.elapsed_ns)),
            ("exits", "exits", Cell::Count(machine.exits)),
            ("elements", "elements", Cell::Count(machine.elements)),
            ("in_kvm_ns", labels.time, Cell::Nanoseconds(machine.in_kvm.sum)),
            ("in_vmm_ns", "in the VMM", Cell::Nanoseconds(machine.in_vmm.sum)),
            ("profiling_ns", "profiling cost", Cell::Nanoseconds(profile.profiling_ns)),
            ("clock", "clock", Cell::text(&clock)),
            ("processor", "processor", Cell::text(profile.processor.name())),
            ("program", "written by", Cell::text(&profile.program)),
        ]
        .into_iter()
        .chain(origin(profile))
        .collect(),
        headline: headline::headline(profile),
        notes: notes(profile),
        tables,
        main: "sites",
    }
}

/// The origin of a profile, as facts.
pub(super) fn origin(profile: &SavedProfile) -> Vec<(&'static str, &'static str, Cell)> {
    let texts = profile.origin.iter().flat_map(|origin| origin.texts());
    texts
        .filter(|(.., text)| !text.is_empty())
        .map(|(key, name, text)| (key, name, Cell::text(text)))
        .collect()
}

/// Returns the time in KVM and in the VMM together.
pub(super) fn total(kvm: &SavedTimes, vmm: &SavedTimes) -> u64 {
    kvm.sum.saturating_add(vmm.sum)
}

fn notes(profile: &SavedProfile) -> Vec<String> {
    let in_vmm = "Time in the VMM is from the exit to the next entry.";
    let mut notes = vec![match profile.processor {
        SavedProcessor::Kvm => format!(
            "Time in KVM is from the entry to the exit. It includes the guest's own work, and its wait in a HLT. {in_vmm}"
        ),
        SavedProcessor::Soft => format!(
            "The guest ran on the software processor, without KVM. Time in the CPU is from the entry to the exit: the \
             guest's own work, and at first the decoding of its code. {in_vmm}"
        ),
    }];
    let limits = profile.limits;
    let untimed =
        profile.machine.sites.iter().filter(|site| site.in_kvm.count > 0 && site.in_kvm.p50.is_none());
    match untimed.count() as u64 {
        0 => {}
        sites => notes.push(format!(
            "{} without percentiles: only {} have histograms.",
            plural(sites, "site"),
            plural(limits.timed_sites, "site")
        )),
    }
    if profile.machine.sites.iter().any(|site| site.place.is_none() && site.reason.has_place()) {
        notes.push(format!(
            "The limit of {} was reached: the other sites of each reason are counted in one row.",
            plural(limits.sites, "site")
        ));
    }
    if profile.clock.steps > 0 {
        notes.push("The clock went backwards during the run: do not rely on the times.".into());
    }
    notes.extend(profile.setup.iter().flat_map(|setup| setup.remarks.iter().cloned()));
    notes
}

/// The sums over the sites of one device.
#[derive(Debug, Default)]
pub(super) struct DeviceTotals {
    /// The name of the device, "unclaimed", or a reason without a place.
    pub(super) name: String,
    pub(super) sites: u64,
    pub(super) exits: u64,
    pub(super) kvm: u64,
    pub(super) vmm: u64,
}

impl DeviceTotals {
    pub(super) fn time(&self) -> u64 {
        self.kvm.saturating_add(self.vmm)
    }
}

/// The device text of an observed program, which alone knows its devices.
pub(super) const UNNAMED: &str = "unnamed";

/// The device text of a site. `None` if no device claims its place, or if the device has no name.
fn named_device(site: &SavedSite) -> Option<&str> {
    site.device.as_deref().filter(|name| *name != UNNAMED)
}

/// Returns the device of a device text, without the register.
fn family(name: &str) -> &str {
    split_device(name).0
}

/// Sums up the sites by device, most time first. Texts with the same first word are one device (see [`split_device`]).
pub(super) fn devices(sites: &[SavedSite]) -> Vec<DeviceTotals> {
    let mut names: HashMap<&str, Option<&str>> = HashMap::new();
    for name in sites.iter().filter_map(named_device) {
        let same = names.entry(family(name)).or_insert(Some(name));
        *same = same.filter(|same| *same == name);
    }
    let mut devices: HashMap<String, DeviceTotals> = HashMap::new();
    for site in sites {
        let name = match named_device(site) {
            Some(name) => names.get(family(name)).copied().flatten().unwrap_or(family(name)).into(),
            None => unnamed(site),
        };
        let device = devices.entry(name).or_default();
        device.sites = device.sites.saturating_add(1);
        device.exits = device.exits.saturating_add(site.exits);
        device.kvm = device.kvm.saturating_add(site.in_kvm.sum);
        device.vmm = device.vmm.saturating_add(site.in_vmm.sum);
    }
    let devices =
        devices.into_iter().map(|(name, device)| DeviceTotals { name: Cell::text(&name).shown(), ..device });
    let mut devices: Vec<_> = devices.collect();
    sort_by(&mut devices, |a, b| b.time().cmp(&a.time()).then_with(|| a.name.cmp(&b.name)));
    devices
}

/// Returns the text for a site without a device, or with one without a name: then its place tells it from others.
fn unnamed(site: &SavedSite) -> String {
    match site.place {
        Some(place) if site.device.is_some() => match site.reason {
            Reason::PioIn | Reason::PioOut => format!("port {place:#x}"),
            Reason::MmioRead | Reason::MmioWrite => format!("address {place:#x}"),
            Reason::RdMsr | Reason::WrMsr => format!("MSR {place:#x}"),
            reason => format!("{reason} {place:#x}"),
        },
        Some(_) => UNCLAIMED.into(),
        None if site.reason.has_place() => format!("{} at other places", site.reason),
        None => site.reason.to_string(),
    }
}

/// Returns the name of the site's device in `devices`.
pub(super) fn device_of(site: &SavedSite, devices: &[DeviceTotals]) -> String {
    let Some(name) = named_device(site) else { return unnamed(site) };
    let shown = Cell::text(name).shown();
    let own = devices.iter().any(|device| device.name == shown);
    if own { shown } else { Cell::text(family(name)).shown() }
}

/// The columns that identify a site.
pub(super) const SITE: [Column; 4] = [
    text("reason", "reason"),
    text("place", "place"),
    number("width", "width", ""),
    text("device", "device"),
];

/// Returns the cells of these columns.
pub(super) fn site_cells(site: &SavedSite) -> [Cell; 4] {
    let place = match site.place {
        Some(place) => Cell::Hex(place),
        None if site.reason.has_place() => Cell::text("other"),
        None => Cell::Nothing,
    };
    let device = match (&site.device, site.place) {
        (Some(name), _) => Cell::text(name),
        (None, Some(_)) => Cell::text(UNCLAIMED),
        (None, None) => Cell::Nothing,
    };
    [Cell::text(&site.reason.to_string()), place, site.width.map_or(Cell::Nothing, Cell::Width), device]
}

fn times(times: &SavedTimes) -> [Cell; 4] {
    let known = |value: u64| if times.count > 0 { Cell::Nanoseconds(value) } else { Cell::Nothing };
    [known(times.mean()), Cell::nanoseconds(times.p50), Cell::nanoseconds(times.p99), known(times.max)]
}

fn sites(machine: &SavedVcpu, labels: &Labels) -> Table<'static> {
    let mut columns = vec![
        number("exits", "exits", ""),
        number("exits_share", "share", ""),
        number("time_ns", "time", ""),
        number("time_share", "share", ""),
        number("in_kvm_mean_ns", "mean", labels.time),
        number("in_kvm_p50_ns", "p50", labels.time),
        number("in_kvm_p99_ns", "p99", labels.time),
        number("in_kvm_max_ns", "max", labels.time),
        number("in_vmm_mean_ns", "mean", VMM),
        number("in_vmm_p50_ns", "p50", VMM),
        number("in_vmm_p99_ns", "p99", VMM),
        number("in_vmm_max_ns", "max", VMM),
    ];
    // Elements differ from exits only with string I/O or queued stores.
    let elements = machine.elements != machine.exits;
    if elements {
        columns.insert(2, number("elements", "elements", ""));
    }
    columns.extend(SITE);
    let whole = total(&machine.in_kvm, &machine.in_vmm);
    let mut sites: Vec<_> = machine.sites.iter().collect();
    sort_by_key(&mut sites, |site| {
        (Reverse(total(&site.in_kvm, &site.in_vmm)), Reverse(site.exits), site.key())
    });
    let row = |site: &&SavedSite| -> Row {
        let time = total(&site.in_kvm, &site.in_vmm);
        let mut row = vec![Cell::Count(site.exits), Cell::share(site.exits, machine.exits)];
        if elements {
            row.push(Cell::Count(site.elements));
        }
        row.extend([Cell::Nanoseconds(time), Cell::share(time, whole)]);
        row.extend(times(&site.in_kvm));
        row.extend(times(&site.in_vmm));
        row.extend(site_cells(site));
        row
    };
    let rows = sites.iter().map(row).collect();
    Table::new("sites", "Where the exits come from", columns, rows)
}

fn by_device(machine: &SavedVcpu, labels: &Labels) -> Table<'static> {
    let columns = vec![
        text("device", "device"),
        number("exits", "exits", ""),
        number("time_ns", "time", ""),
        number("time_share", "share", ""),
        number("in_kvm_ns", labels.time, ""),
        number("in_vmm_ns", "in the VMM", ""),
        number("mean_ns", "per exit", ""),
    ];
    let whole = total(&machine.in_kvm, &machine.in_vmm);
    let row = |device: DeviceTotals| {
        let each = device.time().checked_div(device.exits);
        vec![
            Cell::text(&device.name),
            Cell::Count(device.exits),
            Cell::Nanoseconds(device.time()),
            Cell::share(device.time(), whole),
            Cell::Nanoseconds(device.kvm),
            Cell::Nanoseconds(device.vmm),
            Cell::nanoseconds(each),
        ]
    };
    let rows = devices(&machine.sites).into_iter().map(row).collect();
    Table::new("devices", "By device", columns, rows)
}

fn vcpus(profile: &SavedProfile, labels: &Labels) -> Table<'static> {
    let columns = vec![
        number("vcpu", "vCPU", ""),
        number("exits", "exits", ""),
        number("in_kvm_ns", "time", labels.time),
        number("in_kvm_p50_ns", "p50", labels.time),
        number("in_kvm_p99_ns", "p99", labels.time),
        number("in_kvm_max_ns", "max", labels.time),
        number("in_vmm_ns", "time", VMM),
        number("in_vmm_p50_ns", "p50", VMM),
        number("in_vmm_p99_ns", "p99", VMM),
        number("in_vmm_max_ns", "max", VMM),
        text("ended", "ended"),
    ];
    let row = |(index, vcpu): (u64, &SavedVcpu)| {
        let mut row = vec![Cell::Count(vcpu.id.map_or(index, Into::into)), Cell::Count(vcpu.exits)];
        for all in [&vcpu.in_kvm, &vcpu.in_vmm] {
            row.push(Cell::Nanoseconds(all.sum));
            row.extend(times(all).into_iter().skip(1));
        }
        row.push(Cell::text(&vcpu.ended));
        row
    };
    let rows = (0..).zip(&profile.vcpus).map(row).collect();
    Table::new("vcpus", "vCPUs", columns, rows)
}

fn marks(profile: &SavedProfile) -> Table<'static> {
    let columns = vec![
        number("at_ns", "at", ""),
        number("since_ns", "time", SINCE),
        number("exits", "exits", SINCE),
        text("event", "event"),
    ];
    let mut before = 0;
    let row = |mark: &crate::profile::SavedMark| {
        let since = mark.at_ns.saturating_sub(before);
        before = mark.at_ns;
        vec![
            Cell::Nanoseconds(mark.at_ns),
            Cell::Nanoseconds(since),
            Cell::Count(mark.exits),
            Cell::text(&mark.event),
        ]
    };
    let rows = profile.marks.iter().map(row).collect();
    Table::new("marks", "Boot marks, since the start of the program", columns, rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::view) fn site(
        reason: Reason,
        place: Option<u64>,
        device: Option<&str>,
        time: u64,
    ) -> SavedSite {
        let times = SavedTimes { count: 2, sum: time, ..SavedTimes::default() };
        let device = device.map(Into::into);
        let width = place.map(|_| 4);
        SavedSite {
            reason,
            place,
            width,
            device,
            exits: 2,
            elements: 2,
            in_kvm: times.clone(),
            in_vmm: times,
        }
    }

    pub(in crate::view) fn machine(sites: Vec<SavedSite>) -> SavedVcpu {
        let sum = sites.iter().map(|site| site.in_kvm.sum).sum();
        let times = SavedTimes { sum, ..SavedTimes::default() };
        SavedVcpu { sites, in_kvm: times.clone(), in_vmm: times, ..SavedVcpu::default() }
    }

    #[test]
    fn registers_are_summed_up_by_their_device() {
        let machine = machine(vec![
            site(Reason::MmioWrite, Some(0x10_0010), Some("simvirtio TX head"), 600),
            site(Reason::MmioRead, Some(0x10_0014), Some("simvirtio TX tail"), 200),
            site(Reason::PioOut, Some(0xf4), Some("exit port"), 100),
            site(Reason::PioOut, Some(0x1234), None, 60),
            site(Reason::Hlt, None, None, 30),
            site(Reason::MmioRead, None, None, 10),
        ]);
        let names: Vec<_> = devices(&machine.sites).into_iter().map(|device| device.name).collect();
        assert_eq!(names, ["simvirtio", "exit port", "unclaimed", "HLT", "MMIO read at other places"]);
    }

    /// Those of an observed program have no names, so the places are told apart.
    #[test]
    fn devices_without_a_name_are_told_apart_by_their_places() {
        let machine = machine(vec![
            site(Reason::PioOut, Some(0x60), Some(UNNAMED), 600),
            site(Reason::MmioRead, Some(0x10_0006), Some(UNNAMED), 500),
            site(Reason::PioIn, Some(0x60), Some(UNNAMED), 200),
            site(Reason::WrMsr, Some(0x10), Some(UNNAMED), 100),
            site(Reason::Hlt, None, None, 30),
        ]);
        let found = devices(&machine.sites);
        let names: Vec<_> = found.iter().map(|device| (device.name.as_str(), device.sites)).collect();
        assert_eq!(names, [("port 0x60", 2), ("address 0x100006", 1), ("MSR 0x10", 1), ("HLT", 1)]);
        assert_eq!(device_of(&machine.sites[0], &found), "port 0x60");
    }
}
