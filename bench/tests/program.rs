//! Runs the program as a user does: its list, usage errors, and one round of the quick measurements.
#![allow(missing_docs)]

#[path = "../../tests/support/kvm.rs"]
#[allow(dead_code)]
mod kvm;

use kvm::{kvm_test, plain_test, unusable};
use libtest_mimic::Arguments;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

fn main() -> ExitCode {
    let tests = vec![
        plain_test("the_list_has_a_line_for_each_measurement", list),
        plain_test("an_unknown_name_or_option_is_a_usage_error", usage),
        plain_test("a_host_without_kvm_is_status_115_and_one_line", host_without_kvm),
        kvm_test("one_round_of_exits_gives_all_rows_a_picture_and_json", one_round),
        kvm_test("a_missing_program_is_reported_and_left_out", missing_program),
        kvm_test("without_a_running_qemu_only_its_side_is_left_out", crashing_qemu),
        kvm_test("a_cpu_model_that_crashes_qemu_is_replaced", other_cpu_model),
        plain_test("a_reader_may_close_the_pipe", closed_pipe),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn list() {
    let listed = bench(&["--list"]);
    assert!(listed.status.success());
    let list = text(&listed.stdout);
    for name in ["exits", "cold", "echo", "scale", "size", "qemu"] {
        assert!(list.lines().any(|line| line.starts_with(name) && line.contains("rounds")), "{list}");
    }
}

fn usage() {
    for wrong in [
        &["--only", "nothing"][..],
        &["--rounds", "0"],
        &["--frobnicate"],
        &["--json", "/"],
        &["--json", "a", "--svg", "a"],
    ] {
        let refused = bench(wrong);
        assert_eq!(refused.status.code(), Some(110), "{wrong:?}: {}", text(&refused.stderr));
    }
}

/// Checks a host without KVM; on any other host it has nothing to check.
fn host_without_kvm() {
    let Some(reason) = unusable() else { return };
    let ran = bench(&["--only", "exits", "--rounds", "1"]);
    assert_eq!(ran.status.code(), Some(115));
    assert_eq!(text(&ran.stderr), format!("bench: error: {reason}\n"));
}

/// One round of `exits` runs each access in all machines, and checks the number of exits.
fn one_round() {
    let folder = std::env::temp_dir().join(format!("vmm-bench-test-{}", std::process::id()));
    let (json, svg) = (folder.join("deep/results.json"), folder.join("bench.svg"));
    let paths = [json.to_str().expect("UTF-8"), svg.to_str().expect("UTF-8")];
    let ran = bench(&["--only", "exits", "--rounds", "1", "--json", paths[0], "--svg", paths[1]]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let results: serde_json::Value =
        serde_json::from_slice(&fs::read(&json).expect("written")).expect("JSON");
    let rows = results["rows"].as_array().expect("rows");
    let ids: Vec<_> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    for access in ["pio-write", "pio-read", "mmio-write", "mmio-read", "msr-write", "msr-read"] {
        for what in ["", "-plain", "-profile", "-control"] {
            assert!(ids.contains(&format!("exit-{access}{what}").as_str()), "{access}{what} of {ids:?}");
        }
    }
    assert!(rows.iter().all(|row| row["measured"]["ours"]["median"].as_f64().is_some_and(|cost| cost > 0.0)));
    assert!(fs::read_to_string(&svg).expect("written").starts_with("<svg "));
    assert!(
        text(&ran.stdout).contains("| CPU time per exit, profile on, relative to the bare loop |"),
        "{}",
        text(&ran.stdout)
    );
    fs::remove_dir_all(&folder).expect("removed");
}

fn missing_program() {
    let ran = bench(&["--only", "size", "--rounds", "1", "--vmm", "/no/such/vmm"]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let (stderr, table) = (text(&ran.stderr), text(&ran.stdout));
    assert!(stderr.contains("size: not measured: /no/such/vmm does not exist: run cargo build"), "{stderr}");
    assert!(table.contains("Not measured: size: /no/such/vmm does not exist"), "{table}");
}

/// Runs one round of `size` and `qemu` with a shell script as QEMU. Returns what it printed on stderr, and the JSON.
fn with_qemu(script: &str) -> (String, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let qemu = folder.path().join("qemu-system-x86_64");
    fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("executable");
    let json = folder.path().join("results.json");
    let vmm = Path::new(env!("CARGO_BIN_EXE_bench")).with_file_name("vmm");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["--only", "size", "--only", "qemu", "--rounds", "1", "--json"]).arg(&json);
    command.arg("--vmm").arg(vmm).env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
    let ran = command.output().expect("it starts");
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let results = serde_json::from_slice(&fs::read(&json).expect("written")).expect("JSON");
    (text(&ran.stderr), results)
}

const QEMU_ROWS: [&str; 5] = ["peak-memory", "program-size", "qemu-start", "qemu-console", "qemu-register"];

/// Like QEMU on some AMD hosts.
fn crashing_qemu() {
    let (stderr, results) = with_qemu("echo \"failed to set MSR 0x10a\" >&2; kill -ABRT $$");
    let rows = results["rows"].as_array().expect("rows");
    let ids: Vec<_> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(ids, QEMU_ROWS, "{stderr}");
    for row in rows {
        assert!(row["measured"]["ours"]["median"].is_number(), "{row}");
        assert!(row["measured"]["other"].is_null() && row["other"].is_null(), "{row}");
    }
    for (skipped, name) in results["skipped"].as_array().expect("a list").iter().zip(["size", "qemu"]) {
        assert_eq!(skipped["what"], format!("QEMU's side of {name}"));
        let why = skipped["why"].as_str().expect("a reason");
        assert!(why.contains("signal: 6") && why.contains("failed to set MSR 0x10a"), "{why}");
    }
    assert!(stderr.contains("QEMU's side of size: not measured: "), "{stderr}");
}

/// The script ends like a guest that writes 0 to isa-debug-exit, except with the model `host`.
fn other_cpu_model() {
    let (stderr, results) =
        with_qemu("case \"$*\" in *\"-cpu host -m\"*) kill -ABRT $$;; esac\n[ \"$1\" = -M ] && exit 1");
    let rows = results["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), QEMU_ROWS.len(), "{stderr}");
    assert!(rows.iter().all(|row| row["measured"]["other"]["median"].is_number()), "{rows:?}");
    assert_eq!(results["skipped"], serde_json::json!([]));
}

fn closed_pipe() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let ran = command
        .arg("--list")
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .output()
        .expect("it starts");
    assert!(ran.status.success(), "{}", text(&ran.stderr));
}
