//! `vmm observe --engine ptrace`: static programs, one in Go, and everything that is difficult for a tracer.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{PROGRAMS, VMM, expected, no_qemu, observe, program, running};
use report::SavedProfile;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::{Files, Ran, assert_error, kvm_test, plain_test, run, test_unless, wait};

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        kvm_test("the_exits_of_a_program_are_counted_exactly", || exact_counts("ptrace", program())),
        // Its engine is chosen by itself.
        test_unless(no_static, "the_exits_of_a_static_program_are_counted_exactly", || {
            exact_counts("auto", static_program());
            refused_by_preload();
        }),
        kvm_test("the_exits_of_difficult_programs_are_counted_exactly", difficult),
        kvm_test("both_engines_see_the_same_exits", same_table),
        test_unless(no_go, "the_exits_of_a_program_in_go_are_counted_exactly", go),
        kvm_test("the_exits_of_this_program_are_those_that_it_counts", itself),
        test_unless(no_qemu, "the_exits_of_qemu_are_counted_exactly", qemu),
        test_unless(no_static, "deaths_of_guests_are_explained", deaths),
        kvm_test("the_program_sees_no_difference", no_difference),
        kvm_test("a_time_limit_ends_all_children", timeout),
        kvm_test("a_signal_reaches_the_program_once", signals),
        kvm_test("the_program_ends_with_the_observer", no_observer),
        kvm_test("an_engine_that_cannot_see_the_program_says_so", unseen),
        plain_test("children_that_still_run_go_on", left_children),
        plain_test("a_program_without_kvm_made_no_vm", no_vm),
        plain_test("the_status_is_that_of_the_program", statuses),
        plain_test("programs_that_cannot_be_observed_are_refused", refused),
        plain_test("the_program_has_its_input_and_output", streams),
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

/// Traces this program, and reads the profile.
fn profile(engine: &str, command: &[&str]) -> (Ran, SavedProfile) {
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    let json = format!("json={}", path.display());
    let ran = observe(&["--engine", engine, "--profile", &json], command);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", ran.stderr));
    let profile = SavedProfile::read(&bytes).unwrap();
    (ran, profile)
}

/// The exits and elements by site.
fn counts(profile: &SavedProfile) -> BTreeMap<String, (u64, u64)> {
    observed::counts(&profile.machine.sites)
}

fn exact_counts(engine: &str, program: &str) {
    // The mode, the number of guests that run to their end, further exits, and the number of vCPUs.
    for (mode, times, outs, vcpus) in [
        (&["plain"][..], 1, 0, 1),
        (&["fork"], 2, 0, 2),
        (&["exec"], 2, 0, 2),
        (&["dup"], 2, 0, 2),
        (&["reuse"], 2, 100, 3),
        (&["never-map"], 1, 0, 1),
        (&["map-twice"], 1, 0, 1),
        (&["repeat", "20"], 20, 0, 20),
        (&["vcpus", "32"], 32, 0, 32),
        (&["vms"], 2, 0, 2),
        (&["interrupt"], 1, 0, 2),
        (&["jump"], 1, 0, 1),
        (&["garbage"], 1, 0, 1),
        (&["filter"], 1, 0, 1),
        (&["crash"], 1, 0, 1),
    ] {
        let (ran, profile) = profile(engine, &[&[program], mode].concat());
        let status = if mode == ["crash"] { 128 + libc::SIGSEGV } else { 0 };
        assert_eq!((ran.status, ran.text().as_str()), (status, ""), "{mode:?}: {}", ran.stderr);
        assert_eq!(counts(&profile), expected(times, outs), "{mode:?}: {}", ran.stderr);
        assert_eq!(profile.vcpus.len(), vcpus, "{mode:?}: {}", ran.stderr);
        let kernel = profile.machine.kernel.as_ref().map(|kernel| kernel["exits"]);
        assert!(kernel.is_none_or(|exits| exits >= profile.machine.exits), "{mode:?}: {kernel:?}");
        assert!(profile.machine.in_kvm.sum > 0 && profile.clock.khz > 100_000, "{mode:?}");
    }
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
        let (ran, profile) = profile("ptrace", &[&traced, mode]);
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
        let [first, second] = ["preload", "ptrace"].map(|engine| profile(engine, &command).1);
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
        let (ran, profile) = profile("auto", &[built.to_str().unwrap()]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "1001 exits\n"), "{mode}: {}", ran.stderr);
        let right = [("PIO out 0x42 Some(1)".to_string(), (1000, 1000)), ("HLT None".into(), (1, 1))];
        assert_eq!(counts(&profile), BTreeMap::from(right), "{mode}: {}", ran.stderr);
    }
}

fn itself() {
    let files = Files::new();
    let own = files.0.path().join("own.json");
    for guest in [
        &["simvirtio"][..],
        &["simvirtio", "--transport", "polling"],
        &["modes"],
        &["real16-outsb"],
        &["real16-insb"],
        &["kev-msr"],
        &["smp-print"],
        &["hello-kvm"],
    ] {
        let json = format!("json={}", own.display());
        let command = [&[VMM, "run", "--vcpu", "kvm", "--profile", &json], guest].concat();
        let (ran, observed) = profile("ptrace", &command);
        assert_eq!(ran.status, 0, "{guest:?}: {}", ran.stderr);
        let own = SavedProfile::read(&fs::read(&own).unwrap()).unwrap();
        assert_eq!(counts(&observed), counts(&own), "{guest:?}");
        let of_vcpus =
            |profile: &SavedProfile| profile.vcpus.iter().map(|vcpu| vcpu.exits).collect::<Vec<_>>();
        assert_eq!(of_vcpus(&observed), of_vcpus(&own), "{guest:?}");
        let exits = |profile: &SavedProfile| profile.machine.kernel.as_ref().map(|kernel| kernel["exits"]);
        assert_eq!(exits(&observed), exits(&own), "{guest:?}");
    }
}

fn qemu() {
    let files = Files::new();
    let mut last = None;
    let ran = observed::qemu(&files, &mut |command| {
        let (ran, profile) = profile("ptrace", command);
        last = Some(profile);
        ran
    });
    assert_eq!(ran.status, 7, "{}", ran.stderr);
    let counts = counts(&last.unwrap());
    assert_eq!(counts["PIO out 0xe9 Some(1)"], (300, 300), "{counts:?}");
    assert_eq!(counts["PIO out 0xf4 Some(1)"], (1, 1), "{counts:?}");
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

/// The output and the status, which say what the program saw: the numbers of its descriptors and of their errors.
fn no_difference() {
    for mode in ["descriptors", "garbage", "interrupt", "fork"] {
        let alone = run(Command::new(program()).arg(mode).stdout(Stdio::piped()));
        let observed = observe(&["--engine", "ptrace"], &[program(), mode]);
        assert_eq!((alone.status, alone.text()), (observed.status, observed.text()), "{mode}");
    }
    let state =
        "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -a; ls -l /proc/self/fd | wc -l; env | sort";
    let line = |command: &str| {
        run(Command::new("sh").args(["-c", command, VMM, state]).stdout(Stdio::piped())).text()
    };
    assert_eq!(line("sh -c \"$1\""), line("\"$0\" observe -q --engine ptrace -- sh -c \"$1\""));
}

fn timeout() {
    let started = Instant::now();
    // A path of its own, to find the processes.
    let own = PROGRAMS.get_or_init(Files::new).0.path().join("hanging");
    fs::copy(program(), &own).unwrap();
    let ran = observe(&["--engine", "ptrace", "--timeout", "0.3"], &[own.to_str().unwrap(), "hang"]);
    assert_eq!(ran.status, 114, "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with("vmm: hanging: timeout: the program did not end within 0.3 s"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("PIO out            0x42 "), "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(running(&own), Vec::<PathBuf>::new());
}

fn signals() {
    for signal in ["-TERM", "-INT"] {
        let mut vmm = Command::new(VMM);
        vmm.args(["observe", "--engine", "ptrace", "--", program(), "wait"]);
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
    assert_eq!(counts(&profile("ptrace", &[&raw, "plain"]).1), expected(1, 0));
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

fn no_vm() {
    let ran = observe(&["--engine", "ptrace"], &["true"]);
    assert_eq!(ran.status, 0);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("vmm: true: exited with status 0 (after "), "{lines:?}");
    let made_none = "vmm: true made no VM: neither it nor a child called KVM_CREATE_VM on /dev/kvm";
    assert_eq!((lines.len(), lines[1]), (2, made_none), "{lines:?}");
}

fn statuses() {
    for (line, status, text) in [
        ("exit 0", 0, "exited with status 0"),
        ("exit 255", 255, "exited with status 255"),
        ("sleep 0.05 & wait; exit 3", 3, "exited with status 3"),
        ("kill -9 $$", 137, "ended by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "ended by signal 15 (SIGTERM)"),
        ("trap 'exit 4' USR1; kill -USR1 $$; sleep 1", 4, "exited with status 4"),
        ("trap 'exit 5' TRAP; kill -TRAP $$; sleep 1", 5, "exited with status 5"),
        ("(sleep 0.1; kill -CONT $$) & kill -STOP $$; exit 6", 6, "exited with status 6"),
    ] {
        let ran = observe(&["-q", "--engine", "ptrace"], &["sh", "-c", line]);
        assert_eq!(ran.status, status, "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{line}: {}", ran.stderr);
    }
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

fn streams() {
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "-q", "--engine", "ptrace", "--", "cat"]);
    let mut child = vmm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"text\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"text\n"[..]));
}
