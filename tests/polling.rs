//! The default transport of SIMVIRTIO: exits, or polling in a build with the feature `polling`.
//!
//! `make test` runs these tests in both builds. All other tests run in the default build only: they choose the transport
//! themselves, or their results do not depend on it.
#![allow(clippy::unwrap_used)]

mod support;

use report::SavedProfile;
use std::fs;
use std::process::ExitCode;
use support::{Files, embedded, find, machine_test, plain_test, ran, run_machine};
use vmm::device::Transport;

/// True in a build with the feature.
const POLLING: bool = cfg!(feature = "polling");

/// The exits of the guest `simvirtio` by exits and by polling.
const BY_EXIT: u64 = 40;
const BY_POLLING: u64 = 1;
const BY_DEFAULT: u64 = if POLLING { BY_POLLING } else { BY_EXIT };

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("version_and_help_show_the_default", texts),
        machine_test("the_library_uses_the_default", library),
        machine_test("the_program_uses_the_default", program),
        machine_test("the_option_has_priority_over_the_default", option),
        machine_test("other_guests_run_with_the_default", other_guests),
        machine_test("both_grades_are_100", grades),
        machine_test("a_wrong_image_loses_its_points", wrong_images),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn texts() {
    assert_eq!(ran(&["--version"]).text().contains("polling"), POLLING);
    let help = ran(&["run", "--help"]).text();
    let option = help.split("--transport ").nth(1).expect("the option");
    let default =
        option.split("[default: ").nth(1).and_then(|text| text.split(']').next()).expect("its default");
    assert!(default.starts_with("exit") && default.contains("polling"), "{default}");
}

fn library() {
    for (default, exits) in [(Transport::Exit, BY_EXIT), (Transport::Polling, BY_POLLING)] {
        let builder = || embedded(find("simvirtio"), None).default_transport(default);
        let (report, output) = run_machine(builder());
        assert_eq!(output, b"Ana are mere");
        assert_eq!(report.profile.unwrap().total().exits, exits);
        // The machine's own transport has priority.
        let (report, _) = run_machine(builder().transport(Some(Transport::Exit)));
        assert_eq!(report.profile.unwrap().total().exits, BY_EXIT);
    }
}

/// Runs the guest `simvirtio` with these options and returns its number of exits.
fn exits(options: &[&str]) -> u64 {
    let files = Files::new();
    let profile = files.write("profile", b"");
    let json = format!("json={profile}");
    let ran = ran(&[&["run", "simvirtio", "--profile", &json], options].concat());
    assert_eq!((ran.status, ran.text().as_str()), (0, "Ana are mere"), "{}", ran.stderr);
    SavedProfile::read(&fs::read(&profile).unwrap()).unwrap().machine.exits
}

fn program() {
    assert_eq!(exits(&[]), BY_DEFAULT);
}

fn option() {
    assert_eq!(exits(&["--transport", "exit"]), BY_EXIT);
    assert_eq!(exits(&["--transport", "polling"]), BY_POLLING);
}

/// Guests that do not use SIMVIRTIO, or have too much memory for it.
fn other_guests() {
    for (guest, status) in [
        ("real16-42", 0),
        ("hello-kvm", 0),
        ("smp-counter", 0),
        ("kev-hypercall", 0),
        ("long64-exit-code", 7),
    ] {
        let ran = ran(&[guest]);
        assert_eq!(ran.status, status, "{guest}: {}", ran.stderr);
    }
    assert_eq!(ran(&["long64-endless", "--timeout", "0.1"]).status, 114);
}

fn grades() {
    for course in ["so2", "kev"] {
        let grade = ran(&["grade", course, "--reference", "--timeout", "20"]);
        assert_eq!(grade.status, 0, "{course}: {}", grade.text());
        assert!(grade.text().lines().any(|line| line.trim() == "100/100"), "{course}: {}", grade.text());
    }
}

fn wrong_images() {
    let files = Files::new();
    for (option, guest) in [
        ("--guest16", "real16-endless"),
        ("--guest64", "long64-triple-fault"),
        ("--simvirtio", "simvirtio-config-first"),
    ] {
        let grade = ran(&["grade", "--timeout", "2", option, &files.guest(guest)]);
        assert_eq!(grade.status, 111, "{guest}: {}", grade.text());
    }
}
