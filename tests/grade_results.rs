//! `vmm grade EXERCISE SUBMISSION...`: results files, shards, and processes that fail.
#![allow(clippy::unwrap_used)]

#[path = "support/class.rs"]
mod class;
#[path = "support/sum.rs"]
mod sum;
mod support;

use class::{Class, earned, grades};
use std::fs;
use std::io::Write;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{Ran, assert_error, each_on_both, missing, plain_test, ran, run, test_unless, wait};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        test_unless(|| missing("parallel"), "gnu_parallel_grades_shards", parallel),
        plain_test("a_slurm_script_grades_its_shard", slurm_script),
    ];
    tests.extend(each_on_both(&[
        ("four_shards_give_the_same_grades", shards),
        ("wrong_results_files_are_refused", refused),
        ("a_killed_batch_goes_on_where_it_was", killed),
        ("an_interrupted_batch_goes_on_where_it_was", interrupted),
        ("a_process_that_dies_costs_its_submission_the_grade", dying),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn shards() {
    let class = Class::new();
    let list = class.files.write("list", class.quick().join("\n").as_bytes());
    let whole = class.grade(&[], &["--from", &list, "--format", "jsonl"]);
    let expected = grades(&whole.text());
    assert_eq!(expected.len(), 9);
    let mut files = Vec::new();
    let mut number = 0;
    for shard in ["4/4", "1/4", "3/4", "2/4"] {
        files.push(class.path(&shard.replace('/', "-")));
        let file = files.last().unwrap();
        let graded =
            class.grade(&[], &["--from", &list, "--shard", shard, "--results", file, "--format", "jsonl"]);
        number += grades(&graded.text()).len();
        assert!([0, 111].contains(&graded.status), "{}", graded.stderr);
    }
    assert_eq!(number, 9);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let merge = |files: &[&str], options: &[&str]| {
        let arguments = [&["grade", "merge"], files, options].concat();
        run(Command::new(env!("CARGO_BIN_EXE_vmm")).args(arguments).stdout(Stdio::piped()))
    };
    let all = class.path("all");
    let merged = merge(&files, &["--format", "jsonl", "--results", &all]);
    assert_eq!((merged.status, grades(&merged.text())), (111, expected.clone()), "{}", merged.stderr);
    let order = |text: &str| text.lines().map(|line| grades(line).into_keys().next()).collect::<Vec<_>>();
    assert_eq!(order(&merged.text()), order(&whole.text()));
    // The merged file is that of a whole batch.
    let again = class.grade(&[], &["--from", &list, "--results", &all, "--resume", "--format", "jsonl"]);
    assert_eq!(grades(&again.text()), expected);
    assert!(again.stderr.contains("vmm: 9 of 9 grades were in the results file\n"), "{}", again.stderr);

    assert_error(&merge(&files[1..], &[]), 116, "the results of shard 4/4 are missing");
    assert_error(&merge(&files[2..], &[]), 116, "the results of shard 1/4, 4/4 are missing");
    assert_error(&merge(&[files[0], files[0]], &[]), 116, "are the same shard 4/4");
    assert_error(&merge(&[files[0], &all], &[]), 116, "is shard 1/1, and");
    let text = fs::read_to_string(files[0]).unwrap();
    fs::write(files[0], &text[..text.trim_end().rfind('\n').unwrap() + 1]).unwrap();
    assert_error(&merge(&files, &[]), 116, "has 1 of the 2 grades of shard 4/4: finish it with --resume");
    for (from, to, message) in [
        ("\"seed\":1,", "\"seed\":2,", "has the seed 2, not 1"),
        ("\"digest\":\"", "\"digest\":\"1\",\"x\":\"", "belongs to another exercise"),
        ("\"digest\":\"", "\"digest\":\"g", "is not a results file of this version"),
        ("\"submissions\":9", "\"submissions\":8", "belongs to another list of submissions"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        fs::write(files[0], changed).unwrap();
        let merged = merge(&[&files[1..], &files[..1]].concat(), &[]);
        assert_error(&merged, 116, message);
    }
}

fn refused() {
    let class = Class::new();
    let submissions = [class.path("right"), class.path("signed")];
    let results = class.path("results");
    assert_eq!(class.grade(&submissions, &["--results", &results]).status, 111);
    let before = fs::read_to_string(&results).unwrap();
    let again = |submissions: &[String], options: &[&str]| {
        let ran = class.grade(submissions, &[&["--results", results.as_str()], options].concat());
        assert_eq!(fs::read_to_string(&results).unwrap(), before);
        ran
    };
    assert_error(&again(&submissions, &[]), 116, "exists: go on with it with --resume");
    assert_error(&again(&submissions[..1], &["--resume"]), 116, "belongs to another list of submissions");
    assert_error(&again(&submissions, &["--resume", "--shard", "1/2"]), 116, "is for shard 1/1, not 1/2");
    let seed = ran(&[
        "grade",
        &class.exercise,
        &submissions[0],
        &submissions[1],
        "--results",
        &results,
        "--resume",
        "--seed",
        "2",
    ]);
    assert_error(&seed, 116, "has the seed 1, not 2");
    // Without a seed, that of the file is used.
    let seed =
        ran(&["grade", &class.exercise, &submissions[0], &submissions[1], "--results", &results, "--resume"]);
    assert!(seed.stderr.ends_with("vmm: --seed 1 repeats these grades\n"), "{}", seed.stderr);
    let text = fs::read_to_string(&class.exercise).unwrap().replace("<=12", "<=13");
    let other = class.files.write("other.toml", text.as_bytes());
    let other = ran(&["grade", &other, &submissions[0], &submissions[1], "--results", &results, "--resume"]);
    assert_error(&other, 116, "belongs to another exercise, or to another version of it");
    let foreign = class.files.write("foreign", b"{\"a\": 1}");
    let foreign_ran = class.grade(&submissions, &["--results", &foreign, "--resume"]);
    assert_error(&foreign_ran, 116, "is not a results file of vmm grade");
    assert_eq!(fs::read(&foreign).unwrap(), b"{\"a\": 1}");
}

/// Waits until a results file has so many lines.
fn wait_for_lines(path: &str, lines: usize) {
    let started = Instant::now();
    while fs::read_to_string(path).unwrap_or_default().lines().count() < lines {
        assert!(started.elapsed() < Duration::from_secs(50), "{path} did not get {lines} lines");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes whose command line has this text, except `vmm grade` itself.
fn children_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("--child") && line.contains(text) {
            found.push(entry.file_name().to_str().unwrap().into());
        }
    }
    found
}

/// Starts a batch whose third submission is endless, and waits until two are graded.
fn started(class: &Class, submissions: &[String], results: &str) -> Child {
    let child =
        class.command(submissions, &["--jobs", "1", "--results", results]).stderr(Stdio::piped()).spawn();
    wait_for_lines(results, 3);
    child.unwrap()
}

fn order_with_endless(class: &Class) -> Vec<String> {
    ["right", "signed", "endless", "many-exits", "missing"].map(|name| class.path(name)).into()
}

fn killed() {
    let class = Class::new();
    let submissions = order_with_endless(&class);
    let results = class.path("results");
    // The sentence about the endless guest says where it was.
    let points = |text: &str| grades(text).values().map(earned).collect::<Vec<_>>();
    let expected = points(&class.grade(&submissions, &["--format", "jsonl"]).text());
    let mut child = started(&class, &submissions, &results);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::read_to_string(&results).unwrap();
    // The process of the submission ends with its parent.
    let start = Instant::now();
    while !children_with(&class.path("endless")).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "the process of the submission is still there");
        thread::sleep(Duration::from_millis(10));
    }
    let mut file = fs::File::options().append(true).open(&results).unwrap();
    file.write_all(b"{\"index\":2,\"submission\":\"x").unwrap();
    let resumed = class.grade(&submissions, &["--results", &results, "--resume", "--format", "jsonl"]);
    assert_eq!((resumed.status, points(&resumed.text())), (111, expected), "{}", resumed.stderr);
    let after = fs::read_to_string(&results).unwrap();
    assert!(after.starts_with(&before) && after.lines().count() == 6, "{after}");
    assert!(resumed.stderr.contains(" of 5 grades were in the results file\n"), "{}", resumed.stderr);
}

fn interrupted() {
    let class = Class::new();
    let submissions = order_with_endless(&class);
    let results = class.path("results");
    let mut child = started(&class, &submissions, &results);
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signalled.unwrap().success());
    let stderr = child.stderr.take().unwrap();
    let status = wait(&mut child);
    let stderr = std::io::read_to_string(stderr).unwrap();
    assert_eq!(status, 117, "{stderr}");
    assert!(
        stderr.contains("grading was interrupted; ") && stderr.contains("--resume goes on with it\n"),
        "{stderr}"
    );
    assert!(children_with(&class.path("endless")).is_empty());
    let resumed = class.grade(&submissions, &["--results", &results, "--resume"]);
    assert_eq!(resumed.status, 111, "{}", resumed.stderr);
    let text = resumed.text();
    let row = text.lines().find(|line| line.contains("/right "));
    let row: Vec<&str> = row.unwrap_or_default().split_whitespace().skip(1).collect();
    assert_eq!(row, ["40/40", "60/60", "100/100"], "{text}");
}

fn dying() {
    let class = Class::new();
    let submissions = order_with_endless(&class);
    let results = class.path("results");
    let child = started(&class, &submissions, &results);
    let start = Instant::now();
    let mut victims = Vec::new();
    while victims.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "the process of the submission was not seen");
        victims = children_with(&class.path("endless"));
    }
    assert!(Command::new("kill").arg("-KILL").args(&victims).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(115), "{stderr}");
    let line =
        format!("vmm: {} has no grade: the process that graded it was ended by signal 9\n", submissions[2]);
    assert!(stderr.contains(&line), "{stderr}");
    assert!(stdout.contains("5 submissions: mean ") && stdout.contains(", 1 not graded\n"), "{stdout}");
    assert!(stdout.contains("/many-exits"), "{stdout}");
    let resumed = class.grade(&submissions, &["--results", &results, "--resume"]);
    assert_eq!(resumed.status, 111, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("vmm: 4 of 5 grades were in the results file\n"), "{}", resumed.stderr);
}

fn parallel() {
    let class = Class::new();
    let list = class.files.write("list", class.quick().join("\n").as_bytes());
    let whole = class.grade(&[], &["--from", &list, "--vcpu", "soft", "--format", "jsonl"]);
    let results = class.path("results");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/batch/parallel.sh");
    let mut command = Command::new("sh");
    command.args([script, &class.exercise, &list, "4"]).stdout(Stdio::piped());
    command.env("VMM", env!("CARGO_BIN_EXE_vmm")).env("SEED", "1").env("RESULTS", &results);
    let merged = run(&mut command);
    assert_eq!(merged.status, 111, "{}{}", merged.text(), merged.stderr);
    let found = grades(&fs::read_to_string(format!("{results}/grades.jsonl")).unwrap());
    assert_eq!(found.len(), 9);
    let expected = grades(&whole.text());
    for (name, grade) in &found {
        assert_eq!(earned(grade), earned(&expected[name]), "{name}");
    }
    assert_eq!(fs::read_dir(format!("{results}/feedback")).unwrap().count(), 9);
    assert_eq!(fs::read_to_string(format!("{results}/jobs.log")).unwrap().lines().count(), 5);
}

fn slurm_script() {
    let class = Class::new();
    let list = class.files.write("list", class.quick().join("\n").as_bytes());
    let results = class.path("results");
    fs::create_dir(&results).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/batch/slurm.sh");
    for task in ["3", "4"] {
        let mut command = Command::new("sh");
        command.arg(script).stdout(Stdio::piped());
        command.env("VMM", env!("CARGO_BIN_EXE_vmm")).env("EXERCISE", &class.exercise).env("LIST", &list);
        command.env("SEED", "1").env("RESULTS", &results).env("OPTIONS", "--vcpu soft");
        command.env("SLURM_ARRAY_TASK_ID", task).env("SLURM_ARRAY_TASK_MIN", "3");
        let graded = run(command.env("SLURM_ARRAY_TASK_COUNT", "2"));
        assert_eq!(graded.status, 0, "{}", graded.stderr);
    }
    let merged = shell_merge(&results);
    assert_eq!((merged.status, merged.text().lines().count()), (111, 9), "{}", merged.stderr);
}

/// Merges all results in a folder.
fn shell_merge(folder: &str) -> Ran {
    support::shell("exec \"$0\" grade merge \"$1\"/*.jsonl --format jsonl", &[folder])
}
