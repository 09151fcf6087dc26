//! The destinations of results: pipes that are closed, names that promise a format, and places that cannot be written.
#![allow(clippy::unwrap_used)]

mod support;

use report::SavedProfile;
use std::fs;
use std::process::{ExitCode, Stdio};
use support::{
    Files, Ran, assert_error, elf, is_soft, kvm_test, machine_test, plain_test, ran, run, shell, vmm,
};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("a_reader_may_close_the_pipe_of_a_report", closed_pipes),
        kvm_test("a_reader_may_close_the_pipe_of_a_measurement", closed_pipes_with_kvm),
        machine_test("a_reader_may_close_the_pipe_of_a_grade", closed_pipe_of_a_grade),
        machine_test("a_reader_must_not_close_the_pipe_of_a_guest", closed_pipe_of_a_guest),
        plain_test("the_extension_of_a_report_selects_its_format", formats_by_name),
        plain_test("a_name_that_promises_another_format_is_refused", contradictions),
        plain_test("a_result_does_not_replace_an_input", inputs),
        plain_test("a_place_that_cannot_be_written_is_refused", wrong_places),
        plain_test("standard_input_is_named_and_read_once", standard_input),
        plain_test("a_full_stdout_is_an_error", full_stdout),
        machine_test("a_stderr_that_cannot_be_written_changes_nothing", broken_stderr),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Runs the program with a pipe as stdout that has no reader, like that of `head -1` after its line.
/// The status of a program that SIGPIPE ends, as a shell reports it.
const CLOSED: i32 = 141;

fn with_closed_pipe(arguments: &[&str]) -> Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    run(vmm(arguments).stdout(Stdio::from(writer)))
}

/// Writes a profile with many sites, and returns its path.
fn profile(files: &Files) -> String {
    let mut profile = SavedProfile { vcpus: vec![Default::default()], ..SavedProfile::default() };
    profile.program = "vmm".into();
    let mut bytes = Vec::new();
    profile.write(&mut bytes).unwrap();
    files.write("profile", &bytes)
}

fn assert_quiet(arguments: &[&str], status: i32) {
    let ran = with_closed_pipe(arguments);
    assert_eq!((ran.status, ran.stderr.as_str()), (status, ""), "{arguments:?}");
}

fn closed_pipes() {
    let files = Files::new();
    let profile = profile(&files);
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "compare"],
        &["run", "--help"],
        &["guests"],
        &["report", &profile],
        &["report", &profile, &profile],
        &["report", &profile, "--format", "html"],
        &["report", &profile, "-o", "/dev/stdout"],
    ] {
        assert_quiet(arguments, CLOSED);
    }
}

fn closed_pipes_with_kvm() {
    assert_quiet(&["doctor"], CLOSED);
    assert_quiet(&["doctor", "--json"], CLOSED);
    let short = ["compare", "--bytes", "1", "--messages", "1", "--rounds", "1", "--transports", "batch"];
    assert_quiet(&[&short[..], &["--ring", "3"]].concat(), CLOSED);
    let scale = with_closed_pipe(&["bench", "scale", "--vms", "1", "--rounds", "1"]);
    assert!(scale.status == CLOSED && !scale.stderr.contains("error"), "{}", scale.stderr);
}

/// A grade that is not read to its end is not known.
fn closed_pipe_of_a_grade() {
    let none = ["grade", "--guest16", "Cargo.toml", "--guest64", "Cargo.toml", "--simvirtio", "Cargo.toml"];
    assert_quiet(&none, CLOSED);
}

/// The output of a guest is the result of the run, so a part that is lost is an error.
fn closed_pipe_of_a_guest() {
    let ran = with_closed_pipe(&["real16-hello"]);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(ran.stderr.contains("the guest's output could not be written"), "{}", ran.stderr);
}

fn formats_by_name() {
    let files = Files::new();
    let profile = profile(&files);
    for (name, begin) in [
        ("a.html", "<!DOCTYPE html>"),
        ("a.HTM", "<!DOCTYPE html>"),
        ("a.json", "{"),
        ("a.csv", "exits,"),
        ("a.txt", "ran for"),
        ("a", "ran for"),
    ] {
        let path = files.0.path().join(name);
        let ran = ran(&["report", &profile, "-o", path.to_str().unwrap()]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{name}");
        let text = fs::read_to_string(path).unwrap();
        let text = text.trim_start();
        assert!(text.to_lowercase().starts_with(&begin.to_lowercase()), "{name}: {text}");
    }
    // With --format, an extension that names no format may be anything.
    let odd = files.0.path().join("a.out");
    let odd = odd.to_str().unwrap();
    assert_eq!(ran(&["report", &profile, "--format", "json", "-o", odd]).status, 0);
    assert!(fs::read_to_string(odd).unwrap().starts_with('{'));
}

/// Checks that the command is refused, and that the file `name` does not exist or still has its content.
fn assert_refused(files: &Files, arguments: &[&str], name: &str, message: &str) {
    let path = files.write(name, b"old");
    let arguments: Vec<_> = arguments.iter().map(|word| word.replace("OUT", &path)).collect();
    let ran = ran(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_error(&ran, 110, message);
    assert_eq!(fs::read(&path).unwrap(), b"old", "{arguments:?}");
}

fn contradictions() {
    let files = Files::new();
    let profile = profile(&files);
    let refused = |arguments: &[&str], name, message| assert_refused(&files, arguments, name, message);
    refused(
        &["report", &profile, "-o", "OUT"],
        "a.pdf",
        "has the extension .pdf, which names no known format",
    );
    refused(&["report", &profile, "-o", "OUT"], "run.trace", "or give --format");
    refused(
        &["report", &profile, "-o", "OUT"],
        "a.svg",
        "is a name for SVG, but a report has no such format",
    );
    let text = &["report", &profile, "--format", "text", "-o", "OUT"];
    refused(text, "a.html", "--format text writes text, but ");
    refused(text, "a.svg", "has the extension .svg of SVG: give another name");
    refused(&["compare", "--json", "OUT"], "a.svg", "--json writes JSON, but ");
    refused(&["compare", "--svg", "OUT"], "a.json", "--svg writes SVG, but ");
    refused(&["bench", "scale", "--json", "OUT"], "a.csv", "--json writes JSON, but ");
    refused(&["real16-42", "--profile", "json=OUT"], "a.html", "--profile json=FILE writes JSON, but ");
    refused(&["real16-42", "--trace", "OUT"], "a.json", "--trace writes a trace, but ");
}

/// A run or a report that writes to one of its own inputs would destroy an image, a disk or a measurement.
fn inputs() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let saved = profile(&files);
    let image = files.write("image", &[0xf4]);
    let kernel = files.write("kernel", &elf(0x10_0000, &[0xeb, 0xfe]));
    let (initrd, disk) = (files.write("initrd", b"cpio"), files.write("disk", &[0; 512]));
    let link = path("link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let (at, json, read_only) = (format!("{image}@0x1000:32"), format!("json={image}"), format!("{disk},ro"));
    for arguments in [
        &[image.as_str(), "--trace", &image][..],
        &[&at, "--profile", &json],
        &["simvirtio", "--input", &image, "--trace", &image],
        &["boot", &kernel, "--trace", &kernel],
        &["boot", &kernel, "--initrd", &initrd, "--trace", &initrd],
        &["boot", &kernel, "--disk", &disk, "--trace", &link],
        &["boot", &kernel, "--disk", &read_only, "--trace", &disk],
        &["report", &saved, "-o", &saved],
        &["report", &image, &saved, "-o", &saved],
    ] {
        let before = [&saved, &image, &kernel, &initrd, &disk].map(|file| fs::read(file).unwrap());
        let message = "is also an input, which the result would replace: give another file";
        assert_error(&ran(arguments), 110, message);
        let after = [&saved, &image, &kernel, &initrd, &disk].map(|file| fs::read(file).unwrap());
        assert_eq!(before, after, "{arguments:?}");
    }
    let redirected = shell("\"$0\" report - -o \"$1\" < \"$1\"", &[&saved]);
    assert_error(&redirected, 110, "is also an input");
}

fn wrong_places() {
    let files = Files::new();
    let saved = profile(&files);
    let folder = files.0.path().to_str().unwrap();
    let link = format!("{folder}/loop");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let long = format!("{folder}/{}", "x".repeat(300));
    for (place, message) in [
        (folder, "it is a directory: give the name of a file"),
        (&format!("{folder}/new/"), "it is a directory: give the name of a file"),
        (&format!("{folder}/new/."), "it is a directory: give the name of a file"),
        (&format!("{folder}/.."), "it is a directory: give the name of a file"),
        (&format!("{folder}/new/file"), "create the directory, or correct the path"),
        (&format!("{saved}/file"), "create the directory, or correct the path"),
        (&link, "give another file"),
        (&long, "give another file"),
        ("/proc/self/new", "create the directory, or correct the path"),
    ] {
        assert_error(&ran(&["report", &saved, "-o", place]), 110, message);
        assert_error(&ran(&["real16-42", "--trace", place]), 110, message);
        assert_error(&ran(&["real16-42", "--profile", &format!("json={place}")]), 110, message);
        assert_error(&ran(&["compare", "--json", place]), 110, message);
        assert_error(&ran(&["bench", "scale", "--json", place]), 110, message);
    }
    assert!(!files.0.path().join("new").exists());
}

fn standard_input() {
    let files = Files::new();
    let saved = profile(&files);
    let once = "standard input can be only one of the two files";
    assert_error(&shell("\"$0\" report - - < \"$1\"", &[&saved]), 110, once);
    assert_error(&shell("\"$0\" report - /dev/stdin < \"$1\"", &[&saved]), 110, once);
    assert_eq!(shell("\"$0\" report \"$1\" - < \"$1\"", &[&saved]).status, 0);
    let empty = shell("\"$0\" report - < /dev/null", &[]);
    assert_error(&empty, 116, "standard input: the file is not a profile or a trace");
    assert_error(&shell("\"$0\" report - < /", &[]), 116, "cannot read standard input: ");
}

fn full_stdout() {
    let files = Files::new();
    let saved = profile(&files);
    for words in
        ["--help", "--version", "run --help", "guests", "report PROFILE", "report PROFILE --format html"]
    {
        let arguments: Vec<_> =
            words.split(' ').map(|word| if word == "PROFILE" { &saved } else { word }).collect();
        let full = run(vmm(&arguments).stdout(fs::File::options().write(true).open("/dev/full").unwrap()));
        assert_error(&full, 115, "writing standard output failed: No space left on device");
    }
}

/// Messages are lost, but results and statuses are the same.
fn broken_stderr() {
    for (line, status, text) in [
        ("real16-hello", 0, "Hello, world!\n"),
        ("real16-wrong-result", 111, ""),
        ("no-such-guest", 110, ""),
        ("--no-such-option", 110, ""),
        ("report /", 116, ""),
        ("bench scale --vms 1 --rounds 1 | wc -l", 0, "3\n"),
        (
            "compare --rounds 1 --bytes 1 --messages 1 --ring 3 --transports batch | grep -c Workload",
            0,
            "1\n",
        ),
    ] {
        if is_soft() && line.contains(" --rounds ") {
            continue; // it measures KVM
        }
        for redirect in ["2>&-", "2>/dev/full"] {
            let (command, rest) = line
                .split_once(" |")
                .map_or((line, String::new()), |(command, rest)| (command, format!("|{rest}")));
            let ran = shell(&format!("\"$0\" {command} {redirect} {rest}"), &[]);
            assert_eq!((ran.status, ran.text().trim_start()), (status, text), "{line} {redirect}");
        }
    }
}
