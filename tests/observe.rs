//! `vmm observe`: the exits of other programs. The programs are a VMM in C (`support/observed.c`), this program itself,
//! and QEMU.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{counts, expected, no_qemu, observe, profile, program, qemu};
use report::Saved;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use support::{Files, kvm_test, ran, test_unless, vmm};
use vmm::exit::Reason;

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        kvm_test("a_profile_and_a_trace_are_those_of_a_run", files),
        kvm_test("fast_exits_are_counted_exactly", fast),
        kvm_test("a_program_that_filters_its_system_calls_is_observed", filtered),
        kvm_test("a_script_and_its_children_are_observed", script),
        kvm_test("any_number_of_vcpus_is_observed", many_vcpus),
        test_unless(no_qemu, "the_exits_of_qemu_are_counted_exactly", of_qemu),
    ])
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

/// As many exits as the host can make, more than 100,000 in a second.
fn fast() {
    let (ran, profile) = profile(&[program(), "measure", "100000"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!((profile.machine.exits, profile.machine.sites.len()), (100_256, 1), "{}", ran.stderr);
}

/// The program would be killed by any call that it does not expect. What cannot be seen then is told.
fn filtered() {
    for options in [&[][..], &["--setup"]] {
        let ran = observe(options, &[program(), "filter-fork"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("vmm: 1502 exits") && ran.stderr.contains("vmm: 1 vCPU not observed: "),
            "{}",
            ran.stderr
        );
    }
    // Its filter permits nothing, with and without an observer.
    let ran = observe(&[], &[program(), "filter-all"]);
    assert_eq!(ran.status, 128 + libc::SIGSYS, "{}", ran.stderr);
    assert!(ran.stderr.contains("vmm: a seccomp filter ended observed: "), "{}", ran.stderr);
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
    for machine in observed::MACHINES {
        let mut profiles = Vec::new();
        let ran = qemu(&files, machine, &mut |command| {
            let (ran, profile) = profile(command);
            profiles.push(profile);
            ran
        });
        assert_eq!(ran.status, 7, "{machine}: {}", ran.stderr);
        let profile = profiles.last().unwrap();
        let counts = counts(&profile.machine.sites);
        assert_eq!(counts["PIO out 0xe9 Some(1)"], (300, 300), "{machine}: {counts:?}");
        assert_eq!(counts["PIO out 0xf4 Some(1)"], (1, 1), "{machine}: {counts:?}");
        assert_eq!(profile.guest, "qemu-system-x86_64");
        // QEMU asks for filters of system calls, but has none here.
        assert!(profile.machine.kernel.is_some(), "{machine}: {}", ran.stderr);
    }
}
