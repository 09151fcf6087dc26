//! Guests that die in a state with a mistake, which a controller has set: the explanation names the broken rule. Also, states
//! that KVM refuses.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use std::time::Duration;
use support::assembler::{CodeAssembler, IcedError, al, assemble, qword_ptr, rax, rsp, xmm0};
use support::{Files, each_on_both, kvm_test, machine_test, plain_test, ran, run_machine};
use vmm::boot::Image;
use vmm::controller::{ExitController, VcpuState};
use vmm::exit::{Exit, Outcome, Stop};
use vmm::memory::{Gpa, PAGE_TABLES};
use vmm::x86::state_check::{Rule, rules};
use vmm::x86::{Mode, Regs, Sregs};
use vmm::{Machine, Report};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests = vec![
        plain_test("the_documentation_lists_every_rule", documented_rules),
        machine_test("an_entry_point_of_zeros_is_named", zeros),
        kvm_test("registers_that_kvm_refuses_are_explained", refused),
    ];
    tests.extend(each_on_both(&[
        ("a_failed_entry_names_the_broken_rules", failed_entry),
        ("a_failed_entry_without_a_broken_rule_is_not_explained", failed_entry_without_a_cause),
        ("a_bit_beside_the_right_one_is_named", off_by_one),
        ("a_page_table_outside_of_memory_is_named", table_outside),
        ("the_mapping_is_not_told_twice", mapping_told_once),
        ("a_timeout_is_not_a_broken_rule", timeout),
        ("random_guests_break_no_rule", random_guests),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Port of the exit at which the controller changes the state.
const PORT: u16 = 0x42;

type Payload = fn(&mut CodeAssembler) -> Result<(), IcedError>;
type Change = fn(&mut Regs, &mut Sregs);

/// A controller that changes the state at the write to [`PORT`], and then returns what `outcome` makes.
struct Saboteur {
    change: Change,
    outcome: fn() -> Outcome,
}

impl ExitController for Saboteur {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        if !matches!(exit, Exit::PioOut { port: PORT, .. }) {
            return Outcome::Unclaimed;
        }
        let (mut regs, mut sregs) = (vcpu.regs().unwrap(), vcpu.sregs().unwrap());
        (self.change)(&mut regs, &mut sregs);
        match vcpu.set_regs(&regs).and_then(|()| vcpu.set_sregs(&sregs)) {
            Ok(()) => (self.outcome)(),
            Err(error) => Outcome::failed(error),
        }
    }
}

/// Runs a guest in long mode that writes to [`PORT`], where the controller changes its state, and then goes on with `rest`.
fn run_changed(rest: Payload, change: Change, outcome: fn() -> Outcome) -> Report {
    let code = assemble(64, 0x1000, |code| {
        code.out(u32::from(PORT), al)?;
        rest(code)
    });
    let image = Image::flat(code, Mode::Long, Gpa(0x1000)).unwrap();
    let builder = Machine::builder(image).timeout(Some(Duration::from_millis(500)));
    run_machine(builder.controller(move |_| Saboteur { change, outcome })).0
}

/// The lines of the explanation that name broken rules.
fn broken(report: &Report) -> Vec<String> {
    let text = report.explanation.as_ref().expect("the host tells the state").to_string();
    let lines = text.lines().filter(|line| ["  broken rule  ", "  hint         "].contains(&&line[..15]));
    lines.map(|line| line[2..].into()).collect()
}

fn fail() -> Outcome {
    Outcome::Stop(Stop::FailedEntry(0x8000_0021))
}

/// The first rule is the probable cause, and the others have a line each.
fn failed_entry() {
    let report = run_changed(
        CodeAssembler::hlt,
        |_, sregs| {
            sregs.cs.db = 1;
            sregs.ldt.present = 1;
            (sregs.ldt.unusable, sregs.ldt.s, sregs.ldt.type_) = (0, 0, 2);
            sregs.ldt.selector = 4;
            sregs.cr3 |= 0x800;
            // No hint: the guest did not execute an SSE instruction.
            sregs.cr4 |= 1 << 8;
        },
        fail,
    );
    assert_eq!(
        report.suspicion(),
        Some("CS.L and CS.D are both 1: 64-bit code has CS.D 0 (Intel SDM vol. 3, 28.3.1.2)")
    );
    assert_eq!(
        broken(&report),
        [
            "broken rule  LDTR.selector is 0x4, which is in the LDT (bit 2 is set) (Intel SDM vol. 3, 28.3.1.2)",
            "hint         CR3 is 0xfffc1800, but the first table begins at 0xfffc1000: it is a page (Intel SDM vol. 3, 2.5)",
        ]
    );
}

fn failed_entry_without_a_cause() {
    let report = run_changed(CodeAssembler::hlt, |_, _| {}, fail);
    assert_eq!((report.suspicion(), broken(&report).len()), (None, 0));
}

/// The VMM means to switch SSE on, and sets the bit beside.
fn off_by_one() {
    let report =
        run_changed(|code| code.xorps(xmm0, xmm0), |_, sregs| sregs.cr4 |= 1 << 8, || Outcome::Resume);
    assert!(matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_)), "{report:?}");
    if report.explanation.is_none() {
        return; // The host has reset the vCPU.
    }
    let told = report.cause().or(report.suspicion()).unwrap();
    assert!(told.starts_with("#UD: SSE is not enabled (CR4.OSFXSR is 0)"), "{told}");
    let hint = "hint         CR4.OSFXSR is bit 9, not 8: the value sets CR4.PCE (Intel SDM vol. 3, 2.5)";
    assert_eq!(broken(&report), [hint]);
}

/// Stores a page-table entry of the guest, in 64-bit code.
fn store(code: &mut CodeAssembler, at: u64, entry: u64) -> Result<(), IcedError> {
    code.mov(rax, entry)?;
    code.mov(qword_ptr(at), rax)
}

/// The stack is in the second entry of the first table, whose next table is nowhere.
fn table_outside() {
    let rest: Payload = |code| {
        store(code, PAGE_TABLES.0 + 8, 0x20_0003)?;
        code.mov(rsp, 1u64 << 39 | 0x1000)?;
        code.push(rax)
    };
    let report = run_changed(rest, |_, _| {}, || Outcome::Resume);
    assert!(matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_)), "{report:?}");
    if report.explanation.is_none() {
        return; // The host has reset the vCPU.
    }
    let hint =
        "hint         PML4[1] is 0x200003, which points outside of every memory slot (Intel SDM vol. 3, 5.2)";
    assert_eq!(broken(&report), [hint]);
}

/// The mapping of the instruction says already that there is no table.
fn mapping_told_once() {
    let report = run_changed(CodeAssembler::nop, |_, sregs| sregs.cr3 = 0x20_0000, || Outcome::Resume);
    assert!(matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_)), "{report:?}");
    let Some(explanation) = &report.explanation else { return };
    let text = explanation.to_string();
    assert!(text.contains("its PML4 entry would be at 0x200000, where there is no memory"), "{text}");
    assert_eq!(broken(&report), [""; 0]);
}

/// A guest that loops has not died of its state.
fn timeout() {
    let rest: Payload = |code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.jmp(again)
    };
    let report = run_changed(rest, |_, sregs| sregs.cr4 |= 1 << 8, || Outcome::Resume);
    assert!(matches!(report.stop, Stop::Timeout(_)), "{report:?}");
    assert_eq!(broken(&report), [""; 0]);
}

/// Guests of random bytes die in many ways, but the state that they leave is not a mistake of a VMM.
fn random_guests() {
    const ROUNDS: usize = 200;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut deaths = 0;
    for round in 0..ROUNDS {
        let mode = [Mode::Real, Mode::Protected, Mode::Long, Mode::User][round % 4];
        let code: Vec<u8> = (0..8).flat_map(|_| next().to_le_bytes()).collect();
        let image = Image::flat(code.clone(), mode, Gpa(0x1000)).unwrap();
        let report = run_machine(Machine::builder(image).timeout(Some(Duration::from_millis(10)))).0;
        if report.explanation.is_some() {
            assert_eq!(broken(&report), [""; 0], "{mode}: {code:x?}: {report:?}");
        }
        deaths += u32::from(matches!(report.stop, Stop::TripleFault | Stop::EmulationFailure(_)));
    }
    assert!(deaths > 10, "{deaths} of {ROUNDS} guests died");
}

/// The file begins with zeroes. Behind them is an undefined instruction (ud2).
fn zeros() {
    let files = Files::new();
    let file = files.write("zeros", &[&[0; 64][..], &[0x0f, 0x0b]].concat());
    for mode in ["protected", "long"] {
        let ran = ran(&[&format!("{file}@0xff000:{mode}")]);
        let hint = "\n  hint         the entry point 0xff000 holds only zeros: was the guest copied there? (KVM api.rst, ";
        let named = ran.stderr.contains(hint);
        let is_lost = ran.stderr.contains("this host resets a vCPU");
        assert!(is_lost || named, "{mode}: {}", ran.stderr);
    }
}

/// The controller gets the rules with the error, and so does the report of the run that it fails.
fn refused() {
    let message =
        |change: Change| run_changed(CodeAssembler::hlt, change, || Outcome::Resume).stop.to_string();
    const FAILED: &str = "an exit controller failed: KVM_SET_SREGS failed: Invalid argument (os error 22)";
    let no_paging = message(|_, sregs| sregs.cr0 &= !(1 << 31));
    assert_eq!(no_paging, format!("{FAILED}: EFER.LMA is 1 but CR0.PG is 0 (Intel SDM vol. 3, 28.3.1.1)"));
    let no_pae = message(|_, sregs| sregs.cr4 = 1 << 4);
    assert_eq!(
        no_pae,
        format!(
            "{FAILED}: EFER.LME is 1 and CR0.PG is 1 but CR4.PAE is 0: CR4.PAE is bit 5, not 4 (PSE) (AMD APM vol. 2, 15.5.1)"
        )
    );
    // Two rules.
    let reserved = message(|_, sregs| {
        sregs.cr4 |= 1 << 15;
        sregs.cr0 |= 1 << 32;
    });
    assert!(reserved.starts_with(FAILED) && reserved.contains("upper 32 bits"), "{reserved}");
    assert!(reserved.contains("; CR4 is 0x8020, which sets the reserved bit 15"), "{reserved}");
}

fn documented_rules() {
    let shown: Vec<_> =
        include_str!("../docs/errors.md").lines().filter(|line| line.starts_with("| `")).collect();
    let row = |rule: &Rule| format!("| `{}` | {} | {} | {} |", rule.name, rule.kind, rule.section, rule.text);
    let expected: Vec<_> = rules().map(row).collect();
    let from = shown.iter().position(|line| **line == expected[0]).expect("docs/errors.md has the table");
    assert_eq!(
        shown.get(from..from + expected.len()),
        Some(&expected.iter().map(String::as_str).collect::<Vec<_>>()[..])
    );
    assert!(
        !shown[from + expected.len()..]
            .iter()
            .any(|line| line.contains("| refused |") || line.contains("| hint |"))
    );
}
