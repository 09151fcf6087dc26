//! `vmm grade --vmm`: the grade of a student's VMM. The VMM in C (`support/so2_vmm.c`) is right, or has one mistake.
#![allow(clippy::unwrap_used)]

#[path = "support/so2.rs"]
mod so2;
mod support;

use so2::{ALL, VMM, compiled, grade, points, source};
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use support::{Files, assert_error, kvm_test, plain_test, run};

fn main() -> ExitCode {
    support::watchdog();
    so2::main(vec![
        kvm_test("a_right_vmm_gets_100_points", right),
        kvm_test("each_mistake_loses_its_own_points_with_a_sentence", || mistakes("preload")),
        kvm_test("the_other_engine_grades_the_same", || mistakes("ptrace")),
        kvm_test("a_grade_can_be_repeated_with_its_seed", seeds),
        kvm_test("a_vmm_may_run_its_own_guests", own_guests),
        kvm_test("a_task_that_was_not_handed_in_has_no_points", not_handed_in),
        kvm_test("the_number_of_exits_may_be_anywhere_in_the_output", patterns),
        kvm_test("a_project_is_built_first", make),
        kvm_test("this_program_is_a_right_vmm", itself),
        kvm_test("the_traps_of_kev_are_graded_for_a_vmm", kev),
        plain_test("mistakes_on_the_command_line_give_no_grade", usage),
        plain_test("without_kvm_there_is_no_grade", without_kvm),
    ])
}

/// Both layouts of the window, queues of other lengths, protected mode.
fn right() {
    for (options, evidence) in [
        ("", "the assignment's table, queues of 64 bytes"),
        ("-DSTRUCT -DQUEUE=255", "the assignment's struct device_t, queues of 255 bytes"),
        ("-DPROTECTED -DQUEUE=4096", "message of 4133 letters on stdout"),
        ("-DQUEUE=2", "queues of 2 bytes"),
        ("-static", "the assignment's table, queues of 64 bytes"),
    ] {
        let (points, text) = points(&["--vmm", &compiled(options)]);
        assert_eq!(points, ALL, "{options}: {text}");
        assert!(text.contains(evidence), "{text}");
    }
    // The exits of the text of 25 bytes and the HLT.
    let (_, text) = points(&["so2", "--vmm", &compiled(""), "--layout", "table"]);
    assert_eq!(text.matches("printed 26, observed 26 exits").count(), 2, "{text}");
    assert!(text.contains("no exit at the window, 1 exit in all"), "{text}");
}

fn mistakes(engine: &str) {
    for (mistake, expected, sentence) in [
        ("CS", [0, 20, 30, 10, 10], "CS base is 0xffff0000, as after reset"),
        ("LME", [30, 0, 30, 10, 10], "KVM_SET_SREGS failed: Invalid argument"),
        ("LME", [30, 0, 30, 10, 10], "EFER.LMA is 1 but EFER.LME is 0"),
        (
            "TEXT",
            [30, 0, 30, 10, 10],
            "stdout has \"Hello, world!\", which the guest did not print: the text is hard-coded",
        ),
        (
            "READY",
            [30, 20, 15, 10, 10],
            "device_status must be READY (4) after DRIVER_OK, and stays 2: it never becomes READY",
        ),
        ("POLLING", [30, 20, 30, 0, 10], "polling must make no exit at the window, and made 214 exits"),
        ("COUNT", [30, 20, 30, 10, 0], "it printed 27, and made 26"),
        (
            "REASON",
            [10, 20, 30, 10, 10],
            "took an exit for PIO out as the end, so it did not look at exit_reason",
        ),
        (
            "READS",
            [30, 20, 0, 10, 10],
            "the VMM must answer reads of the window (is_write is 0) in mmio.data of kvm_run, and left the bytes there as they were",
        ),
        ("COPY", [0, 0, 0, 0, 10], "the entry point 0x0 holds only zeros: was the guest copied there?"),
    ] {
        let (points, text) =
            points(&["--engine", engine, "--vmm", &compiled(&format!("-DMISTAKE_{mistake}"))]);
        assert_eq!(points, expected, "{mistake}: {text}");
        let failed = text.lines().any(|line| line.trim_start().starts_with("- ") && line.contains(sentence));
        assert!(failed, "{mistake}: {text}");
    }
}

fn seeds() {
    let program = compiled("");
    let text = |seed: &str| grade(&["--vmm", &program, "--seed", seed]).text();
    let first = text("1");
    assert_eq!(first, text("1"));
    assert!(first.contains("slxnnsswtjkowyrrkmrokpsq") && !text("2").contains("slxnnsswtjkowyrrkmrokpsq"));
    // Without --seed, the seed is another one each time, and is printed.
    let seed = || {
        let ran = grade(&["--vmm", &program, "--run", "real=true"]);
        let (_, rest) = ran.stderr.split_once("--seed ").unwrap();
        rest.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_ne!((seed(), seed()), (seed(), seed()));
}

fn own_guests() {
    for options in ["", "-DSTRUCT"] {
        let (points, text) = points(&["--vmm", &compiled(options), "--own-guests"]);
        assert_eq!(points, ALL, "{text}");
        assert!(text.contains("\"Hello, world!\" on stdout exactly once"), "{text}");
        assert!(text.contains("message of 12 letters on stdout: \"Ana are mere\""), "{text}");
    }
    // A hard-coded text is then not found out.
    assert_eq!(points(&["--vmm", &compiled("-DMISTAKE_TEXT"), "--own-guests"]).0, ALL);
    let (points, text) = points(&["--vmm", &compiled("-DMISTAKE_READY"), "--own-guests", "--timeout", "1"]);
    assert_eq!((points[0], points[1], points[4]), (30, 20, 10), "{text}");
    assert!(points[2] <= 15 && text.contains("it never becomes READY"), "{text}");
}

fn not_handed_in() {
    let program = compiled("");
    let (points_of_one, text) = points(&["--run", &format!("real='{program}'  \"real\"")]);
    assert_eq!(points_of_one, [30, 0, 0, 0, 10], "{text}");
    assert_eq!(text.matches("- not handed in: no program for").count(), 3, "{text}");
    let (points_of_none, text) = points(&["--vmm", "/bin/true"]);
    assert_eq!(points_of_none, [0; 5], "{text}");
    assert_eq!(text.matches("it made no VM (KVM_CREATE_VM)").count(), 4, "{text}");
    // Another program for polling.
    let (points, text) = points(&["--vmm", &compiled("-DMISTAKE_POLLING"), "--vmm-polling", &program]);
    assert_eq!(points, ALL, "{text}");
}

fn patterns() {
    let program = compiled("");
    let counting = |pattern: &[&str]| points(&[&["--vmm", &program], pattern].concat()).0[4];
    assert_eq!(counting(&["--count-pattern", r"^VM exits: (\d+)$"]), 10);
    assert_eq!(counting(&["--count-pattern", r"^Exits (\d+)$"]), 0);
    let (points, text) = points(&["--vmm", &program, "--finished", "That is all"]);
    assert_eq!(points, [25, 20, 30, 10, 10], "{text}");
    assert!(
        text.contains(
            "the program must print \"That is all\" (--finished) when it has finished, and ends with \"Finished vmm\""
        ),
        "{text}"
    );
}

/// The program of the assignment's Makefile is kvm-hello-world.
fn make() {
    let files = Files::new();
    let folder = files.0.path().to_str().unwrap().to_owned();
    // In the jail, make sees the project only.
    fs::create_dir(files.0.path().join("so2_vmm")).unwrap();
    let headers = Path::new(&source()).with_file_name("so2_vmm");
    for header in fs::read_dir(headers).unwrap().flatten() {
        fs::copy(header.path(), files.0.path().join("so2_vmm").join(header.file_name())).unwrap();
    }
    fs::copy(source(), files.0.path().join("vmm.c")).unwrap();
    let rule = "kvm-hello-world:\n\tgcc -O1 -pthread -o $@ vmm.c\n";
    files.write("Makefile", rule.as_bytes());
    let (points, text) = points(&["--make", &folder]);
    assert_eq!(points, ALL, "{text}");
    files.write("Makefile", b"all:\n\t@echo some mistake in vmm.c >&2; false\n");
    let failed = grade(&["--make", &folder]);
    assert_eq!((failed.status, failed.text().as_str()), (110, ""), "{}", failed.stderr);
    assert!(failed.stderr.starts_with("vmm: make: some mistake in vmm.c\n"), "{}", failed.stderr);
    assert!(failed.stderr.contains("vmm: error: make failed in"), "{}", failed.stderr);
    files.write("Makefile", b"all:\n\ttrue\n");
    fs::remove_file(files.0.path().join("kvm-hello-world")).unwrap();
    let nothing = "/kvm-hello-world: name the program that it builds with --vmm";
    assert_error(&grade(&["--make", &folder]), 110, nothing);
    assert_error(&grade(&["--make", &folder, "--vmm", "./no/such/vmm"]), 110, "No such file or directory");
}

fn itself() {
    let runs = [
        ("real", "real16-hello"),
        ("long", "long64-hello"),
        ("simvirtio", "simvirtio --transport exit"),
        ("polling", "simvirtio --transport polling"),
    ];
    for (simvirtio, layout) in [("simvirtio", "table"), ("simvirtio-struct", "struct")] {
        let runs = runs.map(|(task, guest)| {
            format!("{task}={VMM} run {}", guest.replace("simvirtio ", &format!("{simvirtio} ")))
        });
        let mut arguments = vec![
            "so2",
            "--finished",
            "halted",
            "--count-pattern",
            r"^vmm: (\d+) exits?:",
            "--layout",
            layout,
        ];
        arguments.extend(runs.iter().flat_map(|run| ["--run", run]));
        let (points, text) = points(&arguments);
        assert_eq!(points, ALL, "{text}");
    }
}

/// The seven checks that have a meaning on KVM. This program passes all, and the VMM for SO2 that of the port.
fn kev() {
    let checks = ["port", "mmio", "ports", "strings", "cpuid", "msr", "msr-fault"];
    let (own, other) = (format!("{VMM} run"), compiled(""));
    let runs = |command: &dyn Fn(&str) -> String| {
        let runs = checks.map(|check| format!("kev-{check}={}", command(check)));
        let arguments: Vec<_> =
            ["kev", "--timeout", "5"].into_iter().chain(runs.iter().flat_map(|run| ["--run", run])).collect();
        grade(&arguments)
    };
    let all = runs(&|check| format!("{own} kev-{check}"));
    assert_eq!((all.status, all.text().lines().last()), (0, Some(" 35/35")), "{}", all.text());
    let some = runs(&|_| format!("{other} long"));
    assert_eq!((some.status, some.text().lines().last()), (111, Some("  5/35")), "{}", some.text());
    for sentence in [
        "the guest must make an exit for MMIO write of 8 bytes at 0xcafe0000",
        "the guest must make an exit for WRMSR of 8 bytes at 0xabc; its last exit was shutdown; its guest died: triple fault",
    ] {
        assert!(some.text().contains(sentence), "{sentence}: {}", some.text());
    }
    let none = grade(&["kev", "--vmm", "/bin/true"]);
    assert_eq!(none.text().matches("it made no VM").count(), 7, "{}", none.text());
    assert_error(&grade(&["kev", "--run", "real=true"]), 110, "TASK is one of kev-port, kev-mmio,");
}

fn usage() {
    let files = Files::new();
    let text = files.write("text", b"a text\n");
    let folder = files.0.path().to_str().unwrap().to_owned();
    for (arguments, status, sentence) in [
        (&["--vmm", "./no/such/vmm"][..], 110, "No such file or directory"),
        (&["--vmm", &text], 110, "it is not executable"),
        (&["--vmm", &folder], 110, "it is a directory"),
        (&["--vmm", "true", "--guest16", "x"], 110, "one grade is for images or for a VMM"),
        (&["--vmm", "true", "--vcpu", "soft"], 110, "a student's VMM runs on KVM"),
        (&["--seed", "1"], 110, "--seed is for the grade of a VMM"),
        (&["--own-guests"], 110, "--own-guests is for the grade of a VMM"),
        (&["--layout", "table"], 110, "--layout is for a driver or a VMM"),
        (&["--run", "x=true"], 110, "--run must be TASK=COMMAND, not x=true"),
        (&["--run", "real="], 110, "--run must be TASK=COMMAND, not real="),
        (&["--run", "real='true"], 110, "a quote is not closed"),
        (&["--run", "real=true", "--run", "real=true"], 110, "--run has two commands for real"),
        (&["--vmm", "true", "--count-pattern", "("], 110, "--count-pattern ( is no regular expression"),
    ] {
        assert_error(&grade(arguments), status, sentence);
    }
    let both = grade(&["--vmm", "true", "--reference"]);
    assert!(both.status == 110 && both.stderr.contains("cannot be used with"), "{}", both.stderr);
    let seed = grade(&["--vmm", "true", "--seed", "x"]);
    assert!(
        seed.status == 110 && seed.stderr.contains("'--seed <N>': give a number, such as"),
        "{}",
        seed.stderr
    );
}

/// A host that cannot observe gives no grade, and not 0 points.
fn without_kvm() {
    for kind in ["missing", "replaced"] {
        let mut command = support::without_kvm(kind, VMM);
        let ran = run(command.args(["grade", "--vmm", "/bin/true"]).stdout(Stdio::piped()));
        assert_eq!((ran.status, ran.text().as_str()), (115, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains("so this run gives no grade"), "{}", ran.stderr);
    }
    assert!(Path::new(VMM).exists());
}
