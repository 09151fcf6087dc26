//! `vmm observe`: the deaths of guests of a VMM with a mistake (`support/dying.c`), and the registers that KVM refuses.
//!
//! Hosts differ: some refuse a state at KVM_SET_SREGS, some at the entry, and some run the guest, which dies of its next
//! mistake. So the tests look for the sentence about the state.
#![allow(clippy::unwrap_used)]

mod support;

use report::SavedProfile;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use support::{Files, Ran, kvm_test, run};

const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// The folder with the program.
static PROGRAM: OnceLock<Files> = OnceLock::new();
const ENGINES: [&str; 2] = ["preload", "ptrace"];
/// On AMD, the place where a guest died is lost.
const LOST: &str = "at an unknown address, because this host resets a vCPU that triple-faults";

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        kvm_test("each_mistake_has_its_sentence", mistakes),
        kvm_test("each_fault_has_its_cause", faults),
        kvm_test("a_right_guest_does_not_die", right),
        kvm_test("a_death_is_in_the_profile_and_in_the_quiet_summary", files),
        kvm_test("a_guest_that_dies_again_and_again_is_told_once", again),
        kvm_test("our_own_guest_dies_of_the_same", ours),
        kvm_test("a_guest_that_halted_is_doubted", doubts),
        kvm_test("reads_without_an_answer_raise_a_question", unanswered),
        kvm_test("a_guest_that_makes_no_exit_is_looked_at", endless),
    ];
    let conclusion = libtest_mimic::run(&support::arguments(), tests);
    if let Some(program) = PROGRAM.get() {
        let _ = fs::remove_dir_all(program.0.path());
    }
    conclusion.exit_code()
}

/// Observes the program with this mistake.
fn observe(options: &[&str], mistake: &str) -> Ran {
    let folder = PROGRAM.get_or_init(|| {
        let files = Files::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/dying.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Werror", "-o"]).arg(files.0.path().join("dying")).arg(source);
        assert!(gcc.status().is_ok_and(|status| status.success()), "gcc compiles dying.c");
        files
    });
    let limit: &[&str] = if options.contains(&"--timeout") { &[] } else { &["--timeout", "20"] };
    let mut vmm = Command::new(VMM);
    vmm.arg("observe").args(limit).args(options).arg("--").arg(folder.0.path().join("dying")).arg(mistake);
    run(vmm.stdout(Stdio::piped()).env_remove("RUST_LOG"))
}

/// The lines about deaths, without those about exits.
fn deaths(ran: &Ran) -> Vec<&str> {
    ran.stderr.lines().filter(|line| line.starts_with("vmm: dying: vCPU 0: ")).collect()
}

/// Mistakes of the state, which every host tells in some way.
fn mistakes() {
    for (mistake, sentence) in [
        (
            "cs-not-zeroed",
            "probably CS.base is 0xffff0000, as after reset: clear CS.base and CS.selector for a real-mode guest at 0x0",
        ),
        (
            "no-lma",
            "KVM_SET_SREGS failed: Invalid argument (os error 22): EFER.LME is 1 and CR0.PG is 1 but EFER.LMA is 0",
        ),
        ("no-efer", ": CS.L is 1 (64-bit code) outside of long mode, which lacks EFER.LME, EFER.LMA"),
        ("no-pg", "KVM_SET_SREGS failed: Invalid argument (os error 22): EFER.LMA is 1 but CR0.PG is 0"),
        (
            "no-pae",
            "KVM_SET_SREGS failed: Invalid argument (os error 22): EFER.LME is 1 and CR0.PG is 1 but CR4.PAE is 0",
        ),
        ("l-and-d", "CS.L and CS.D are both 1: 64-bit code has CS.D 0"),
        ("cs-type", "CS has type 0x1, which is not a code segment (0xb)"),
        ("ss-dpl", "SS.DPL is 3"),
        ("pml4-outside", "probably PML4[0] is 0x40000003, which points outside of every memory slot"),
        ("no-ps", "PD[0] is 0x3, so it leads to a page table at 0x0: a 2 MiB page needs PS (bit 7)"),
        ("cr3-outside", "probably CR3 is 0x40000000, which is outside of every memory slot"),
        ("zeros", "the entry point 0x8000 holds only zeros: was the guest copied there?"),
        ("no-slot", "probably the VM has no memory slot"),
        ("unmapped", "probably the program has not mapped all of the memory of slot 0: 0x10000 bytes at 0x"),
    ] {
        for engine in ENGINES {
            told(&observe(&["--engine", engine], mistake), mistake, sentence);
        }
    }
}

/// Checks that the death has this sentence. Some hosts never return from KVM_RUN if a page table is nowhere.
fn told(ran: &Ran, mistake: &str, sentence: &str) {
    if ran.status == 114 && ["pml4-outside", "cr3-outside", "no-slot"].contains(&mistake) {
        return;
    }
    assert!([1, 3].contains(&ran.status), "{mistake}: {}: {}", ran.status, ran.stderr);
    assert!(ran.stderr.contains(sentence), "{mistake}: {}", ran.stderr);
    assert_eq!(deaths(ran).len(), 1, "{mistake}: {}", ran.stderr);
}

/// Faults of the code, which a host that resets the vCPU does not tell.
fn faults() {
    for (mistake, cause, detail) in [
        (
            "no-idt",
            "in long mode at 0x8001: probably #UD: an undefined instruction\n  instruction  0f 0b  ud2\n",
            "\n  handler      none: the IDT at 0x0, with the limit 0xffff, has no gate for #UD (vector 6): its entry at 0x60 is \
             empty\n",
        ),
        (
            "jump",
            "in long mode at 0x20000000: probably #PF: the instruction's address is not mapped (a jump to a wrong address, or",
            "\n  mapping      0x20000000 is not mapped: its PD entry at 0x3800 is 0x0\n",
        ),
        (
            "store",
            "in long mode at 0x8000: probably #PF: the operand's address, 0x100000000, is not mapped\n",
            " has no gate for #PF (vector 14): its entry at 0xe0 is empty\n",
        ),
        (
            "osfxsr",
            "in long mode at 0x8000: probably #UD: SSE is not enabled (CR4.OSFXSR is 0)",
            "\n  hint         CR4.OSFXSR is bit 9, not 8: the value sets CR4.PCE (Intel SDM vol. 3, 2.5)\n",
        ),
    ] {
        for engine in ENGINES {
            let ran = observe(&["--engine", engine], mistake);
            assert_eq!((ran.status, deaths(&ran).len()), (3, 1), "{mistake}: {}", ran.stderr);
            if ran.stderr.contains(LOST) {
                assert!(
                    ran.stderr.contains("remark       the registers are those with which"),
                    "{}",
                    ran.stderr
                );
                continue;
            }
            assert!(ran.stderr.contains(cause), "{mistake}: {}", ran.stderr);
            assert!(ran.stderr.contains(detail), "{mistake}: {}", ran.stderr);
        }
    }
}

fn right() {
    for mode in ["none", "real"] {
        let ran = observe(&[], mode);
        assert_eq!((ran.status, deaths(&ran).len()), (0, 0), "{mode}: {}", ran.stderr);
    }
}

fn files() {
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    let ran = observe(&["-q", "--profile", &format!("json={}", path.display())], "cr3-outside");
    let [death] = deaths(&ran)[..] else { panic!("{}", ran.stderr) };
    assert_eq!(ran.stderr.lines().count(), 2, "no table and no details: {}", ran.stderr);
    let profile = SavedProfile::read(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(format!("vmm: dying: vCPU 0: {}", profile.vcpus[0].ended), death);
    assert!(death.contains("probably CR3 is 0x40000000"), "{death}");
}

fn again() {
    let ran = observe(&["-q"], "again");
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    let [death] = deaths(&ran)[..] else { panic!("{}", ran.stderr) };
    assert!(death.ends_with(" (and 100 deaths after it)"), "{death}");
}

/// A guest of this program that dies has the same explanation from outside.
fn ours() {
    let files = Files::new();
    // nop; ud2
    let guest = format!("{}@0x8000:64", files.write("guest", &[0x90, 0x0f, 0x0b]));
    let mut vmm = Command::new(VMM);
    vmm.args(["observe", "-q", "--", VMM, "run", "--vcpu", "kvm", &guest]);
    let ran = run(vmm.stdout(Stdio::piped()).env_remove("RUST_LOG"));
    let ends: Vec<_> = ran.stderr.lines().filter_map(|line| line.split_once(": triple fault")).collect();
    let [(_, own), ("vmm: vmm: vCPU 0", seen)] = ends[..] else { panic!("{}", ran.stderr) };
    // The line of the run has the time behind it.
    assert!(ran.stderr.contains(LOST) || own.starts_with(seen), "{own}\n{seen}");
}

fn doubts() {
    for engine in ENGINES {
        let ran = observe(&["--engine", engine, "-q"], "int10");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let doubt = "vmm: dying: vCPU 0 halted in real mode at 0000:7001; it called int 0x10, which has no handler: its vector is \
                     empty, because its memory has no BIOS\n";
        assert!(ran.stderr.contains(doubt), "{}", ran.stderr);
        let ran = observe(&["--engine", engine, "-q"], "none");
        let doubt = "vmm: dying: vCPU 0 halted in long mode at 0x8001; it had no visible effect: no exit but this one, and no result \
                     at 0x400\n";
        assert!(ran.stderr.contains(doubt), "{}", ran.stderr);
    }
    let files = Files::new();
    let path = files.0.path().join("profile.json");
    observe(&["--profile", &format!("json={}", path.display())], "int10");
    let profile = SavedProfile::read(&fs::read(&path).unwrap()).unwrap();
    let ended = &profile.vcpus[0].ended;
    assert!(ended.starts_with("last exit: HLT, in real mode at 0000:7001; it called int 0x10"), "{ended}");
}

fn unanswered() {
    for engine in ENGINES {
        let ran = observe(&["--engine", engine], "unanswered");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let question = "\nvmm: 12 MMIO reads at 0x10000 got the bytes that were in kvm_run before: does dying answer them?\n";
        assert!(ran.stderr.contains(question), "{}", ran.stderr);
    }
}

/// The program does not end by itself, and its guest makes no exit.
fn endless() {
    for engine in ENGINES {
        let ran = observe(&["--engine", engine, "--timeout", "2"], "loop");
        assert_eq!(ran.status, 114, "{}", ran.stderr);
        assert!(!ran.stderr.contains("Interrupted system call"), "{}", ran.stderr);
        let [stuck] = deaths(&ran)[..] else { panic!("{}", ran.stderr) };
        let (before, after) =
            stuck.split_once(" s without an exit, ").unwrap_or_else(|| panic!("{}", ran.stderr));
        assert!(before.starts_with("vmm: dying: vCPU 0: in KVM_RUN for "), "{stuck}");
        assert_eq!(
            after,
            "in long mode, ring 3, at 0x8000: an endless loop: the instruction at 0x8000 jumps to itself"
        );
        assert!(
            ran.stderr.contains("\n  instruction  eb fe  jmp short 0000000000008000h\n"),
            "{}",
            ran.stderr
        );
    }
}
