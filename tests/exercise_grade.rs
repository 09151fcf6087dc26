//! `vmm grade EXERCISE SUBMISSION`: the example exercise with its ten submissions, and wrong command lines.
#![allow(clippy::unwrap_used)]

#[path = "support/sum.rs"]
mod sum;
mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use sum::{SUM, assembled};
use support::{Files, Ran, assert_error, each_on_both, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("the_exercise_is_short", short),
        plain_test("wrong_command_lines_are_usage_errors", usage),
    ];
    tests.extend(each_on_both(&[
        ("ten_submissions_get_the_points_of_the_table", submissions),
        ("the_evidence_says_what_was_expected_and_seen", evidence),
        ("a_seed_repeats_a_grade", seeds),
        ("hidden_checks_show_no_details", hidden),
        ("conditions_of_all_kinds_are_checked", kinds),
        ("an_exercise_that_does_not_suit_its_machine_gives_no_grade", unsuitable),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn grade(submission: &Path, seed: &str) -> Ran {
    ran(&["grade", &format!("{SUM}/exercise.toml"), submission.to_str().unwrap(), "--seed", seed])
}

fn short() {
    let text = fs::read_to_string(format!("{SUM}/exercise.toml")).unwrap();
    assert!(text.lines().count() < 30);
    let checked = ran(&["exercise", "check", &format!("{SUM}/exercise.toml")]);
    assert!(checked.text().contains("2 tasks, 6 checks and 100 points"), "{}", checked.stderr);
}

fn submissions() {
    let files = Files::new();
    assembled(&files);
    assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 10);
    for (name, points) in sum::expected() {
        let graded = grade(&files.0.path().join(&name), "1");
        let text = graded.text();
        assert!(text.ends_with(&format!("{points:>3}/100\n")), "{name}: {text}{}", graded.stderr);
        assert_eq!(graded.status, if points == 100 { 0 } else { 111 }, "{name}: {text}");
        assert_eq!(graded.stderr, "vmm: --seed 1 repeats this grade\n", "{name}");
    }
}

fn evidence() {
    let files = Files::new();
    assembled(&files);
    let text = |name: &str| grade(&files.0.path().join(name), "1").text();
    for (name, part) in [
        ("right", "40/40  small numbers\n        + the run ended: halted\n        + the output is \""),
        ("right", "+ exits are at most 12: there were "),
        ("right", "+ no 32-bit code: the mode at each exit is real\n"),
        ("many-exits", "- exits must be at most 12, and there were "),
        ("many-exits", "; costs 10 points\n"),
        (
            "protected-mode",
            "- no 32-bit code: the mode at each exit must be real or long, and is protected; costs 10 points\n",
        ),
        ("signed", "differs at line 1, column 1 (offset 0): \""),
        ("no-line-end", "and the output ends"),
        (
            "endless",
            "- the run must end by itself (a halt, exit code 0, or a power-off), and ended: timeout: the guest did not end within 1 s (timeout of the exercise)",
        ),
        ("missing", "- not handed in: there is no file sum.bin\n"),
    ] {
        let text = text(name);
        assert!(text.contains(part), "{name}: {text}");
    }
    // A file is a submission, too, whatever its name is.
    let file = files.0.path().join("other@0x0:64");
    fs::copy(files.0.path().join("right/sum.bin"), &file).unwrap();
    assert!(grade(&file, "1").text().ends_with("100/100\n"));
    let empty = files.write("empty", b"");
    let graded = grade(Path::new(&empty), "1").text();
    assert!(graded.contains("the image is empty") && graded.ends_with("  0/100\n"), "{graded}");
    // The student does not know the folder in which the file is graded.
    assert!(!graded.contains(files.0.path().to_str().unwrap()), "{graded}");
    fs::File::create(files.0.path().join("sparse")).unwrap().set_len(20 << 30).unwrap();
    let graded = grade(&files.0.path().join("sparse"), "1").text();
    assert!(graded.contains("fit into the guest's memory\n") && graded.ends_with("  0/100\n"), "{graded}");
}

fn seeds() {
    let files = Files::new();
    assembled(&files);
    let text = |seed: &str| grade(&files.0.path().join("signed"), seed).text();
    assert_eq!(text("5"), text("5"));
    assert_ne!(text("5"), text("6"));
}

/// An exercise with these lines for the checks of a guest that prints 42 and leaves it in AX and at 0x400.
fn answered(files: &Files, checks: &str) -> Ran {
    let text = format!(
        "version = 1\nname = \"x\"\n[run]\nmode = \"real\"\naddress = 0x1000\n[[task]]\nname = \"t\"\npoints = 10\nfile = \"a.bin\"\n\
         registers = {{ bx = 42 }}\n{checks}"
    );
    // mov ax, bx; mov [0x400], ax; mov al, '4'; out 0xe9, al; mov al, '2'; out 0xe9, al; mov ax, bx; hlt
    let code =
        [0x89, 0xd8, 0xa3, 0x00, 0x04, 0xb0, b'4', 0xe6, 0xe9, 0xb0, b'2', 0xe6, 0xe9, 0x89, 0xd8, 0xf4];
    ran(&["grade", &files.write("a.toml", text.as_bytes()), &files.write("a.bin", &code), "--seed", "1"])
}

fn hidden() {
    let files = Files::new();
    let checks = "[[task.check]]\npoints = 3\noutput = \"43\"\nvisibility = \"hidden\"\n\
        [[task.check]]\npoints = 2\nname = \"last\"\nexpect = \"ax=7\"\nvisibility = \"after-deadline\"\n\
        [[task.check]]\nexits = \"=3\"\nvisibility = \"hidden\"\n";
    let graded = answered(&files, checks);
    assert_eq!(
        graded.text(),
        "  5/10  t\n        + the run ended: halted\n        - check 1 (hidden); costs 3 points\n        - last (hidden); costs 2 points\n        \
         + check 3 (hidden)\n  5/10\n"
    );
}

fn kinds() {
    let files = Files::new();
    fs::write(files.0.path().join("out"), "42").unwrap();
    let checks = "[[task.check]]\noutput_file = \"out\"\ncontains = [\"4\", \"2\"]\nmatches = \"^[0-9]{2}$\"\n\
        expect = [\"ax=42\", \"u16@0x400=42\", \"end=halt\", \"mode=16\"]\nexits = [\"<=3\", \"port 0xe9=2\"]\n\
        memory = { at = 0x400, hex = \"2a00\" }\n";
    let graded = answered(&files, checks);
    assert_eq!(graded.status, 0, "{}{}", graded.text(), graded.stderr);
    let checks =
        "[[task.check]]\ncontains = \"43\"\nmatches = \"^x\"\nmemory = { at = 0x400, text = \"A\" }\n";
    let text = answered(&files, checks).text();
    for part in [
        "must contain \"43\", and is \"42\" (2 bytes)",
        "must match \"^x\", and is",
        "memory at 0x400 must hold 41, and holds 2a",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

fn unsuitable() {
    let files = Files::new();
    let checks = "input = \"x\"\ninput_at = 0xf0000000\n[[task.check]]\nexits = \"=3\"\n";
    let graded = answered(&files, checks);
    assert_eq!((graded.status, graded.text().as_str()), (116, ""), "{}", graded.stderr);
    assert!(
        graded.stderr.contains("a.toml:12:1: input_at = 0xf0000000: the guest has no memory"),
        "{}",
        graded.stderr
    );
}

fn usage() {
    let files = Files::new();
    let exercise = format!("{SUM}/exercise.toml");
    let image = files.write("a.bin", &[0xf4]);
    assert_error(&ran(&["grade", &exercise]), 110, "there is nothing to grade: give the submission");
    assert_error(&ran(&["grade", &exercise, "/nowhere"]), 110, "there is no submission /nowhere");
    assert_error(&ran(&["grade", "/nowhere.toml", &image]), 110, "there is no exercise /nowhere.toml");
    for option in [
        &["--guest16", "x"][..],
        &["--timeout", "3"],
        &["--own-guests"],
        &["--finished", "x"],
        &["--run", "real=x"],
        &["--vmm", "x"],
    ] {
        let refused = ran(&[&["grade", &exercise], option].concat());
        assert_error(&refused, 110, &format!("{} is not for an exercise in a file", option[0]));
    }
    let wrong = files.write("wrong.toml", b"version = 2\n");
    let refused = ran(&["grade", &wrong, &image]);
    assert_eq!(refused.status, 116, "{}", refused.stderr);
}
