//! `vmm observe --engine ptrace`: static programs, one in Go, and everything that is difficult for a tracer.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{PROGRAMS, VMM, expected, no_qemu, observe, profile_by, program, running};
use report::SavedProfile;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::{Files, assert_error, kvm_test, plain_test, test_unless, wait};

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        // Its engine is chosen by itself.
        test_unless(no_static, "the_exits_of_a_static_program_are_counted_exactly", || {
            observed::exact_counts("auto", static_program(), None);
            refused_by_preload();
        }),
        kvm_test("the_exits_of_difficult_programs_are_counted_exactly", difficult),
        kvm_test("both_engines_see_the_same_exits", same_table),
        test_unless(no_go, "the_exits_of_a_program_in_go_are_counted_exactly", go),
        test_unless(no_qemu, "the_exits_of_qemu_are_counted_exactly", qemu),
        test_unless(no_static, "deaths_of_guests_are_explained", deaths),
        kvm_test("the_program_ends_with_the_observer", no_observer),
        kvm_test("an_engine_that_cannot_see_the_program_says_so", unseen),
        plain_test("children_that_still_run_go_on", left_children),
        plain_test("programs_that_cannot_be_observed_are_refused", refused),
    ])
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support").join(name)
}

/// Compiles a C program of `tests/support` with these options.
fn compile(name: &str, from: &str, options: &[&str]) -> String {
    // The linker warns of `dlopen` in static programs, which only one mode uses.
    let options = [&["-w", "-Wl,--no-warnings"], options].concat();
    observed::compile(name, &source(from), &options).to_str().unwrap().into()
}

/// The VMM in C, statically linked.
fn static_program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("observed-static", "observed.c", &["-static"]))
}

/// The reason why there are no static programs here.
fn no_static() -> Option<String> {
    if let Some(why) = support::unusable() {
        return Some(why.into());
    }
    // gcc prints only the name of a file that it does not find.
    let found = Command::new("gcc").arg("-print-file-name=libc.a").output().unwrap().stdout;
    (!found.contains(&b'/')).then(|| "libc.a is not installed".into())
}

/// The exits and elements by site.
fn counts(profile: &SavedProfile) -> BTreeMap<String, (u64, u64)> {
    observed::counts(&profile.machine.sites)
}

fn refused_by_preload() {
    assert_error(
        &observe(&["--engine", "preload"], &[static_program(), "plain"]),
        116,
        "it is statically linked, and no library can be preloaded into it; --engine ptrace observes it",
    );
}

fn difficult() {
    let traced = compile("traced", "traced.c", &[]);
    let more = |mode| match mode {
        "die" => Some(("emulation failure None", 3)),
        "narrow" => Some(("emulation failure None", 1)),
        _ => None,
    };
    for (mode, times, outs, vcpus) in [
        ("plain", 1, 0, 1),
        ("die", 1, 0, 2),
        ("narrow", 0, 0, 1),
        ("jobs", 1, 0, 1),
        ("rights", 2, 0, 2),
        ("thread-exec", 2, 0, 2),
        ("leader", 2, 0, 2),
        ("unshare", 2, 0, 2),
        ("trace", 1, 0, 1),
    ] {
        let (ran, profile) = profile_by("ptrace", &[&traced, mode]);
        assert_eq!((ran.status, ran.text().as_str()), (0, ""), "{mode}: {}", ran.stderr);
        let mut right = expected(times, outs);
        right.retain(|_, (exits, _)| *exits > 0);
        right.extend(more(mode).map(|(site, exits)| (site.to_string(), (exits, exits))));
        assert_eq!(counts(&profile), right, "{mode}: {}", ran.stderr);
        assert_eq!(profile.vcpus.len(), vcpus, "{mode}: {}", ran.stderr);
        // Only the program with a filter of its own hides KVM's counters.
        assert!(!ran.stderr.contains("KVM_RUN failed"), "{mode}: {}", ran.stderr);
        let has_counters = profile.machine.kernel.is_some();
        assert!(!has_counters || mode != "narrow", "{}", ran.stderr);
    }
}

fn same_table() {
    for mode in [&["plain"][..], &["vcpus", "4"], &["vms"], &["fork"]] {
        let command = [&[program()], mode].concat();
        let [first, second] = ["preload", "ptrace"].map(|engine| profile_by(engine, &command).1);
        assert_eq!(counts(&first), counts(&second), "{mode:?}");
        let of_vcpus = |profile: &SavedProfile| {
            let vcpus = profile.vcpus.iter().map(|vcpu| (vcpu.exits, vcpu.ended.clone()));
            vcpus.collect::<Vec<_>>()
        };
        let (mut first, mut second) = (of_vcpus(&first), of_vcpus(&second));
        first.sort();
        second.sort();
        assert_eq!(first, second, "{mode:?}");
    }
}

/// The reason why no program in Go can be built here.
fn no_go() -> Option<String> {
    if let Some(why) = support::unusable() {
        return Some(why.into());
    }
    let here = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!here.is_ok_and(|status| status.success())).then(|| "go is not installed".into())
}

fn go() {
    let folder = PROGRAMS.get_or_init(Files::new).0.path();
    // The second one has a dynamic loader, but calls no C library, either.
    for (name, mode) in [("go-static", "exe"), ("go-pie", "pie")] {
        let built = folder.join(name);
        let mut go = Command::new("go");
        go.args(["build", "-buildmode", mode, "-o"]).arg(&built).arg(source("observed.go"));
        go.env("CGO_ENABLED", "0")
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            .env("GOCACHE", folder.join("cache"));
        assert!(go.status().unwrap().success(), "{mode}");
        let (ran, profile) = profile_by("auto", &[built.to_str().unwrap()]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "1001 exits\n"), "{mode}: {}", ran.stderr);
        let right = [("PIO out 0x42 Some(1)".to_string(), (1000, 1000)), ("HLT None".into(), (1, 1))];
        assert_eq!(counts(&profile), BTreeMap::from(right), "{mode}: {}", ran.stderr);
    }
}

fn qemu() {
    let files = Files::new();
    for machine in observed::MACHINES {
        let mut last = None;
        let ran = observed::qemu(&files, machine, &mut |command| {
            let (ran, profile) = profile_by("ptrace", command);
            last = Some(profile);
            ran
        });
        assert_eq!(ran.status, 7, "{machine}: {}", ran.stderr);
        let counts = counts(&last.unwrap());
        assert_eq!(counts["PIO out 0xe9 Some(1)"], (300, 300), "{machine}: {counts:?}");
        assert_eq!(counts["PIO out 0xf4 Some(1)"], (1, 1), "{machine}: {counts:?}");
    }
}

/// The registers come from calls that the observer makes in the program, and the memory from process_vm_readv(2).
fn deaths() {
    let dying = compile("dying", "dying.c", &["-static"]);
    for (mode, text) in [
        ("no-lma", "KVM_SET_SREGS failed: Invalid argument (os error 22): EFER.LME is 1 and CR0.PG is 1"),
        ("no-idt", "probably #UD: an undefined instruction\n  instruction  0f 0b  ud2"),
        ("zeros", "the entry point 0x8000 holds only zeros: was the guest copied there?"),
    ] {
        let ran = observe(&["--setup"], &[&dying, mode]);
        assert!(ran.stderr.contains(text), "{mode}: {}", ran.stderr);
        assert!(ran.stderr.contains("KVM_SET_USER_MEMORY_REGION: slot 0: 0x0"), "{mode}: {}", ran.stderr);
    }
}

/// Without its tracer, the calls of a program to KVM would fail. So it is killed.
fn no_observer() {
    let own = PROGRAMS.get_or_init(Files::new).0.path().join("orphan");
    fs::copy(program(), &own).unwrap();
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "--engine", "ptrace", "--", own.to_str().unwrap(), "wait"]);
    let mut child = vmm.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), running(&own).len()), ("ready\n", 1));
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while !running(&own).is_empty() && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(running(&own), Vec::<PathBuf>::new());
}

fn unseen() {
    // A program that makes its system calls itself, although it has a C library.
    let raw = compile("raw", "traced.c", &["-DRAW"]);
    let ran = observe(&["--engine", "auto"], &[&raw, "plain"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("made no VM") && ran.stderr.contains("--engine ptrace sees all calls"),
        "{}",
        ran.stderr
    );
    assert_eq!(counts(&profile_by("ptrace", &[&raw, "plain"]).1), expected(1, 0));
}

fn left_children() {
    let mut vmm = Command::new(VMM);
    let line = "sleep 1 >/dev/null && echo later & exit 3";
    vmm.args(["observe", "--engine", "ptrace", "--", "sh", "-c", line]);
    let mut child = vmm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.stdout.take().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap_or_default();
    assert_eq!(wait(&mut child), 3, "{stderr}");
    // The child has the output, and goes on.
    assert_eq!(std::io::read_to_string(output).unwrap(), "later\n");
    assert!(
        stderr.contains("still run; from now on all of their calls to KVM fail, with ENOSYS"),
        "{stderr}"
    );
}

fn refused() {
    let files = Files::new();
    let executable = |name: &str, bytes: &[u8], mode: u32| {
        let path = files.write(name, bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let ptrace = |program: &[&str]| observe(&["--engine", "ptrace"], program);
    let mut elf = fs::read(VMM).unwrap()[..64].to_vec();
    let lost = executable("lost", b"#!/no/such/interpreter\n", 0o755);
    assert_error(&ptrace(&[&lost]), 115, "starting the program: No such file or directory");
    elf[18] = 0xb7;
    let arm = executable("arm", &elf, 0o755);
    assert_error(&ptrace(&[&arm]), 116, "it is for another architecture, not x86-64");
    let itself = [VMM, "observe", "--engine", "ptrace", "--", "true"];
    let ran = ptrace(&itself);
    assert_eq!(ran.status, 116, "{}", ran.stderr);
    assert!(ran.stderr.contains("vmm is itself traced, by strace or a debugger"), "{}", ran.stderr);
    // Only root can give a file to another user.
    let setuid = executable("setuid", &fs::read("/bin/true").unwrap(), 0o755);
    if std::os::unix::fs::chown(&setuid, Some(1), None).is_ok() {
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
        let why = "it is a setuid or setgid program or has capabilities, and a program that is traced";
        assert_error(&ptrace(&[&setuid]), 116, why);
    }
}
