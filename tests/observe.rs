//! `vmm observe`: the exits of other programs. The programs are a VMM in C (`support/observed.c`), this program itself,
//! and QEMU.
#![allow(clippy::unwrap_used)]

mod support;

use libtest_mimic::Arguments;
use report::profile::SavedSite;
use report::{Saved, SavedProfile};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::{Files, Ran, assert_error, kvm_test, plain_test, ran, run, shell, test_unless, vmm, wait};
use vmm::exit::Reason;

const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// The folder with the programs of this test.
static PROGRAMS: OnceLock<Files> = OnceLock::new();

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("the_exits_of_every_kind_of_program_are_counted_exactly", exact_counts),
        kvm_test("the_program_sees_no_difference", no_difference),
        kvm_test("a_profile_and_a_trace_are_those_of_a_run", files),
        kvm_test("the_exits_of_this_program_are_those_that_it_counts", itself),
        kvm_test("a_script_and_its_children_are_observed", script),
        kvm_test("any_number_of_vcpus_is_observed", many_vcpus),
        kvm_test("another_preloaded_library_stays", other_library),
        kvm_test("a_time_limit_ends_all_children", timeout),
        kvm_test("a_signal_reaches_the_program_once", signals),
        kvm_test("the_program_outlives_the_observer", no_observer),
        kvm_test("no_temporary_file_is_left", no_files_left),
        kvm_test("children_that_still_run_are_reported", left_children),
        test_unless(no_qemu, "the_exits_of_qemu_are_counted_exactly", qemu),
        plain_test("a_program_without_kvm_made_no_vm", no_vm),
        plain_test("the_status_is_that_of_the_program", statuses),
        plain_test("programs_that_cannot_be_observed_are_refused", refused),
        plain_test("a_script_has_its_input_and_output", streams),
    ];
    let conclusion = libtest_mimic::run(&Arguments::from_args(), tests);
    if let Some(programs) = PROGRAMS.get() {
        let _ = fs::remove_dir_all(programs.0.path());
    }
    conclusion.exit_code()
}

/// Compiles a C program of this test with these options. Returns its path.
fn compile(name: &str, source: &Path, options: &[&str]) -> PathBuf {
    let program = PROGRAMS.get_or_init(Files::new).0.path().join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).args(options).arg("-ldl");
    assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles {name}");
    program
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/observed.c")
}

/// The VMM in C.
fn program() -> &'static str {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("observed", &source(), &[])).to_str().unwrap()
}

/// Runs `vmm observe` with these options and this program.
fn observe(options: &[&str], command: &[&str]) -> Ran {
    let mut vmm = Command::new(VMM);
    vmm.arg("observe").args(options).arg("--").args(command);
    run(vmm.stdout(Stdio::piped()).env_remove("RUST_LOG"))
}

/// Observes this program, and reads the profile.
fn profile(command: &[&str]) -> (Ran, SavedProfile) {
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    let ran = observe(&["--profile", &format!("json={}", path.display())], command);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", ran.stderr));
    let profile = SavedProfile::read(&bytes).unwrap();
    (ran, profile)
}

/// The exits and elements by site.
fn counts(sites: &[SavedSite]) -> BTreeMap<String, (u64, u64)> {
    sites
        .iter()
        .map(|site| (format!("{} {:?}", site.name(), site.width), (site.exits, site.elements)))
        .collect()
}

/// The exits of `times` guests of `observed.c`, and `outs` more.
fn expected(times: u64, outs: u64) -> BTreeMap<String, (u64, u64)> {
    let sites = [
        ("PIO out 0x42 Some(1)", 1000 * times + outs),
        ("MMIO write 0x20010 Some(1)", 500 * times),
        ("PIO in 0x43 Some(1)", times),
        ("HLT None", times),
    ];
    sites.into_iter().map(|(name, exits)| (name.into(), (exits, exits))).collect()
}

fn exact_counts() {
    let library = compile("library.so", &source(), &["-shared", "-fPIC", "-DLIBRARY"]);
    // The mode, the number of guests that run to their end, further exits, the numbers of VMs and of vCPUs.
    for (mode, times, outs, vms, vcpus) in [
        (&["plain"][..], 1, 0, 1, 1),
        (&["fork"], 2, 0, 2, 2),
        (&["exec"], 2, 0, 2, 2),
        (&["dup"], 2, 0, 1, 2),
        (&["reuse"], 2, 100, 2, 3),
        (&["never-map"], 1, 0, 1, 1),
        (&["map-twice"], 1, 0, 1, 1),
        (&["repeat", "20"], 20, 0, 20, 20),
        (&["vcpus", "32"], 32, 0, 1, 32),
        (&["vms"], 2, 0, 2, 2),
        (&["interrupt"], 1, 0, 2, 2),
        (&["jump"], 1, 0, 1, 1),
        (&["garbage"], 1, 0, 1, 1),
        (&["dlopen", library.to_str().unwrap()], 1, 0, 1, 1),
        (&["filter"], 1, 0, 1, 1),
        (&["crash"], 1, 0, 1, 1),
    ] {
        let (ran, profile) = profile(&[&[program()], mode].concat());
        let status = if mode == ["crash"] { 128 + libc::SIGSEGV } else { 0 };
        assert_eq!((ran.status, ran.text().as_str()), (status, ""), "{mode:?}: {}", ran.stderr);
        assert_eq!(counts(&profile.machine.sites), expected(times, outs), "{mode:?}: {}", ran.stderr);
        assert_eq!(profile.vcpus.len(), vcpus, "{mode:?}: {}", ran.stderr);
        let exits: u64 = profile.vcpus.iter().map(|vcpu| vcpu.exits).sum();
        assert_eq!(exits, profile.machine.exits, "{mode:?}");
        let named = profile.vcpus.iter().filter(|vcpu| vcpu.ended.starts_with("VM ")).count();
        assert_eq!(named, if vms > 1 { vcpus } else { 0 }, "{mode:?}: {}", ran.stderr);
        if let Some(kernel) = &profile.machine.kernel {
            assert!(kernel["exits"] >= profile.machine.exits, "{mode:?}: {kernel:?}");
        }
        assert!(profile.machine.in_kvm.sum > 0 && profile.clock.khz > 100_000, "{mode:?}");
    }
}

/// The output and the status, which say what the program saw: the numbers of its descriptors and of their errors.
fn no_difference() {
    for mode in ["descriptors", "garbage", "interrupt", "fork"] {
        let alone = run(Command::new(program()).arg(mode).stdout(Stdio::piped()));
        let observed = observe(&[], &[program(), mode]);
        assert_eq!((alone.status, alone.text()), (observed.status, observed.text()), "{mode}");
    }
    // What a child of the shell sees: the masks and dispositions of signals, its group, and its limits.
    let state = "grep -E 'Sig(Blk|Ign|Cgt)|NoNewPrivs|Seccomp:' /proc/self/status; ulimit -a; ls -l /proc/self/fd | wc -l";
    for prefix in ["", "trap '' INT PIPE XFSZ; "] {
        let line = |command: &str| shell(&format!("{prefix}{command}"), &[state]).text();
        assert_eq!(line("sh -c \"$1\""), line("\"$0\" observe -q -- sh -c \"$1\""), "{prefix}");
    }
}

fn files() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_string();
    let (json, trace) = (path("a.json"), path("a.trace"));
    let options = ["--profile", &format!("json={json}"), "--trace", &trace, "--trace-exits", "600", "-q"];
    let observed = observe(&options, &[program(), "vcpus", "2"]);
    assert_eq!((observed.status, observed.stderr.lines().count()), (0, 1), "{}", observed.stderr);
    let Saved::Trace(saved, None) = report::read(Path::new(&trace)).unwrap() else { panic!("a trace") };
    assert_eq!((saved.records.len(), saved.seen, saved.vcpus), (600, 3004, 2));
    assert!(saved.records.is_sorted_by_key(|record| record.when));
    let reads: Vec<_> = saved.records.iter().filter(|record| record.reason == Reason::PioIn).collect();
    assert!(reads.iter().all(|record| record.value == Some(0x5a)), "the answers are known: {reads:?}");
    assert!(saved.records.last().unwrap().reason == Reason::Hlt);
    for file in [&json, &trace] {
        for format in ["text", "json", "csv", "html"] {
            let shown = ran(&["report", file, "--format", format]);
            assert_eq!(shown.status, 0, "{}", shown.stderr);
            assert!(shown.text().contains("unnamed") && !shown.text().contains("unclaimed"));
        }
    }
    // Ours beside the other one.
    let own = path("own.json");
    let guest = files.guest("real16-hello");
    assert_eq!(vmm(&["run", &guest, "--profile", &format!("json={own}")]).status().unwrap().code(), Some(0));
    let difference = ran(&["report", &own, &json]);
    assert_eq!(difference.status, 0, "{}", difference.stderr);
    assert!(
        difference.text().contains("0x42") && difference.text().contains("0xe9"),
        "{}",
        difference.text()
    );
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
        &["kev-strings"],
        &["kev-hypercall"],
        &["kev-msr"],
        &["kev-msr-fault"],
        &["smp-print"],
        &["hello-kvm"],
    ] {
        let json = format!("json={}", own.display());
        let command = [&[VMM, "run", "--vcpu", "kvm", "--profile", &json], guest].concat();
        let (ran, observed) = profile(&command);
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

fn script() {
    let files = Files::new();
    let path = files.write("script", format!("#!/bin/sh\n{} plain\n{0} vms\nexit 5\n", program()).as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let (ran, profile) = profile(&[&path]);
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert_eq!(counts(&profile.machine.sites), expected(3, 0));
    assert!(ran.stderr.contains("vmm: VM 3 vCPU 0: 1502 exits: 1000 PIO out 0x42"), "{}", ran.stderr);
}

/// The rings of processes that have ended are used again. The vCPUs past the 64th have one row.
fn many_vcpus() {
    let line = format!("for i in $(seq 35); do {} leave 32; done; {0} plain", program());
    let (ran, profile) = profile(&["sh", "-c", &line]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        !ran.stderr.contains("not observed") && ran.stderr.contains("vmm: and 32 more vCPUs"),
        "{}",
        ran.stderr
    );
    assert_eq!((counts(&profile.machine.sites), profile.vcpus.len()), (expected(1, 0), 64));
    assert_eq!(profile.vcpus[63].ended, "the other vCPUs; last exit: HLT");
}

fn other_library() {
    let files = Files::new();
    let source =
        "#include <unistd.h>\n__attribute__((constructor)) void say(void) { if (write(1, \"x\", 1)) {} }\n";
    let source = files.write("other.c", source.as_bytes());
    let library = compile("other.so", Path::new(&source), &["-shared", "-fPIC"]);
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "--", program(), "plain"]).env("LD_PRELOAD", library).stdout(Stdio::piped());
    let ran = run(&mut vmm);
    // Once in this program, and once in the other.
    assert_eq!((ran.status, ran.text().as_str()), (0, "xx"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1502 exits"), "{}", ran.stderr);
}

fn timeout() {
    let started = Instant::now();
    // A path of its own, to find the processes.
    let own = PROGRAMS.get_or_init(Files::new).0.path().join("hanging");
    fs::copy(program(), &own).unwrap();
    let ran = observe(&["--timeout", "0.3"], &[own.to_str().unwrap(), "hang"]);
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

/// The processes of this program.
fn running(program: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(|process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program)).collect()
}

fn signals() {
    for signal in ["-TERM", "-INT"] {
        let mut vmm = Command::new(VMM);
        vmm.args(["observe", "--", program(), "wait"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = vmm.spawn().unwrap();
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

/// The library waits for room in its ring, and then gives up.
fn no_observer() {
    let files = Files::new();
    let output = files.0.path().join("output");
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "--", program(), "measure", "60000"]).stdout(fs::File::create(&output).unwrap());
    let mut child = vmm.stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    // It has begun to record when its folder exists.
    let folder = || temporary(child.id());
    while folder().is_empty() && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let folders = folder();
    child.kill().unwrap();
    child.wait().unwrap();
    let is_done = || fs::read_to_string(&output).is_ok_and(|text| text.ends_with('\n'));
    while !is_done() && started.elapsed() < Duration::from_secs(50) {
        std::thread::sleep(Duration::from_millis(5));
    }
    folders.iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
    // Killed before the program started, it has no output.
    assert!(is_done() || running(Path::new(program())).is_empty());
}

/// The temporary folders of an observer.
fn temporary(pid: u32) -> Vec<PathBuf> {
    let places = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mine = format!("vmm-observe-{pid}-");
    paths
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_str().is_some_and(|name| name.starts_with(&mine)))
        })
        .collect()
}

fn no_files_left() {
    for (options, command) in [
        (&["-q"][..], &[program(), "plain"][..]),
        (&["--timeout", "0.2"], &[program(), "hang"]),
        (&["-q"], &["sh", "-c", "kill -9 $$"]),
        (&["-q", "--trace-exits", "0", "--trace", "/dev/null"], &["true"]),
    ] {
        let mut vmm = Command::new(VMM);
        vmm.arg("observe").args(options).arg("--").args(command).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = vmm.spawn().unwrap();
        wait(&mut child);
        assert_eq!(temporary(child.id()), Vec::<PathBuf>::new(), "{command:?}");
    }
}

/// The library stays for what the children still execute.
fn left_children() {
    let mut vmm = Command::new(VMM);
    let line = format!("{} plain; sleep 60 >/dev/null 2>&1 & echo $!; exit 3", program());
    vmm.args(["observe", "--", "sh", "-c", &line]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = vmm.spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let sleeper = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let left = temporary(pid);
    Command::new("kill").arg(&sleeper).status().unwrap();
    left.iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
    assert_eq!((output.status.code(), left.len()), (Some(3), 1), "{stderr}");
    assert!(
        stderr.contains("children of dash still run") || stderr.contains("children of sh still run"),
        "{stderr}"
    );
}

/// The reason why QEMU does not run here.
fn no_qemu() -> Option<String> {
    if let Some(why) = support::unusable() {
        return Some(why.into());
    }
    let here = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
    (!here.is_ok_and(|status| status.success())).then(|| "qemu-system-x86_64 is not installed".into())
}

/// QEMU runs a firmware that writes 300 bytes to port 0xe9 and ends through port 0xf4.
fn qemu() {
    let files = Files::new();
    // At 0xf000:0xff00: mov cx, 300; out 0xe9, al; loop; mov al, 3; out 0xf4, al; hlt
    let code = [0xb9, 0x2c, 0x01, 0xe6, 0xe9, 0xe2, 0xfc, 0xb0, 3, 0xe6, 0xf4, 0xf4];
    let mut firmware = vec![0; 0x10000];
    firmware[0xff00..0xff00 + code.len()].copy_from_slice(&code);
    // At the reset vector: jmp 0xf000:0xff00
    firmware[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0xff, 0x00, 0xf0]);
    let firmware = files.write("firmware", &firmware);
    let cpus = ["host", "host,-arch-capabilities", "qemu64"];
    let tried = cpus.map(|cpu| {
        let line = format!(
            "qemu-system-x86_64 -M microvm,x-option-roms=off -accel kvm -cpu {cpu} -m 16 -nodefaults -no-user-config \
             -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=1 -bios {firmware}"
        );
        profile(&line.split_ascii_whitespace().collect::<Vec<_>>())
    });
    // A CPU model that does not start on this host ends with status 1.
    let (ran, profile) = tried.iter().find(|(ran, _)| ran.status == 7).unwrap_or(&tried[0]);
    assert_eq!(ran.status, 7, "{}", ran.stderr);
    let counts = counts(&profile.machine.sites);
    assert_eq!(counts["PIO out 0xe9 Some(1)"], (300, 300), "{counts:?}");
    assert_eq!(counts["PIO out 0xf4 Some(1)"], (1, 1), "{counts:?}");
    assert_eq!(profile.guest, "qemu-system-x86_64");
}

fn no_vm() {
    let ran = observe(&[], &["true"]);
    assert_eq!(ran.status, 0);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(lines[0].starts_with("vmm: true: exited with status 0 (after "), "{lines:?}");
    assert!(lines.len() == 2 && lines[1].starts_with("vmm: true made no VM: "), "{lines:?}");
}

fn statuses() {
    for (line, status, text) in [
        ("exit 0", 0, "exited with status 0"),
        ("exit 110", 110, "exited with status 110"),
        ("exit 255", 255, "exited with status 255"),
        ("kill -9 $$", 137, "ended by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "ended by signal 15 (SIGTERM)"),
    ] {
        let ran = observe(&["-q"], &["sh", "-c", line]);
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
    let mut elf = fs::read(VMM).unwrap()[..64].to_vec();
    elf[18] = 0xb7;
    let arm = executable("arm", &elf, 0o755);
    elf[4] = 1;
    let narrow = executable("narrow", &elf, 0o755);
    let plain = executable("plain", b"x", 0o644);
    for (program, status, text) in [
        ("no-such-program-here", 110, "cannot run no-such-program-here: no folder of PATH has it"),
        ("./no/such/program", 110, "No such file or directory"),
        (&plain, 110, "it is not executable"),
        ("/", 110, "it is a directory"),
        ("", 110, "its name is empty"),
        (&arm, 116, "it is for another architecture"),
        (&narrow, 116, "it is for another architecture"),
    ] {
        assert_error(&observe(&[], &[program]), status, text);
    }
    let program = executable("program", b"#!/bin/sh\n", 0o755);
    assert_error(&observe(&["--profile", &format!("json={program}")], &[&program]), 110, "is also an input");
    assert_error(&observe(&["--trace", "/no/such/folder/trace"], &[&program]), 110, "/no/such/folder");
    assert_error(
        &observe(&["--trace", "/dev/null", "--trace-exits", "0"], &[&program]),
        110,
        "--trace-exits",
    );
    for arguments in [
        &["observe"][..],
        &["observe", "--"],
        &["observe", "true"],
        &["observe", "--engine", "x", "--", "true"],
    ] {
        let ran = ran(arguments);
        assert_eq!((ran.status, ran.text().as_str()), (110, ""), "{arguments:?}: {}", ran.stderr);
    }
    // Only root can give a file to another user.
    let setuid = executable("setuid", &fs::read("/bin/true").unwrap(), 0o755);
    if std::os::unix::fs::chown(&setuid, Some(1), None).is_ok() {
        fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_error(&observe(&[], &[&setuid]), 116, "it is a setuid or setgid program or has capabilities");
    }
}

fn streams() {
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "-q", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = vmm.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"text\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"text\n"[..]));
}
