//! `vmm report` with files that are cut short, and the files that it writes.
#![allow(clippy::unwrap_used)]

#[path = "support/reports.rs"]
mod reports;
#[path = "support/saved.rs"]
#[allow(dead_code)]
mod saved;
mod support;

use reports::{profile_in, report, table, trace_in};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, ExitCode, Stdio};
use std::{fs, thread};
use support::{
    Files, Ran, assert_error, plain_test, ran, run, shell, test_unless, vmm, wait, wait_for_handlers,
};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("a_profile_that_is_cut_short_is_status_116", cut_profiles),
        plain_test("a_trace_that_is_cut_short_is_shown_up_to_its_last_record", cut_traces),
        plain_test("an_output_file_is_complete_or_unchanged", whole_or_not),
        plain_test("of_many_writers_of_one_file_one_complete_file_stays", many_writers),
        plain_test("a_full_disk_is_status_115", full_disk),
        plain_test("an_interruption_leaves_no_partial_file", interrupted),
        plain_test("a_reader_may_close_the_pipe_early", early_leave),
        plain_test("input_and_output_may_be_pipes", pipes),
        test_unless(no_terminals, "a_page_is_not_written_to_a_terminal", terminal),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn cut_profiles() {
    let files = Files::new();
    let whole = saved::profile_file(&saved::simvirtio(1.0));
    for part in [1, 10, 40, 100, 500, 2000, 4000, whole.len() - 2] {
        let cut = files.write("cut", &whole[..part]);
        let ran = ran(&["report", &cut, "-o", &format!("{cut}.html"), "--format", "html"]);
        assert_error(&ran, 116, "/cut: the profile is damaged: EOF while parsing");
        assert!(ran.stderr.contains(" at line 1 column "), "{}", ran.stderr);
        assert!(!fs::exists(format!("{cut}.html")).unwrap());
    }
    let good = profile_in(&files, "good", &saved::simvirtio(1.0));
    let bad = files.write("bad", &whole[..99]);
    assert_error(&ran(&["report", &good, &bad]), 116, "/bad: the profile is damaged");
    assert_error(
        &ran(&["report", &files.write("none", b"")]),
        116,
        "/none: the file is not a profile or a trace",
    );
}

fn cut_traces() {
    let files = Files::new();
    let whole = saved::trace_file(&saved::boot_trace(99));
    for part in 0..64 {
        let ran = ran(&["report", &files.write("cut", &whole[..part])]);
        assert_eq!(ran.status, 116, "{}", ran.stderr);
    }
    for (records, more) in [(0, 0), (0, 47), (1, 0), (57, 13), (99, 7), (100, 0), (100, 20)] {
        let cut = files.write("cut", &whole[..64 + 48 * records + more]);
        let text = report(&[&cut]);
        assert_eq!(table(&text, "The last exits:").len(), 1 + records);
        let note = match records {
            100 => {
                "note: the trace is cut short: the names of the guest and of the devices are missing.".into()
            }
            _ => format!("note: the trace is cut short after {records} of 100 records."),
        };
        assert!(text.contains(&note), "{text}");
        for format in ["json", "csv", "html"] {
            report(&[&cut, "--format", format]);
        }
    }
}

/// Returns the names of the files in the directory.
fn names(files: &Files) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(files.0.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn whole_or_not() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::simvirtio(1.0));
    let page = files.write("page", b"before");
    fs::set_permissions(&page, fs::Permissions::from_mode(0o640)).unwrap();
    // The limit is 8 KiB, and the page has 50 KiB.
    let limited = "ulimit -f 8; exec \"$0\" report \"$1\" --format html -o \"$2\"";
    for times in 0..2 {
        let full = shell(limited, &[&profile, &page]);
        assert_error(&full, 115, &format!("cannot write {page}: File too large"));
        assert_eq!(fs::read(&page).unwrap(), b"before", "{times}");
        assert_eq!(names(&files), ["p", "page"]);
    }
    assert_eq!(report(&[&profile, "--format", "html", "-o", &page]), "");
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(&files), ["p", "page"]);
    // A report must not replace its own input, under any of its names.
    let by_another = files.0.path().join("link");
    symlink(&profile, &by_another).unwrap();
    let by_another = by_another.to_str().unwrap();
    let before = fs::read(&profile).unwrap();
    for (one, other) in [(&*profile, &*profile), (&profile, by_another), (by_another, &profile)] {
        let refused = ran(&["report", one, "-o", other]);
        assert_error(&refused, 110, "is also an input, which the result would replace");
    }
    assert_error(&ran(&["report", &page, &profile, "-o", &profile]), 110, "which the result would replace");
    assert_eq!(fs::read(&profile).unwrap(), before);
    let folder = files.0.path().to_str().unwrap();
    let again = profile_in(&files, "p", &saved::simvirtio(1.0));
    assert_error(&ran(&["report", &again, "-o", folder]), 110, "it is a directory: give the name of a file");
    assert_error(
        &ran(&["report", &again, "-o", &format!("{folder}/no/such")]),
        110,
        "create the directory, or correct the path",
    );
}

fn many_writers() {
    let files = Files::new();
    let out = files.0.path().join("out").to_str().unwrap().to_owned();
    let inputs: Vec<_> = (0..6)
        .map(|number| {
            let mut profile = saved::simvirtio(1.0);
            profile.guest = format!("guest-{number}");
            profile_in(&files, &format!("p{number}"), &profile)
        })
        .collect();
    let wholes: Vec<_> = inputs.iter().map(|input| report(&[input, "--format", "html"])).collect();
    thread::scope(|scope| {
        for input in inputs.iter().cycle().take(18) {
            scope.spawn(|| report(&[input, "--format", "html", "-o", &out]));
        }
    });
    assert!(wholes.contains(&fs::read_to_string(&out).unwrap()));
    assert_eq!(names(&files).len(), 7);
}

fn full_disk() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::simvirtio(1.0));
    for format in ["text", "json", "csv", "html"] {
        let ran = ran(&["report", &profile, "--format", format, "-o", "/dev/full"]);
        assert_error(
            &ran,
            115,
            "cannot write /dev/full: No space left on device (os error 28): free some space",
        );
    }
    let stdout = shell("exec \"$0\" report \"$1\" > /dev/full", &[&profile]);
    assert_error(&stdout, 115, "writing standard output failed: No space left on device");
}

fn interrupted() {
    let files = Files::new();
    let trace = trace_in(&files, "t", &saved::boot_trace(1_000_000));
    let out = files.write("out", b"before");
    let mut child = vmm(&["report", &trace, "-o", &out]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_handlers(&child);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(wait(&mut child), 117);
    assert_eq!(fs::read(&out).unwrap(), b"before");
    assert_eq!(names(&files), ["out", "t"]);
}

fn early_leave() {
    let files = Files::new();
    let trace = trace_in(&files, "t", &saved::boot_trace(20_000));
    for format in ["text", "json", "csv", "html"] {
        let ran = shell("\"$0\" report \"$1\" --format \"$2\" | head -c 100", &[&trace, format]);
        assert_eq!(ran.stdout.len(), 100);
        assert!(!ran.stderr.contains("panic") && ran.stderr.lines().count() <= 1, "{}", ran.stderr);
    }
}

fn pipes() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::simvirtio(1.0));
    let expected = report(&[&profile]);
    for line in [
        "\"$0\" report - < \"$1\"",
        "cat \"$1\" | \"$0\" report -",
        "cat \"$1\" | \"$0\" report /dev/stdin",
        "\"$0\" report \"$1\" -o -",
        "\"$0\" report \"$1\" -o /dev/stdout",
        "\"$0\" report \"$1\" -o /dev/stdout | cat",
    ] {
        let ran = shell(line, &[&profile]);
        assert_eq!(
            (ran.status, ran.text().as_str(), ran.stderr.as_str()),
            (0, expected.as_str(), ""),
            "{line}"
        );
    }
    let log = files.write("log", b"before\n");
    assert_eq!(shell("\"$0\" report \"$1\" -o /dev/stdout >> \"$2\"", &[&profile, &log]).status, 0);
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("before\n{expected}"));
}

/// Runs `vmm` with a terminal, which `script` provides.
fn on_terminal(arguments: &str) -> Ran {
    let mut command = Command::new("script");
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_vmm"));
    run(command.args(["-qefc", &line, "/dev/null"]).stdout(Stdio::piped()))
}

/// Returns the reason why `script` cannot provide a terminal here, such as a missing /dev/ptmx.
fn no_terminals() -> Option<String> {
    let tried = Command::new("script").args(["-qec", "true", "/dev/null"]).output();
    match tried {
        Ok(tried) if tried.status.success() => None,
        Ok(tried) => Some(format!("script: {}", String::from_utf8_lossy(&tried.stderr).trim_end())),
        Err(error) => Some(format!("script: {error}")),
    }
}

fn terminal() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::simvirtio(1.0));
    let refused = on_terminal(&format!("report {profile} --format html"));
    assert_eq!(refused.status, 110, "{}", refused.text());
    assert!(
        refused.text().contains("--format html is not for a terminal: give -o FILE"),
        "{}",
        refused.text()
    );
    assert_eq!(on_terminal(&format!("report {profile}")).status, 0);
}
