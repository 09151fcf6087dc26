//! `vmm observe` and `vmm grade --vmm` where the system forbids something: as another user, with a seccomp filter around `vmm`,
//! as in containers (`support/forbid.c`).
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
#[path = "support/so2.rs"]
mod so2;
mod support;

use observed::{PROGRAMS, VMM, program};
use so2::compiled;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use support::{Files, Ran, kvm_test, plain_test, run, test_unless};

fn main() -> ExitCode {
    support::watchdog();
    let code = observed::main(vec![
        kvm_test("a_filter_around_the_observer_changes_nothing", filtered),
        plain_test("what_the_system_forbids_is_named", forbidden),
        kvm_test("a_container_without_these_calls_observes_the_same", contained),
        kvm_test("where_memory_cannot_be_read_there_is_no_grade", grade_without_memory),
        kvm_test("without_ptrace_a_grade_uses_the_library_and_says_so", grade_without_ptrace),
        kvm_test("without_a_namespace_a_grade_says_so", grade_without_namespace),
        test_unless(no_other_user, "another_user_observes_and_grades_the_same", another_user),
    ]);
    so2::remove_programs();
    code
}

/// Runs `vmm` with these system calls forbidden.
fn without(calls: &str, arguments: &[&str]) -> Ran {
    static FORBID: OnceLock<PathBuf> = OnceLock::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/forbid.c");
    let forbid = FORBID.get_or_init(|| observed::compile("forbid", &source, &[]));
    run(Command::new(forbid).arg(calls).arg(VMM).args(arguments).stdout(Stdio::piped()))
}

/// The caller has a filter of its own, which the program inherits.
fn filtered() {
    for engine in ["preload", "ptrace"] {
        let ran = without("none", &["observe", "--engine", engine, "--setup", "--", program(), "plain"]);
        assert_eq!(ran.status, 0, "{engine}: {}", ran.stderr);
        for text in ["vmm: 1502 exits", "exits by KVM's own count", "vCPU 0 first entered in real mode"] {
            assert!(ran.stderr.contains(text), "{engine}: {text}: {}", ran.stderr);
        }
    }
}

fn forbidden() {
    const NEEDS: &str = "the engine ptrace needs pidfd_getfd(2), kcmp(2) and process_vm_readv(2)";
    for (call, text) in [
        (
            "ptrace",
            "the system does not permit vmm to trace it (ptrace(2)), as in some containers; --engine preload",
        ),
        ("seccomp", "this system permits no seccomp filter, as in some containers"),
        ("pidfd_getfd", NEEDS),
        ("kcmp", NEEDS),
        ("process_vm_readv", NEEDS),
    ] {
        let ran = without(call, &["observe", "--engine", "ptrace", "--", "true"]);
        assert_eq!(ran.status, 116, "{call}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{call}: {}", ran.stderr);
        // The other engine needs none of them.
        let ran = without(call, &["observe", "--engine", "preload", "--", "true"]);
        assert_eq!(ran.status, 0, "{call}: {}", ran.stderr);
    }
}

/// The calls that containers forbid to programs that may not trace others.
const CONTAINER: &str = "ptrace,kcmp,pidfd_getfd,process_vm_readv,unshare";

fn contained() {
    for (mode, exits) in
        [("plain", 1502), ("dup", 3004), ("fork", 3004), ("reuse", 3104), ("map-twice", 1502)]
    {
        let ran = without(CONTAINER, &["observe", "--", program(), mode]);
        assert_eq!(ran.status, 0, "{mode}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("vmm: {exits} exits: ")), "{mode}: {}", ran.stderr);
    }
    // The memory of the guest is not known, but it is there.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/dying.c");
    let dying = observed::compile("dying", &source, &[]);
    let ran = without(CONTAINER, &["observe", "--", dying.to_str().unwrap(), "no-idt"]);
    let remark = "process_vm_readv: Operation not permitted (os error 1): the host forbids it";
    assert!(ran.stderr.contains("triple fault") && ran.stderr.contains(remark), "{}", ran.stderr);
    assert!(!ran.stderr.contains("has not mapped"), "{}", ran.stderr);
}

/// The grade would blame a right program.
fn grade_without_memory() {
    for (calls, engine) in
        [("process_vm_readv", &[][..]), (CONTAINER, &[]), ("process_vm_readv", &["--engine", "preload"])]
    {
        let ran = without(calls, &[&["grade", "so2", &compiled("")], engine].concat());
        assert_eq!((ran.status, ran.text().as_str()), (115, ""), "{}", ran.stderr);
        let text = "reading the memory of programs (process_vm_readv(2)), as a grade does, failed: Operation not permitted";
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
    }
}

fn grade_without_ptrace() {
    let ran = without("ptrace", &["grade", "so2", &compiled("")]);
    assert_eq!((ran.status, ran.text().lines().last()), (0, Some("100/100")), "{}{}", ran.text(), ran.stderr);
    let remark = "vmm: a program can deceive the engine preload, which was used: the system does not permit vmm to trace it";
    assert_eq!(ran.stderr.matches(remark).count(), 1, "{}", ran.stderr);
    // A static program can only be traced, and an engine that was asked for is not replaced.
    for arguments in
        [&["grade", "so2", &compiled("-static")][..], &["grade", "so2", &compiled(""), "--engine", "ptrace"]]
    {
        let ran = without("ptrace", arguments);
        assert_eq!((ran.status, ran.text().as_str()), (116, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains("the system does not permit vmm to trace it"), "{}", ran.stderr);
        // The other engine is no advice for a static program.
        let advises = ran.stderr.contains("--engine preload");
        assert_eq!(advises, arguments.contains(&"--engine"), "{}", ran.stderr);
    }
}

fn grade_without_namespace() {
    for engine in ["preload", "ptrace"] {
        let ran = without("unshare", &["grade", "so2", &compiled(""), "--engine", engine]);
        assert_eq!(
            (ran.status, ran.text().lines().last()),
            (0, Some("100/100")),
            "{}{}",
            ran.text(),
            ran.stderr
        );
        assert!(
            ran.stderr.contains("vmm: this system permits no PID namespace, so the program could"),
            "{}",
            ran.stderr
        );
    }
}

/// The number of a user without rights.
const NOBODY: &str = "65534";

/// Runs a command as another user, for whom `/dev/kvm` is open.
fn as_nobody(arguments: &[&str]) -> Ran {
    let line = "node=$1; shift; mount --bind \"$node\" /dev/kvm && \
                exec setpriv --reuid=\"$0\" --regid=\"$0\" --clear-groups -- \"$@\"";
    let node = PROGRAMS.get_or_init(Files::new).0.path().join("kvm");
    if !node.exists() {
        let made = Command::new("mknod").arg(&node).args(["c", "10", "232"]).status();
        assert!(made.is_ok_and(|made| made.success()));
        fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    }
    // The programs are in folders that only their user can read.
    for folder in [node.parent().unwrap(), Path::new(&compiled("")).parent().unwrap()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", line, NOBODY]).arg(&node).args(arguments);
    run(command.stdout(Stdio::piped()))
}

/// The reason why nothing can be run as another user.
fn no_other_user() -> Option<String> {
    if let Some(why) = support::unusable() {
        return Some(why.into());
    }
    let ran = as_nobody(&["sh", "-c", "test -r \"$0\" && test -w /dev/kvm && id -u", VMM]);
    (ran.text().trim() != NOBODY).then(|| "this user cannot run programs as another one".into())
}

fn another_user() {
    for engine in ["preload", "ptrace"] {
        let ran = as_nobody(&[VMM, "observe", "--engine", engine, "--setup", "--", program(), "plain"]);
        assert_eq!(ran.status, 0, "{engine}: {}", ran.stderr);
        for text in ["vmm: 1502 exits", "exits by KVM's own count", "vCPU 0 first entered in real mode"] {
            assert!(ran.stderr.contains(text), "{engine}: {text}: {}", ran.stderr);
        }
        let ran = as_nobody(&[VMM, "grade", "so2", &compiled(""), "--engine", engine]);
        assert_eq!(
            (ran.status, ran.text().lines().last()),
            (0, Some("100/100")),
            "{}{}",
            ran.text(),
            ran.stderr
        );
        if !ran.stderr.contains("permits no PID namespace") {
            let ran = as_nobody(&[VMM, "grade", "so2", &compiled("-DMISTAKE_ATTACK"), "--engine", engine]);
            assert_eq!(
                (ran.status, ran.text().lines().last()),
                (0, Some("100/100")),
                "{}{}",
                ran.text(),
                ran.stderr
            );
        }
    }
    // A program that would have the rights of another user.
    let setuid = PROGRAMS.get_or_init(Files::new).0.path().join("setuid");
    fs::copy("/bin/true", &setuid).unwrap();
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    for engine in ["preload", "ptrace"] {
        let ran = as_nobody(&[VMM, "observe", "--engine", engine, "--", setuid.to_str().unwrap()]);
        assert_eq!(ran.status, 116, "{engine}: {}", ran.stderr);
        assert!(ran.stderr.contains("it is a setuid or setgid program"), "{engine}: {}", ran.stderr);
    }
    // A program that hides from its user.
    let hidden = compiled("-DMISTAKE_HIDES");
    let sentence =
        "are not known, because it hides its files from other processes of its user (PR_SET_DUMPABLE)";
    let ran = as_nobody(&[VMM, "observe", "--engine", "ptrace", "--", &hidden, "real"]);
    assert!(ran.stderr.contains(sentence) && !ran.stderr.contains("made no VM"), "{}", ran.stderr);
    let ran = as_nobody(&[VMM, "grade", "so2", &hidden]);
    assert!(ran.status == 111 && ran.text().contains(sentence), "{}{}", ran.text(), ran.stderr);
    // A node that only its owner can open.
    let node = PROGRAMS.get_or_init(Files::new).0.path().join("kvm");
    fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = as_nobody(&[VMM, "observe", "--", program(), "plain"]);
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    let remark = "vmm: /dev/kvm cannot be opened here: Permission denied (os error 13): `vmm doctor` names";
    assert!(ran.stderr.contains("made no VM") && ran.stderr.contains(remark), "{}", ran.stderr);
    let ran = as_nobody(&[VMM, "grade", "so2", setuid.to_str().unwrap()]);
    assert_eq!((ran.status, ran.text().as_str()), (116, ""), "{}", ran.stderr);
}
