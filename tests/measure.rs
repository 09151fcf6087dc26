//! The measurements of a run: counts and times, the files of --profile and --trace, and KVM's own counters. They must
//! agree.
#![allow(clippy::unwrap_used)]

mod support;

use report::profile::{ClockSource, SavedVcpu};
use report::{Measured, Saved, SavedProfile, SavedTrace};
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;
use support::payloads::{READ_A_MILLION_ADDRESSES, READ_PORT};
use support::{
    Files, Liar, TRANSPORT_NAMES, TRANSPORTS, assert_error, code, embedded, find, is_soft, kvm_test,
    machine_test, plain_test, ran, run, run_machine, shell, vmm,
};
use vmm::Machine;
use vmm::exit::Reason;
use vmm::profile::{MAX_SITES, MAX_TIMED_SITES};
use vmm::x86::Mode;

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        machine_test("profile_trace_and_the_counters_of_kvm_agree", all_agree),
        machine_test("the_profiles_of_vcpus_add_up", vcpus_add_up),
        machine_test("string_io_has_one_time_in_kvm_and_one_in_the_vmm_for_each_element", string_io),
        machine_test("times_add_up_to_less_than_the_run", times_fit),
        machine_test("a_trace_has_the_last_exits_with_values_and_rip", last_exits),
        machine_test("a_million_addresses_are_counted_and_few_are_listed", million_addresses),
        plain_test("a_file_that_cannot_be_written_is_reported_before_the_run", unwritable),
        machine_test("a_full_disk_loses_the_file_but_not_the_run", full_disk),
        machine_test("a_trace_that_is_cut_can_be_read", cut_trace),
        machine_test("runs_that_write_the_same_file_leave_a_complete_one", one_file),
        machine_test("an_interrupted_run_writes_its_profile", interrupted),
        kvm_test("a_host_without_clock_or_counters_is_measured", poor_host),
        plain_test("options_that_contradict_each_other_are_refused", contradictions),
        machine_test("without_a_profile_nothing_is_timed", not_measured),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Runs a guest and returns both files. The trace has all exits of the run.
fn measured(arguments: &[&str]) -> (SavedProfile, SavedTrace) {
    let files = Files::new();
    let (profile, trace) = (files.write("profile", b"old"), files.write("trace", b"old"));
    let json = format!("json={profile}");
    let ran = ran(&[&["run", "--profile", &json, "--trace", &trace], arguments].concat());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("`vmm report {profile}` shows it")), "{}", ran.stderr);
    let profile = SavedProfile::read(&fs::read(&profile).unwrap()).unwrap();
    let (trace, cut) = SavedTrace::read(&fs::read(&trace).unwrap()).unwrap();
    assert_eq!(cut, None);
    (profile, trace)
}

type Sites = BTreeMap<(Reason, Option<u64>, Option<u8>), (u64, u64)>;

/// Returns the exits and elements of each site.
fn sites_of(vcpu: &SavedVcpu) -> Sites {
    vcpu.sites.iter().map(|site| (site.key(), (site.exits, site.elements))).collect()
}

fn sites_of_trace(trace: &SavedTrace) -> Sites {
    let mut sites = Sites::new();
    for record in &trace.records {
        let width = record.place.map(|_| record.width);
        let (exits, elements) = sites.entry((record.reason, record.place, width)).or_default();
        *exits += u64::from(!record.next_element);
        *elements += 1;
    }
    sites
}

fn all_agree() {
    for (name, transport) in [
        ("simvirtio", "exit"),
        ("simvirtio", "polling"),
        ("simvirtio", "coalesced"),
        ("simvirtio-c", "exit"),
        ("real16-hello", "exit"),
        ("kev-mmio", "exit"),
        ("kev-hypercall", "exit"),
        ("smp-print", "exit"),
    ] {
        let guest = find(name);
        let arguments = [name, "--transport", transport];
        let (profile, trace) =
            measured(if guest.polling_exits.is_some() { &arguments[..] } else { &arguments[..1] });
        let machine = &profile.machine;
        let what = format!("{name} by {transport}: {machine:?}");
        assert_eq!(sites_of(machine), sites_of_trace(&trace), "{what}");
        assert_eq!(machine.elements, trace.seen, "{what}");
        assert_eq!(machine.sites.iter().map(|site| site.exits).sum::<u64>(), machine.exits, "{what}");

        // The times of profile and trace are equal, to the nanosecond.
        let sum = |times: &dyn Fn(&report::trace::Record) -> u32| {
            trace.records.iter().map(|record| u64::from(times(record))).sum::<u64>()
        };
        assert_eq!(sum(&|record| record.in_kvm), machine.in_kvm.sum, "{what}");
        assert_eq!(sum(&|record| record.in_vmm), machine.in_vmm.sum, "{what}");
        assert_eq!((machine.in_kvm.count, machine.in_vmm.count), (machine.exits, machine.elements), "{what}");

        // KVM also counts exits that it handles itself, and it has counters for some kinds of exits.
        if is_soft() {
            assert_eq!(machine.kernel, None, "{what}");
            continue;
        }
        let kernel = machine.kernel.as_ref().expect("KVM has counters");
        // If KVM emulates 16-bit code, it may count fewer exits.
        assert!(name.starts_with("real16") || kernel["exits"] >= machine.exits, "{what}");
        let mmio: u64 = machine
            .sites
            .iter()
            .filter(|site| matches!(site.reason, Reason::MmioRead | Reason::MmioWrite))
            .map(|site| site.exits)
            .sum();
        assert_eq!(kernel.get("mmio_exits").copied().unwrap_or(0), mmio, "{what}");
    }
}

fn vcpus_add_up() {
    let (profile, trace) = measured(&["smp-print"]);
    assert_eq!((profile.vcpus.len(), trace.vcpus), (4, 4));
    let mut all = Sites::new();
    for (number, vcpu) in profile.vcpus.iter().enumerate() {
        assert_eq!((vcpu.id, vcpu.exits, vcpu.ended.as_str()), (Some(number as u32), 26, "halted"));
        for (site, (exits, elements)) in sites_of(vcpu) {
            let sum = all.entry(site).or_default();
            *sum = (sum.0 + exits, sum.1 + elements);
        }
        let traced = trace.records.iter().filter(|record| usize::from(record.vcpu) == number).count();
        assert_eq!(traced, 26);
    }
    assert_eq!(all, sites_of(&profile.machine));
    if !is_soft() {
        let kernel = |vcpu: &SavedVcpu| vcpu.kernel.as_ref().unwrap()["exits"];
        assert_eq!(profile.vcpus.iter().map(kernel).sum::<u64>(), kernel(&profile.machine));
    }
    assert!(trace.records.is_sorted_by_key(|record| record.when));
}

/// mov si, data; mov dx, 0xe9; mov cx, 3; rep outsb; hlt; data: "abc"
const PRINT_STRING: &[u8] = &[0xbe, 0x0c, 0, 0xba, 0xe9, 0, 0xb9, 3, 0, 0xf3, 0x6e, 0xf4, b'a', b'b', b'c'];

fn string_io() {
    let files = Files::new();
    let guest = files.write("guest", PRINT_STRING);
    let (profile, trace) = measured(&[&guest]);
    let site = profile.machine.sites.iter().find(|site| site.reason == Reason::PioOut).unwrap();
    assert_eq!(site.elements, 3);
    // Some hosts make one exit for all elements, others one for each.
    assert_eq!((site.in_kvm.count, site.in_vmm.count), (site.exits, 3));
    let values: Vec<_> = trace.records.iter().filter_map(|record| record.value).collect();
    assert_eq!(values, [0x61, 0x62, 0x63]);
    let further = trace.records.iter().filter(|record| record.next_element);
    assert_eq!(further.clone().count() as u64, 3 - site.exits);
    assert!(further.clone().all(|record| record.in_kvm == 0));
}

fn times_fit() {
    for transport in TRANSPORT_NAMES {
        times_fit_by(transport);
    }
}

fn times_fit_by(transport: &str) {
    let (profile, _) = measured(&["simvirtio", "--transport", transport]);
    let SavedVcpu { in_kvm, in_vmm, sites, .. } = &profile.machine;
    assert!(in_kvm.sum > 0 && in_vmm.sum > 0);
    assert!(in_kvm.sum + in_vmm.sum <= profile.elapsed_ns, "{profile:?}");
    assert!(profile.profiling_ns > 0);
    let source = if is_soft() { ClockSource::Monotonic } else { ClockSource::Tsc };
    assert!(profile.clock.source == source && profile.clock.khz > 100_000, "{:?}", profile.clock);
    for times in sites.iter().flat_map(|site| [&site.in_kvm, &site.in_vmm]).chain([in_kvm, in_vmm]) {
        let (p50, p99) = (times.p50.unwrap(), times.p99.unwrap());
        assert!(times.min <= p50 && p50 <= p99 && p99 <= times.max, "{times:?}");
        assert!(times.min <= times.mean() && times.mean() <= times.max, "{times:?}");
        assert_eq!(times.bins.iter().map(|(_, count)| count).sum::<u64>(), times.count, "{times:?}");
    }
}

/// Writes 0 to 199 to port 0x40 and reads port 0x99, which has no device: mov al, 0; again: out 0x40, al; inc al;
/// cmp al, 200; jne again; in al, 0x99; hlt
const WRITE_200_VALUES: &[u8] = &[0xb0, 0, 0xe6, 0x40, 0xfe, 0xc0, 0x3c, 200, 0x75, 0xf8, 0xe4, 0x99, 0xf4];

fn last_exits() {
    let image = code(WRITE_200_VALUES, Mode::Real);
    for (asked, kept) in [(1, 1), (64, 64), (65, 65), (1000, 202)] {
        let builder =
            Machine::builder(image.clone()).timeout(Some(Duration::from_secs(20))).trace(Some(asked));
        let (report, _) = run_machine(builder);
        let trace = report.trace.as_ref().unwrap();
        assert_eq!((trace.exits().len(), trace.seen()), (kept, 202), "{asked}");
        let trace = Measured::of("guest", "so", &report).unwrap().trace().unwrap();
        let [.., last] = trace.records.as_slice() else { panic!("no exits") };
        assert_eq!((last.reason, last.place, last.value), (Reason::Hlt, None, None));
        if let [.., before, read, _] = trace.records.as_slice() {
            assert_eq!((before.place, before.value, before.width), (Some(0x40), Some(199), 1));
            assert_eq!(
                (read.place, read.value),
                (Some(0x99), Some(0xff)),
                "an unclaimed read returns all ones"
            );
            if let Some(rip) = read.rip {
                assert!((0x100a..=0x100c).contains(&rip), "{rip:#x}");
            }
            assert!(before.when < read.when && read.when < last.when);
        }
    }
    let refused = |exits| Machine::builder(image.clone()).trace(Some(exits)).build().unwrap_err().to_string();
    assert!(refused(0).contains("--trace-exits must be 1 to 4194304, not 0"));
    assert!(refused((1 << 22) + 1).contains("4194305"));
    // The limit is for all vCPUs together.
    let on = |cpus, exits| Machine::builder(image.clone()).cpus(cpus).trace(Some(exits)).build().map(drop);
    on(32, 1 << 17).unwrap();
    on(3, (1 << 22) / 3).unwrap();
    assert_eq!(
        on(32, (1 << 17) + 1).unwrap_err().to_string(),
        "--trace-exits must be 1 to 131072 with 32 vCPUs, not 131073"
    );
    assert!(on(3, (1 << 22) / 3 + 1).is_err());
}

fn million_addresses() {
    let files = Files::new();
    let guest = files.write("guest", READ_A_MILLION_ADDRESSES) + "@0x1000:32";
    // By polling, so that the thread of the device runs meanwhile. tests/hostile.rs has the run by exits.
    let (profile, trace) = measured(&[&guest, "--timeout", "300", "--transport", "polling"]);
    let machine = &profile.machine;
    assert_eq!(machine.exits, 1_000_001);
    assert_eq!((machine.in_kvm.count, machine.in_vmm.count), (1_000_001, 1_000_001));
    assert_eq!(machine.sites.iter().map(|site| site.in_kvm.sum).sum::<u64>(), machine.in_kvm.sum);
    assert_eq!(machine.in_vmm.bins.iter().map(|(_, count)| count).sum::<u64>(), 1_000_001);
    assert_eq!(machine.sites.len(), MAX_SITES + 2, "plus one for the rest, and HLT");
    let known = machine.sites.iter().filter(|site| site.in_kvm.p50.is_some()).count();
    assert_eq!(known, MAX_TIMED_SITES + 2);
    assert!(machine.sites.iter().all(|site| site.in_kvm.count == site.exits));
    assert_eq!((trace.records.len(), trace.seen), (65_536, 1_000_001));
    assert_eq!(trace.records[65_534].place, Some(0xd000_0000 + 999_999));
}

fn unwritable() {
    let files = Files::new();
    let folder = files.0.path().to_str().unwrap();
    for path in [format!("{folder}/none/file"), folder.into()] {
        for option in [["--profile", &format!("json={path}")], ["--trace", &path]] {
            let ran = ran(&[&["run", "real16-hello"], &option[..]].concat());
            assert_error(&ran, 110, "cannot write");
            assert_eq!(ran.text(), "", "the guest does not run");
        }
    }
}

fn full_disk() {
    for option in [["--profile", "json=/dev/full"], ["--trace", "/dev/full"]] {
        let ran = ran(&[&["run", "simvirtio", "--transport", "exit"], &option[..]].concat());
        assert_eq!(ran.text(), "Ana are mere");
        assert!(ran.stderr.starts_with("vmm: simvirtio: halted; verified"), "{}", ran.stderr);
        assert!(ran.stderr.contains("vmm: error: cannot write /dev/full: No space left"), "{}", ran.stderr);
        assert!(ran.stderr.contains("is not saved"), "{}", ran.stderr);
        assert_eq!(ran.status, 115);
    }
    // An old file stays unchanged, even if not a single record fits.
    let files = Files::new();
    let old = files.write("old", b"old");
    for transport in TRANSPORT_NAMES {
        let line = "ulimit -f 0; \"$0\" run simvirtio -q --trace \"$1\" --transport $2";
        let small = shell(line, &[&old, transport]);
        assert_eq!(
            (small.status, fs::read(&old).unwrap().as_slice()),
            (115, &b"old"[..]),
            "{}",
            small.stderr
        );
        assert!(
            small.stderr.contains("the trace is not saved, and an existing file is unchanged"),
            "{}",
            small.stderr
        );
    }
    // The status of the guest has priority.
    assert_eq!(ran(&["run", "long64-exit-code", "--trace", "/dev/full"]).status, 7);
}

/// Makes 65,537 exits: xor cx, cx; again: in al, 0x42; loop again; hlt
const READ_65536_TIMES: &[u8] = &[0x31, 0xc9, 0xe4, 0x42, 0xe2, 0xfc, 0xf4];

/// The limit of the file size cuts the trace.
fn cut_trace() {
    let files = Files::new();
    let trace = files.write("trace", b"");
    let guest = files.write("guest", READ_65536_TIMES);
    let ran = shell("ulimit -f 100; \"$0\" run \"$1\" --timeout 60 --trace \"$2\"", &[&guest, &trace]);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(ran.stderr.contains("the trace is cut short after"), "{}", ran.stderr);
    let Saved::Trace(read, cut) = Saved::read(&fs::read(&trace).unwrap()).unwrap() else { panic!("a trace") };
    let cut = cut.expect("the trace is cut");
    assert_eq!((read.records.len() as u64, cut.of, read.seen), (cut.records, 65_536, 65_537));
    assert!(cut.records > 100);
    assert!(ran.stderr.contains(&cut.to_string()), "{cut}: {}", ran.stderr);
}

fn one_file() {
    let files = Files::new();
    let path = files.0.path().join("profile");
    let json = format!("json={}", path.display());
    let runs: Vec<_> = (0..6)
        .map(|number| {
            let json = json.clone();
            let transport = TRANSPORT_NAMES[number % 2];
            std::thread::spawn(move || {
                let arguments = ["run", "simvirtio", "-q", "--transport", transport, "--profile", &json];
                run(&mut vmm(&arguments)).status
            })
        })
        .collect();
    assert!(runs.into_iter().all(|run| run.join().unwrap() == 0));
    assert_eq!(SavedProfile::read(&fs::read(path).unwrap()).unwrap().guest, "simvirtio");
    assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 1, "no other file is left");
}

fn interrupted() {
    let files = Files::new();
    let profile = files.write("profile", b"");
    let guest = files.write("guest", READ_PORT);
    let line = "\"$0\" run \"$1\" --timeout 50 --profile json=\"$2\" --transport $3 & \
        until grep -q 'SigCgt:.*[4-7c-f]...$' /proc/$!/status; do sleep 0.1; done; \
        sleep 0.5; kill -TERM $!; wait $!";
    for transport in TRANSPORT_NAMES {
        let ran = shell(line, &[&guest, &profile, transport]);
        assert_eq!(ran.status, 117, "{}", ran.stderr);
        let profile = SavedProfile::read(&fs::read(&profile).unwrap()).unwrap();
        assert!(profile.machine.exits > 100 && profile.ended.starts_with("interrupted"), "{profile:?}");
    }
}

/// KVM does not know the frequency of the TSC, or has no counters.
fn poor_host() {
    let liar = Liar::new();
    let files = Files::new();
    let path = files.write("profile", b"");
    let arguments = ["run", "simvirtio", "--transport", "exit", "--profile", &format!("json={path}")];
    let slow = liar.run("aea3 -1 -1 5 0 9", &arguments);
    assert_eq!(slow.status, 0, "{}", slow.stderr);
    assert!(
        slow.stderr.contains("(CLOCK_MONOTONIC, because KVM does not report the TSC frequency"),
        "{}",
        slow.stderr
    );
    let profile = SavedProfile::read(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((profile.clock.source, profile.machine.in_kvm.count), (ClockSource::Monotonic, 40));
    assert!(profile.machine.in_kvm.sum > 0 && profile.machine.in_kvm.sum < profile.elapsed_ns);

    let silent = liar.run("aece -1 -1 25 0 9", &arguments);
    assert_eq!(silent.status, 0, "{}", silent.stderr);
    assert!(silent.stderr.contains("not compared with KVM's own count"), "{}", silent.stderr);
    assert_eq!(SavedProfile::read(&fs::read(&path).unwrap()).unwrap().machine.kernel, None);
}

fn contradictions() {
    let files = Files::new();
    let path = files.write("one", b"old");
    let json = format!("json={path}");
    let ran = ran(&["run", "real16-hello", "--profile", &json, "--trace", &path]);
    assert_error(&ran, 110, "--profile and --trace write the same file");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    for arguments in [
        &["--no-profile", "--trace", "t"][..],
        &["--no-profile", "--profile", "json=p"],
        &["--trace-exits", "5"],
        &["--profile", "csv=p"],
        &["--profile", "json="],
        &["--trace", "/dev/null", "--trace-exits", "0"],
        &["--trace", "/dev/null", "--trace-exits", "4194305"],
    ] {
        let ran = support::ran(&[&["run", "real16-hello"], arguments].concat());
        assert_eq!((ran.status, ran.text().as_str()), (110, ""), "{arguments:?}: {}", ran.stderr);
    }
}

fn not_measured() {
    for (transport, name) in TRANSPORTS.into_iter().zip(TRANSPORT_NAMES) {
        let (report, _) = run_machine(embedded(find("simvirtio"), Some(transport)).profile(false));
        assert!(report.profile.is_none() && report.timing.is_none() && report.last_exits.is_empty());
        assert!(Measured::of("simvirtio", "halted", &report).is_none());
        let text = ran(&["simvirtio", "--no-profile", "--transport", name]).stderr;
        assert!(!text.contains("KVM_RUN"), "{text}");
    }
}
