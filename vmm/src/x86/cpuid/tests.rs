use super::*;
use proptest::prelude::*;

fn supported() -> Vec<CpuidEntry> {
    let leaf =
        |function, eax, ebx, ecx, edx| CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() };
    let mut seven = leaf(7, 0, 0xff, 0, 0);
    seven.flags = CpuidEntry::HAS_INDEX;
    vec![
        leaf(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        leaf(1, 0x1234, 0x0102_0304, 1, 2),
        seven,
        leaf(0xb, 0, 0, 0, 99),
        leaf(HYPERVISOR, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
        leaf(HYPERVISOR + 1, 0x0100_7efb, 0, 0, 0),
    ]
}

const ALONE: CpuidContext = CpuidContext { id: 0, count: 1, tsc_deadline: false };

fn leaf(entries: &[CpuidEntry], function: u32) -> CpuidEntry {
    *entries.iter().find(|entry| entry.function == function).unwrap()
}

#[test]
fn leaf_1_shows_the_vcpu_s_number_and_leaf_0_the_host_s_vendor() {
    let seen = for_vcpu(&supported(), CpuidContext { id: 0xba, count: 4, tsc_deadline: false }, &[]);
    assert_eq!(leaf(&seen, 0), supported()[0]);
    assert_eq!(leaf(&seen, 1).ebx, 0xba04_0304);
    assert_eq!(leaf(&seen, 1).ecx, 0x8000_0001);
    assert_eq!(leaf(&seen, 0xb).edx, 0xba);
}

#[test]
fn each_vcpu_is_a_core_of_one_package() {
    let mut supported = supported();
    let index = CpuidEntry::HAS_INDEX;
    let cache = |n, level: u32| CpuidEntry {
        function: 4,
        index: n,
        flags: index,
        eax: 0xfc00_c001 | level << 5,
        ..Default::default()
    };
    let leaf_of =
        |function| CpuidEntry { function, eax: 9, ebx: 0x909, ecx: 0xffff_ffff, ..Default::default() };
    supported.extend([cache(0, 1), cache(1, 3)]);
    supported.push(CpuidEntry { function: 0x8000_001d, ..cache(0, 2) });
    supported.extend([0x8000_0001, 0x8000_0008, 0x8000_001e].map(leaf_of));
    let seen = for_vcpu(&supported, CpuidContext { id: 2, count: 3, tsc_deadline: true }, &[]);
    assert_eq!(leaf(&seen, 1).ecx & TSC_DEADLINE, TSC_DEADLINE);
    assert_eq!(leaf(&seen, 1).edx & HTT, HTT);
    let levels: Vec<_> = seen.iter().filter(|entry| entry.function == 0xb).collect();
    let shown: Vec<_> = levels.iter().map(|level| (level.index, level.eax, level.ebx, level.ecx)).collect();
    assert_eq!(shown, [(0, 0, 1, 0x100), (1, 2, 3, 0x201), (2, 0, 0, 2)]);
    assert!(levels.iter().all(|level| level.edx == 2));
    let caches: Vec<_> = seen.iter().filter(|entry| entry.function == 4).map(|entry| entry.eax).collect();
    assert_eq!(caches, [3 << 26 | 0x21, 3 << 26 | 3 << 14 | 0x61]);
    assert_eq!(leaf(&seen, 0x8000_0008).ecx, 0xffff_2f02);
    assert_eq!(leaf(&seen, 0x8000_001d).eax, 0xfc00_0041, "a core does not share its level 2 cache");
    let amd = leaf(&seen, 0x8000_001e);
    assert_eq!((amd.eax, amd.ebx, amd.ecx), (2, 2, 0));
    let alone = for_vcpu(&supported, ALONE, &[]);
    assert_eq!((leaf(&alone, 1).edx & HTT, leaf(&alone, 1).ecx & TSC_DEADLINE), (0, 0));
    assert_eq!(leaf(&alone, 0x8000_0001).ecx & CMP_LEGACY, 0);
    supported[0].ebx = u32::from_le_bytes(*b"Genu");
    let intel = for_vcpu(&supported, CpuidContext { id: 2, count: 3, tsc_deadline: true }, &[]);
    assert_eq!([0x8000_0001, 0x8000_0008].map(|wanted| leaf(&intel, wanted).ecx), [0xffff_ffff; 2]);
}

#[test]
fn our_signature_replaces_that_of_kvm_which_moves_up() {
    let seen = for_vcpu(&supported(), ALONE, &[]);
    let ours = leaf(&seen, HYPERVISOR);
    let text: Vec<u8> = [ours.ebx, ours.ecx, ours.edx].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!((text.as_slice(), ours.eax), (SIGNATURE.as_slice(), HYPERVISOR));
    let kvm = leaf(&seen, 0x4000_0100);
    assert_eq!((kvm.eax, kvm.ebx), (0x4000_0101, 0x4b4d_564b));
    assert_eq!(leaf(&seen, 0x4000_0101).eax, 0x0100_7efb);
    assert_eq!(seen.iter().filter(|entry| entry.function == HYPERVISOR).count(), 1);
}

#[test]
fn bits_registers_and_new_leaves_can_be_set() {
    let changes = ["1.ecx.24=1", "1.ebx.31-24=0xba", "7.0.ebx.0-3=5", "0x80000008.EAX=0x3030", "7.1.eax=1"];
    let changes = changes.map(|text| text.parse().unwrap());
    let seen = for_vcpu(&supported(), ALONE, &changes);
    assert_eq!((leaf(&seen, 1).ecx, leaf(&seen, 1).ebx), (0x8100_0001, 0xba01_0304));
    assert_eq!(leaf(&seen, 7).ebx, 0xf5);
    assert_eq!(leaf(&seen, 0x8000_0008).eax, 0x3030);
    let second = seen.iter().find(|entry| entry.function == 7 && entry.index == 1).unwrap();
    assert_eq!((second.eax, second.flags), (1, CpuidEntry::HAS_INDEX));
}

#[test]
fn a_text_that_is_not_an_override_is_refused() {
    for text in [
        "",
        "1",
        "1.ecx",
        "ecx.1=1",
        "1.ecx.32=1",
        "1.eex.1=1",
        "1.ecx.1=",
        "1.ecx.1.2=1",
        "1.0.0.ecx=1",
        "x.ecx.1=1",
        "-1.ecx=1",
        "1.ecx.+1-2=1=1",
    ] {
        assert!(text.parse::<CpuidOverride>().is_err(), "{text}");
    }
    assert!("1.ecx.1=2".parse::<CpuidOverride>().unwrap_err().contains("does not fit"));
    assert!("1.ecx=0x100000000".parse::<CpuidOverride>().is_err());
    assert_eq!("1.ecx=4294967295".parse::<CpuidOverride>().unwrap().mask(), u32::MAX);
}

proptest! {
    #[test]
    fn an_override_changes_only_its_bits(low in 0u8..32, more in 0u8..32, value: u32, before: u32) {
        let high = low.saturating_add(more).min(31);
        let change = CpuidOverride { leaf: 9, subleaf: None, register: Register::Edx, low, high, value };
        let mut entries = vec![CpuidEntry { function: 9, edx: before, ..Default::default() }];
        change.apply(&mut entries);
        let width = u32::from(high - low) + 1;
        let mask = (((1u64 << width) - 1) << low) as u32;
        prop_assert_eq!(entries[0].edx & !mask, before & !mask);
        prop_assert_eq!(entries[0].edx & mask, (u64::from(value) << low) as u32 & mask);
    }
}
