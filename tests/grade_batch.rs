//! `vmm grade EXERCISE SUBMISSION...`: batches, results files, shards, and processes that fail.
#![allow(clippy::unwrap_used)]

#[path = "support/sum.rs"]
mod sum;
mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use sum::{SUM, assembled};
use support::{
    Files, Ran, assert_error, each_on_both, missing, on_terminal, plain_test, ran, run, test_unless, vmm,
    wait,
};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("wrong_command_lines_are_usage_errors", usage),
        plain_test("outputs_are_not_in_submissions", places),
        plain_test("few_open_files_are_fewer_jobs", few_files),
        test_unless(|| missing("script"), "a_terminal_shows_the_progress", terminal),
        test_unless(|| missing("parallel"), "gnu_parallel_grades_shards", parallel),
        plain_test("a_slurm_script_grades_its_shard", slurm_script),
    ];
    tests.extend(each_on_both(&[
        ("a_batch_gives_the_points_of_the_table", points),
        ("four_shards_give_the_same_grades", shards),
        ("wrong_results_files_are_refused", refused),
        ("a_killed_batch_goes_on_where_it_was", killed),
        ("an_interrupted_batch_goes_on_where_it_was", interrupted),
        ("a_process_that_dies_costs_its_submission_the_grade", dying),
        ("hidden_details_are_for_the_teacher", hidden),
        ("names_are_safe_and_different", names),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The exercise and the ten submissions, by name.
struct Class {
    files: Files,
    exercise: String,
}

impl Class {
    fn new() -> Self {
        let files = Files::new();
        assembled(&files);
        Self { files, exercise: format!("{SUM}/exercise.toml") }
    }

    fn path(&self, name: &str) -> String {
        self.files.0.path().join(name).to_str().unwrap().into()
    }

    /// The arguments that grade these submissions with seed 1.
    fn arguments(&self, submissions: &[String], options: &[&str]) -> Vec<String> {
        let options = options.iter().map(ToString::to_string);
        let first = ["grade".into(), self.exercise.clone()];
        first
            .into_iter()
            .chain(submissions.to_vec())
            .chain(["--seed".into(), "1".into()])
            .chain(options)
            .collect()
    }

    fn command(&self, submissions: &[String], options: &[&str]) -> Command {
        let arguments = self.arguments(submissions, options);
        vmm(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn grade(&self, submissions: &[String], options: &[&str]) -> Ran {
        run(&mut self.command(submissions, options))
    }

    fn all(&self) -> Vec<String> {
        sum::expected().iter().map(|(name, _)| self.path(name)).collect()
    }

    /// All but the endless one.
    fn quick(&self) -> Vec<String> {
        self.all().into_iter().filter(|path| !path.ends_with("/endless")).collect()
    }
}

/// The grades of a text in the format jsonl, by submission. The times are left out.
fn grades(text: &str) -> BTreeMap<String, Value> {
    let grade = |line: &str| {
        let mut grade: Value = serde_json::from_str(line).unwrap();
        grade.as_object_mut().unwrap().remove("milliseconds").unwrap();
        (grade["submission"].as_str().unwrap().to_string(), grade)
    };
    text.lines().map(grade).collect()
}

/// The points of a grade.
fn earned(grade: &Value) -> u64 {
    grade["earned"].as_u64().unwrap()
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
