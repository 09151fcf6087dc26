//! `vmm grade kev`: right guests get their points, and a wrong guest loses only its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use support::{Files, assert_error, each_on_both, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![plain_test("an_option_for_another_course_is_refused", misplaced_options)];
    tests.extend(each_on_both(&[
        ("a_wrong_guest_loses_only_its_own_points", wrong_guests),
        ("right_guests_get_their_points", right_guests),
        ("a_guest_that_makes_no_trap_gets_no_points", silent_guests),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Grades `image` as the guest `name`, and a right guest beside it. Returns the first line without points, the number of
/// these lines, and the exit status.
fn line(name: &str, image: &str) -> (String, usize, i32) {
    let files = Files::new();
    let right = if name == "kev-ports" { "kev-msr-fault" } else { "kev-ports" };
    let guests = [format!("{name}={image}"), format!("{right}={}:long", files.guest(right))];
    let grade = ran(&["grade", "kev", "--timeout", "5", "--guest", &guests[0], "--guest", &guests[1]]);
    let text = grade.text();
    let lost: Vec<_> = text.lines().filter(|line| line.starts_with("  0/5 ")).collect();
    assert!(text.ends_with(if lost.is_empty() { "\n 10/10\n" } else { "\n  5/10\n" }), "{text}");
    (lost.first().map(ToString::to_string).unwrap_or_default(), lost.len(), grade.status)
}

fn wrong_guests() {
    let files = Files::new();
    // mov eax, 42; mov [0x400], eax; hlt: the right result, but no trap.
    let silent =
        format!("{}@0x1000", files.write("silent", &[0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4]));
    let port = files.guest("kev-port");
    for (name, image, text) in [
        ("kev-hypercall", &port, "must make an exit hypercall 0x1"),
        ("kev-port", &files.guest("kev-hypercall"), "must make an exit PIO out 0xe9"),
        ("kev-mmio", &silent, "must print"),
        ("kev-halt", &silent, "must end like kev-halt: exited with code 51966 (0xcafe) (halted; "),
        ("kev-strings", &silent, "must make an exit PIO out 0xbb"),
        ("kev-msr", &silent, "must make an exit WRMSR 0xabc"),
        ("kev-vmcall", &silent, "must make an exit PIO out 0x42"),
        ("kev-cpuid", &files.guest("real16-wrong-result"), ""),
        (
            "smp-counter",
            &files.guest("smp-stop"),
            "must end like smp-counter: halted, with 42 as its result (exited ",
        ),
        ("kev-msr", &files.write("empty", b""), "the image is empty"),
    ] {
        let (line, lost, status) = line(name, image);
        assert_eq!((lost, status), (1, 111), "{name}: {line}");
        assert!(line.contains(text), "{name}: {line}");
    }
}

/// These errors are reported before `/dev/kvm` is opened.
fn misplaced_options() {
    assert_error(
        &ran(&["grade", "kev", "--guest", "real16-42=x"]),
        110,
        "--guest must be NAME=IMAGE, not real16-42=x",
    );
    assert_error(&ran(&["grade", "kev", "--guest16", "x"]), 110, "--guest NAME=IMAGE");
    assert_error(&ran(&["grade", "--guest", "kev-msr=x"]), 110, "is for `vmm grade kev`");
    let twice = ["grade", "kev", "--guest", "kev-msr=a", "--guest", "kev-msr=b"];
    assert_error(&ran(&twice), 110, "--guest replaces kev-msr twice");
    // A file that cannot be read costs no points: there is no grade.
    let missing = ["grade", "kev", "--guest", "kev-msr=/no/such/file"];
    assert_error(&ran(&missing), 110, "cannot read /no/such/file: No such file");
}

fn right_guests() {
    let files = Files::new();
    for name in ["kev-hypercall16", "kev-msr-rules", "smp-print", "kev-halt"] {
        let (line, lost, status) = line(name, &files.guest(name));
        assert_eq!((lost, status), (0, 0), "{name}: {line}");
    }
    let grade = ran(&["grade", "kev", "--reference"]);
    assert_eq!(grade.status, 0, "{}", grade.text());
    assert!(grade.text().ends_with("100/100\n") && grade.text().lines().count() == 21, "{}", grade.text());
}

/// The guests leave 42 in the right mode, but make no trap.
fn silent_guests() {
    let files = Files::new();
    let wide = files.write("wide", &[0xb8, 42, 0, 0, 0, 0x89, 0x04, 0x25, 0, 4, 0, 0, 0xf4]);
    let protected = files.write("protected", &[0xb8, 42, 0, 0, 0, 0xa3, 0, 4, 0, 0, 0xf4]);
    let real = files.write("real", &[0xb8, 42, 0, 0xa3, 0, 4, 0xf4]);
    let grade = ran(&["grade", "kev", "--reference"]).text();
    let names = grade.lines().filter_map(|line| line.split("+ ").nth(1)?.split(" (built-in").next());
    let mut arguments = vec!["grade".to_string(), "kev".into()];
    for name in names {
        let file = match name {
            "kev-hypercall16" => &real,
            "kev-hypercall32" => &protected,
            _ => &wide,
        };
        let image = format!("{name}={file}@0x1000");
        if !arguments.contains(&image) {
            arguments.extend(["--guest".into(), image]);
        }
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let grade = ran(&arguments);
    let earned: Vec<_> =
        grade.text().lines().filter(|line| line.starts_with("  5/5")).map(str::to_string).collect();
    // The line about the counts per vCPU is for the built-in guest.
    assert_eq!((earned.len(), grade.status), (0, 111), "{}", grade.text());
    assert!(grade.text().ends_with("\n  0/95\n"), "{}", grade.text());
}
