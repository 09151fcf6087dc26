//! Runs the program as a user does: its list, usage errors, and one round of the quick measurements.
#![allow(missing_docs)]

use std::fs;
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_list_has_a_line_for_each_measurement() {
    let listed = bench(&["--list"]);
    assert!(listed.status.success());
    let list = text(&listed.stdout);
    for name in ["exits", "cold", "echo", "scale", "size", "qemu"] {
        assert!(list.lines().any(|line| line.starts_with(name) && line.contains("rounds")), "{list}");
    }
}

#[test]
fn unknown_names_and_options_are_usage_errors() {
    for wrong in [&["--only", "nothing"][..], &["--rounds", "0"], &["--frobnicate"]] {
        let refused = bench(wrong);
        assert_eq!(refused.status.code(), Some(110), "{wrong:?}: {}", text(&refused.stderr));
    }
}

/// One round of `exits` runs each access in all machines, and checks the number of exits.
#[test]
fn one_round_of_exits_writes_all_rows_a_plot_and_json() {
    let folder = std::env::temp_dir().join(format!("vmm-bench-test-{}", std::process::id()));
    let (json, svg) = (folder.join("deep/results.json"), folder.join("bench.svg"));
    let paths = [json.to_str().expect("UTF-8"), svg.to_str().expect("UTF-8")];
    let ran = bench(&["--only", "exits", "--rounds", "1", "--json", paths[0], "--svg", paths[1]]);
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: /dev/kvm cannot be opened");
        assert_eq!(ran.status.code(), Some(115));
        assert_eq!(text(&ran.stderr).lines().count(), 1, "{}", text(&ran.stderr));
        return;
    }
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

#[test]
fn a_missing_program_is_reported_and_its_measurement_is_skipped() {
    let ran = bench(&["--only", "size", "--rounds", "1", "--vmm", "/no/such/vmm"]);
    match ran.status.code() {
        Some(115) => eprintln!("skipped: guests cannot run on this host: {}", text(&ran.stderr)),
        _ => {
            assert!(ran.status.success());
            let (messages, table) = (text(&ran.stderr), text(&ran.stdout));
            assert!(
                messages.contains("size: not measured: /no/such/vmm does not exist: run cargo build"),
                "{messages}"
            );
            assert!(table.contains("Not measured: size: /no/such/vmm does not exist"), "{table}");
        }
    }
}
