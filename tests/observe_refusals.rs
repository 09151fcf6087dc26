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
    for (call, text) in [
        (
            "ptrace",
            "the system does not permit vmm to trace it (ptrace(2)), as in some containers; --engine preload",
        ),
        ("seccomp", "this system permits no seccomp filter, as in some containers"),
        ("pidfd_getfd", "the engine ptrace needs pidfd_getfd(2) and kcmp(2)"),
        ("kcmp", "the engine ptrace needs pidfd_getfd(2) and kcmp(2)"),
    ] {
        let ran = without(call, &["observe", "--engine", "ptrace", "--", "true"]);
        assert_eq!(ran.status, 116, "{call}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{call}: {}", ran.stderr);
        // The other engine needs none of them.
        let ran = without(call, &["observe", "--engine", "preload", "--", "true"]);
        assert_eq!(ran.status, 0, "{call}: {}", ran.stderr);
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
    let ran = as_nobody(&[VMM, "grade", "so2", setuid.to_str().unwrap()]);
    assert_eq!((ran.status, ran.text().as_str()), (116, ""), "{}", ran.stderr);
}
