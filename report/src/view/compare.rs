//! The difference of two profiles, site by site.

use crate::SavedProfile;
use crate::profile::{SavedSite, SavedTimes};
use crate::view::labels;
use crate::view::profile::{SITE, site_cells, total};
use crate::view::table::{Cell, Row, Table, View, duration, number, text};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use vmm::host::sort_by_key;

const EXITS: &str = "exits";
const VMM_MEAN: &str = "in the VMM, mean";
const VMM_P99: &str = "in the VMM, p99";

/// A site that is in A, in B, or in both.
pub(super) struct Pair<'a> {
    pub(super) a: Option<&'a SavedSite>,
    pub(super) b: Option<&'a SavedSite>,
}

impl<'a> Pair<'a> {
    /// Returns either of them. Both have the same key.
    pub(super) fn either(&self) -> Option<&'a SavedSite> {
        self.a.or(self.b)
    }

    fn time(&self) -> u64 {
        let time = |site: Option<&SavedSite>| site.map_or(0, |site| total(&site.in_kvm, &site.in_vmm));
        time(self.a).max(time(self.b))
    }
}

/// Matches the sites of both by reason, place and width. The pair with the longest time in A or B comes first.
pub(super) fn pairs<'a>(a: &'a SavedProfile, b: &'a SavedProfile) -> Vec<Pair<'a>> {
    let mut pairs = BTreeMap::new();
    for site in &a.machine.sites {
        pairs.entry(site.key()).or_insert(Pair { a: None, b: None }).a = Some(site);
    }
    for site in &b.machine.sites {
        pairs.entry(site.key()).or_insert(Pair { a: None, b: None }).b = Some(site);
    }
    let mut pairs: Vec<_> = pairs.into_values().collect();
    sort_by_key(&mut pairs, |pair| (Reverse(pair.time()), pair.a.or(pair.b).map(SavedSite::key)));
    pairs
}

/// Makes the report about the change from `a` to `b`.
pub(super) fn view<'a>(
    a: &SavedProfile,
    b: &SavedProfile,
    names: [String; 2],
    caveats: Vec<String>,
) -> View<'a> {
    let labels = labels::of_both(a.processor, b.processor);
    let side = |exits: &'static str, kvm: &'static str, vmm: &'static str, profile: &SavedProfile| {
        let machine = &profile.machine;
        [
            (exits, "exits", Cell::Count(machine.exits)),
            (kvm, labels.time, Cell::Nanoseconds(machine.in_kvm.sum)),
            (vmm, "in the VMM", Cell::Nanoseconds(machine.in_vmm.sum)),
        ]
    };
    let [name_a, name_b] = names;
    let title = format!("{name_b} (B) compared with {name_a} (A)");
    let mut facts =
        vec![("a", "A", Cell::text(&name_a)), ("a_elapsed_ns", "ran for", Cell::Nanoseconds(a.elapsed_ns))];
    facts.extend(side("a_exits", "a_in_kvm_ns", "a_in_vmm_ns", a));
    facts.extend(origin(a, false));
    facts.extend([
        ("b", "B", Cell::text(&name_b)),
        ("b_elapsed_ns", "ran for", Cell::Nanoseconds(b.elapsed_ns)),
    ]);
    facts.extend(side("b_exits", "b_in_kvm_ns", "b_in_vmm_ns", b));
    facts.extend(origin(b, true));
    let mut notes = vec![
        "A ratio is B divided by A: below 1, B took less time. Sites are matched by reason, place and width."
            .to_owned(),
    ];
    if a.processor != b.processor {
        notes.push(format!(
            "The processors differ (A: {}, B: {}): compare the exits, not the times.",
            a.processor.name(),
            b.processor.name()
        ));
    }
    notes.extend(caveats);
    View {
        kind: "difference",
        title,
        subtitle: format!("A: {}. B: {}", ending(a), ending(b)),
        facts,
        headline: headline(a, b),
        notes,
        tables: vec![sites(a, b)],
        main: "sites",
    }
}

/// The origin of A or of B, as facts with keys of their own.
fn origin(profile: &SavedProfile, is_b: bool) -> Vec<(&'static str, &'static str, Cell)> {
    const KEYS: [[&str; 3]; 7] = [
        ["program", "a_program", "b_program"],
        ["date", "a_date", "b_date"],
        ["transport", "a_transport", "b_transport"],
        ["command", "a_command", "b_command"],
        ["host", "a_host", "b_host"],
        ["cpu", "a_cpu", "b_cpu"],
        ["kernel", "a_kernel", "b_kernel"],
    ];
    let program = Some(("program", "written by", Cell::text(&profile.program)));
    let program = program.filter(|_| !profile.program.is_empty());
    let all = program.into_iter().chain(super::profile::origin(profile));
    let renamed = |(key, caption, cell)| {
        let [_, a, b] = KEYS.into_iter().find(|[plain, ..]| *plain == key)?;
        Some((if is_b { b } else { a }, caption, cell))
    };
    all.filter_map(renamed).collect()
}

fn ending(profile: &SavedProfile) -> String {
    let transport = profile.origin.as_ref().map_or("", |origin| origin.transport.as_str());
    let transport = if transport.is_empty() { String::new() } else { format!(" with transport {transport}") };
    match profile.ended.as_str() {
        "" => format!("{}{transport}", profile.guest),
        ended => format!("{}{transport}, {ended}", profile.guest),
    }
}

fn headline(a: &SavedProfile, b: &SavedProfile) -> String {
    let time = |profile: &SavedProfile| total(&profile.machine.in_kvm, &profile.machine.in_vmm);
    let ratio = Cell::ratio(Some(time(b)), Some(time(a))).shown();
    let ratio = if ratio.is_empty() { ratio } else { format!(" ({ratio})") };
    let exits = |profile: &SavedProfile| crate::view::table::plural(profile.machine.exits, "exit");
    format!(
        "A: {} and {} {} and the VMM; B: {} and {}{ratio}",
        exits(a),
        duration(time(a)),
        labels::of_both(a.processor, b.processor).time,
        exits(b),
        duration(time(b))
    )
}

fn sites(a: &SavedProfile, b: &SavedProfile) -> Table<'static> {
    let labels = labels::of_both(a.processor, b.processor);
    let mut columns = vec![
        number("exits_a", "A", EXITS),
        number("exits_b", "B", EXITS),
        number("exits_delta", "B-A", EXITS),
        number("in_kvm_mean_a_ns", "A", labels.mean),
        number("in_kvm_mean_b_ns", "B", labels.mean),
        number("in_kvm_mean_ratio", "B/A", labels.mean),
        number("in_kvm_p99_a_ns", "A", labels.p99),
        number("in_kvm_p99_b_ns", "B", labels.p99),
        number("in_kvm_p99_ratio", "B/A", labels.p99),
        number("in_vmm_mean_a_ns", "A", VMM_MEAN),
        number("in_vmm_mean_b_ns", "B", VMM_MEAN),
        number("in_vmm_mean_ratio", "B/A", VMM_MEAN),
        number("in_vmm_p99_a_ns", "A", VMM_P99),
        number("in_vmm_p99_b_ns", "B", VMM_P99),
        number("in_vmm_p99_ratio", "B/A", VMM_P99),
        text("only", "only in"),
    ];
    columns.extend(SITE);
    let rows = pairs(a, b).iter().filter_map(row).collect();
    Table::new("sites", "Site by site", columns, rows)
}

fn row(pair: &Pair<'_>) -> Option<Row> {
    let site = pair.either()?;
    let exits = |site: Option<&SavedSite>| site.map_or(0, |site| site.exits);
    let (a, b) = (exits(pair.a), exits(pair.b));
    let delta = i128::from(b).saturating_sub(a.into());
    let mut row = vec![Cell::Count(a), Cell::Count(b), Cell::Delta(delta)];
    for of in [|site: &SavedSite| site.in_kvm.clone(), |site: &SavedSite| site.in_vmm.clone()] {
        let (a, b) = (pair.a.map(of), pair.b.map(of));
        for value in
            [|times: &SavedTimes| (times.count > 0).then(|| times.mean()), |times: &SavedTimes| times.p99]
        {
            let (a, b) = (a.as_ref().and_then(value), b.as_ref().and_then(value));
            row.extend([Cell::nanoseconds(a), Cell::nanoseconds(b), Cell::ratio(b, a)]);
        }
    }
    row.push(match (pair.a, pair.b) {
        (Some(_), None) => Cell::text("A"),
        (None, Some(_)) => Cell::text("B"),
        _ => Cell::Nothing,
    });
    row.extend(site_cells(site));
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::SavedVcpu;
    use vmm::exit::Reason;

    fn profile(sites: &[(u64, u8, u64)]) -> SavedProfile {
        let sites = sites.iter().map(|(place, width, time)| {
            let times = SavedTimes { count: 2, sum: *time, p99: Some(*time), ..SavedTimes::default() };
            SavedSite {
                reason: Reason::PioOut,
                place: Some(*place),
                width: Some(*width),
                device: None,
                exits: 2,
                elements: 2,
                in_kvm: times.clone(),
                in_vmm: times,
            }
        });
        let machine = SavedVcpu { sites: sites.collect(), ..SavedVcpu::default() };
        SavedProfile { machine, ..SavedProfile::default() }
    }

    #[test]
    fn sites_are_matched_by_reason_place_and_width() {
        let a = profile(&[(0xe9, 1, 100), (0xe9, 2, 4000)]);
        let b = profile(&[(0xe9, 1, 300), (0x80, 1, 1)]);
        let table = sites(&a, &b);
        let rows: Vec<Vec<_>> = table.rows().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let known: Vec<_> =
            rows.iter().map(|row| (row[17].as_str(), row[18].as_str(), row[15].as_str())).collect();
        assert_eq!(known, [("0xe9", "16", "A"), ("0xe9", "8", ""), ("0x80", "8", "B")]);
        assert_eq!(rows[1][..9], ["2", "2", "0", "50 ns", "150 ns", "x3.00", "100 ns", "300 ns", "x3.00"]);
        assert_eq!(rows[0][..6], ["2", "0", "-2", "2.00 us", "", ""]);
        assert_eq!(rows[2][..3], ["0", "2", "+2"]);
        assert_eq!(table.columns.len(), rows[0].len());
    }
}
