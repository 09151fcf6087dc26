//! `vmm exercise`: an example that is right, and mistakes with their places.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::ExitCode;
use support::{Files, assert_error, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("the_example_passes_its_check", example),
        plain_test("each_mistake_has_its_place", mistakes),
        plain_test("what_no_submission_can_meet_is_a_mistake", impossible),
        plain_test("the_document_shows_right_exercises", documented),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn example() {
    let files = Files::new();
    let path = files.0.path().join("sum.toml").display().to_string();
    let written = ran(&["exercise", "new", &path]);
    assert_eq!((written.status, written.text().as_str()), (0, ""), "{}", written.stderr);
    let checked = ran(&["exercise", "check", &path]);
    assert_eq!(checked.status, 0, "{}", checked.stderr);
    assert!(
        checked.text().ends_with("right: \"Sum of two numbers\" has 1 task, 3 checks and 60 points\n"),
        "{}",
        checked.text()
    );
    assert_eq!(ran(&["exercise", "new"]).text(), fs::read_to_string(&path).unwrap());
    assert_error(&ran(&["exercise", "new", &path]), 110, "give the name of a new file");
}

fn mistakes() {
    let files = Files::new();
    let right = ran(&["exercise", "new"]).text();
    let wrong = right.replace("timeout = 5", "tiemout = 5").replace("points = 20", "points = 61");
    let path = files.write("sum.toml", wrong.as_bytes());
    let checked = ran(&["exercise", "check", &path]);
    assert_eq!((checked.status, checked.text().as_str()), (116, ""), "{}", checked.stderr);
    let line = |text: &str| 1 + wrong.lines().position(|line| line.starts_with(text)).unwrap();
    let lines: Vec<_> = checked.stderr.lines().collect();
    assert_eq!(
        lines,
        [
            format!(
                "vmm: error: {path}:{}:1: there is no key tiemout here: did you mean timeout?",
                line("tiemout")
            ),
            format!("vmm: error: {path}:{}:10: points must be a number from 0 to 60", line("points = 61")),
        ]
    );
    assert_error(&ran(&["exercise", "check", "/nowhere"]), 110, "there is no exercise /nowhere");
    assert_error(&ran(&["exercise", "check", "/"]), 116, "cannot read /: it is not a regular file");
}

/// These would cost every submission its points.
fn impossible() {
    const RIGHT: &str = "version = 1\nname = \"x\"\n[run]\nmode = \"real\"\naddress = 0x1000\n[[task]]\nname = \"t\"\n\
                         points = 10\nfile = \"t.bin\"\ninput = \"abc\"\n[[task.check]]\nexits = \"<=9\"\n";
    let files = Files::new();
    let checked = |from: &str, to: &str| {
        let text = RIGHT.replace(from, to);
        assert!(from == to || text != RIGHT, "{from}");
        ran(&["exercise", "check", &files.write("one.toml", text.as_bytes())])
    };
    let right = checked("", "");
    assert_eq!(right.status, 0, "{}", right.stderr);
    for (from, to, message) in [
        (
            "address = 0x1000",
            "address = 0x200000",
            "one.toml:5:1: a guest in real mode begins below 0x10000: give another address",
        ),
        (
            "mode = \"real\"",
            "mode = \"real\"\nmemory = 3000001",
            "one.toml:5:1: memory must be a multiple of 4K",
        ),
        (
            "mode = \"real\"",
            "mode = \"real\"\nmachine = \"bios\"",
            "one.toml:4:1: the machine \"bios\" starts from a boot disk",
        ),
        (
            "mode = \"real\"",
            "mode = \"real\"\nmachine = \"pc\"\ntransport = \"exit\"",
            "one.toml:6:1: SIMVIRTIO, whose transport this is, is a device of the machine \"bare\"",
        ),
        (
            "mode = \"real\"",
            "mode = \"real\"\nmemory = \"2M\"\ntransport = \"exit\"",
            "one.toml:5:1: a guest with SIMVIRTIO has 1 MiB of memory",
        ),
        (
            "mode = \"real\"",
            "mode = \"real\"\ncpus = 2\ntransport = \"coalesced\"",
            "one.toml:5:1: the transport \"coalesced\" needs one vCPU",
        ),
        ("mode = \"real\"", "mode = \"real\"\nmemory = \"64K\"", "memory must be a size from 1M to 3G"),
        (
            "<=9",
            "simvirtioo<=9",
            "one.toml:12:9: no submission can meet this: exits at simvirtioo the machine has no such device",
        ),
        (
            "<=9",
            "PIO ouut 0xe9<=9",
            "one.toml:12:9: no submission can meet this: exits at PIO ouut 0xe9 the machine has no such device",
        ),
        (
            "exits = \"<=9\"",
            "expect = \"u16@0x4000000=8\"",
            "one.toml:12:10: no submission can meet this: u16@0x4000000 there is no memory",
        ),
        ("exits = \"<=9\"", "memory = { at = 0x4000000, text = \"a\" }", "there is no memory"),
        (
            "input = \"abc\"",
            "input = \"abc\"\ninput_at = 0xffffe",
            "one.toml:11:1: input_at = 0xffffe: the guest has no memory",
        ),
        (
            "input = \"abc\"",
            "input = \"abc\"\ninput_at = 0xffd",
            "one.toml:11:1: input_at = 0xffd: the input of 4 bytes would overwrite the code, which begins at 0x1000",
        ),
    ] {
        assert_error(&checked(from, to), 116, message);
    }
}

/// Each block of TOML in the document that has a version is an exercise.
fn documented() {
    let files = Files::new();
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exercises.md");
    let text = fs::read_to_string(document).unwrap();
    let blocks = text.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let exercises: Vec<_> = blocks.filter(|block| block.contains("version = 1")).collect();
    assert!(!exercises.is_empty());
    for exercise in exercises {
        let checked = ran(&["exercise", "check", &files.write("a.toml", exercise.as_bytes())]);
        assert_eq!(checked.status, 0, "{exercise}\n{}", checked.stderr);
    }
}
