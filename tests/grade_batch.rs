//! `vmm grade EXERCISE SUBMISSION...`: batches: their points, outputs and options.
#![allow(clippy::unwrap_used)]

#[path = "support/class.rs"]
mod class;
#[path = "support/sum.rs"]
mod sum;
mod support;

use class::{Class, earned, grades};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use support::{assert_error, each_on_both, missing, on_terminal, plain_test, ran, run, test_unless};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("wrong_command_lines_are_usage_errors", usage),
        plain_test("outputs_are_not_in_submissions", places),
        plain_test("few_open_files_are_fewer_jobs", few_files),
        test_unless(|| missing("script"), "a_terminal_shows_the_progress", terminal),
    ];
    tests.extend(each_on_both(&[
        ("a_batch_gives_the_points_of_the_table", points),
        ("hidden_details_are_for_the_teacher", hidden),
        ("names_are_safe_and_different", names),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn points() {
    let class = Class::new();
    let files = ["results", "feedback"].map(|name| class.path(name));
    let graded = class.grade(
        &class.all(),
        &["--jobs", "4", "--results", &files[0], "--feedback", &files[1], "--format", "text"],
    );
    assert_eq!((graded.status, graded.stderr.as_str()), (111, "vmm: --seed 1 repeats these grades\n"));
    let text = graded.text();
    let rows: Vec<&str> = text.lines().rev().take(12).collect();
    for (number, (name, points)) in (1..).zip(sum::expected().iter().rev()) {
        let row: Vec<&str> = rows[number].split_whitespace().collect();
        assert!(row[0].ends_with(name.as_str()) && row[3] == format!("{points}/100"), "{text}");
        let feedback = fs::read_to_string(format!("{}/{name}.txt", files[1])).unwrap();
        assert!(feedback.starts_with("Sum of two numbers: "), "{feedback}");
        assert!(feedback.ends_with(&format!("{points:>3}/100\n")), "{feedback}");
        assert!(text.contains(&format!("{}:\n", class.path(name))), "{text}");
    }
    assert_eq!(rows[0], "10 submissions: mean 33, median 20, 1 with all points", "{text}");
    let lines = fs::read_to_string(&files[0]).unwrap();
    let (header, records) = lines.split_once('\n').unwrap();
    let header: Value = serde_json::from_str(header).unwrap();
    assert_eq!((header["seed"].as_u64(), header["submissions"].as_u64()), (Some(1), Some(10)));
    let found = grades(records);
    for (name, points) in sum::expected() {
        assert_eq!(earned(&found[&class.path(&name)]), u64::from(points), "{name}");
    }
    // A batch of submissions with all points has the status 0.
    let right = vec![class.path("right"); 3];
    let graded = class.grade(&right, &["--format", "jsonl"]);
    assert_eq!(graded.status, 0, "{}", graded.stderr);
    assert_eq!(graded.text().lines().count(), 3);
    assert!(
        graded.stderr.contains("/right (3) ") && graded.stderr.contains(" 100/100\n"),
        "{}",
        graded.stderr
    );
}

fn hidden() {
    let class = Class::new();
    let text = "version = 1\nname = \"x\"\n[run]\nmode = \"real\"\n[[task]]\nname = \"t\"\npoints = 10\nfile = \"*\"\n\
        check = [{ points = 4, expect = \"ax=4242\", visibility = \"hidden\" }]\n";
    let exercise = class.files.write("hidden.toml", text.as_bytes());
    let image = class.files.write("a", &[0xf4]);
    let file = class.path("grades");
    let format = format!("jsonl={file}");
    let folder = class.path("feedback");
    let arguments = ["grade", &exercise, &image, &image, "--seed", "1"];
    let graded = ran(&[&arguments[..], &["--format", &format, "--feedback", &folder]].concat());
    let feedback = fs::read_to_string(format!("{folder}/a.txt")).unwrap();
    for text in [graded.text(), feedback] {
        assert!(text.contains("- check 1 (hidden); costs 4 points\n") && !text.contains("4242"), "{text}");
    }
    assert!(fs::read_to_string(&file).unwrap().contains("ax must be 4242"));
    let revealed = ran(&[&arguments[..], &["--view", "teacher"]].concat()).text();
    assert!(revealed.contains("- check 1: ax must be 4242"), "{revealed}");
}

fn names() {
    let class = Class::new();
    let odd = class.path("a\u{1b}[2J\n\u{202e}b");
    fs::create_dir(&odd).unwrap();
    fs::copy(Path::new(&class.path("right")).join("sum.bin"), Path::new(&odd).join("sum.bin")).unwrap();
    let dash = "-x".to_string();
    fs::create_dir(class.path(&dash)).unwrap();
    let folder = class.path("feedback");
    let mut command =
        class.command(&[odd.clone(), odd, class.path("missing"), "./-x".into()], &["--feedback", &folder]);
    let graded = run(command.current_dir(class.files.0.path()));
    let text = graded.text();
    assert_eq!(graded.status, 111, "{}", graded.stderr);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
    assert_eq!(text.matches("100/100\n").count(), 4, "{text}");
    assert!(text.contains("b (2):\n") && text.contains("./-x:\n"), "{text}");
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_graphic())), "{names:?}");
    assert_eq!(names.len(), 4, "{names:?}");
}

fn usage() {
    let class = Class::new();
    let (exercise, right) = (class.exercise.as_str(), class.path("right"));
    let none = class.path("none");
    for (arguments, message) in [
        (&["grade", exercise, "--from", &none][..], "--from "),
        (&["grade", exercise, &right, &none], "there is no submission "),
        (&["grade", "so2", "--reference", "--jobs", "2"], "--jobs is for an exercise in a file"),
        (&["grade", "so2", &right, &right], "a second submission is for an exercise in a file"),
        (&["grade", "kev", &right, "--feedback", "x"], "--feedback is for an exercise in a file"),
        (&["grade", exercise, &right, "--shard", "1/2"], "--shard needs --seed N"),
        (&["grade", exercise, &right, "--child"], "--child is for the processes that vmm grade starts"),
        (&["grade", exercise, &right, "--format", "text", "--format", "jsonl"], "both write to stdout"),
        (&["grade", "merge"], "there is nothing to merge"),
        (&["grade", "merge", "x", "--seed", "1"], "--seed is not for `vmm grade merge`"),
        (&["grade", "merge", "x", "--shard", "1/2"], "--shard is not for `vmm grade merge`"),
        (&["grade", "merge", "x", "--vcpu", "soft"], "--vcpu is not for `vmm grade merge`"),
    ] {
        assert_error(&ran(arguments), 110, message);
    }
    assert_error(&ran(&["grade", exercise, &class.path("rigth")]), 110, "; the most similar name there is ");
    let jobs = ran(&["grade", exercise, &right, "--jobs", "0"]);
    assert!(jobs.stderr.contains("'0' for '--jobs <N>': give a number from 1 to 65535"), "{}", jobs.stderr);
    for (option, value) in
        [("--shard", "0/2"), ("--shard", "3"), ("--jobs", "0"), ("--format", "xml"), ("--format", "jsonl=")]
    {
        let refused = ran(&["grade", exercise, &right, option, value]);
        assert_eq!(refused.status, 110, "{option} {value}: {}", refused.stderr);
        assert!(refused.stderr.contains(option), "{}", refused.stderr);
    }
    assert_eq!(ran(&["grade", exercise, &right, "--resume"]).status, 110);
    let full = class.grade(&[right], &["--results", "/dev/full"]);
    assert_error(&full, 116, "is not a regular file");
    assert_error(&ran(&["grade", "merge", &none]), 116, "cannot read ");
}

/// No output is where a student's program could read or replace it, or where a student would read it.
fn places() {
    let class = Class::new();
    let (right, signed) = (class.path("right"), class.path("signed"));
    let feedback = class.path("feedback");
    fs::create_dir(&feedback).unwrap();
    let inside = |name: &str| format!("{signed}/{name}");
    let both = [right.clone(), signed.clone()];
    for (options, message) in [
        (&["--results", &inside("x")][..], "is in the submission "),
        (&["--results", &format!("{right}/../signed/x")], "is in the submission "),
        (&["--format", &format!("json={}", inside("x.json"))], "is in the submission "),
        (&["--feedback", &inside("x")], "is in the submission "),
        (&["--feedback", &signed], "is in the submission "),
        (&["--feedback", &feedback, "--results", &format!("{feedback}/x")], "is in the folder of --feedback"),
    ] {
        let refused = class.grade(&both, options);
        assert_error(&refused, 110, message);
        assert!(refused.stderr.contains("give a place elsewhere"), "{}", refused.stderr);
    }
    assert!(!Path::new(&inside("x")).exists() && !Path::new(&format!("{feedback}/x")).exists());
    // A student's own folder has the results.
    let mut own = class.command(&[".".into()], &["--vcpu", "soft", "--format", "json=own.json"]);
    let own = run(own.current_dir(&right));
    assert!(own.status == 0 && Path::new(&format!("{right}/own.json")).exists(), "{}", own.stderr);
}

/// With few open files, fewer jobs run than were asked for.
fn few_files() {
    let class = Class::new();
    let words = class.arguments(&vec![class.path("right"); 6], &["--vcpu", "soft", "--jobs", "6"]).join(" ");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n 56; exec '{}' {words}", env!("CARGO_BIN_EXE_vmm"))]);
    let graded = run(shell.stdout(Stdio::piped()));
    let note =
        "vmm: note: 6 jobs need more open files than the limit of 56 permits, so 3 run at the same time";
    assert!(graded.status == 0 && graded.stderr.contains(note), "{}", graded.stderr);
}

fn terminal() {
    let class = Class::new();
    let submissions = vec![class.path("endless"); 5];
    let line = class.arguments(&submissions, &["--vcpu", "soft", "--jobs", "1"]).join(" ");
    let shown = on_terminal(&format!("'{}' {line} >/dev/null", env!("CARGO_BIN_EXE_vmm")));
    let drawn: Vec<_> = shown.split('\r').filter(|line| line.contains(" of 5 graded, about ")).collect();
    assert!(!drawn.is_empty(), "{shown:?}");
    assert!(drawn.iter().all(|line| line.starts_with("vmm: ") && line.ends_with(" s)\u{1b}[K")), "{drawn:?}");
    let last = "\r\u{1b}[Kvmm: --seed 1 repeats these grades\r\n";
    assert!(shown.ends_with(last), "{shown:?}");
}
