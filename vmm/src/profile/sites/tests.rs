use super::*;
use proptest::prelude::*;

const OUT: Exit = Exit::PioOut { port: 0xe9, size: 1, data: 0 };
const TIMES: Times = Times { in_kvm: 4000, in_vmm: 200 };

#[test]
fn three_elements_of_string_io_are_one_exit() {
    let mut profile = Profile::default();
    profile.record(&OUT, Arrival::FromGuest, TIMES);
    profile.record(&OUT, Arrival::NextElement, TIMES);
    profile.record(&OUT, Arrival::NextElement, TIMES);
    assert_eq!(profile.total(), Count { exits: 1, elements: 3 });
    let site = Site { reason: Reason::PioOut, place: Some((0xe9, 1)) };
    assert_eq!(profile.sites(), [(site, Count { exits: 1, elements: 3 })]);
}

#[test]
fn sites_differ_by_direction_width_and_address() {
    let mut profile = Profile::default();
    for exit in [
        OUT,
        Exit::PioOut { port: 0xe9, size: 2, data: 0 },
        Exit::PioIn { port: 0xe9, size: 1 },
        Exit::PioOut { port: 0xe8, size: 1, data: 0 },
        Exit::MmioWrite { address: 0xe9, size: 1, data: 0 },
        Exit::MmioRead { address: 0xe9, size: 1 },
    ] {
        profile.record(&exit, Arrival::FromGuest, TIMES);
    }
    assert_eq!(profile.sites().len(), 6);
    let reasons: Vec<_> =
        profile.reasons().into_iter().map(|(reason, count)| (reason, count.exits)).collect();
    let expect = [(Reason::PioIn, 1), (Reason::PioOut, 3), (Reason::MmioRead, 1), (Reason::MmioWrite, 1)];
    assert_eq!(reasons, expect);
}

#[test]
fn an_interruption_is_not_counted() {
    let mut profile = Profile::default();
    profile.record(&Exit::Interrupted, Arrival::FromGuest, TIMES);
    assert_eq!(profile.total(), Count::default());
}

#[test]
fn the_most_frequent_site_comes_first() {
    let mut profile = Profile::default();
    for exit in [Exit::Hlt, OUT, OUT] {
        profile.record(&exit, Arrival::FromGuest, TIMES);
    }
    let order: Vec<_> = profile.sites().into_iter().map(|(site, _)| site.reason).collect();
    assert_eq!(order, [Reason::PioOut, Reason::Hlt]);
}

#[test]
fn the_table_of_sites_is_bounded_and_the_totals_stay_exact() {
    let mut profile = Profile::default();
    for address in 0..100_000 {
        profile.record(&Exit::MmioRead { address, size: 1 }, Arrival::FromGuest, TIMES);
    }
    profile.record(&Exit::MmioRead { address: 7, size: 1 }, Arrival::FromGuest, TIMES);
    profile.record(&Exit::Hlt, Arrival::FromGuest, TIMES);
    assert_eq!(profile.total().exits, 100_002);
    assert!(profile.sites().len() <= MAX_SITES + 2);
    let other = Site { reason: Reason::MmioRead, place: None };
    assert_eq!(profile.sites()[0], (other, Count { exits: 98_976, elements: 98_976 }));
    let seven = Site { reason: Reason::MmioRead, place: Some((7, 1)) };
    assert_eq!(profile.sites()[1], (seven, Count { exits: 2, elements: 2 }));
}

#[test]
fn the_exits_of_two_vcpus_add_up() {
    let profile = |ports: std::ops::Range<u16>| {
        let mut profile = Profile::default();
        for port in ports {
            profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest, TIMES);
        }
        profile
    };
    let mut all = profile(0..1000);
    all.absorb(&profile(900..2000));
    assert_eq!(all.total().exits, 2100);
    let nine_hundred = Site { reason: Reason::PioIn, place: Some((900, 1)) };
    assert!(all.sites().contains(&(nine_hundred, Count { exits: 2, elements: 2 })));
    assert!(all.sites().len() <= MAX_SITES + 1);
}

#[test]
fn exits_are_counted_per_phase() {
    let mut profile = Profile::default();
    for (phase, arrival) in [(0, Arrival::FromGuest), (2, Arrival::FromGuest), (2, Arrival::NextElement)] {
        profile.record_phase(phase, arrival);
    }
    assert_eq!(profile.phases(), [1, 0, 1]);
    let mut all = Profile::default();
    all.absorb(&profile);
    all.absorb(&profile);
    assert_eq!(all.phases(), [2, 0, 2]);
}

#[test]
fn total_percentiles_include_sites_without_percentiles() {
    let mut all = Profile::default();
    for vcpu in 0..2 {
        let mut profile = Profile::default();
        // The two vCPUs have histograms for different sites.
        let ports: Vec<u16> = if vcpu == 0 { (0..100).collect() } else { (0..100).rev().collect() };
        for port in ports {
            profile.record(&Exit::PioIn { port, size: 1 }, Arrival::FromGuest, TIMES);
        }
        assert_eq!(profile.total_times().0.count(), 100);
        assert_eq!(profile.total_times().1.percentile(50.0), Some(200));
        all.absorb(&profile);
    }
    let (in_kvm, in_vmm) = all.total_times();
    assert_eq!((in_kvm.count(), in_kvm.sum(), in_vmm.count()), (200, 800_000, 200));
    assert_eq!(in_kvm.percentile(99.0), Some(4000));
    let known = all.details().iter().filter(|site| site.in_kvm.percentile(50.0).is_some()).count();
    assert_eq!(known, 28, "each vCPU times 64 sites, and the 28 in the middle are common");
}

proptest! {
    /// The total, the sites and the reasons have the same sum.
    #[test]
    fn the_views_agree(exits in prop::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..3000)) {
        let mut profile = Profile::default();
        for (port, read, next) in &exits {
            let exit = if *read { Exit::PioIn { port: *port, size: 1 } } else { Exit::PioOut { port: *port, size: 1, data: 0 } };
            profile.record(&exit, if *next { Arrival::NextElement } else { Arrival::FromGuest }, TIMES);
        }
        let from_guest = exits.iter().filter(|(_, _, next)| !next).count() as u64;
        let total = profile.total();
        prop_assert_eq!((total.exits, total.elements), (from_guest, exits.len() as u64));
        prop_assert_eq!(profile.sites().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
        prop_assert_eq!(profile.reasons().iter().map(|(_, count)| count.exits).sum::<u64>(), from_guest);
    }
}
