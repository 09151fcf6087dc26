//! `vmm observe --setup`: the calls that build a machine, in words.
#![allow(clippy::unwrap_used)]

#[path = "support/observed.rs"]
mod observed;
mod support;

use observed::{MACHINES, no_qemu, observe, program, qemu};
use report::SavedProfile;
use serde_json::Value;
use std::fs;
use std::process::ExitCode;
use support::{Files, kvm_test, ran, test_unless};

fn main() -> ExitCode {
    support::watchdog();
    observed::main(vec![
        kvm_test("the_calls_of_a_machine_are_told_in_order", in_order),
        kvm_test("refused_calls_have_a_meaning", refused),
        kvm_test("the_setup_is_shown_if_the_guest_died", dead),
        kvm_test("the_setup_is_shown_if_a_call_failed_before_a_guest_ran", early),
        kvm_test("each_machine_has_its_calls", machines),
        kvm_test("garbage_pointers_are_harmless", pointers),
        kvm_test("a_filter_of_system_calls_hides_no_call", filtered),
        kvm_test("the_setup_of_this_program_is_told", itself),
        kvm_test("the_setup_is_in_the_profile_and_its_reports", saved),
        test_unless(no_qemu, "the_setup_of_qemu_is_told", of_qemu),
    ])
}

/// The lines of the setup, with all addresses of the host replaced.
fn setup(options: &[&str], command: &[&str]) -> Vec<String> {
    let ran = observe(options, command);
    assert_eq!((ran.status, ran.text().as_str()), (0, ""), "{command:?}: {}", ran.stderr);
    let lines = ran.stderr.lines().skip_while(|line| !line.starts_with("vmm: calls on"));
    lines.map(|line| line.trim().split(' ').map(masked).collect::<Vec<_>>().join(" ")).collect()
}

/// A word, or `HOST` for an address of the program.
fn masked(word: &str) -> String {
    let (bare, end) = word.split_at(word.trim_end_matches([';', ',']).len());
    if bare.len() == 14 && bare.starts_with("0x7") { format!("HOST{end}") } else { word.into() }
}

fn assert_has(lines: &[String], expected: &[&str]) {
    for text in expected {
        assert!(lines.iter().any(|line| line == text), "{text:?} is not in {lines:#?}");
    }
}

fn in_order() {
    let lines = setup(&["--setup"], &[program(), "plain"]);
    let words: Vec<_> =
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        words,
        [
            "vmm: calls on /dev/kvm:",
            "KVM_CREATE_VM",
            "KVM_GET_VCPU_MMAP_SIZE: 12 KiB",
            "vmm: calls on VM 1:",
            "KVM_SET_USER_MEMORY_REGION: slot 0: 0x0 to 0xffff (64 KiB) from HOST",
            "KVM_CREATE_VCPU: vCPU 0",
            "vCPU 0: KVM_GET_SREGS",
            "vCPU 0: KVM_SET_SREGS: real mode, CS 0x0",
            "vCPU 0: KVM_SET_REGS: rip 0x1000, rsp 0x0, rflags 0x2",
            "vCPU 0 first entered in real mode, CS 0x0, rip 0x1000, rsp 0x0, rflags 0x2",
            "vCPU 0 was entered without KVM_SET_CPUID2, so CPUID returns zeroes",
            "vmm: memory of VM 1:",
            "first last size host address slot",
            "0x0 - 0xffff 64 KiB HOST 0",
        ]
    );
}

fn refused() {
    assert_has(
        &setup(&["--setup"], &[program(), "mistakes"]),
        &[
            "KVM_SET_USER_MEMORY_REGION: slot 1: 0x20001 to 0x21000 (4 KiB) from HOST; failed, EINVAL: the guest address \
             0x20001 is no multiple of 4096",
            "KVM_SET_USER_MEMORY_REGION: slot 1: 0x8000 to 0x8fff (4 KiB) from HOST; failed, EEXIST: it overlaps slot 0 \
             at 0x0 to 0xffff",
            "KVM_CREATE_VCPU: vCPU 0; failed, EEXIST: the VM has a vCPU with this number already",
            "KVM_CREATE_PIT2; failed, ENOENT: the timer (PIT) needs KVM_CREATE_IRQCHIP first",
            "KVM_SET_REGS; failed, ENOTTY: this is a call on a vCPU",
            "KVM_RUN; failed, ENOTTY: this is a call on a vCPU",
            "vCPU 0: KVM_SET_REGS; failed, EFAULT: the argument is not the address of memory that the program may read \
             and write",
            "vCPU 0: KVM_SET_SREGS: real mode, CS 0x0, paging without protection, which is not allowed; failed, EINVAL: \
             KVM refuses this combination of registers",
            "KVM_GET_API_VERSION; failed, EBADF: the descriptor is not open: did an earlier call fail?",
            "vCPU 0 was entered without KVM_SET_CPUID2, so CPUID returns zeroes",
        ],
    );
}

/// Without `--setup`, it is shown after a death and after a refusal, but not in a run with `--quiet`.
fn dead() {
    let mode = "vCPU 0: KVM_SET_SREGS: protected mode, CPL 0, paging off";
    assert_has(&setup(&[], &[program(), "dies"]), &[mode]);
    let refused = "vCPU 0: KVM_SET_SREGS, 40 times: real mode, CS 0x0, paging without protection, which is not allowed; \
                   failed, EINVAL: KVM refuses this combination of registers";
    assert_has(&setup(&[], &[program(), "refused"]), &[refused]);
    for (options, mode, shown) in
        [(&[][..], "plain", false), (&["-q"], "dies", false), (&["-q", "--setup"], "plain", true)]
    {
        assert_eq!(!setup(options, &[program(), mode]).is_empty(), shown, "{options:?} {mode}");
    }
}

/// The program ended with an error before a guest ran: the call that failed says why.
fn early() {
    let early = |options: &[&str], mode| observe(options, &[program(), mode]);
    for engine in ["preload", "ptrace"] {
        let ran = early(&["--engine", engine], "early");
        assert_eq!(ran.status, 1, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("; failed, EINVAL: the size 0xfff is no multiple of 4096\n"),
            "{}",
            ran.stderr
        );
    }
    // A call on a descriptor that is not open is no call on /dev/kvm for the engine `ptrace`.
    let call = "KVM_CREATE_VM; failed, EBADF: the descriptor is not open: did an earlier call fail?\n";
    let last = "vmm: observed made no VM, and calls to KVM failed (--setup)\n";
    let other = "vmm: observed made no VM: neither it nor a child called KVM_CREATE_VM on /dev/kvm\n";
    for (engine, texts) in [("preload", &[call, last][..]), ("ptrace", &[other])] {
        let ran = early(&["--engine", engine], "not-open");
        assert!(texts.iter().all(|text| ran.stderr.contains(text)), "{engine}: {}", ran.stderr);
    }
    assert_eq!(early(&["-q"], "early").stderr.lines().count(), 1);
}

fn machines() {
    let lines = setup(&["--setup"], &[program(), "vcpus", "32"]);
    assert_has(
        &lines,
        &[
            "KVM_CREATE_VCPU, 25 more",
            "vCPUs 1 to 31: the same calls as vCPU 0",
            "vCPUs 0 to 31 first entered in real mode, CS 0x0, rip 0x1000, rsp 0x0, rflags 0x2",
        ],
    );
    let lines = setup(&["--setup"], &[program(), "reopen"]);
    assert_has(&lines, &["vCPU 1: the same calls as vCPU 0", "vmm: calls on VM 2:", "vmm: memory of VM 2:"]);
    assert!(!lines.iter().any(|line| line.contains("failed")), "{lines:#?}");
    // The process of each machine sees its own numbers, and the child of a fork those of its parent.
    for (mode, vms) in [("fork", 2), ("exec", 2), ("vms", 2), ("map-twice", 1), ("never-map", 1), ("dup", 1)]
    {
        let lines = setup(&["--setup"], &[program(), mode]);
        let count = lines.iter().filter(|line| line.starts_with("vmm: memory of VM")).count();
        assert_eq!(count, vms, "{mode}: {lines:#?}");
    }
    // The first machines are shown.
    let lines = setup(&["--setup"], &[program(), "repeat", "40"]);
    assert_has(&lines, &["vmm: memory of VM 32:", "vmm: and 8 more VMs"]);
}

fn pointers() {
    let lines = setup(&["--setup"], &[program(), "pointers"]);
    assert_has(
        &lines,
        &[
            "KVM_SET_SREGS, 9 times; failed, EINVAL: this is a call on a vCPU",
            "vCPU 0: KVM_SET_SREGS, 9 times; failed, EFAULT: the argument is not the address of memory that the program \
             may read and write",
            "request 0x7fffae99 (KVM_SET_MP_STATE is 0x4004ae99; its structure has 4 bytes, not 16383), 9 times; failed, \
             ENOTTY: KVM does not know this request",
        ],
    );
}

/// Only the registers at the first entry are missing.
fn filtered() {
    for mode in ["filter", "filter-late"] {
        let lines = setup(&["--setup"], &[program(), mode]);
        assert_has(
            &lines,
            &[
                "KVM_SET_USER_MEMORY_REGION: slot 0: 0x0 to 0xffff (64 KiB) from HOST",
                "vCPU 0: KVM_SET_REGS: rip 0x1000, rsp 0x0, rflags 0x2",
            ],
        );
        assert!(!lines.iter().any(|line| line.contains("first entered")), "{lines:#?}");
    }
}

fn itself() {
    let ran = observe(&["--setup"], &[observed::VMM, "run", "--quiet", "--vcpu", "kvm", "hello-kvm"]);
    assert_eq!((ran.status, ran.text().as_str()), (0, "Hello, KVM!"), "{}", ran.stderr);
    for text in [
        "vCPU 0: KVM_SET_SREGS: long mode, CPL 0, paging on, cr3 0x",
        "  vCPU 0 first entered in long mode, CPL 0",
    ] {
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
    }
}

fn of_qemu() {
    let files = Files::new();
    let ran = qemu(&files, MACHINES[0], &mut |command| observe(&["--setup"], command));
    assert_eq!(ran.status, 7, "{}", ran.stderr);
    for text in [
        "KVM_CHECK_EXTENSION, ",
        "  KVM_CREATE_VCPU: vCPU 0\n",
        "vCPU 0: KVM_SET_CPUID2: ",
        "hypervisor KVMKVMKVM",
        "vCPU 0 first entered in real mode, CS 0xf000 with base 0xffff0000, as after reset, rip 0xfff0, ",
        "vmm: memory of VM 1:\n",
        "0xffff0000 - 0xffffffff         64 KiB",
    ] {
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
    }
}

/// With `--setup`, and without it after a death only.
fn saved() {
    let files = Files::new();
    let path = files.0.path().join("profile.json").to_str().unwrap().to_owned();
    let setup = |options: &[&str], mode: &str| {
        observe(&[&["--profile", &format!("json={path}")], options].concat(), &[program(), mode]);
        SavedProfile::read(&fs::read(&path).unwrap()).unwrap().setup
    };
    assert_eq!(setup(&[], "plain"), None);
    assert!(setup(&[], "dies").is_some());
    let saved = setup(&["--setup"], "mistakes").unwrap();
    let call = saved.calls.iter().find(|call| call.call == "KVM_CREATE_PIT2").unwrap();
    assert_eq!((call.vm, call.object.as_str(), call.times), (Some(1), "VM", 1));
    assert_eq!(call.failure.as_deref(), Some("ENOENT: the timer (PIT) needs KVM_CREATE_IRQCHIP first"));
    let slot = &saved.memory[0];
    assert_eq!((slot.vm, slot.slot, slot.first, slot.size), (1, 0, 0, 0x1_0000));
    let entry = "VM 1: vCPU 0 first entered in real mode, CS 0x0, rip 0x1000, rsp 0x0, rflags 0x2.";
    assert!(saved.remarks.iter().any(|remark| remark == entry), "{:?}", saved.remarks);
    let report = |format: &str| ran(&["report", &path, "--format", format]).text();
    let json: Value = serde_json::from_str(&report("json")).unwrap();
    assert_eq!(json["setup"].as_array().unwrap().len(), saved.calls.len());
    assert_eq!(json["memory"][0]["last"], 0xffff);
    assert!(json["notes"].as_array().unwrap().contains(&entry.into()), "{json}");
    let page = report("html");
    assert!(
        page.contains("<h2 id=\"setup-title\">Calls that built the machine</h2>")
            && page.contains("KVM_CREATE_PIT2")
    );
    assert!(report("text").contains("\nMemory of the machine:\n"));
}
