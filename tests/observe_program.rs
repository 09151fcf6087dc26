//! `vmm observe`: other libraries, killed observers, files that are left, and programs that are refused.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{VMM, compile, observe, program, running};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, assert_error, kvm_test, plain_test, ran, run, wait};

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        kvm_test("another_preloaded_library_stays", other_library),
        kvm_test("the_program_outlives_the_observer", no_observer),
        kvm_test("no_vcpu_waits_for_a_killed_observer", no_answer),
        kvm_test("no_temporary_file_is_left", no_files_left),
        plain_test("the_folder_of_a_killed_observer_is_removed_by_the_next", stale_folders),
        kvm_test("children_that_still_run_are_reported", left_children),
        plain_test("programs_that_cannot_be_observed_are_refused", refused),
        plain_test("the_summary_begins_on_a_line_of_its_own", fresh_line),
    ])
}

fn other_library() {
    let files = Files::new();
    // It stands before `ioctl`, too.
    let source = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n#include <unistd.h>\n\
        static int runs;\n\
        __attribute__((constructor)) void say(void) { if (write(1, \"x\", 1)) {} }\n\
        __attribute__((destructor)) void tell(void) { if (runs) printf(\"%d\", runs), fflush(stdout); }\n\
        int ioctl(int fd, unsigned long request, void *argument) {\n\
        int (*next)(int, unsigned long, void *) = dlsym(RTLD_NEXT, \"ioctl\");\n\
        runs += request == 0xae80;\n\
        return next(fd, request, argument);\n}\n";
    let source = files.write("other.c", source.as_bytes());
    let library = compile("other.so", Path::new(&source), &["-shared", "-fPIC"]);
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "--", program(), "plain"]).env("LD_PRELOAD", library).stdout(Stdio::piped());
    let ran = run(&mut vmm);
    // Once in this program, and once in the other.
    assert_eq!((ran.status, ran.text().as_str()), (0, "xx1502"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1502 exits"), "{}", ran.stderr);
}

/// Kills the observer of a program with a path of its own, as soon as the program runs, and waits for the program. Returns
/// its output.
fn without_observer(name: &str, options: &[&str], arguments: &[&str]) -> String {
    let files = Files::new();
    let (output, own) = (files.0.path().join("output"), files.0.path().join(name));
    fs::copy(program(), &own).unwrap();
    let mut vmm = Command::new(VMM);
    vmm.arg("observe").args(options).arg("--").arg(&own).args(arguments);
    let mut child = vmm.stdout(fs::File::create(&output).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while running(&own).is_empty()
        && child.try_wait().unwrap().is_none()
        && started.elapsed() < Duration::from_secs(20)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    let folders = temporary(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    while !running(&own).is_empty() && started.elapsed() < Duration::from_secs(50) {
        std::thread::sleep(Duration::from_millis(5));
    }
    folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
    fs::read_to_string(output).unwrap()
}

/// The next observer removes the folder of one that was killed, as soon as no process uses the library.
fn stale_folders() {
    let mut vmm = Command::new(VMM);
    let line = "echo $$; exec sleep 60";
    vmm.args(["observe", "--", "sh", "-c", line]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = vmm.spawn().unwrap();
    let mut sleeper = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut sleeper).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(temporary(child.id()).len(), 1);
    let next = || assert_eq!(observe(&["--engine", "preload", "-q"], &["true"]).status, 0);
    next();
    let left = temporary(child.id());
    assert!(left.len() == 1 && left[0].join("preload.so").is_file() && !left[0].join("channel").exists());
    let sleeper = sleeper.trim();
    Command::new("kill").arg(sleeper).status().unwrap();
    let began = Instant::now();
    while Path::new("/proc").join(sleeper).join("exe").exists() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    next();
    assert_eq!(temporary(child.id()), Vec::<PathBuf>::new());
}

/// The library waits for room in its ring, and then gives up.
fn no_observer() {
    let output = without_observer("outliving", &[], &["measure", "60000"]);
    assert!(output.ends_with('\n'), "{output:?}");
}

/// A vCPU does not wait for the answer of an observer that was killed.
fn no_answer() {
    for mode in [&["dies"][..], &["refused"], &["repeat", "20"]] {
        let output = without_observer("stopping", &["--setup"], mode);
        assert_eq!(output, "", "{mode:?}");
    }
}

/// The temporary folders of an observer.
fn temporary(pid: u32) -> Vec<PathBuf> {
    let places = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mine = format!("vmm-observe-{pid}-");
    paths
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_str().is_some_and(|name| name.starts_with(&mine)))
        })
        .collect()
}

fn no_files_left() {
    for (options, command) in [
        (&["-q"][..], &[program(), "plain"][..]),
        (&["--timeout", "0.2"], &[program(), "hang"]),
        (&["-q"], &["sh", "-c", "kill -9 $$"]),
        (&["-q", "--trace-exits", "0", "--trace", "/dev/null"], &["true"]),
    ] {
        let mut vmm = Command::new(VMM);
        vmm.arg("observe").args(options).arg("--").args(command).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = vmm.spawn().unwrap();
        wait(&mut child);
        assert_eq!(temporary(child.id()), Vec::<PathBuf>::new(), "{command:?}");
    }
}

/// The library stays for what the children still execute.
fn left_children() {
    let mut vmm = Command::new(VMM);
    let line = format!("{} plain; sleep 60 >/dev/null 2>&1 & echo $!; exit 3", program());
    vmm.args(["observe", "--", "sh", "-c", &line]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = vmm.spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let sleeper = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let left = temporary(pid);
    Command::new("kill").arg(&sleeper).status().unwrap();
    // The next observer may be faster.
    left.iter().for_each(|folder| drop(fs::remove_dir_all(folder)));
    assert_eq!((output.status.code(), left.len()), (Some(3), 1), "{stderr}");
    assert!(
        stderr.contains("children of dash still run") || stderr.contains("children of sh still run"),
        "{stderr}"
    );
}

fn refused() {
    let files = Files::new();
    let executable = |name: &str, bytes: &[u8], mode: u32| {
        let path = files.write(name, bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let mut elf = fs::read(VMM).unwrap()[..64].to_vec();
    elf[18] = 0xb7;
    let arm = executable("arm", &elf, 0o755);
    elf[4] = 1;
    let narrow = executable("narrow", &elf, 0o755);
    let plain = executable("plain", b"x", 0o644);
    for (program, status, text) in [
        ("no-such-program-here", 110, "cannot run no-such-program-here: no folder of PATH has it"),
        ("./no/such/program", 110, "No such file or directory"),
        (&plain, 110, "it is not executable"),
        ("/", 110, "it is a directory"),
        ("", 110, "its name is empty"),
        (&arm, 116, "it is for another architecture"),
        (&narrow, 116, "it is for another architecture"),
    ] {
        assert_error(&observe(&[], &[program]), status, text);
    }
    let program = executable("program", b"#!/bin/sh\n", 0o755);
    assert_error(&observe(&["--profile", &format!("json={program}")], &[&program]), 110, "is also an input");
    assert_error(&observe(&["--trace", "/no/such/folder/trace"], &[&program]), 110, "/no/such/folder");
    assert_error(
        &observe(&["--trace", "/dev/null", "--trace-exits", "0"], &[&program]),
        110,
        "--trace-exits",
    );
    for arguments in [&["observe"][..], &["observe", "--"], &["observe", "--engine", "x", "--", "true"]] {
        let ran = ran(arguments);
        assert_eq!((ran.status, ran.text().as_str()), (110, ""), "{arguments:?}: {}", ran.stderr);
    }
    // Only root can give a file to another user.
    let setuid = executable("setuid", &fs::read("/bin/true").unwrap(), 0o755);
    if std::os::unix::fs::chown(&setuid, Some(1), None).is_ok() {
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_error(&observe(&[], &[&setuid]), 116, "it is a setuid or setgid program or has capabilities");
    }
}

/// On a terminal, of which script(1) makes one, blanks fill the line that the program may have left open.
fn fresh_line() {
    let on_terminal = |line: &str| {
        let mut script = Command::new("script");
        let line = format!("stty cols 40 rows 20; export TERM=vt100; {line}");
        let ran = run(script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped()));
        ran.text()
    };
    if !Command::new("script")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return eprintln!("skipped: script is not installed");
    }
    let shown = on_terminal(&format!("{VMM} observe -- printf hello"));
    let begins = format!("hello{}\rvmm: printf: exited with status 0", " ".repeat(40));
    assert!(shown.starts_with(&begins), "{shown:?}");
    // Not if the output or the summary goes elsewhere.
    for command in ["printf hello | cat", "sh -c 'printf hello' 2>&1 | cat", "printf hello > /dev/null"] {
        let shown = on_terminal(&format!("{VMM} observe -- {command}"));
        assert!(!shown.contains("  \r") && shown.contains("exited with status 0"), "{command}: {shown:?}");
    }
}
