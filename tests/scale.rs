//! `vmm bench scale`: all guests leave 42, all resources are released, and all figures are present. The tests do not compare
//! the figures.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, assert_error, kvm_test, plain_test, ran, shell, vmm, wait, wait_for_handlers};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("all_guests_leave_42_and_all_resources_are_released", small),
        kvm_test("the_table_has_a_line_for_each_side", table),
        kvm_test("an_interruption_keeps_the_complete_rounds", interrupted),
        kvm_test("an_interrupted_child_has_status_117", interrupted_one),
        kvm_test("a_full_disk_is_status_115", full_disk),
        plain_test("too_few_file_descriptors_are_reported_before_the_run", too_few_descriptors),
        plain_test("a_wrong_path_is_reported_before_the_run", unusable_file),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The figures of a side in the JSON.
const FIGURES: [&str; 9] = [
    "/vms_per_second",
    "/wall_us/create",
    "/wall_us/run",
    "/wall_us/all",
    "/cpu_us/create",
    "/cpu_us/run",
    "/cpu_us/all",
    "/memory_bytes",
    "/descriptors",
];

fn small() {
    let files = Files::new();
    // An existing file is replaced, also if it was longer.
    let json = files.write("scale.json", &[b'x'; 1 << 16]);
    let ran = ran(&["bench", "scale", "--vms", "1,3,20", "--rounds", "2", "--json", &json]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let value: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&value["bench"], &value["version"]), (&"scale".into(), &1.into()));
    assert_eq!((&value["guest"], &value["rounds"]), (&"real16-42".into(), &2.into()));
    assert_eq!(value["complete"], true);
    let rows = value["rows"].as_array().unwrap();
    // A measurement makes at least 50 VMs, in whole passes, and there are two rounds.
    for (row, (vms, made)) in rows.iter().zip([(1, 2 * 50), (3, 2 * 51), (20, 2 * 60)]) {
        assert_eq!((&row["vms"], &row["rounds"]), (&vms.into(), &2.into()));
        for side in ["vmm", "bare"] {
            let of = &row[side];
            assert_eq!((&of["made"], &of["verified"]), (&made.into(), &made.into()), "{side}: {of}");
            for what in ["descriptors", "mappings", "threads"] {
                assert_eq!(of["left_over"][what], 0, "{side}: {of}");
            }
            let timers = &of["left_over"]["timers"];
            assert!(timers == 0 || timers.is_null(), "{side}: {of}");
            assert_eq!(of["descriptors"], 2.0, "{side}: {of}");
            for figure in FIGURES {
                assert!(of.pointer(figure).unwrap().as_f64().unwrap() > 0.0, "{side} {figure}: {of}");
            }
        }
        assert!(row["ratio"]["cpu"].as_f64().unwrap() > 0.0 && row["ratio"]["wall"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(rows.len(), 3);
}

fn table() {
    let ran = ran(&["bench", "scale", "--vms", "2", "--rounds", "1"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let text = ran.text();
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!((&lines[1][..2], lines[1].len()), (&["2", "vmm"][..], 10), "{text}");
    assert_eq!((&lines[2][..2], lines[2].len()), (&["2", "bare"][..], 8), "{text}");
    // The progress is for a terminal.
    assert!(!ran.stderr.contains("round"), "{}", ran.stderr);
}

fn interrupted() {
    let files = Files::new();
    let json = files.0.path().join("scale.json");
    let mut command = vmm(&["-v", "bench", "scale", "--vms", "2,50", "--rounds", "1000", "--json"]);
    let mut child = command.arg(&json).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_handlers(&child);
    // Wait until at least one round is complete.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.by_ref().any(|line| line.contains("round 2")));
    let asked = Instant::now();
    let kill = shell("kill -TERM \"$1\"", &[&child.id().to_string()]);
    assert_eq!(kill.status, 0, "{}", kill.stderr);
    assert_eq!(wait(&mut child), 117);
    assert!(asked.elapsed() < Duration::from_secs(20), "it continued after the interruption");
    let value: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(value["complete"], false);
    let rows = value["rows"].as_array().unwrap();
    assert!(!rows.is_empty() && rows[0]["rounds"].as_u64().unwrap() >= 1, "{value}");
}

fn interrupted_one() {
    let mut child = vmm(&["bench", "scale", "--only", "vmm", "--vms", "500"]).spawn().unwrap();
    wait_for_handlers(&child);
    assert_eq!(shell("kill -TERM \"$1\"", &[&child.id().to_string()]).status, 0);
    assert_eq!(wait(&mut child), 117);
}

fn full_disk() {
    let ran = ran(&["bench", "scale", "--vms", "1", "--rounds", "1", "--json", "/dev/full"]);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot write /dev/full: No space left on device"), "{}", ran.stderr);
}

fn too_few_descriptors() {
    let ran = shell("ulimit -n 64; exec \"$0\" bench scale --vms 5,100 --rounds 1", &[]);
    assert_error(
        &ran,
        115,
        "--vms 100 needs 232 file descriptors, but the limit is 64, which is enough for 16 VMs",
    );
}

fn unusable_file() {
    let files = Files::new();
    let folder = files.0.path().to_str().unwrap();
    assert_error(&ran(&["bench", "scale", "--json", folder]), 110, "it is a directory");
}
