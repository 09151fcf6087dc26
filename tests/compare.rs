//! `vmm compare`: the exact exits of every row, the result files, and errors.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use support::{Files, Liar, assert_error, kvm_test, plain_test, ran, vmm, wait, wait_for_handlers};
use vmm::lab::{ComparisonError, Ring, Row, Variant, Workload, run_echoes, run_handshake, run_message};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("each_row_makes_the_expected_exits", exact_exits),
        kvm_test("the_workload_runs_over_every_queue_length", queue_lengths),
        kvm_test("a_row_has_all_values", measures),
        kvm_test("the_files_have_the_values_of_the_table", files),
        kvm_test("an_interruption_keeps_the_complete_rounds", interrupted),
        kvm_test("a_full_disk_is_status_115", full_disk),
        plain_test("a_host_without_kvm_is_status_115", without_kvm),
        plain_test("a_number_out_of_range_is_status_110", out_of_range),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

const RINGS: [Ring; 2] = [Ring::Zero, Ring::Three];

fn workload(bytes: u32, messages: u32, queue_len: u16) -> Workload {
    Workload { bytes, messages, echo: 1, queue_len }
}

/// Sends 600 bytes through queues of 256. The driver knows TX tail after the handshake, and reads it again whenever the
/// queue is full according to the last value.
fn exact_exits() {
    for ring in RINGS {
        let exits = |variant| {
            let idle = run_handshake(variant, ring, workload(600, 20, 256)).unwrap();
            let message = run_message(variant, ring, workload(600, 20, 256)).unwrap().exits - idle;
            let echoes = run_echoes(variant, ring, workload(600, 20, 256)).unwrap().exits - idle;
            (message, echoes)
        };
        // Message: 600 stores, 2 reads of TX tail on the way, 1 at the end. Echo: a store, a read of RX head, a store to
        // RX tail.
        assert_eq!(exits(Variant::Byte), (603, 60));
        // Three batches, with a read before the second and the third, and one at the end.
        assert_eq!(exits(Variant::Batch), (6, 60));
        // KVM queues 169 stores, and the next store is an exit: once before the first read, once before the second. Before
        // Linux 6.12 it sometimes queues half as many.
        let (message, echoes) = exits(Variant::Coalesced);
        assert!((5..=8).contains(&message) && echoes == 40, "{message} {echoes}");
        assert_eq!(exits(Variant::Doorbell), (0, 0));
        assert_eq!(exits(Variant::Polling), (0, 0));
    }
}

fn queue_lengths() {
    for queue_len in [2, 3, 12, 251, 4096] {
        for variant in Variant::ALL {
            for ring in RINGS {
                let workload = workload(700, 30, queue_len);
                run_message(variant, ring, workload).unwrap();
                assert_eq!(run_echoes(variant, ring, workload).unwrap().round_trips.len(), 30);
            }
        }
    }
    // Longer echoes, which wrap around the end of the queue.
    for variant in Variant::ALL {
        run_echoes(variant, Ring::Three, Workload { echo: 100, ..workload(1, 30, 256) }).unwrap();
    }
}

fn measures() {
    for variant in Variant::ALL {
        let mut row = Row::new(variant, Ring::Three);
        (0..3).for_each(|_| row.measure(workload(1000, 50, 256)).unwrap());
        assert_eq!(row.rounds(), 3);
        assert!(row.exits_per_message().is_exact() && row.exits_per_round_trip().is_exact(), "{variant}");
        assert!(row.bytes_per_second().min > 0.0 && row.round_trip(0.5).min > 0.0);
        assert!(row.round_trip(0.99).median >= row.round_trip(0.5).median);
        assert!(row.vcpu_seconds().min > 0.0);
        let own = variant.transport().shares_memory();
        assert_eq!((row.device_seconds().is_some(), row.device_busy().is_some()), (own, own));
        assert!(row.device_busy().is_none_or(|busy| (0.0..=1.0).contains(&busy)));
    }
    // An invalid queue length is an error.
    let wrong = Row::new(Variant::Byte, Ring::Zero).measure(workload(1, 1, 1));
    assert!(matches!(wrong, Err(ComparisonError::Host(_))));
}

const SHORT: [&str; 7] = ["compare", "--bytes", "600", "--messages", "20", "--rounds", "2"];

fn files() {
    let files = Files::new();
    let [json, svg] = ["json", "svg"].map(|name| files.0.path().join(name).to_str().unwrap().to_string());
    // An existing file is replaced, also if it was longer.
    files.write("json", &[b'x'; 100_000]);
    let ran = support::run(vmm(&SHORT).args(["--json", &json, "--svg", &svg]));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let document: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&document["format"], &document["version"]), (&"vmm-compare".into(), &1.into()));
    assert_eq!((&document["workload"]["bytes"], &document["rounds"]), (&600.into(), &2.into()));
    assert_eq!(document["interrupted"], false);
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    for row in rows {
        assert_eq!(row["rounds"], 2);
        assert_eq!(
            row["device_seconds"].is_null(),
            !["doorbell", "polling"].contains(&row["variant"].as_str().unwrap())
        );
        for measure in ["exits_per_message", "bytes_per_second", "round_trip_p50_ns", "vcpu_seconds"] {
            let of = |which: &str| row[measure][which].as_f64().unwrap();
            assert!(of("min") <= of("median") && of("median") <= of("max"), "{row}");
        }
    }
    assert_eq!(rows[0]["exits_per_message"]["median"], 603.0);
    // The sentences of the file are also in the text.
    for sentence in document["conclusions"].as_array().unwrap() {
        assert!(ran.text().contains(sentence.as_str().unwrap()), "{sentence}");
    }
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    for text in ["prefers-color-scheme: dark", "<title id=", "<desc id=", "polling, ring 3"] {
        assert!(picture.contains(text), "{text}");
    }
    assert!(!picture.contains("NaN") && !picture.contains("inf") && !picture.contains("href"), "{picture}");
    assert_eq!(picture.matches("<rect").count(), 2 + 3 * rows.len());
    // The rows have the order of the table, not of the option.
    let some = support::run(vmm(&SHORT).args(["--transports", "polling,byte", "--ring", "3"]));
    let names: Vec<_> = some
        .text()
        .lines()
        .skip(5)
        .take(2)
        .map(|line| line[..21].split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(names, ["store per byte 3", "polling 3"]);
}

fn interrupted() {
    let files = Files::new();
    let json = files.0.path().join("json");
    let mut command =
        vmm(&["compare", "--rounds", "1000", "--transports", "batch,polling", "--messages", "10"]);
    let mut child = command
        .arg("--json")
        .arg(&json)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_handlers(&child);
    thread::sleep(Duration::from_millis(700));
    // Not SIGINT: tests that run in the background of a shell inherit that it is ignored.
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(wait(&mut child), 117);
    let document: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&document["interrupted"], &document["rounds"]), (&true.into(), &1000.into()));
}

fn full_disk() {
    for option in ["--json", "--svg"] {
        let ran = support::run(vmm(&SHORT).args(["--transports", "batch", option, "/dev/full"]));
        assert_eq!(ran.status, 115, "{}", ran.stderr);
        let sentence = "vmm: error: cannot write /dev/full: No space left on device";
        assert!(ran.stderr.starts_with(sentence) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        assert!(ran.text().contains("store per batch"), "the table is printed nevertheless");
    }
}

/// The fake host answers ioctls, and opening `/dev/kvm` is not an ioctl. So the test fakes another version of the KVM API.
fn without_kvm() {
    let liar = Liar::new();
    let ran = liar.run("ae00 -1 11 0 0 1000", &["compare"]);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("vmm: error: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
}

fn out_of_range() {
    for (option, value) in [
        ("--bytes", "0"),
        ("--bytes", "16777217"),
        ("--bytes", "18446744073709551615"),
        ("--messages", "0"),
        ("--messages", "100001"),
        ("--rounds", "0"),
        ("--rounds", "4294967297"),
        ("--queue-len", "1"),
        ("--queue-len", "4097"),
    ] {
        assert_error(&ran(&["compare", option, value]), 110, &format!("{option} must be "));
    }
    assert_eq!(ran(&["compare", "--transports", "pigeon"]).status, 110);
    assert_eq!(ran(&["compare", "--ring", "1"]).status, 110);
}
