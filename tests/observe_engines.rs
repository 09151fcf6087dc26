//! `vmm observe`: what holds for both engines. The programs are a VMM in C (`support/observed.c`) and this program itself.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use libtest_mimic::Trial;
use observed::{
    PROGRAMS, VMM, compile, counts, no_musl, observe, profile_by, program, program_of_musl, running, source,
};
use report::SavedProfile;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::{Files, kvm_test, plain_test, run, shell, test_unless, wait};

/// The name of a test, and its body, which gets the engine.
type Test = (&'static str, fn(&'static str));

const ENGINES: [&str; 2] = ["preload", "ptrace"];

fn main() -> ExitCode {
    support::watchdog();
    let with_kvm: [Test; 5] = [
        ("the_exits_of_every_kind_of_program_are_counted_exactly", exact_counts),
        ("the_exits_of_this_program_are_those_that_it_counts", itself),
        ("the_program_sees_no_difference", no_difference),
        ("a_time_limit_ends_all_children", timeout),
        ("a_signal_reaches_the_program_once", signals),
    ];
    let plain: [Test; 3] = [
        ("a_program_without_kvm_made_no_vm", no_vm),
        ("the_status_is_that_of_the_program", statuses),
        ("the_program_has_its_input_and_output", streams),
    ];
    let of = |engine: &'static str| {
        let name = move |test: &str| format!("{test}::{engine}");
        let tests = with_kvm.into_iter().map(move |(test, body)| kvm_test(name(test), move || body(engine)));
        let of_musl = format!("the_exits_of_a_program_of_musl_are_counted_exactly::{engine}");
        let tests = tests.chain([test_unless(no_musl, of_musl, move || musl(engine))]);
        tests.chain(plain.into_iter().map(move |(test, body)| plain_test(name(test), move || body(engine))))
    };
    let tests: Vec<Trial> = ENGINES.into_iter().flat_map(of).collect();
    observed::main(tests)
}

fn exact_counts(engine: &'static str) {
    let name = format!("library-{engine}.so");
    let library = compile(&name, &source(), &["-shared", "-fPIC", "-DLIBRARY"]);
    observed::exact_counts(engine, program(), Some(library.to_str().unwrap()));
}

fn musl(engine: &'static str) {
    let program = program_of_musl(&format!("musl-{engine}"), &[]);
    observed::exact_counts(engine, program.to_str().unwrap(), None);
    if engine == "ptrace" {
        let program = program_of_musl("musl-static", &["-static"]);
        observed::exact_counts("auto", program.to_str().unwrap(), None);
    }
}

fn itself(engine: &'static str) {
    let files = Files::new();
    let own = files.0.path().join("own.json");
    for guest in [
        &["simvirtio"][..],
        &["simvirtio", "--transport", "polling"],
        &["modes"],
        &["real16-outsb"],
        &["real16-insb"],
        &["kev-strings"],
        &["kev-hypercall"],
        &["kev-msr"],
        &["kev-msr-fault"],
        &["smp-print"],
        &["hello-kvm"],
    ] {
        let json = format!("json={}", own.display());
        let command = [&[VMM, "run", "--vcpu", "kvm", "--profile", &json], guest].concat();
        let (ran, observed) = profile_by(engine, &command);
        assert_eq!(ran.status, 0, "{guest:?}: {}", ran.stderr);
        let own = SavedProfile::read(&fs::read(&own).unwrap()).unwrap();
        assert_eq!(counts(&observed.machine.sites), counts(&own.machine.sites), "{guest:?}");
        let of_vcpus =
            |profile: &SavedProfile| profile.vcpus.iter().map(|vcpu| vcpu.exits).collect::<Vec<_>>();
        assert_eq!(of_vcpus(&observed), of_vcpus(&own), "{guest:?}");
        let exits = |profile: &SavedProfile| profile.machine.kernel.as_ref().map(|kernel| kernel["exits"]);
        assert_eq!(exits(&observed), exits(&own), "{guest:?}");
    }
}

/// The output and the status, which say what the program saw: the numbers of its descriptors and of their errors.
fn no_difference(engine: &'static str) {
    for mode in
        ["descriptors", "garbage", "interrupt", "fork", "refused", "dies", "reopen", "filter-late", "jump"]
    {
        let alone = run(Command::new(program()).arg(mode).stdout(Stdio::piped()));
        // With stops at the first entries, and without.
        for options in [&["--engine", engine][..], &["--engine", engine, "--setup"]] {
            let observed = observe(options, &[program(), mode]);
            assert_eq!(
                (alone.status, alone.text()),
                (observed.status, observed.text()),
                "{mode} {options:?}"
            );
        }
    }
    // What a child of the shell sees: the masks and dispositions of signals, its limits, and its files. A tracer needs a filter of
    // system calls, and a library needs a variable of the environment.
    let more = match engine {
        "ptrace" => "env | sort",
        _ => "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status",
    };
    let state = "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -a; ls -l /proc/self/fd | wc -l; ";
    let state = format!("{state}{more}");
    for prefix in ["", "trap '' INT PIPE XFSZ; "] {
        let line = |command: &str| shell(&format!("{prefix}{command}"), &[&state]).text();
        let by = format!("\"$0\" observe -q --engine {engine} -- sh -c \"$1\"");
        assert_eq!(line("sh -c \"$1\""), line(&by), "{prefix}");
    }
}

fn timeout(engine: &'static str) {
    let started = Instant::now();
    // A path of its own, to find the processes.
    let own = PROGRAMS.get_or_init(Files::new).0.path().join(format!("hanging-{engine}"));
    fs::copy(program(), &own).unwrap();
    let ran = observe(&["--engine", engine, "--timeout", "0.3"], &[own.to_str().unwrap(), "hang"]);
    assert_eq!(ran.status, 114, "{}", ran.stderr);
    assert!(
        ran.stderr
            .starts_with(&format!("vmm: hanging-{engine}: timeout: the program did not end within 0.3 s")),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("PIO out            0x42 "), "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(running(&own), Vec::<PathBuf>::new());
}

fn signals(engine: &'static str) {
    for signal in ["-TERM", "-INT"] {
        let mut vmm = Command::new(VMM);
        vmm.args(["observe", "--engine", engine, "--", program(), "wait"]);
        let mut child = vmm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        let number = if signal == "-TERM" { 15 } else { 2 };
        assert_eq!((rest, wait(&mut child)), (format!("signal {number}\n"), 7));
    }
}

fn no_vm(engine: &'static str) {
    let ran = observe(&["--engine", engine], &["true"]);
    assert_eq!(ran.status, 0);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("vmm: true: exited with status 0 (after "), "{lines:?}");
    let made_none = match engine {
        "ptrace" => "vmm: true made no VM: neither it nor a child called KVM_CREATE_VM on /dev/kvm",
        _ => {
            "vmm: true made no VM: neither it nor a child called KVM_CREATE_VM through the C library's ioctl; --engine ptrace \
             sees all calls"
        }
    };
    assert_eq!(lines[1], made_none, "{lines:?}");
    let is_open = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(lines.len(), if is_open { 2 } else { 3 }, "{lines:?}");
    let closed = lines.get(2).is_none_or(|line| line.starts_with("vmm: /dev/kvm cannot be opened here: "));
    assert!(closed, "{lines:?}");
}

fn statuses(engine: &'static str) {
    for (line, status, text) in [
        ("exit 0", 0, "exited with status 0"),
        ("exit 110", 110, "exited with status 110"),
        ("exit 255", 255, "exited with status 255"),
        ("sleep 0.05 & wait; exit 3", 3, "exited with status 3"),
        ("kill -9 $$", 137, "ended by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "ended by signal 15 (SIGTERM)"),
        ("trap 'exit 4' USR1; kill -USR1 $$; sleep 1", 4, "exited with status 4"),
        ("trap 'exit 5' TRAP; kill -TRAP $$; sleep 1", 5, "exited with status 5"),
        ("(sleep 0.1; kill -CONT $$) & kill -STOP $$; exit 6", 6, "exited with status 6"),
    ] {
        let ran = observe(&["-q", "--engine", engine], &["sh", "-c", line]);
        assert_eq!(ran.status, status, "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{line}: {}", ran.stderr);
    }
}

fn streams(engine: &'static str) {
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "-q", "--engine", engine, "--", "cat"]);
    let mut child = vmm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"text\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"text\n"[..]));
}
