//! `vmm grade --format`: each format is read by its own reader, or checked against the documentation of it. `make formats` installs
//! the readers.
#![allow(clippy::unwrap_used)]

mod support;

use grades::{Check, Format, Grade, Options, Points, Task, Visibility};
use libtest_mimic::Trial;
use serde_json::Value;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use support::{Files, Ran, assert_error, each_on_both, plain_test, ran, test_unless};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("wrong_formats_are_usage_errors_before_the_runs", usage),
        with("xmllint", "junit_is_valid_by_the_schema_of_jenkins", junit),
        with("prove", "prove_reads_tap", tap),
        with("python3", "python_reads_csv_and_json", tables),
        plain_test("gradescope_has_the_keys_of_its_specification", gradescope),
        with("python3", "github_classroom_gets_whole_points", github),
    ];
    tests.extend(each_on_both(&[
        ("one_grade_is_written_in_all_formats", all_formats),
        ("courses_have_formats_too", courses),
        ("a_student_sees_what_the_exercise_shows", views),
        ("a_name_cannot_forge_a_result", hostile_names),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// A test with a program of another project. Without it, the test is skipped, or fails if REQUIRE_FORMATS is 1.
fn with(program: &'static str, name: &'static str, body: fn()) -> Trial {
    let is_missing = move || {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let lacks_schema = program == "xmllint" && !schema().exists();
        let reason = if found.is_err() {
            format!("there is no {program}")
        } else if lacks_schema {
            "there is no schema of JUnit files: make formats fetches it".into()
        } else {
            return None;
        };
        assert!(std::env::var("REQUIRE_FORMATS").as_deref() != Ok("1"), "REQUIRE_FORMATS=1, and {reason}");
        Some(reason)
    };
    test_unless(is_missing, name, body)
}

/// The schema of the xunit plugin of Jenkins (MIT license), which `make formats` fetches.
fn schema() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_vmm"));
    program.ancestors().nth(2).unwrap().join("junit/junit-10.xsd")
}

/// Runs a program with a text as its input, and returns its status and output.
fn read_by(program: &str, arguments: &[&str], text: &str) -> (i32, String) {
    let files = Files::new();
    let input = files.write("input", text.as_bytes());
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(arguments).stdin(fs::File::open(input).unwrap());
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Runs a Python program with a text as its input.
fn python(program: &str, text: &str) -> String {
    let (status, output) = read_by("python3", &["-c", program], text);
    assert_eq!(status, 0, "{output}");
    output
}

/// A text that attacks all formats.
const ATTACK: &str =
    "\"]]>'</failure>,<&\u{0}\u{1b}[2J\u{9b}\u{ffff}\u{202e}\r\n::error::x\nok 9\nBail out!\n1..0 # SKIP \\";

/// A grade of two tasks with hostile names and texts, and with parts of points.
fn hostile(submission: &str) -> Grade {
    let task = |earned, visibility| Task {
        name: format!("=1+1{ATTACK}"),
        points: Points::whole(10),
        earned: Points::from_hundredths(earned),
        checks: [true, false]
            .map(|passed| Check {
                passed,
                name: ATTACK.into(),
                text: ATTACK.repeat(200),
                cost: Some(Points::from_hundredths(150)),
                visibility,
            })
            .into(),
    };
    Grade {
        submission: format!("{submission}{ATTACK}"),
        exercise: ATTACK.into(),
        seed: 1,
        error: None,
        tasks: vec![task(550, Visibility::Hidden), task(575, Visibility::AfterDeadline)],
        milliseconds: 61_001,
    }
}

/// Three submissions, of which one was not graded.
fn class() -> Vec<Grade> {
    let failed = Grade { error: Some(ATTACK.into()), tasks: Vec::new(), ..hostile("=cmd|") };
    vec![hostile("@a"), failed, hostile("-b # SKIP")]
}

fn written(format: Format, grades: &[Grade]) -> String {
    format.write(grades, Options::default()).unwrap()
}

fn junit() {
    for grades in [class(), Vec::new()] {
        let files = Files::new();
        let file = files.write("junit.xml", written(Format::Junit, &grades).as_bytes());
        let schema = schema();
        let arguments = ["--noout", "--schema", schema.to_str().unwrap(), &file];
        let (status, text) = read_by("xmllint", &arguments, "");
        assert_eq!(status, 0, "{text}");
        let count = |path: &str| read_by("xmllint", &["--xpath", &format!("count({path})"), &file], "").1;
        let expected = if grades.is_empty() { ["0", "0", "0"] } else { ["9", "4", "1"] };
        assert_eq!(
            ["//testcase", "//failure", "//error"].map(|path| count(path).trim().to_owned()),
            expected
        );
    }
    // The schema finds mistakes.
    let files = Files::new();
    let wrong = written(Format::Junit, &class()).replacen(" tests=", " test=", 1);
    let file = files.write("junit.xml", wrong.as_bytes());
    assert_ne!(read_by("xmllint", &["--noout", "--schema", schema().to_str().unwrap(), &file], "").0, 0);
}

fn tap() {
    let files = Files::new();
    let prove = |text: &str| {
        let file = files.write("results.tap", text.as_bytes());
        read_by("prove", &["--verbose", "--exec", "cat", &file], "")
    };
    let (status, text) = prove(&written(Format::Tap, &class()));
    assert!(status != 0 && text.contains("Tests: 9 Failed: 5"), "{text}");
    assert!(!text.contains("Parse errors") && !text.contains("skipped"), "{text}");
    let mut right = hostile("a");
    right.tasks.iter_mut().flat_map(|task| &mut task.checks).for_each(|check| check.passed = true);
    let (status, text) = prove(&written(Format::Tap, &[right]));
    assert!(status == 0 && text.contains("Files=1, Tests=4,"), "{text}");
}

fn tables() {
    // Each row has all columns, and no cell begins a formula.
    let program = "import csv,sys\n\
        rows=list(csv.reader(open(0,newline=''),strict=True))\n\
        assert all(len(row)==len(rows[0]) for row in rows),rows\n\
        assert not any(cell[:1] in tuple('=+-@') and cell for row in rows for cell in row),rows\n\
        print(len(rows),[row[3] for row in rows],rows[0][:7])";
    let text = python(program, &written(Format::Csv, &class()));
    assert_eq!(
        text,
        "4 ['earned', '11.25', '', '11.25'] ['submission', 'exercise', 'seed', 'earned', 'points', 'milliseconds', 'not graded']\n"
    );
    let program = "import json,sys\n\
        grades=[json.loads(line) for line in sys.stdin]\n\
        print([grade['earned'] for grade in grades],grades[1]['error'] is not None)";
    assert_eq!(python(program, &written(Format::Jsonl, &class())), "[11.25, 0, 11.25] True\n");
    let program = "import json,sys\n\
        all=json.load(sys.stdin)\n\
        print(all['version'],len(all['grades']),all['statistics'])";
    assert_eq!(
        python(program, &written(Format::Json, &class())),
        "1 3 {'submissions': 3, 'not_graded': 1, 'full': 0, 'mean': 11.25, 'median': 11.25, 'lowest': 11.25, 'highest': 11.25}\n"
    );
}

/// A key of an object, and the rule for its value.
type Rule = (&'static str, fn(&Value) -> bool);

/// Checks an object against the keys that a specification allows.
fn check_keys(object: &Value, allowed: &[Rule]) {
    for (key, value) in object.as_object().unwrap() {
        let (_, is_right) = allowed.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("{key}"));
        assert!(is_right(value), "{key}: {value}");
    }
}

/// The keys and values of <https://gradescope-autograders.readthedocs.io/en/latest/specs/>.
fn gradescope() {
    fn visibility(value: &Value) -> bool {
        ["hidden", "after_due_date", "after_published", "visible"].contains(&value.as_str().unwrap())
    }
    fn text_format(value: &Value) -> bool {
        ["text", "html", "simple_format", "md", "ansi"].contains(&value.as_str().unwrap())
    }
    let results: Value = serde_json::from_str(&written(Format::Gradescope, &[hostile("ana")])).unwrap();
    check_keys(
        &results,
        &[
            ("score", Value::is_number),
            ("execution_time", Value::is_number),
            ("output", Value::is_string),
            ("output_format", text_format),
            ("visibility", visibility),
            ("stdout_visibility", visibility),
            ("tests", Value::is_array),
        ],
    );
    let tests = results["tests"].as_array().unwrap();
    for test in tests {
        check_keys(
            test,
            &[
                ("score", Value::is_number),
                ("max_score", Value::is_number),
                ("status", |value| ["passed", "failed"].contains(&value.as_str().unwrap())),
                ("name", Value::is_string),
                ("number", Value::is_string),
                ("output", Value::is_string),
                ("output_format", text_format),
                ("visibility", visibility),
            ],
        );
    }
    let sum: f64 = tests.iter().map(|test| test["score"].as_f64().unwrap()).sum();
    assert_eq!((results["score"].as_f64().unwrap(), sum), (11.25, 11.25));
    let of = |key: &str| tests.iter().map(|test| test[key].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        of("visibility"),
        ["visible", "hidden", "hidden", "visible", "after_due_date", "after_due_date"]
    );
    assert_eq!(of("number"), ["1", "1.1", "1.2", "2", "2.1", "2.2"]);
}

/// The reporter decodes the result, adds up `score` and `max_score`, and shows both.
fn github() {
    let program = "import base64,json,sys\n\
        text=sys.stdin.read()\n\
        assert text.count(chr(10))==1\n\
        result=json.loads(base64.b64decode(text,validate=False))\n\
        keys={'name','status','score','message','test_code','filename','line_no'}\n\
        assert set(result)=={'version','status','max_score','tests'} and result['version']==1\n\
        assert all(set(test)==keys and type(test['score'])==int and test['line_no']==0 for test in result['tests'])\n\
        print(result['status'],sum(test['score'] for test in result['tests']),result['max_score'],[test['status'] for test in result['tests']])";
    assert_eq!(python(program, &written(Format::Github, &[hostile("ana")])), "fail 11 20 ['fail', 'fail']\n");
    let failed = &class()[1..2];
    assert_eq!(python(program, &written(Format::Github, failed)), "error 0 0 ['error']\n");
}

/// An exercise in which the guest prints 42, and a submission that prints 4 and the character `last`.
fn exercise(files: &Files, last: u8) -> [String; 2] {
    let text = "version = 1\nname = \"forty-two\"\n[run]\nmode = \"real\"\naddress = 0x1000\n[[task]]\nname = \"t\"\npoints = 10\n\
        file = \"a.bin\"\n[[task.check]]\nname = \"the answer\"\npoints = 3\noutput = \"42\"\nvisibility = \"hidden\"\n\
        [[task.check]]\nname = \"few exits\"\npoints = 2\nexits = \"<=2\"\nvisibility = \"after-deadline\"\n";
    // mov al, '4'; out 0xe9, al; mov al, LAST; out 0xe9, al; hlt
    let code = [0xb0, b'4', 0xe6, 0xe9, 0xb0, last, 0xe6, 0xe9, 0xf4];
    [files.write("x.toml", text.as_bytes()), files.write("a.bin", &code)]
}

fn grade(files: &Files, options: &[&str]) -> Ran {
    let [exercise, submission] = exercise(files, b'3');
    ran(&[&["grade", &exercise, &submission, "--seed", "1"], options].concat())
}

fn all_formats() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name);
    let options: Vec<String> = Format::NAMES
        .iter()
        .map(|name| format!("--format={name}={}", path(&format!("out-{name}")).display()))
        .collect();
    fs::write(path("out-json"), "before").unwrap();
    let graded = grade(&files, &options.iter().map(String::as_str).collect::<Vec<_>>());
    let text = "  5/10  t\n        + the run ended: halted\n        - the answer (hidden); costs 3 points\n        \
                - few exits (hidden); costs 2 points\n  5/10\n";
    assert_eq!((graded.status, graded.text().as_str()), (111, text), "{}", graded.stderr);
    assert_eq!(graded.stderr, "vmm: --seed 1 repeats this grade\n");
    let read = |name: &str| fs::read_to_string(path(&format!("out-{name}"))).unwrap();
    assert_eq!(read("text"), text);
    assert_eq!(read("vmchecker"), format!("Total: 5\n{text}"));
    let grades: Vec<Grade> =
        read("jsonl").lines().map(|line| Grade::from_json(line.as_bytes()).unwrap()).collect();
    let [grade] = &grades[..] else { panic!("{grades:?}") };
    assert_eq!((grade.seed, grade.exercise.as_str(), grade.earned()), (1, "forty-two", Points::whole(5)));
    assert!(grade.submission.ends_with("/a.bin"), "{}", grade.submission);
    assert_eq!(
        grade.tasks[0].checks[1].text,
        "the output must be \"42\", and differs at line 1, column 2 (offset 1): \"42\" is expected there, and \"43\" was printed; costs 3 \
         points"
    );
    // Each file is what the model gives.
    for name in ["json", "csv", "junit", "tap", "gradescope", "github"] {
        assert_eq!(read(name), written(Format::from_name(name).unwrap(), &grades), "{name}");
    }
    let on_stdout = self::grade(&files, &["--format", "csv"]);
    assert!(on_stdout.text().starts_with("submission,exercise,seed,"), "{}", on_stdout.text());
    assert_eq!(on_stdout.status, 111);
}

fn views() {
    let files = Files::new();
    let sees = |options: &[&str]| {
        let text = grade(&files, options).text();
        ["was printed", "at most 2"].map(|part| text.contains(part))
    };
    for format in ["text", "json", "jsonl", "junit", "tap"] {
        let format = format!("--format={format}");
        assert_eq!(sees(&[&format, "--view=student"]), [false, false], "{format}");
        assert_eq!(sees(&[&format, "--view=student", "--after-deadline"]), [false, true], "{format}");
        assert_eq!(sees(&[&format, "--view=teacher"]), [true, true], "{format}");
        assert_eq!(sees(&[&format]), [format != "--format=text"; 2], "{format}");
    }
    assert_eq!(sees(&["--format=vmchecker", "--view=teacher"]), [false, false]);
    assert_eq!(sees(&[]), [false, false]);
    let help = ran(&["grade", "--help"]).text();
    assert!(help.contains("--format <FORMAT[=FILE]>") && help.contains("--view <VIEW>"), "{help}");
}

fn courses() {
    let files = Files::new();
    let json = files.0.path().join("out.json");
    let image = files.guest("real16-42");
    let graded = ran(&["grade", "--guest16", &image, &format!("--format=json={}", json.display())]);
    assert!(graded.status == 0 && graded.text().ends_with("\n 30/30\n"), "{}", graded.stderr);
    let results: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let grade = &results["grades"][0];
    assert_eq!(grade["submission"].as_str(), Some(image.as_str()));
    assert_eq!((grade["exercise"].as_str(), grade["earned"].as_u64()), (Some("so2"), Some(30)));
    let kev = files.guest("kev-port");
    let graded = ran(&["grade", "kev", "--guest", &format!("kev-port={kev}"), "--format", "tap"]);
    assert!(
        graded.text().contains("ok 1 - kev-port=") && graded.text().ends_with("1..1\n"),
        "{}",
        graded.text()
    );
}

fn hostile_names() {
    let files = Files::new();
    let [exercise, submission] = exercise(&files, b'2');
    let name = std::ffi::OsStr::from_bytes(b"=1\n::error::\x1b[2J\xff Total: 99");
    let folder = files.0.path().join(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(submission, folder.join("a.bin")).unwrap();
    for format in Format::NAMES {
        let mut command = support::vmm(&["grade", &exercise, "--format", format, "--seed=1"]);
        let text = support::run(command.current_dir(files.0.path()).arg(name)).text();
        assert!(!text.contains('\u{1b}'), "{format}: {text}");
        assert!(!text.lines().any(|line| line.starts_with("::")), "{format}: {text}");
        match format {
            "csv" => assert!(text.contains("\r\n'=1\\n::error::\\u{1b}[2J"), "{text}"),
            "vmchecker" => assert!(text.starts_with("Total: 8\n"), "{text}"),
            _ => {}
        }
    }
}

fn usage() {
    let files = Files::new();
    let [exercise, submission] = exercise(&files, b'2');
    let path = |name: &str| files.0.path().join(name).display().to_string();
    fs::write(path("old.xml"), "before").unwrap();
    let refused = |options: &[&str], status: i32, text: &str| {
        let refused = ran(&[&["grade", &exercise, &submission], options].concat());
        assert_eq!(refused.text(), "");
        assert_error(&refused, status, text);
        assert_eq!(fs::read_to_string(path("old.xml")).unwrap(), "before");
    };
    let junit = |name: &str| format!("--format=junit={}", path(name));
    refused(
        &["--format=csv", "--format=json"],
        110,
        "--format csv and --format json both write to stdout: give a file for one of them, such as --format json=FILE",
    );
    refused(
        &["--format=csv", "--format=csv", &junit("old.xml")],
        110,
        "--format csv and --format csv both write",
    );
    refused(&[&junit("no/folder/out.xml")], 110, "no/folder/out.xml");
    refused(&[&junit("old.xml"), &junit("old.xml")], 110, "--format writes the same file twice");
    refused(&[&junit("old.xml"), &junit("out.json")], 110, "--format writes junit, but");
    refused(&[&junit("x.toml")], 110, "is also an input");
    refused(&[&junit("a.bin")], 110, "is also an input");
    refused(&["--format=json=-"], 110, "--format does not take - for standard output");
    for wrong in ["--format=xml", "--format=", "--format==x", "--format=json="] {
        let refused = ran(&["grade", &exercise, &submission, wrong]);
        assert_eq!(refused.status, 110, "{wrong}");
        let reason =
            if wrong.ends_with("json=") { "there is no file after =" } else { "the formats are text, json," };
        assert!(refused.stderr.contains(reason), "{}", refused.stderr);
    }
    // Nothing was graded, so an existing file stays.
    let wrong = files.write("wrong.toml", b"version = 1\nx = 1\n");
    let graded = ran(&["grade", &wrong, &submission, &junit("old.xml")]);
    assert_eq!((graded.status, fs::read_to_string(path("old.xml")).unwrap().as_str()), (116, "before"));
    let full = ran(&["grade", &exercise, &submission, "--format=json=/dev/full"]);
    assert!(full.status == 115 && full.stderr.contains("/dev/full"), "{} {}", full.status, full.stderr);
}
