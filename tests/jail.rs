//! `--jail`: runs and boots work in it, programs under observation reach nothing, and a system that lacks a part is told of.
//! `jail/tests/forbidden.rs` tests the package itself.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{VMM, compile};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use support::{
    Files, Ran, assert_error, each_on_both, elf, kvm_test, missing_jail, plain_test, run, test_unless, vmm,
};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = each_on_both(&[
        ("a_run_in_the_jail_is_the_same", same_run),
        ("results_are_written_from_the_jail", results),
        ("a_disk_and_a_console_work_in_the_jail", disks),
        ("gdb_works_in_the_jail", gdb),
    ]);
    tests.extend([
        kvm_test("a_boot_works_in_the_jail", boot),
        kvm_test("guests_are_graded_in_the_jail", graded_guests),
        plain_test("the_guests_file_can_be_read_after_the_run", late_files),
        plain_test("a_program_reaches_no_secret", secrets),
        test_unless(no_loopback, "a_program_reaches_no_network", network),
        plain_test("a_program_reaches_no_other_process", processes),
        plain_test("a_program_is_limited", limits),
        plain_test("the_scratch_folder_is_removed", scratch),
        plain_test("both_engines_observe_a_program_in_the_jail", engines),
        plain_test("a_system_without_a_part_is_told_of", degraded),
        plain_test("the_doctor_shows_the_jail", doctor),
    ]);
    observed::main(tests)
}

/// `--jail=require`, or `--jail` where the jail is not whole.
fn option() -> &'static str {
    if missing_jail().is_none() { "--jail=require" } else { "--jail" }
}

fn in_jail(arguments: &[&str]) -> Ran {
    let mut command = vmm(arguments);
    run(command.arg(option()).stdin(Stdio::null()).stdout(Stdio::piped()))
}

fn same_run() {
    for arguments in [
        &["simvirtio"][..],
        &["simvirtio", "--transport", "polling"],
        &["simvirtio", "--transport", "doorbell"],
        &["simvirtio-upper", "--input", concat!(env!("CARGO_MANIFEST_DIR"), "/../clippy.toml")],
        &["smp-counter"],
        &["long64-triple-fault"],
        &["long64-exit-code"],
        &["real16-endless", "--timeout", "0.2"],
        &["real16-hello", "--step=20"],
        &["real16-endless", "--timeout", "0.3", "--sample"],
        &["real16-42", "--expect", "ax=41"],
        &["real16-hello", "--output-limit", "5"],
    ] {
        let run_once = |ran: Ran| (ran.status, ran.text(), ran.stderr);
        let free = run_once(run(vmm(arguments).stdin(Stdio::null()).stdout(Stdio::piped())));
        let jailed = run_once(in_jail(arguments));
        assert_eq!((jailed.0, &jailed.1), (free.0, &free.1), "{arguments:?}: {} {}", free.2, jailed.2);
        assert!(!jailed.2.contains("the jail stopped"), "{arguments:?}: {}", jailed.2);
    }
}

/// Files take their places by a rename. The jail stays as it was told: there are no other files in the folder.
fn results() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let (profile, trace, core, dump, svg) =
        (format!("json={}", path("profile")), path("trace"), path("core"), path("dump"), path("sample.svg"));
    let ran = in_jail(&["long64-triple-fault", "--profile", &profile, "--trace", &trace, "--core", &core]);
    assert_eq!(ran.status, 112, "{}", ran.stderr);
    let ran = in_jail(&["real16-42", "--dump-memory", &format!("0x400+2={dump}")]);
    assert_eq!((ran.status, fs::read(&dump).unwrap()), (0, vec![42, 0]), "{}", ran.stderr);
    let ran = in_jail(&["real16-endless", "--timeout", "0.3", "--sample", "--sample-file", &svg]);
    assert_eq!(ran.status, 114, "{}", ran.stderr);
    let mut names: Vec<_> =
        fs::read_dir(files.0.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["core", "dump", "profile", "sample.svg", "trace"]);
    // The file of the results' folder is known, and a folder that is missing is the same error as without the jail.
    assert_error(&in_jail(&["real16-42", "--trace", "/no/such/folder/x"]), 110, "No such file");
}

/// A boot sector on a classic PC, whose console and disk have threads or calls of their own.
fn disks() {
    let files = Files::new();
    // It writes its own first sector back (int 0x13, ah=3), prints with the BIOS, and halts.
    #[rustfmt::skip]
    let code = [
        0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x01, 0x00, 0xb6, 0x00, 0xcd, 0x13,
        0xb8, b'k', 0x0e, 0xcd, 0x10, 0xfa, 0xf4,
    ];
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(64 * 512, 0);
    let disk = files.write("disk.img", &sector);
    let ran = in_jail(&[&disk]);
    assert!(ran.status == 0 && ran.text().contains('k'), "{} {}", ran.text(), ran.stderr);
}

/// The server for gdb has threads of its own, and its socket is removed at the end.
fn gdb() {
    use std::io::Read;
    let files = Files::new();
    let socket = files.0.path().join("gdb.sock");
    let mut command = vmm(&["real16-endless", "--timeout", "5", option()]);
    command.arg(format!("--gdb={}", socket.display())).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let connect = || std::os::unix::net::UnixStream::connect(&socket).ok();
    let mut stream = (0..400)
        .find_map(|_| {
            connect().or_else(|| {
                std::thread::sleep(Duration::from_millis(10));
                None
            })
        })
        .expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"$?#3f").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"+$T") || answer.starts_with(b"+$S"), "{answer:?}");
    // `k` ends the guest.
    stream.write_all(b"+$k#6b").unwrap();
    let status = support::wait(&mut child);
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status, 117, "{text}");
    assert!(!socket.exists(), "{text}");
}

/// A kernel that resets its machine at once.
fn boot() {
    let files = Files::new();
    let kernel = files.write("reboots", &elf(0x10_0000, &[0xb0, 0xfe, 0xe6, 0x64]));
    let disk = files.write("disk.img", &[0; 4096]);
    for more in [&[][..], &["--disk", &disk], &["--console", "virtio"]] {
        let ran = in_jail(&[&["boot", &kernel], more].concat());
        assert_eq!(ran.status, 119, "{more:?}: {}", ran.stderr);
    }
}

fn graded_guests() {
    let files = Files::new();
    let guest = files.guest("real16-42");
    let ran = in_jail(&["grade", "--guest16", &guest]);
    assert!(ran.text().contains("30/30"), "{} {}", ran.text(), ran.stderr);
    let sum = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/exercises/sum/sum.toml");
    if Path::new(sum).exists() {
        let ran = in_jail(&[
            "grade",
            sum,
            concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/exercises/sum/submissions/ana"),
        ]);
        assert!(!ran.stderr.contains("the jail stopped"), "{}", ran.stderr);
    }
}

/// The guest's own file is read for the names of its functions, after the guest has died.
fn late_files() {
    let files = Files::new();
    let guest = files.write("guest.elf", &elf(0x1000, &[0x0f, 0x0b]));
    let ran = in_jail(&[&guest, "--vcpu", "soft"]);
    assert_eq!(ran.status, 112, "{}", ran.stderr);
    assert!(!ran.stderr.contains("Permission denied"), "{}", ran.stderr);
}

/// The program in C, in a folder of its own.
fn jailed() -> &'static str {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/jailed.c");
    PROGRAM.get_or_init(|| compile("jailed", &source, &[])).to_str().unwrap()
}

/// Runs the program in the jail, in an empty current folder.
fn try_in_jail(words: &[&str]) -> Ran {
    try_with(&[option()], words)
}

fn try_with(options: &[&str], words: &[&str]) -> Ran {
    let empty = Files::new();
    let mut command = Command::new(VMM);
    command.arg("observe").args(options).args(["--quiet", "--timeout", "20", "--", jailed()]).args(words);
    run(command.current_dir(empty.0.path()).stdout(Stdio::piped()).env_remove("RUST_LOG"))
}

/// Checks that an action fails in the jail, and succeeds without it.
fn forbidden(words: &[&str]) {
    let free = try_with(&[], words);
    assert_eq!(free.text(), "done\n", "{words:?} succeeds without the jail: {}", free.stderr);
    if missing_jail().is_none() {
        let ran = try_in_jail(words);
        assert!(ran.status == 1 && ran.text() != "done\n", "{words:?}: {} {}", ran.text(), ran.stderr);
    }
}

fn secrets() {
    let others = Files::new();
    let secret = others.write("secret", b"of another submission");
    let folder = others.0.path().to_str().unwrap();
    fs::write(format!("{folder}/sparse"), "").unwrap();
    for words in [
        ["list", folder],
        ["list", "/etc"],
        ["list", "/proc"],
        ["write", &format!("{folder}/new")],
        ["sparse", &format!("{folder}/sparse")],
        ["mode", secret.as_str()],
        ["times", secret.as_str()],
    ] {
        forbidden(&words);
    }
    // Not every kernel has them.
    for words in [["key", ""], ["vsock", ""]] {
        if try_with(&[], &words).text() == "done\n" {
            forbidden(&words);
        }
    }
    // A file that the command line names may be read, so a script reads these.
    if missing_jail().is_none() {
        for path in ["/etc/passwd", secret.as_str()] {
            let script = format!("cat {path}");
            let ran = observed::observe(&[option(), "--quiet"], &["sh", "-c", &script]);
            assert_eq!((ran.status, ran.text().as_str()), (1, ""), "{path}: {}", ran.stderr);
            assert!(ran.stderr.contains("Permission denied"), "{path}: {}", ran.stderr);
        }
    }
    let _ = fs::remove_file(format!("{folder}/new"));
    assert_eq!(fs::read(&secret).unwrap(), b"of another submission");
}

/// The reason why this host has no network that a program could reach.
fn no_loopback() -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
    let error = TcpStream::connect(listener.local_addr().ok()?).err()?;
    Some(format!("there is no loopback interface: {error}"))
}

fn network() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    forbidden(&["connect", &tcp.local_addr().unwrap().port().to_string()]);
    forbidden(&["send", &udp.local_addr().unwrap().port().to_string()]);
}

fn processes() {
    for action in ["kill", "ptrace"] {
        let mut victim = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = victim.id().to_string();
        if missing_jail().is_none() {
            let ran = try_in_jail(&[action, &pid]);
            assert!(ran.status == 1 && ran.text() != "done\n", "{action}: {} {}", ran.text(), ran.stderr);
            assert!(victim.try_wait().unwrap().is_none(), "{action}");
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    // A child that leaves its session ends with the program.
    if missing_jail().is_none() {
        let ran = try_in_jail(&["daemon"]);
        assert!(ran.status == 0, "{}", ran.stderr);
        assert!(!is_running(jailed()), "the daemon is left");
    }
}

fn is_running(program: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let line = |process: fs::DirEntry| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
    processes.map(line).any(|line| line.starts_with(&format!("{program}\0daemon")))
}

fn limits() {
    if missing_jail().is_some() {
        return;
    }
    let number = |ran: &Ran| -> u64 {
        let text = ran.text();
        let first = text.split(' ').next().unwrap().to_owned();
        first.parse().unwrap_or_else(|_| panic!("{text} {}", ran.stderr))
    };
    let bomb = try_in_jail(&["bomb"]);
    assert!((1..=600).contains(&number(&bomb)), "{} {}", bomb.text(), bomb.stderr);
    let filled = try_in_jail(&["fill"]);
    assert!((100..=256).contains(&number(&filled)), "{} {}", filled.text(), filled.stderr);
    let memory = try_in_jail(&["memory"]);
    assert!(memory.text().contains("Cannot allocate memory"), "{} {}", memory.text(), memory.stderr);
    let node = try_in_jail(&["node", "node"]);
    assert_eq!(node.status, 1, "{} {}", node.text(), node.stderr);
}

/// The folder is in the place for temporary files, and nothing is left in it.
fn scratch() {
    let place = Files::new();
    let mut command = Command::new(VMM);
    command.args([
        "observe",
        option(),
        "--quiet",
        "--",
        "sh",
        "-c",
        "echo $TMPDIR; echo x >$TMPDIR/file && cat $TMPDIR/file",
    ]);
    let ran = run(command.env("TMPDIR", place.0.path()).stdout(Stdio::piped()));
    let text = ran.text();
    let (folder, rest) = text.split_once('\n').unwrap();
    assert_eq!((ran.status, rest), (0, "x\n"), "{}", ran.stderr);
    assert!(folder.starts_with(place.0.path().to_str().unwrap()), "{folder}");
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
}

/// `/dev/kvm` stays usable, and what the engines see is the same.
fn engines() {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return;
    }
    for engine in ["preload", "ptrace"] {
        let ran = observed::observe(&[option(), "--engine", engine], &[observed::program(), "plain"]);
        assert_eq!(ran.status, 0, "{engine}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("vmm: 1502 exits: 1 PIO in, 1000 PIO out, 500 MMIO write, 1 HLT"),
            "{}",
            ran.stderr
        );
        let ran = try_with(&[option(), "--engine", engine], &["kvm"]);
        assert_eq!(ran.text(), "done\n", "{engine}: {}", ran.stderr);
    }
}

/// Runs `vmm` with these system calls forbidden.
fn without(calls: &str, arguments: &[&str]) -> Ran {
    static FORBID: OnceLock<PathBuf> = OnceLock::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/forbid.c");
    let forbid = FORBID.get_or_init(|| compile("forbid", &source, &[]));
    run(Command::new(forbid).arg(calls).arg(VMM).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()))
}

fn degraded() {
    let guest = ["run", "real16-hello", "--vcpu", "soft"];
    for (calls, sentence) in [
        (
            "landlock",
            "vmm: jail: this kernel has no Landlock (Linux 5.13 or later, in CONFIG_LSM), so the files",
        ),
        ("seccomp", "vmm: jail: seccomp failed, so all system calls stay open: "),
    ] {
        let ran = without(calls, &[&guest[..], &["--jail"]].concat());
        assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, world!\n"), "{calls}: {}", ran.stderr);
        assert!(ran.stderr.contains(sentence), "{calls}: {}", ran.stderr);
        let ran = without(calls, &[&guest[..], &["--jail=require"]].concat());
        assert_error(&ran, 115, "entering the jail (--jail=require) failed: ");
        let ran = without(calls, &[&guest[..], &["--jail=off"]].concat());
        assert!(ran.status == 0 && !ran.stderr.contains("jail"), "{calls}: {}", ran.stderr);
    }
    for (calls, sentence) in [
        ("landlock", "vmm: jail: this kernel has no Landlock"),
        ("unshare", "vmm: jail: this system permits no network namespace"),
        ("landlock,unshare", "vmm: jail: this system permits no PID namespace"),
    ] {
        let observe = |jail| without(calls, &["observe", jail, "--", "sh", "-c", "echo ran"]);
        let ran = observe("--jail");
        assert_eq!((ran.status, ran.text().as_str()), (0, "ran\n"), "{calls}: {}", ran.stderr);
        assert!(ran.stderr.contains(sentence), "{calls}: {}", ran.stderr);
        let ran = observe("--jail=require");
        assert_error(
            &ran,
            115,
            "the program was not started, because its jail is required (--jail=require): ",
        );
    }
}

fn doctor() {
    let text = run(vmm(&["doctor"]).stdout(Stdio::piped())).text();
    for part in ["jail: Landlock", "jail: seccomp", "jail: namespaces"] {
        assert!(text.contains(part), "{text}");
    }
    let sick = without("landlock,unshare,seccomp", &["doctor", "--json"]).text();
    let sick: serde_json::Value = serde_json::from_str(&sick).unwrap();
    let checks = sick["checks"].as_array().unwrap().iter();
    let missing: Vec<_> = checks
        .filter(|check| check["check"].as_str().unwrap().starts_with("jail: "))
        .map(|check| check["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(missing, ["missing"; 3]);
}
