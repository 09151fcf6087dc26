//! `vmm grade --vmm`: submissions that hang, flood, fork, attack the grader, or remove themselves.
#![allow(clippy::unwrap_used)]

#[path = "support/so2.rs"]
mod so2;
mod support;

use so2::{ALL, VMM, compiled, points, running};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, kvm_test, run};

fn main() -> ExitCode {
    support::watchdog();
    so2::main(vec![
        kvm_test("an_endless_program_costs_one_time_limit", endless),
        kvm_test("a_program_that_cheats_or_dies_gets_no_points", hostile),
        kvm_test("a_program_gets_only_its_standard_streams", inherited),
        kvm_test("a_signal_ends_the_grade_at_once", signals),
        kvm_test("a_child_that_stays_is_ended", left_children),
        kvm_test("a_program_that_removes_itself_loses_the_other_tasks", removed_programs),
        kvm_test("a_program_cannot_stop_or_end_or_read_the_grader", attacks),
        kvm_test("nothing_outlives_a_killed_grader", killed),
    ])
}

fn endless() {
    let began = Instant::now();
    let (points_of_none, text) = points(&["--vmm", &compiled("-DMISTAKE_ENDLESS"), "--timeout", "4"]);
    assert_eq!(points_of_none, [0; 5], "{text}");
    assert_eq!(text.matches("did not end within 4 s").count(), 1, "{text}");
    assert_eq!(text.matches("did not end within 0.2 s").count(), 3, "{text}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

fn hostile() {
    for (mistake, expected, sentence) in [
        ("CRASH", [0; 5], "SIGABRT"),
        ("FLOOD", [0; 5], "more, which were cut"),
        ("SEED", [0; 5], "it made no VM"),
        // It finds nothing that it could change.
        ("MEDDLE", ALL, "observed 26 exits"),
    ] {
        let (points, text) =
            points(&["--vmm", &compiled(&format!("-DMISTAKE_{mistake}")), "--timeout", "2", "--seed", "1"]);
        assert_eq!(points, expected, "{mistake}: {text}");
        assert!(text.contains(sentence), "{mistake}: {text}");
        assert!(text.len() < 20_000, "{mistake}: {} bytes", text.len());
    }
}

/// The program does not get a file that the caller of the grade has open.
fn inherited() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let line = "exec \"$0\" grade --vmm \"$1\" --timeout 5 9>\"$2\"";
    let ran = run(Command::new("sh")
        .args(["-c", line, VMM, &compiled("-DMISTAKE_MEDDLE")])
        .arg(&file)
        .stdout(Stdio::piped()));
    assert_eq!(ran.status, 0, "{}", ran.text());
    assert_eq!(fs::read(&file).unwrap(), b"");
}

fn signals() {
    // A program of its own, because other tests run theirs at the same time.
    let program = compiled("-DMISTAKE_ENDLESS -DSIGNALS");
    for signal in ["INT", "TERM"] {
        let mut command = Command::new(VMM);
        command
            .args(["grade", "--vmm", &program, "--timeout", "40"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let runs = || running(&program);
        while !runs() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        assert!(
            Command::new("kill")
                .arg(format!("-{signal}"))
                .arg(child.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(support::wait(&mut child), 117, "SIG{signal}");
        assert!(began.elapsed() < Duration::from_secs(20) && !runs(), "SIG{signal}");
    }
}

fn left_children() {
    let program = compiled("-DMISTAKE_FORK");
    let (points, text) = points(&["--vmm", &program]);
    assert_eq!(points, ALL, "{text}");
    assert!(!running(&program), "a child is left");
    let mut child = Command::new(VMM)
        .args(["grade", "so2", "--vmm", &program])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let name = format!("vmm-observe-{}-", child.id());
    assert_eq!(support::wait(&mut child), 0);
    let files =
        ["/dev/shm", "/tmp"].iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let left: Vec<_> =
        files.map(|file| file.path()).filter(|path| path.to_str().unwrap().contains(&name)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A VMM that removes its own file, or puts a pipe there, loses the tasks that come after that, and is no failure of the host.
fn removed_programs() {
    let (files, program) = (Files::new(), compiled(""));
    for (change, cause) in
        [("rm", "No such file or directory"), ("rm $0; mkfifo -m 777", "Permission denied")]
    {
        let script = format!("#!/bin/sh\n{program} $1\n{change} $0\n");
        let path = files.write("vmm.sh", script.as_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // In the jail it cannot.
        let (points, text) = points(&["--vmm", &path, "--jail=off"]);
        assert_eq!(points, [30, 0, 0, 0, 10], "{text}");
        assert!(text.contains(&format!("vmm.sh long: it cannot be started: {cause}")), "{text}");
        let _ = fs::remove_file(path);
    }
}

/// Signals, ptrace(2), `/proc/PID/mem` and limits: nothing reaches the grader.
fn attacks() {
    for engine in ["ptrace", "preload"] {
        let (points, text) = points(&["so2", &compiled("-DMISTAKE_ATTACK"), "--engine", engine]);
        assert_eq!(points, ALL, "{engine}: {text}");
    }
}

/// The init process of the namespace ends with the grader, and all other processes with it.
fn killed() {
    let program = compiled("-DMISTAKE_ENDLESS -DKILLED");
    let mut command = Command::new(VMM);
    command.args(["grade", "so2", &program, "--timeout", "40"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !running(&program) && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(running(&program));
    child.kill().unwrap();
    child.wait().unwrap();
    while running(&program) && began.elapsed() < Duration::from_secs(50) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!running(&program), "the program outlives the grader");
}
