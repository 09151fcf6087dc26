//! Guests of other programs, of which only the registers and the memory are known.

use super::*;
use crate::memory::ReadMemory;
use crate::x86::registers::Segment;
use std::cell::Cell;

/// Memory from address 0 that is not mapped by this library. It counts the reads.
struct Bytes {
    bytes: Vec<u8>,
    reads: Cell<u32>,
}

impl ReadMemory for Bytes {
    fn read(&self, start: Gpa, data: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        let from = usize::try_from(start.0).ok().and_then(|start| self.bytes.get(start..));
        let Some(from) = from.and_then(|from| from.get(..data.len())) else { return false };
        data.copy_from_slice(from);
        true
    }
}

/// The tables are at 0x8000.
const ROOT: u64 = 0x8000;

/// A guest of another program in this mode, with its code at 0x1000.
struct Foreign {
    memory: Bytes,
    regs: Regs,
    sregs: Sregs,
    entry: Option<Gpa>,
    kind: DeathKind,
}

impl Foreign {
    fn new(mode: Mode, code: &[u8]) -> Self {
        let mut bytes = vec![0; 0x10_0000];
        let tables = Gpa(ROOT + PAGE);
        let map = modes::bytes(&modes::identity_map(tables));
        let from = tables.0 as usize;
        bytes[from..from + map.len()].copy_from_slice(&map);
        bytes[0x1000..0x1000 + code.len()].copy_from_slice(code);
        let mut sregs = modes::sregs(mode, Sregs::default(), Gpa(ROOT), modes::VcpuIndex::ALONE);
        (sregs.tr.type_, sregs.tr.present) = (0xb, 1);
        let regs = Regs { rip: 0x1000, rsp: 0xfff0, rflags: 2, ..Default::default() };
        let memory = Bytes { bytes, reads: Cell::new(0) };
        Self { memory, regs, sregs, entry: Some(Gpa(0x1000)), kind: DeathKind::Fault }
    }

    /// A guest in real mode, whose segments other than CS are as KVM resets them to.
    fn reset(code: &[u8]) -> Self {
        let mut guest = Self::new(Mode::Real, code);
        let data = Segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Segment::default() };
        let sregs = &mut guest.sregs;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cs = Segment { base: 0xffff_0000, selector: 0xf000, type_: 0xb, ..data };
        (sregs.ldt, sregs.tr) = (Segment { type_: 2, s: 0, ..data }, Segment { type_: 0xb, s: 0, ..data });
        guest
    }

    fn explain(&self) -> Explanation {
        let Self { regs, sregs, memory, entry, kind } = self;
        let vcpu = DeadVcpu { kind: *kind, regs, sregs, memory: Some(memory), entry: *entry };
        let explanation = Explanation::of(&vcpu);
        assert!(memory.reads.replace(0) < 2000, "the memory is read a bounded number of times");
        explanation
    }

    fn cause(&self) -> String {
        self.explain().suspicion().unwrap_or("none").into()
    }
}

/// UD2, and HLT.
const UNDEFINED: &[u8] = &[0x0f, 0x0b];
const HLT: &[u8] = &[0xf4];

#[test]
fn a_fault_is_explained_with_its_missing_handler() {
    let mut guest = Foreign::new(Mode::Long, UNDEFINED);
    guest.sregs.idt.base = 0x2000;
    let text = |guest: &Foreign| guest.explain().to_string();
    assert_eq!(guest.cause(), "#UD: an undefined instruction");
    assert!(text(&guest).contains("  instruction  0f 0b  ud2\n"), "{}", text(&guest));
    const PLACE: &str = "  handler      none: the IDT at 0x2000, with the limit ";
    let past = format!("{PLACE}0x0, has no gate for #UD (vector 6): its entry is past the limit\n");
    assert!(text(&guest).contains(&past), "{}", text(&guest));
    guest.sregs.idt.limit = 0x6f;
    let absent = format!("{PLACE}0x6f, has no gate for #UD (vector 6): its entry at 0x2060 is empty\n");
    assert!(text(&guest).contains(&absent), "{}", text(&guest));
    guest.memory.bytes[0x2065] = 0x8e;
    assert!(!text(&guest).contains("handler"), "{}", text(&guest));
    guest.sregs.idt.base = 0x20_0000;
    assert!(text(&guest).contains("its entry at 0x200060 is not in memory\n"), "{}", text(&guest));
    // No exception is known, and none has a gate.
    let guest = Foreign::new(Mode::Long, &[0x90]);
    assert!(
        text(&guest).contains(", with the limit 0x0, has no gate for any exception\n"),
        "{}",
        text(&guest)
    );
}

#[test]
fn the_pastime_of_a_guest_that_makes_no_exit_is_told() {
    let running = |code: &[u8], rip: u64, rflags: u64| {
        let mut guest = Foreign::new(Mode::User, code);
        (guest.kind, guest.regs.rip, guest.regs.rflags) = (DeathKind::Running, rip, rflags);
        guest.cause()
    };
    const JUMP: &str = "an endless loop: the instruction at 0x1000 jumps to itself";
    assert_eq!(running(&[0xeb, 0xfe], 0x1000, 2), JUMP);
    // jne $
    assert_eq!(running(&[0x75, 0xfe], 0x1000, 2), JUMP);
    assert_eq!(running(&[0xf4, 0x90], 0x1001, 0x202), "it has halted, and waits for an interrupt");
    assert_eq!(running(&[0xf4, 0x90], 0x1001, 2), "it has halted with interrupts off");
    assert_eq!(running(&[0x90, 0xeb, 0xfd], 0x1001, 2), "none");
    let mut guest = Foreign::new(Mode::Long, &[0xeb, 0xfe]);
    guest.kind = DeathKind::Running;
    guest.sregs.cr3 = 0x4000_0000;
    let told = guest.cause();
    assert!(told.starts_with("CR3 is 0x40000000, which is outside of every memory slot ("), "{told}");
    assert!(told.ends_with("): some hosts repeat this access for ever"), "{told}");
    assert!(!guest.explain().to_string().contains("broken rule"), "the processor has taken the state");
}

#[test]
fn mistakes_of_the_setup_come_before_weak_signs() {
    let reset = Foreign::reset(HLT);
    let cause =
        "CS.base is 0xffff0000, as after reset: clear CS.base and CS.selector for a real-mode guest at 0x0";
    assert!(reset.cause().starts_with(cause), "{}", reset.cause());

    let zeros = Foreign::new(Mode::Long, &[]);
    let cause = "the entry point 0x1000 holds only zeros: was the guest copied there? (KVM api.rst, ";
    assert!(zeros.cause().starts_with(cause), "{}", zeros.cause());

    let mut outside = Foreign::new(Mode::Long, HLT);
    outside.sregs.cr3 = 0x20_0000;
    assert!(outside.cause().starts_with("CR3 is 0x200000, which is outside of every memory slot ("));
    let mut outside = Foreign::new(Mode::Long, HLT);
    outside.memory.bytes[ROOT as usize + 0x1000..][..8].copy_from_slice(&0x20_0003u64.to_le_bytes());
    let cause = "PML4[0] is 0x200003, which points outside of every memory slot (";
    assert!(outside.cause().starts_with(cause), "{}", outside.explain());

    // An instruction that surely faults is a strong sign. The rule has a line.
    let mut both = Foreign::new(Mode::Long, UNDEFINED);
    both.sregs.cs.db = 1;
    assert_eq!(both.cause(), "#UD: an undefined instruction");
    assert!(both.explain().to_string().contains("  broken rule  CS.L and CS.D are both 1"));
    assert_eq!(both.explain().findings()[0].rule.name, "cs-l-and-d");
}

/// The firmware of a VMM begins as after a reset.
#[test]
fn a_vmm_with_firmware_means_the_segment_of_the_reset() {
    let mut guest = Foreign::reset(UNDEFINED);
    // The address wraps to 0x1000.
    guest.regs.rip = 0x1_1000;
    assert_eq!(guest.cause(), "#UD: an undefined instruction");
    assert!(guest.explain().findings().is_empty());
}

#[test]
fn refused_registers_show_no_code() {
    let mut guest = Foreign::new(Mode::Long, UNDEFINED);
    guest.kind = DeathKind::Refused;
    guest.sregs.cr0 &= !modes::CR0_PG;
    guest.entry = Some(Gpa(0x5000));
    assert_eq!(guest.cause(), "EFER.LMA is 1 but CR0.PG is 0 (Intel SDM vol. 3, 28.3.1.1)");
    let text = guest.explain().to_string();
    assert_eq!(text.lines().count(), 2, "only the system registers, and no hint: {text}");
    assert!(text.starts_with("  rflags 2  cr0 "), "{text}");
    guest.sregs.cr0 |= modes::CR0_PG;
    assert_eq!(guest.cause(), "none");
    guest.sregs.efer &= !modes::EFER_LMA;
    let names: Vec<_> = guest.explain().findings().iter().map(|finding| finding.rule.name).collect();
    assert_eq!(names, ["cs-l-without-lma"], "the tables are not checked as those of PAE paging");
    assert_eq!(guest.cause(), "EFER.LME is 1 and CR0.PG is 1 but EFER.LMA is 0 (Intel SDM vol. 3, 28.3.1.1)");
}

#[test]
fn a_failed_entry_is_the_fault_of_the_state() {
    let mut guest = Foreign::new(Mode::Long, UNDEFINED);
    guest.kind = DeathKind::Entry;
    guest.sregs.ss.dpl = 3;
    assert!(guest.cause().starts_with("CS.DPL is "), "{}", guest.cause());
    assert!(guest.explain().to_string().contains("  instruction  0f 0b  ud2"));
}

/// The start of a guest whose state at its death is lost: its instruction there says nothing.
#[test]
fn the_start_is_checked_if_the_state_is_lost() {
    let mut guest = Foreign::new(Mode::Long, UNDEFINED);
    guest.kind = DeathKind::Lost;
    assert_eq!(guest.cause(), "none");
    guest.sregs.cr3 = 0x20_0000;
    let text = guest.explain().to_string();
    assert!(guest.cause().starts_with("CR3 is 0x200000, which is outside"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn without_memory_only_the_registers_are_checked() {
    let Foreign { regs, mut sregs, .. } = Foreign::new(Mode::Long, UNDEFINED);
    for kind in [DeathKind::Fault, DeathKind::Entry, DeathKind::Lost, DeathKind::Unknown] {
        let entry = Some(Gpa(0x1000));
        let explain = |sregs: Sregs| {
            Explanation::of(&DeadVcpu { kind, regs: &regs, sregs: &sregs, memory: None, entry })
        };
        let explanation = explain(sregs);
        assert_eq!((explanation.suspicion(), explanation.findings().len()), (None, 0), "{kind:?}");
        let text = explanation.to_string();
        assert!(!text.contains("mapping") && !text.contains("stack"), "{text}");
        assert_eq!(text.contains("rax 0"), kind != DeathKind::Lost, "{text}");
        sregs.cs.db = 1;
        let text = format!("{:?}{}", explain(sregs).suspicion(), explain(sregs));
        assert!(text.contains("CS.L and CS.D are both 1"), "{kind:?}: {text}");
        sregs.cs.db = 0;
    }
}

/// This machine's ports and pages of documentation are not those of another program.
#[test]
fn another_vmm_has_other_ports() {
    let mut vmcall = Foreign::new(Mode::Long, &[0x0f, 0x01, 0xc1]);
    assert_eq!(vmcall.cause(), "#UD: vmcall is not the hypercall instruction of this host");
    vmcall.memory.bytes[0x1000] = 0xf4;
    (vmcall.sregs.cs.selector, vmcall.sregs.cs.dpl) = (0x1b, 3);
    (vmcall.sregs.ss.selector, vmcall.sregs.ss.dpl) = (0x23, 3);
    assert_eq!(vmcall.cause(), "#GP: a privileged instruction in ring 3");
}

#[test]
fn any_memory_and_registers_are_explained() {
    use DeathKind::{Entry, Fault, Lost, Refused, Unknown};
    for fill in [0, 0xff, 0x67] {
        for kind in [Fault, Entry, Refused, Lost, Unknown] {
            for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
                for value in [0, 0xf_ffff, u64::MAX, 1 << 47] {
                    let mut guest = Foreign::new(mode, &[]);
                    guest.memory.bytes.fill(fill);
                    (guest.kind, guest.entry) = (kind, Some(Gpa(value)));
                    (guest.regs.rip, guest.regs.rsp, guest.sregs.cr3) = (value, value, value);
                    (guest.sregs.cs.base, guest.sregs.ss.base) = (value, value);
                    (guest.sregs.idt.base, guest.sregs.gdt.base) = (value, value);
                    let _ = guest.explain().to_string();
                }
            }
        }
    }
}
