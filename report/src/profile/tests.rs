use super::*;
use crate::setup::{MOST_SETUP, SavedCall, SavedSlot};
use proptest::prelude::*;

/// The example of `docs/formats.md`, with a site of each kind.
const SMALL: &str = r#"{
  "format": "vmm-profile", "version": 1, "program": "vmm 0.1.0",
  "guest": "simvirtio", "ended": "halted", "elapsed_ns": 1160000,
  "clock": {"source": "tsc", "khz": 2250000, "steps": 0},
  "limits": {"sites": 1024, "timed_sites": 64, "digits": 2},
  "profiling_ns": 3100,
  "marks": [{"event": "VM ready", "at_ns": 245470000, "exits": 0}],
  "machine": {"id": null, "ended": "halted", "exits": 3, "elements": 3, "kernel": null,
    "in_kvm": {"count": 0, "sum": 0, "min": 0, "max": 0, "p50": null, "p99": null, "bins": []},
    "in_vmm": {"count": 0, "sum": 0, "min": 0, "max": 0, "p50": null, "p99": null, "bins": []}, "sites": []},
  "vcpus": [{"id": 0, "ended": "halted", "exits": 3, "elements": 3, "kernel": {"exits": 4, "mmio_exits": 2},
    "in_kvm": {"count": 3, "sum": 70000, "min": 3900, "max": 9100, "p50": 4600, "p99": 9000, "bins": [[4096, 2], [4608, 1]]},
    "in_vmm": {"count": 3, "sum": 900, "min": 300, "max": 300, "p50": 300, "p99": 300, "bins": [[288, 3]]},
    "sites": [
      {"reason": "MMIO write", "place": 1048592, "width": 4, "device": "simvirtio TX head", "exits": 2, "elements": 2,
       "in_kvm": {"count": 2, "sum": 1, "min": 0, "max": 1, "p50": null, "p99": null, "bins": []},
       "in_vmm": {"count": 2, "sum": 1, "min": 0, "max": 1, "p50": null, "p99": null, "bins": []}},
      {"reason": "HLT", "place": null, "width": null, "device": null, "exits": 1, "elements": 1,
       "in_kvm": {"count": 0, "sum": 0, "min": 0, "max": 0, "p50": null, "p99": null, "bins": []},
       "in_vmm": {"count": 0, "sum": 0, "min": 0, "max": 0, "p50": null, "p99": null, "bins": []}}]}]
}"#;

fn small() -> SavedProfile {
    SavedProfile::read(SMALL.as_bytes()).unwrap()
}

fn written(profile: &SavedProfile) -> Vec<u8> {
    let mut bytes = Vec::new();
    profile.write(&mut bytes).unwrap();
    bytes
}

/// Returns the message for the small profile with `to` instead of `from`.
fn message_with(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    match SavedProfile::read(SMALL.replacen(from, to, 1).as_bytes()) {
        Err(error @ SavedError::Damaged { .. }) => error.to_string(),
        other => panic!("{from} -> {to}: {other:?}"),
    }
}

#[test]
fn the_example_of_the_specification_is_read() {
    let profile = small();
    let vcpu = &profile.vcpus[0];
    assert_eq!(
        (profile.guest.as_str(), profile.marks[0].at_ns, profile.clock.khz),
        ("simvirtio", 245_470_000, 2_250_000)
    );
    assert_eq!(vcpu.kernel.as_ref().unwrap()["exits"], 4);
    assert_eq!(vcpu.sites[0].key(), (Reason::MmioWrite, Some(0x10_0010), Some(4)));
    assert_eq!(vcpu.sites[0].name(), "MMIO write 0x100010");
    assert_eq!((vcpu.in_kvm.mean(), vcpu.in_kvm.bins.len(), profile.machine.in_kvm.mean()), (23_333, 2, 0));
}

#[test]
fn a_device_text_is_split_at_the_first_blank() {
    for (text, split) in [
        ("simvirtio TX head", ("simvirtio", Some("TX head"))),
        ("serial line status", ("serial", Some("line status"))),
        ("RTC", ("RTC", None)),
        ("simvirtio, reserved", ("simvirtio", Some("reserved"))),
        ("", ("", None)),
    ] {
        assert_eq!(split_device(text), split);
    }
    let name = vmm::device::DeviceName::register("virtio-blk", "interrupt status");
    assert_eq!(split_device(&String::from(name)), (name.device, name.register));
}

#[test]
fn a_profile_is_one_line_and_begins_with_its_format() {
    let text = String::from_utf8(written(&small())).unwrap();
    assert!(
        text.starts_with(
            r#"{"format":"vmm-profile","version":1,"program":"vmm 0.1.0","processor":"kvm","guest":"#
        ),
        "{text}"
    );
    assert_eq!((text.lines().count(), text.ends_with("}\n")), (1, true));
    assert_eq!(SavedProfile::read(text.as_bytes()).unwrap(), small());
    // Older files do not have the member.
    let older = text.replace(r#""processor":"kvm","#, "");
    assert_eq!(SavedProfile::read(older.as_bytes()).unwrap(), small());
}

#[test]
fn a_profile_that_is_cut_anywhere_is_refused() {
    let whole = written(&small());
    for end in 0..whole.len() - 1 {
        let error = SavedProfile::read(&whole[..end]).unwrap_err();
        assert!(matches!(error, SavedError::Damaged { .. }), "{end}: {error}");
        assert!(error.to_string().contains("EOF while parsing"), "{end}: {error}");
    }
}

#[test]
fn another_format_and_another_version_are_different_errors() {
    let read = |text: &str| SavedProfile::read(text.as_bytes()).unwrap_err();
    assert_eq!(read(r#"{"format": "har", "version": 1}"#), SavedError::Neither);
    // A later version may have other members of other types.
    let later = SavedError::Version { what: "profile", found: 2, known: 1 };
    assert_eq!(read(r#"{"format": "vmm-profile", "version": 2, "guest": 7}"#), later);
    let added = SMALL.replacen("\"guest\"", "\"more\": [{}], \"guest\"", 1);
    assert_eq!(SavedProfile::read(added.as_bytes()).unwrap(), small());
}

#[test]
fn a_value_that_is_not_a_count_is_refused_with_its_line_and_column() {
    let message = message_with("\"exits\": 3", "\"exits\": 1.5");
    assert_eq!(
        message,
        "the profile is damaged: invalid type: floating point `1.5`, expected u64 at line 8 column 57"
    );
    for bad in ["-1", "1e3", "18446744073709551616", "NaN", "\"3\"", "null", "[]", "1e999", "true", "0x10"] {
        let message = message_with("\"exits\": 3", &format!("\"exits\": {bad}"));
        assert!(message.contains(" at line 8 column "), "{bad}: {message}");
    }
    message_with("[[4096, 2], [4608, 1]]", "[[4096, 2, 3]]");
    message_with("[[4096, 2], [4608, 1]]", "[[4096]]");
    message_with("\"width\": 4", "\"width\": 256");
}

#[test]
fn an_impossible_value_is_refused_and_named() {
    for (from, to, expected) in [
        ("\"guest\": \"simvirtio\"", "\"guest\": \"a\", \"guest\": \"b\"", "duplicate field `guest`"),
        ("\"exits\": 4", "\"exits\": 4, \"exits\": 5", "the same KVM counter twice"),
        ("\"guest\": \"simvirtio\", ", "", "missing field `guest`"),
        ("MMIO write", "MMIO wrote", "unknown exit reason: \"MMIO wrote\""),
        ("MMIO write", "\\u001b[2J", "unknown exit reason: "),
        ("\"tsc\"", "\"sundial\"", "unknown variant `sundial`"),
        ("[[4096, 2], [4608, 1]]", "[[4608, 1], [4608, 2]]", "vCPU 0 has bins that do not ascend in in_kvm"),
        ("\"max\": 9100", "\"max\": 1", "vCPU 0 has a min above max in in_kvm"),
        ("\"width\": 4", "\"width\": null", "vCPU 0 has a place without a width at MMIO write 0x100010"),
        (
            "\"place\": null, \"width\": null",
            "\"place\": 7, \"width\": 1",
            "vCPU 0 has a place for a reason without one at HLT 0x7",
        ),
    ] {
        let text = message_with(from, to);
        assert!(text.contains(expected) && !text.contains('\u{1b}'), "{text}");
    }
    let mut profile = small();
    let twice = profile.vcpus[0].sites[0].clone();
    profile.vcpus[0].sites.push(twice);
    let message = |profile: &SavedProfile| SavedProfile::read(&written(profile)).unwrap_err().to_string();
    assert_eq!(
        message(&profile),
        "the profile is damaged: vCPU 0 has the same site twice: MMIO write 0x100010"
    );
    profile.vcpus.clear();
    assert_eq!(message(&profile), "the profile is damaged: it has no vCPU");
}

#[test]
fn every_limit_is_checked() {
    let message = |change: &dyn Fn(&mut SavedProfile)| {
        let mut profile = small();
        change(&mut profile);
        SavedProfile::read(&written(&profile)).unwrap_err().to_string()
    };
    let site = |place| SavedSite { place: Some(place), ..small().vcpus[0].sites[0].clone() };
    assert!(
        message(&|p| p.vcpus[0].sites = (0..2000).map(site).collect())
            .ends_with("vCPU 0 has 2000 sites (the limit is 1152)")
    );
    assert!(
        message(&|p| p.vcpus = vec![p.machine.clone(); 129]).ends_with("it has 129 vCPUs (the limit is 128)")
    );
    assert!(
        message(&|p| p.marks = vec![SavedMark::default(); 41]).ends_with("it has 41 marks (the limit is 40)")
    );
    assert!(
        message(&|p| p.machine.in_vmm.bins = (0..513).map(|n| (n, 1)).collect())
            .ends_with("the machine has 513 bins (the limit is 512) in in_vmm")
    );
    assert!(
        message(&|p| p.guest = "x".repeat(MOST_TEXT + 1))
            .contains("it has 65537 bytes of text in \"guest\" (the limit is 65536)")
    );
    let kernel = (0..5000).map(|n| (n.to_string(), n)).collect::<BTreeMap<_, _>>();
    assert!(message(&|p| p.machine.kernel = Some(kernel.clone())).contains("more than 4096 KVM counters"));
    let large = vec![b' '; MAX_SIZE as usize + 1];
    assert!(matches!(SavedProfile::read(&large), Err(SavedError::TooLarge { what: "profile", .. })));
}

#[test]
fn depth_does_not_overflow_the_stack() {
    for nested in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 20)] {
        assert!(matches!(SavedProfile::read(nested.as_bytes()), Err(SavedError::Damaged { .. })));
        message_with("\"marks\": ", &format!("\"more\": {nested}, \"marks\": "));
        message_with("\"marks\": [", &format!("\"marks\": [{nested}"));
    }
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect())
}

fn times() -> impl Strategy<Value = SavedTimes> {
    let bins = prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..6);
    (any::<[u64; 4]>(), any::<Option<u64>>(), any::<Option<u64>>(), bins).prop_map(
        |(words, p50, p99, bins)| SavedTimes {
            count: words[0],
            sum: words[1],
            min: words[2].min(words[3]),
            max: words[2].max(words[3]),
            p50,
            p99,
            bins: bins.into_iter().collect(),
        },
    )
}

fn site() -> impl Strategy<Value = SavedSite> {
    let reason =
        prop_oneof![prop::sample::select(Reason::NAMED.to_vec()), any::<u32>().prop_map(Reason::Other)];
    let place = any::<Option<(u64, u8)>>();
    (reason, place, prop::option::of(text()), any::<[u64; 2]>(), times(), times()).prop_map(
        |(reason, place, device, [exits, elements], in_kvm, in_vmm)| {
            let place = place.filter(|_| reason.has_place());
            let (place, width) = (place.map(|place| place.0), place.map(|place| place.1));
            SavedSite { reason, place, width, device, exits, elements, in_kvm, in_vmm }
        },
    )
}

fn vcpu() -> impl Strategy<Value = SavedVcpu> {
    let kernel = prop::option::of(prop::collection::btree_map(text(), any::<u64>(), 0..4));
    let sites = prop::collection::vec(site(), 0..5);
    (any::<Option<u32>>(), text(), any::<[u64; 2]>(), kernel, times(), times(), sites).prop_map(
        |(id, ended, [exits, elements], kernel, in_kvm, in_vmm, mut sites)| {
            let mut known = HashSet::new();
            sites.retain(|site| known.insert(site.key()));
            SavedVcpu { id, ended, exits, elements, kernel, in_kvm, in_vmm, sites }
        },
    )
}

fn setup(number: u64) -> SavedSetup {
    let call = SavedCall {
        vm: Some(1),
        object: "vCPU 0".into(),
        call: "KVM_SET_REGS".into(),
        times: number,
        words: "rip 0x1000".into(),
        failure: number.is_multiple_of(3).then(|| "EINVAL: KVM refuses the arguments".into()),
    };
    let slot = SavedSlot { vm: 1, slot: 7, first: number, size: number, host: 1, flags: "read-only".into() };
    SavedSetup {
        calls: vec![call, SavedCall::default()],
        memory: vec![slot],
        remarks: vec!["a remark".into()],
    }
}

#[test]
fn a_setup_has_limits() {
    let mut profile = small();
    assert_eq!(profile.setup, None);
    let refused = |profile: &SavedProfile| SavedProfile::read(&written(profile)).unwrap_err().to_string();
    profile.setup = Some(setup(1));
    assert_eq!(SavedProfile::read(&written(&profile)).unwrap(), profile);
    let kept = profile.setup.as_mut().unwrap();
    kept.calls = vec![SavedCall::default(); MOST_SETUP + 1];
    assert!(refused(&profile).contains("it has 4097 calls (the limit is 4096)"), "{}", refused(&profile));
    let kept = profile.setup.as_mut().unwrap();
    (kept.calls, kept.remarks) = (Vec::new(), vec!["x".repeat(MOST_TEXT + 1)]);
    assert!(refused(&profile).contains("65537 bytes of text in \"remarks\""), "{}", refused(&profile));
}

fn profile() -> impl Strategy<Value = SavedProfile> {
    let marks = prop::collection::vec((text(), any::<[u64; 2]>()), 0..4);
    let vcpus = prop::collection::vec(vcpu(), 1..4);
    let source = prop::sample::select(vec![ClockSource::Tsc, ClockSource::Monotonic]);
    (any::<[[u64; 3]; 3]>(), [text(), text(), text()], source, marks, vcpu(), vcpus).prop_map(
        |(
            [[elapsed_ns, profiling_ns, khz], [steps, sites, timed_sites], [digits, ..]],
            texts,
            source,
            marks,
            machine,
            vcpus,
        )| {
            let [program, guest, ended] = texts;
            let processor = if digits % 2 == 0 { SavedProcessor::Kvm } else { SavedProcessor::Soft };
            SavedProfile {
                program,
                processor,
                origin: (khz % 5 == 0)
                    .then(|| Box::new(SavedOrigin { host: guest.clone(), ..SavedOrigin::default() })),
                guest,
                ended,
                elapsed_ns,
                clock: SavedClock { source, khz, steps },
                limits: SavedLimits { sites, timed_sites, digits },
                profiling_ns,
                marks: marks
                    .into_iter()
                    .map(|(event, [at_ns, exits])| SavedMark { event, at_ns, exits })
                    .collect(),
                machine,
                vcpus,
                setup: (khz % 2 == 0).then(|| setup(digits)),
                addresses: code(digits).0,
                names: code(digits).1,
                samples: (khz % 3 == 0).then(|| samples(digits)),
            }
        },
    )
}

/// Up to three stacks, by a seed.
fn samples(seed: u64) -> SavedSamples {
    let stacks = (0..seed % 4).map(|number| format!("main;f{number} {seed}")).collect();
    SavedSamples { rate: None, lost: seed, cost_ns: seed, may_be_kvm: seed.is_multiple_of(2), stacks }
}

/// Up to three addresses with names, by a seed.
fn code(seed: u64) -> (Vec<SavedAddress>, Vec<SavedName>) {
    let rips = (0..seed % 4).map(|number| seed.wrapping_add(number));
    let address = |rip: u64| SavedAddress {
        rip: (!rip.is_multiple_of(5)).then_some(rip),
        reason: Reason::PioOut,
        place: (rip.is_multiple_of(3)).then_some(rip),
        width: (rip.is_multiple_of(3)).then_some(1),
        exits: rip,
        elements: rip,
        in_kvm_ns: rip,
        in_vmm_ns: rip,
    };
    let name = |rip: u64| SavedName {
        rip,
        reason: Reason::Hlt,
        function: format!("f{rip}"),
        offset: rip,
        line: (rip.is_multiple_of(2)).then(|| format!("a.c:{rip}")),
        unsure: rip.is_multiple_of(3),
    };
    (rips.clone().map(address).collect(), rips.map(name).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_written_profile_is_read_back(profile in profile()) {
        prop_assert_eq!(SavedProfile::read(&written(&profile)).unwrap(), profile);
    }

    /// The result is a profile or a message of one line.
    #[test]
    fn a_changed_byte_does_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = SMALL.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = SavedProfile::read(&bytes) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
