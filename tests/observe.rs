//! `vmm observe`: the exits of other programs. The programs are a VMM in C (`support/observed.c`), this program itself,
//! and QEMU.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{VMM, compile, counts, expected, no_qemu, observe, profile, program, qemu, source};
use report::{Saved, SavedProfile};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use support::{Files, kvm_test, plain_test, ran, test_unless, vmm};
use vmm::exit::Reason;

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        kvm_test("the_exits_of_every_kind_of_program_are_counted_exactly", exact_counts),
        kvm_test("a_profile_and_a_trace_are_those_of_a_run", files),
        kvm_test("the_exits_of_this_program_are_those_that_it_counts", itself),
        kvm_test("fast_exits_are_counted_exactly", fast),
        kvm_test("a_script_and_its_children_are_observed", script),
        kvm_test("any_number_of_vcpus_is_observed", many_vcpus),
        test_unless(no_qemu, "the_exits_of_qemu_are_counted_exactly", of_qemu),
        plain_test("a_program_without_kvm_made_no_vm", no_vm),
    ])
}

fn exact_counts() {
    let library = compile("library.so", &source(), &["-shared", "-fPIC", "-DLIBRARY"]);
    // The mode, the number of guests that run to their end, further exits, the numbers of VMs and of vCPUs.
    for (mode, times, outs, vms, vcpus) in [
        (&["plain"][..], 1, 0, 1, 1),
        (&["fork"], 2, 0, 2, 2),
        (&["exec"], 2, 0, 2, 2),
        (&["dup"], 2, 0, 1, 2),
        (&["reuse"], 2, 100, 2, 3),
        (&["never-map"], 1, 0, 1, 1),
        (&["map-twice"], 1, 0, 1, 1),
        (&["repeat", "20"], 20, 0, 20, 20),
        (&["vcpus", "32"], 32, 0, 1, 32),
        (&["vms"], 2, 0, 2, 2),
        (&["interrupt"], 1, 0, 2, 2),
        (&["jump"], 1, 0, 1, 1),
        (&["garbage"], 1, 0, 1, 1),
        (&["dlopen", library.to_str().unwrap()], 1, 0, 1, 1),
        (&["filter"], 1, 0, 1, 1),
        (&["reopen"], 3, 0, 2, 3),
        (&["pointers"], 1, 0, 1, 1),
        (&["crash"], 1, 0, 1, 1),
    ] {
        let (ran, profile) = profile(&[&[program()], mode].concat());
        let status = if mode == ["crash"] { 128 + libc::SIGSEGV } else { 0 };
        assert_eq!((ran.status, ran.text().as_str()), (status, ""), "{mode:?}: {}", ran.stderr);
        assert_eq!(counts(&profile.machine.sites), expected(times, outs), "{mode:?}: {}", ran.stderr);
        assert_eq!(profile.vcpus.len(), vcpus, "{mode:?}: {}", ran.stderr);
        let exits: u64 = profile.vcpus.iter().map(|vcpu| vcpu.exits).sum();
        assert_eq!(exits, profile.machine.exits, "{mode:?}");
        let named = profile.vcpus.iter().filter(|vcpu| vcpu.ended.starts_with("VM ")).count();
        assert_eq!(named, if vms > 1 { vcpus } else { 0 }, "{mode:?}: {}", ran.stderr);
        if let Some(kernel) = &profile.machine.kernel {
            assert!(kernel["exits"] >= profile.machine.exits, "{mode:?}: {kernel:?}");
        }
        assert!(profile.machine.in_kvm.sum > 0 && profile.clock.khz > 100_000, "{mode:?}");
    }
}

fn files() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let (json, trace) = (path("a.json"), path("a.trace"));
    let options = ["--profile", &format!("json={json}"), "--trace", &trace, "--trace-exits", "600", "-q"];
    let observed = observe(&options, &[program(), "vcpus", "2"]);
    assert_eq!((observed.status, observed.stderr.lines().count()), (0, 1), "{}", observed.stderr);
    let Saved::Trace(saved, None) = report::read(Path::new(&trace)).unwrap() else { panic!("a trace") };
    assert_eq!((saved.records.len(), saved.seen, saved.vcpus), (600, 3004, 2));
    assert!(saved.records.is_sorted_by_key(|record| record.when));
    let reads: Vec<_> = saved.records.iter().filter(|record| record.reason == Reason::PioIn).collect();
    assert!(reads.iter().all(|record| record.value == Some(0x5a)), "the answers are known: {reads:?}");
    assert!(saved.records.last().unwrap().reason == Reason::Hlt);
    for file in [&json, &trace] {
        for format in ["text", "json", "csv", "html"] {
            let shown = ran(&["report", file, "--format", format]);
            assert_eq!(shown.status, 0, "{}", shown.stderr);
            assert!(shown.text().contains("unnamed") && !shown.text().contains("unclaimed"));
        }
    }
    // Ours beside the other one.
    let own = path("own.json");
    let guest = files.guest("real16-hello");
    assert_eq!(vmm(&["run", &guest, "--profile", &format!("json={own}")]).status().unwrap().code(), Some(0));
    let difference = ran(&["report", &own, &json]);
    assert_eq!(difference.status, 0, "{}", difference.stderr);
    assert!(
        difference.text().contains("0x42") && difference.text().contains("0xe9"),
        "{}",
        difference.text()
    );
}

fn itself() {
    let files = Files::new();
    let own = files.0.path().join("own.json");
    for guest in [
        &["simvirtio"][..],
        &["simvirtio", "--transport", "polling"],
        &["modes"],
        &["real16-outsb"],
        &["real16-insb"],
        &["kev-strings"],
        &["kev-hypercall"],
        &["kev-msr"],
        &["kev-msr-fault"],
        &["smp-print"],
        &["hello-kvm"],
    ] {
        let json = format!("json={}", own.display());
        let command = [&[VMM, "run", "--vcpu", "kvm", "--profile", &json], guest].concat();
        let (ran, observed) = profile(&command);
        assert_eq!(ran.status, 0, "{guest:?}: {}", ran.stderr);
        let own = SavedProfile::read(&fs::read(&own).unwrap()).unwrap();
        assert_eq!(counts(&observed.machine.sites), counts(&own.machine.sites), "{guest:?}");
        let of_vcpus =
            |profile: &SavedProfile| profile.vcpus.iter().map(|vcpu| vcpu.exits).collect::<Vec<_>>();
        assert_eq!(of_vcpus(&observed), of_vcpus(&own), "{guest:?}");
        let exits = |profile: &SavedProfile| profile.machine.kernel.as_ref().map(|kernel| kernel["exits"]);
        assert_eq!(exits(&observed), exits(&own), "{guest:?}");
    }
}

/// As many exits as the host can make, more than 100,000 in a second.
fn fast() {
    let (ran, profile) = profile(&[program(), "measure", "100000"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!((profile.machine.exits, profile.machine.sites.len()), (100_256, 1), "{}", ran.stderr);
}

fn script() {
    let files = Files::new();
    let path = files.write("script", format!("#!/bin/sh\n{} plain\n{0} vms\nexit 5\n", program()).as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let (ran, profile) = profile(&[&path]);
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert_eq!(counts(&profile.machine.sites), expected(3, 0));
    assert!(ran.stderr.contains("vmm: VM 3 vCPU 0: 1502 exits: 1000 PIO out 0x42"), "{}", ran.stderr);
}

/// The rings of processes that have ended are used again. The vCPUs past the 64th have one row.
fn many_vcpus() {
    let line = format!("for i in $(seq 35); do {} leave 32; done; {0} plain", program());
    let (ran, profile) = profile(&["sh", "-c", &line]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        !ran.stderr.contains("not observed") && ran.stderr.contains("vmm: and 32 more vCPUs"),
        "{}",
        ran.stderr
    );
    assert_eq!((counts(&profile.machine.sites), profile.vcpus.len()), (expected(1, 0), 64));
    assert_eq!(profile.vcpus[63].ended, "the other vCPUs; last exit: HLT");
}

fn of_qemu() {
    let files = Files::new();
    let mut profiles = Vec::new();
    let ran = qemu(&files, &mut |command| {
        let (ran, profile) = profile(command);
        profiles.push(profile);
        ran
    });
    assert_eq!(ran.status, 7, "{}", ran.stderr);
    let profile = profiles.last().unwrap();
    let counts = counts(&profile.machine.sites);
    assert_eq!(counts["PIO out 0xe9 Some(1)"], (300, 300), "{counts:?}");
    assert_eq!(counts["PIO out 0xf4 Some(1)"], (1, 1), "{counts:?}");
    assert_eq!(profile.guest, "qemu-system-x86_64");
    // QEMU asks for filters of system calls, but has none here.
    assert!(profile.machine.kernel.is_some(), "{}", ran.stderr);
}

fn no_vm() {
    let ran = observe(&[], &["true"]);
    assert_eq!(ran.status, 0);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("vmm: true: exited with status 0 (after "), "{lines:?}");
    assert!(lines.len() == 2 && lines[1].starts_with("vmm: true made no VM: "), "{lines:?}");
}
