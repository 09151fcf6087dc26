//! `--expect-output`, `--expect`, `--expect-exits` and `--dump-memory`: conditions of a run, with an exit status of their own,
//! and the guest's memory in files.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::ExitCode;
use support::{Files, assert_error, each_on_both, plain_test, ran, shell};

/// The exit status of a run that did not meet an expectation.
const UNEXPECTED: i32 = 120;

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("a_wrong_expectation_is_a_usage_error", wrong_expectations),
        plain_test("a_file_for_memory_is_not_an_input_or_another_result", files_for_memory),
    ];
    tests.extend(each_on_both(&[
        ("an_expected_run_is_a_success", expected),
        ("a_failed_expectation_says_what_was_seen", unexpected),
        ("the_output_is_compared_byte_by_byte", output),
        ("an_expected_end_is_a_success", ends),
        ("the_mode_of_each_exit_is_checked", modes),
        ("the_state_of_the_device_is_checked", device),
        ("memory_is_written_to_files", dump),
        ("other_results_are_written_when_an_expectation_fails", other_results),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Runs a guest quietly. Returns the exit status, and the lines after the first one.
fn quiet(arguments: &[&str]) -> (i32, String) {
    let ran = ran(&[&["run", "--quiet"], arguments].concat());
    let (_, lines) = ran.stderr.split_once('\n').unwrap_or_else(|| panic!("{}", ran.stderr));
    (ran.status, lines.into())
}

fn expected() {
    let met =
        ran(&["run", "real16-42", "--expect", "ax=42", "--expect", "u16@0x400=0x2a", "--expect-exits", "=1"]);
    assert_eq!(met.status, 0, "{}", met.stderr);
    assert!(met.stderr.contains("\nvmm: all 3 expectations are met\n"), "{}", met.stderr);
    assert_eq!(quiet(&["real16-42", "--expect", "end=halt"]), (0, String::new()));
    let all = quiet(&[
        "prot32-hello",
        "--expect-exits",
        "PIO out 0xe9=14",
        "--expect-exits",
        "debug console=14",
        "--expect-exits",
        "port 0x3f8=0",
        "--expect-exits",
        "HLT=1",
        "--expect-exits",
        "<=15",
        "--expect",
        "eax=42",
    ]);
    assert_eq!(all, (0, String::new()));
}

fn unexpected() {
    let failed = quiet(&[
        "real16-42",
        "--expect",
        "rax=41",
        "--expect",
        "u8@0x401=-1",
        "--expect",
        "cs=0",
        "--expect-exits",
        "HLT>=2",
        "--expect-exits",
        "port 0xe9>=1",
    ]);
    let lines = "vmm: expectation failed: rax must be 41 (0x29), and is 42 (0x2a)\n\
        vmm: expectation failed: u8@0x401 must be 255 (0xff), and is 0\n\
        vmm: expectation failed: exits (HLT) must be at least 2, and there was 1\n\
        vmm: expectation failed: exits (port 0xe9) must be at least 1, and there were 0\n";
    assert_eq!(failed, (UNEXPECTED, lines.into()));
    let (status, lines) = quiet(&["real16-42", "--expect-exits", "debug consol=0"]);
    assert_eq!(status, UNEXPECTED);
    assert!(
        lines.contains("no such device or reason of exits; its devices are: ")
            && lines.contains("debug console"),
        "{lines}"
    );
    // The status of the guest does not hide a failed expectation.
    let (status, lines) = quiet(&["long64-exit-code", "--expect", "end=6"]);
    assert_eq!(
        (status, lines.as_str()),
        (
            UNEXPECTED,
            "vmm: expectation failed: the end of the run must be the exit code 6, and is: exited with code 7\n"
        )
    );
    assert_eq!(quiet(&["long64-triple-fault", "--expect", "u8@0x7000=1"]).0, UNEXPECTED);
}

fn output() {
    let files = Files::new();
    let right = files.write("right", b"Hello, world!\n");
    assert_eq!(quiet(&["prot32-hello", "--expect-output", &right]), (0, String::new()));
    let wrong = files.write("wrong", b"Hello, \x1b[1mworld!\n");
    let (status, lines) = quiet(&["prot32-hello", "--expect-output", &wrong]);
    let sentence = "differs at line 1, column 8 (offset 7): \"Hello, \\u{1b}[1mworld!\\n\" is expected there, and \"Hello, world!\\n\" was printed\n";
    assert_eq!(status, UNEXPECTED);
    assert!(lines.ends_with(sentence) && lines.lines().count() == 1, "{lines}");
    let short = files.write("short", b"Hello, world!");
    let (status, lines) = quiet(&["prot32-hello", "--expect-output", &short]);
    assert!(
        status == UNEXPECTED && lines.contains("column 14 (offset 13): the output must end there"),
        "{lines}"
    );
    let empty = files.write("empty", b"");
    assert_eq!(quiet(&["real16-42", "--expect-output", &empty]).0, 0);
    assert_eq!(quiet(&["prot32-hello", "--expect-output", &empty]).0, UNEXPECTED);
    assert_error(
        &ran(&["run", "real16-42", "--expect-output", "/nowhere"]),
        110,
        "cannot read /nowhere for --expect-output: ",
    );
}

fn ends() {
    for (guest, end) in [
        ("long64-exit-code", "end=7"),
        ("real16-42", "end=halt"),
        ("prot32-triple-fault", "end=triple-fault"),
        ("prot32-triple-fault", "end=crash"),
    ] {
        assert_eq!(quiet(&[guest, "--expect", end]), (0, String::new()), "{guest} {end}");
    }
    assert_eq!(quiet(&["real16-endless", "--timeout", "0.1", "--expect", "end=timeout"]).0, 0);
    assert_eq!(quiet(&["real16-42", "--expect", "end=0"]).0, UNEXPECTED);
    // A wrong result is not what an expected halt is about.
    assert_eq!(quiet(&["real16-wrong-result", "--expect", "end=halt"]).0, 111);
    assert_eq!(quiet(&["long64-exit-code", "--expect-exits", ">=1"]).0, 7);
}

fn modes() {
    for (guest, mode) in [
        ("real16-hello", "real"),
        ("prot32-hello", "32"),
        ("long64-hello", "long"),
        ("user64-hello", "user64"),
    ] {
        assert_eq!(
            quiet(&[guest, "--expect", &format!("mode={mode}")]),
            (0, String::new()),
            "{guest} {mode}"
        );
    }
    let (status, lines) = quiet(&["prot32-hello", "--expect", "mode=real,long"]);
    assert_eq!(
        (status, lines.as_str()),
        (
            UNEXPECTED,
            "vmm: expectation failed: the mode at each exit must be real or long, and is protected\n"
        )
    );
}

fn device() {
    for transport in ["exit", "polling"] {
        let ready = quiet(&["simvirtio", "--transport", transport, "--expect", "simvirtio=ready"]);
        assert_eq!(ready, (0, String::new()), "{transport}");
    }
    assert_eq!(
        quiet(&["simvirtio", "--transport", "exit", "--expect-exits", "simvirtio=39"]),
        (0, String::new())
    );
    assert_eq!(
        quiet(&["simvirtio", "--transport", "polling", "--expect-exits", "simvirtio=0"]),
        (0, String::new())
    );
    let (status, lines) = quiet(&["simvirtio", "--expect", "simvirtio=config"]);
    assert!(status == UNEXPECTED && lines.contains("must be Config, and is Ready"), "{lines}");
}

fn dump() {
    let files = Files::new();
    let (word, page) = (files.write("word", b"old"), files.0.path().join("page"));
    let dumps = [format!("0x400+2={word}"), format!("0+4K={}", page.display())];
    let both = ran(&["run", "real16-42", "--dump-memory", &dumps[0], "--dump-memory", &dumps[1]]);
    assert_eq!(both.status, 0, "{}", both.stderr);
    assert!(both.stderr.contains(&format!("vmm: wrote 2 bytes of memory to {word}\n")), "{}", both.stderr);
    assert_eq!(fs::read(&word).unwrap(), [42, 0]);
    let page = fs::read(page).unwrap();
    assert_eq!((page.len(), &page[0x400..0x402]), (4096, &[42, 0][..]));
    // The end of memory.
    let all = files.0.path().join("all");
    let whole = format!("0x1000+0xff000={}", all.display());
    assert_eq!(quiet(&["real16-42", "--dump-memory", &whole]), (0, String::new()));
    assert_eq!(fs::read(all).unwrap().len(), 0xf_f000);
    let past = format!("0x1000+64M={word}");
    assert_error(
        &ran(&["run", "real16-42", "--mem", "1M", "--dump-memory", &past]),
        110,
        "a part of the range is not memory",
    );
    assert_eq!(fs::read(&word).unwrap(), [42, 0], "the file stays as it was");
}

/// The profile, the trace and the memory are written, although an expectation failed.
fn other_results() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).display().to_string();
    let profile = format!("json={}", path("run.json"));
    let dump = format!("0x400+1={}", path("dump"));
    let ran = ran(&[
        "run",
        "real16-42",
        "--expect",
        "ax=7",
        "--profile",
        &profile,
        "--trace",
        &path("trace"),
        "--dump-memory",
        &dump,
    ]);
    assert_eq!(ran.status, UNEXPECTED, "{}", ran.stderr);
    for name in ["run.json", "trace", "dump"] {
        assert!(fs::metadata(path(name)).is_ok_and(|file| file.len() > 0), "{name}: {}", ran.stderr);
    }
    assert!(ran.stderr.contains("1 exit: 1 HLT"), "{}", ran.stderr);
    let full = shell("exec \"$0\" run real16-42 --vcpu soft --dump-memory 0x400+1=/dev/full", &[]);
    assert_eq!(full.status, 115, "{}", full.stderr);
    assert!(
        full.stderr.contains("the memory is not saved, and an existing file is unchanged"),
        "{}",
        full.stderr
    );
}

fn wrong_expectations() {
    for (option, value, text) in [
        ("--expect", "rax", "--expect \"rax\": give SUBJECT=VALUE"),
        ("--expect", "rxx=1", "there is no such register"),
        ("--expect", "al=256", "al: it has 8 bits"),
        ("--expect", "end=\x1b", "\"end=\\u{1b}\": there is no such end"),
        ("--expect-exits", "40", "give [SITE]<=N"),
        ("--dump-memory", "0x400=a", "give ADDR+SIZE=FILE"),
        ("--dump-memory", "0x400+0=a", "give ADDR+SIZE=FILE"),
        ("--dump-memory", "0xffffffffffffffff+2=a", "give ADDR+SIZE=FILE"),
        ("--dump-memory", "0x400+1=", "give ADDR+SIZE=FILE"),
    ] {
        assert_error(&ran(&["run", "real16-42", option, value]), 110, text);
        assert_error(&ran(&["run", "real16-42", option, value]), 110, option);
    }
    let refused = ran(&["run", "real16-42", "--no-profile", "--expect-exits", "<=1"]);
    assert!(refused.status == 110 && refused.stderr.contains("cannot be used with"), "{}", refused.stderr);
}

fn files_for_memory() {
    let files = Files::new();
    let (image, out) = (files.write("image.bin", &[0xf4]), files.write("out", b"old"));
    let to = |path: &str| format!("0+1={path}");
    let profile = format!("json={out}");
    assert_error(&ran(&["run", &image, "--dump-memory", &to(&image)]), 110, "is also an input");
    assert_error(
        &ran(&["run", &image, "--expect-output", &out, "--dump-memory", &to(&out)]),
        110,
        "is also an input",
    );
    assert_error(
        &ran(&["run", &image, "--dump-memory", &to(&out), "--dump-memory", &to(&out)]),
        110,
        "two different files",
    );
    assert_error(
        &ran(&["run", &image, "--profile", &profile, "--dump-memory", &to(&out)]),
        110,
        "two different files",
    );
    assert_eq!(fs::read(&out).unwrap(), b"old");
}
