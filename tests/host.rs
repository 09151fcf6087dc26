//! Hosts that fail: without KVM, with a KVM that fails, with limits, and with streams that are closed, full or not read.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;
use support::payloads::PRINT_LINES;
use support::{
    Files, Liar, TRANSPORT_NAMES, assert_error, is_soft, kvm_test, machine_test, no_namespaces, plain_test,
    ran, run, shell, test_unless, unusable, vmm, without_kvm,
};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("a_host_error_is_status_115", host_error),
        plain_test("the_doctor_gives_advice", sick_host),
        kvm_test("the_doctor_accepts_a_good_host", good_host),
        kvm_test("the_doctor_checks_an_instruction_that_linux_needs", doctor_and_linux),
        machine_test("the_status_is_right_if_stderr_is_full", full_stderr),
        machine_test("a_file_size_limit_is_status_115", file_size_limit),
        machine_test("a_full_output_is_status_115", full_output),
        test_unless(no_namespaces, "a_host_without_kvm_gets_advice", no_kvm),
        kvm_test("errors_of_kvm_are_reported_with_advice", lies),
        kvm_test("the_doctor_checks_for_the_files_that_a_run_needs", too_few_files),
        plain_test("files_that_the_host_cannot_open_are_not_bad_images", too_few_files_for_an_image),
        machine_test("a_closed_standard_output_is_an_error", closed_stdout),
        machine_test("a_nonblocking_stdout_receives_everything", nonblocking_stdout),
        machine_test("input_can_be_a_pipe_without_a_writer", input_without_writer),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// With room for one more file descriptor, the program cannot create a VM.
fn host_error() {
    let program = env!("CARGO_BIN_EXE_vmm");
    for arguments in ["real16-42", "grade --reference"] {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n 4; exec {program} {arguments}")).stdout(Stdio::piped());
        let ran = run(&mut command);
        assert_eq!(ran.status, 115, "{}", ran.stderr);
        assert!(ran.stderr.contains("Too many open files"), "{}", ran.stderr);
        assert_eq!(ran.text(), "");
    }
}

/// With room for one more file descriptor, the doctor cannot create a VM. On a host without KVM, it reports the reason
/// that every run reports.
fn sick_host() {
    let advice = unusable().unwrap_or("ulimit -n");
    let sick = |option| {
        let sick = shell("ulimit -n 4; exec \"$0\" doctor $1", &[option]);
        assert_eq!(sick.status, 115, "{}", sick.text());
        sick.text()
    };
    let text = sick("");
    let is_bad = |line: &str| line.starts_with("bad ") && line.contains(advice);
    assert!(text.lines().any(is_bad), "{text}");
    let json: serde_json::Value = serde_json::from_str(&sick("--json")).expect("JSON");
    assert_eq!(json["good"], false);
    let is_bad = |check: &serde_json::Value| {
        check["outcome"] == "bad" && check["found"].as_str().is_some_and(|found| found.contains(advice))
    };
    assert!(json["checks"].as_array().expect("a list").iter().any(is_bad), "{json}");
}

/// The doctor also checks for the files that only other guests than its own need.
fn too_few_files() {
    // With fewer than 4 files, the program cannot open its libraries.
    for files in 4..16 {
        let doctor = shell(&format!("ulimit -n {files}; exec \"$0\" doctor"), &[]);
        for transport in TRANSPORT_NAMES {
            let line = format!("ulimit -n {files}; exec \"$0\" real16-42 --transport {transport}");
            let run = shell(&line, &[]);
            assert!(run.status == 0 || doctor.status == 115, "{files}: {} {}", run.stderr, doctor.text());
            if run.status != 0 {
                assert!(run.stderr.contains("ulimit -n"), "{files}: {}", run.stderr);
            }
        }
    }
}

fn good_host() {
    let good = ran(&["doctor"]);
    assert_eq!(good.status, 0, "{}", good.text());
    for text in
        ["API version 12", "real mode", "long mode", "ran two instructions", "This host can run guests."]
    {
        assert!(good.text().contains(text), "{text}: {}", good.text());
    }
    let json = ran(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["good"], true);
    let checks = json["checks"].as_array().expect("a list");
    assert!(checks.len() > 8 && checks.iter().all(|check| check["outcome"] != "bad"), "{json}");
}

/// The doctor runs the instruction that Linux needs. On this host the answer depends on KVM, so a lie makes both.
fn doctor_and_linux() {
    let json = ran(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let check =
        json["checks"].as_array().unwrap().iter().find(|check| check["check"] == "Linux guests").unwrap();
    let found = check["found"].as_str().unwrap();
    match check["outcome"].as_str().unwrap() {
        "good" => assert_eq!(found, "int3 in ring 0 reaches the guest's handler"),
        "missing" => {
            assert!(found.contains("Linux executes int3 in ring 0 when it boots, and here"), "{found}");
        }
        other => panic!("{other}: {found}"),
    }
    // The last run of the doctor is that of the breakpoint. An unknown exit makes it end in another way.
    let liar = Liar::new();
    let runs = |skip| liar.run(&format!("ae80 -1 0 0 {skip} 1000"), &["doctor"]);
    let told = (1..40)
        .map(runs)
        .find(|ran| ran.status == 0 && ran.text().contains("that ended with: unhandled"))
        .expect("all small guests run");
    let line = told.text().lines().find(|line| line.contains("Linux guests")).unwrap().to_string();
    for text in [
        "missing  Linux guests",
        "that ended with: unhandled KVM exit reason 0",
        "use another host, or `make testbed`: Linux executes int3 in ring 0 when it boots",
    ] {
        assert!(line.contains(text), "{text}: {line}");
    }
    assert!(told.text().contains("This host can run guests. Some features do not work"), "{}", told.text());
}

fn full_stderr() {
    for (arguments, status) in [
        (&["simvirtio"][..], 0),
        (&["simvirtio", "--transport", "polling"], 0),
        (&["no-such-guest"], 110),
        (&["long64-exit-code"], 7),
    ] {
        let line = "\"$0\" \"$@\" 2>/dev/full";
        let mut command = Command::new("sh");
        command.args(["-c", line, env!("CARGO_BIN_EXE_vmm")]).args(arguments).stdout(Stdio::piped());
        assert_eq!(run(&mut command).status, status, "{arguments:?}");
    }
}

fn file_size_limit() {
    let files = Files::new();
    let endless = files.write("lines", PRINT_LINES);
    let mut command = Command::new("sh");
    let target = files.0.path().join("out");
    command
        .args(["-c", "ulimit -f 1; exec \"$0\" \"$1\" >\"$2\"", env!("CARGO_BIN_EXE_vmm"), &endless])
        .arg(target);
    let ran = run(&mut command);
    assert_eq!(ran.status, 115, "{}", ran.stderr);
    assert!(ran.stderr.contains("output could not be written"), "{}", ran.stderr);
}

fn full_output() {
    for guest in ["real16-hello", "hello-kvm", "simvirtio"] {
        for transport in TRANSPORT_NAMES {
            let mut arguments = vec![guest];
            if guest == "simvirtio" {
                arguments.extend(["--transport", transport]);
            }
            let full = File::options().write(true).open("/dev/full").expect("Linux has /dev/full");
            let ran = run(vmm(&arguments).stdout(full));
            assert_eq!(ran.status, 115, "{guest}: {}", ran.stderr);
            assert!(ran.stderr.contains("output could not be written"), "{guest}: {}", ran.stderr);
        }
    }
    let full = File::options().write(true).open("/dev/full").expect("Linux has /dev/full");
    assert_eq!(run(vmm(&["grade", "--reference"]).stdout(full)).status, 115);
}

/// The program runs in a mount namespace, so the test also works on a host that has KVM.
fn no_kvm() {
    let replaced = "/dev/kvm is not KVM's device, but the character device 1:3, the null device: find out what put it there";
    let missing = "cannot open /dev/kvm: No such file or directory (os error 2): load the kernel's module";
    for (kind, sentence) in [("missing", missing), ("replaced", replaced)] {
        for arguments in [&["real16-42", "--vcpu", "kvm"][..], &["doctor"], &["doctor", "--json"]] {
            let ran = run(without_kvm(kind, env!("CARGO_BIN_EXE_vmm")).args(arguments));
            let all = ran.text() + &ran.stderr;
            assert!(
                ran.status == 115 && all.contains(sentence),
                "{kind} {arguments:?}: {} {all}",
                ran.status
            );
            assert!(!arguments.contains(&"--json") || all.contains("\"good\": false"), "{all}");
        }
    }
    soft_without_kvm();
}

/// Without KVM a small guest runs on the software processor, and a line says why. `--vcpu soft` hides the line.
fn soft_without_kvm() {
    let line =
        ", so the guest runs on the software processor (--vcpu soft hides this line, --vcpu kvm says more)";
    for (kind, reason) in [("missing", "/dev/kvm is missing"), ("replaced", "/dev/kvm is not KVM's device")] {
        let told = run(without_kvm(kind, env!("CARGO_BIN_EXE_vmm")).arg("real16-hello"));
        assert_eq!((told.status, told.text().as_str()), (0, "Hello, world!\n"), "{}", told.stderr);
        assert_eq!(told.choice, format!("vmm: {reason}{line}\n"));
        assert!(told.stderr.contains("on the software processor)\n"), "{}", told.stderr);
        let quiet =
            run(without_kvm(kind, env!("CARGO_BIN_EXE_vmm")).args(["real16-hello", "--vcpu", "soft"]));
        assert_eq!((quiet.status, quiet.choice.as_str()), (0, ""), "{}", quiet.stderr);
        let grade = run(without_kvm(kind, env!("CARGO_BIN_EXE_vmm")).args(["grade", "--reference"]));
        assert_eq!((grade.status, grade.choice.matches(line).count()), (0, 1), "{}", grade.stderr);
    }
    let files = Files::new();
    let kernel =
        support::kernels::kernel(&files, &[&support::kernels::print("x"), support::kernels::POWER_OFF]);
    let boot = run(without_kvm("missing", env!("CARGO_BIN_EXE_vmm")).args(["boot", &kernel]));
    assert_eq!(boot.status, 115, "{}", boot.stderr);
    assert!(
        boot.stderr
            .contains("Linux needs KVM, and the software processor is for small guests: `make testbed`")
    );
    let asked = ran(&["boot", &kernel, "--vcpu", "soft"]);
    assert_error(&asked, 110, "Linux needs KVM, because the software processor is for small guests");
}

fn lies() {
    let liar = Liar::new();
    let guest = &["real16-42", "--timeout", "0", "--vcpu", "kvm"][..];
    let doctor = &["doctor"][..];
    // Without the option, the software processor takes over.
    let instead = liar.run("ae01 -1 -1 16 0 1000", &["real16-42", "--timeout", "0"]);
    let choice = "vmm: KVM does not work on this host, so the guest runs on the software processor";
    assert!(
        instead.status == 0 && instead.choice.starts_with(choice),
        "{} {}",
        instead.choice,
        instead.stderr
    );
    for (lie, arguments, status, text) in [
        ("ae00 -1 13 0", guest, 115, "has API version 13, and this program needs version 12"),
        ("ae00 -1 13 0", doctor, 115, "has API version 13"),
        ("ae03 3 0 0", guest, 115, "lacks UserMemory"),
        ("ae03 3 0 0", doctor, 115, "bad      KVM_CAP_USER_MEMORY        missing: guests cannot have memory"),
        ("ae03 136 0 0", guest, 115, "lacks ImmediateExit"),
        (
            "ae03 136 0 0",
            doctor,
            115,
            "bad      KVM_CAP_IMMEDIATE_EXIT     missing: a guest cannot be stopped",
        ),
        ("ae03 7 0 0", doctor, 0, "missing  KVM_CAP_EXT_CPUID"),
        ("ae03 188 0 0", doctor, 0, "missing  KVM_CAP_X86_USER_SPACE_MSR"),
        ("ae03 213 0 0", doctor, 0, "missing  KVM_CAP_DISABLE_QUIRKS2"),
        ("ae03 74 0 0", &["kev-hypercall"], 0, "verified"),
        ("ae03 189 0 0", &["kev-msr-rules"], 115, "lacks X86MsrFilter"),
        ("4068aea3 -1 -1 22", &["kev-hypercall"], 0, "verified"),
        ("ae01 -1 -1 16", guest, 115, "another hypervisor (such as VirtualBox)"),
        ("ae01 -1 -1 12", doctor, 115, "free memory"),
        ("ae41 -1 -1 24", doctor, 115, "allow more open files"),
        ("ae47 -1 -1 22", guest, 0, "KVM_SET_TSS_ADDR failed"),
        ("ae80 -1 -1 11", guest, 115, "no thread left for KVM (ulimit -u)"),
        ("ae80 -1 0 0", guest, 112, "unhandled KVM exit reason 0"),
        ("ae80 -1 0 0", doctor, 115, "two instructions ended with: unhandled KVM exit reason 0"),
    ] {
        let by = |transport| [arguments, &["--transport", transport]].concat();
        let runs = if arguments == doctor { vec![doctor.to_vec()] } else { TRANSPORT_NAMES.map(by).to_vec() };
        for arguments in runs {
            let ran = liar.run(&format!("{lie} 0 1000"), &arguments);
            let all = ran.text() + &ran.stderr;
            assert!(ran.status == status && all.contains(text), "{lie} {arguments:?}: {} {all}", ran.status);
        }
    }
}

/// With too few file descriptors, it does not matter which file is opened too late.
fn too_few_files_for_an_image() {
    let files = Files::new();
    let kernel =
        support::kernels::kernel(&files, &[&support::kernels::print("x"), support::kernels::POWER_OFF]);
    let flat = files.write("flat", &[0xf4]);
    // The first four are those of the program, so nothing else can be opened.
    for (line, file) in
        [("boot \"$1\" --initrd \"$2\"", &kernel), ("run \"$2\"", &flat), ("grade --guest16 \"$2\"", &flat)]
    {
        // With KVM, the other files are also those of KVM.
        let limits = match (is_soft(), line.split(' ').next().unwrap()) {
            (true, "grade") => 4..4,
            (true, "run") => 4..5,
            // A machine without SIMVIRTIO needs fewer files.
            (false, "grade") => 4..6,
            _ => 4..8,
        };
        for limit in limits {
            let ran = shell(&format!("ulimit -n {limit}; exec \"$0\" {line}"), &[&kernel, &flat]);
            assert_eq!(ran.status, 115, "{line}, {limit} files: {}", ran.stderr);
            let told =
                format!("cannot read {file}: Too many open files (os error 24): allow more open files");
            assert!(
                limit != 4 || line.starts_with("grade") || ran.stderr.contains(&told),
                "{line}: {}",
                ran.stderr
            );
        }
    }
    let initrd = shell("ulimit -n 6; exec \"$0\" boot \"$1\" --initrd \"$2\"", &[&kernel, &flat]);
    assert!(initrd.stderr.contains(&format!("cannot read {flat}: Too many open files")), "{}", initrd.stderr);
    let input = shell("ulimit -n 4; exec \"$0\" simvirtio --input \"$1\"", &[&flat]);
    assert_eq!(input.status, 115, "{}", input.stderr);
    assert!(input.stderr.contains(&format!("cannot read {flat}: Too many open files")), "{}", input.stderr);
}

/// Otherwise the output would be lost silently.
fn closed_stdout() {
    for program in [
        "real16-hello",
        "simvirtio",
        "simvirtio --transport polling",
        "guests",
        "doctor",
        "grade --reference",
        "--help",
    ] {
        let closed = shell(&format!("\"$0\" {program} >&-"), &[]);
        assert_eq!(closed.status, 115, "{program}: {}", closed.stderr);
        assert!(closed.stderr.contains("standard output is closed"), "{program}: {}", closed.stderr);
        let unwritable = shell(&format!("\"$0\" {program} 1</dev/null"), &[]);
        assert_eq!(unwritable.status, 115, "{program}: {}", unwritable.stderr);
        assert!(unwritable.stderr.contains("Bad file descriptor"), "{program}: {}", unwritable.stderr);
    }
    for program in ["guests", "--help", "--version"] {
        let full = shell(&format!("\"$0\" {program} >/dev/full"), &[]);
        assert_eq!(full.status, 115, "{program}: {}", full.stderr);
        assert!(full.stderr.contains("writing standard output failed"), "{program}: {}", full.stderr);
    }
}

/// mov ecx, 200000; again: mov al, 'x'; out 0xe9, al; dec ecx; jnz again; hlt
const PRINT_200000_BYTES: &[u8] =
    &[0x66, 0xb9, 0x40, 0x0d, 3, 0, 0xb0, b'x', 0xe6, 0xe9, 0x66, 0x49, 0x75, 0xf8, 0xf4];

/// The reader is slow, and another process has set O_NONBLOCK on the stream.
fn nonblocking_stdout() {
    let files = Files::new();
    let guest = files.write("slow", PRINT_200000_BYTES);
    let (writer, mut reader) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let mut command = vmm(&[&guest, "--timeout", "50"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(OwnedFd::from(writer)).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    thread::sleep(Duration::from_millis(1500));
    let mut taken = Vec::new();
    reader.read_to_end(&mut taken).unwrap();
    assert_eq!((support::wait(&mut child), taken.len()), (0, 200_000));
}

/// A guest that reads no input does not wait for a writer of the pipe.
fn input_without_writer() {
    let files = Files::new();
    let fifo = files.0.path().join("fifo");
    let line = "mkfifo \"$1\"; exec \"$0\" simvirtio --input \"$1\" --timeout 5 --transport $2";
    for transport in TRANSPORT_NAMES {
        let ran = shell(line, &[fifo.to_str().unwrap(), transport]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "Ana are mere"), "{}", ran.stderr);
    }
    // For a guest that reads input, the writer can open the pipe late.
    let line = "(sleep 0.5; echo late >\"$1\") & exec \"$0\" simvirtio-upper --input \"$1\" --timeout 5 --transport $2";
    for transport in TRANSPORT_NAMES {
        let ran = shell(line, &[fifo.to_str().unwrap(), transport]);
        assert_eq!((ran.status, ran.text().as_str()), (0, "LATE\n"), "{}", ran.stderr);
    }
}
