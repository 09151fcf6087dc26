//! The rules, each with a right and a wrong state. The files in `tests/` have the states, a file for each file of rules.

mod control;
mod hints;
mod paging;
mod segments;
mod system;

use super::{Finding, Kind, Snapshot, bits, check, rules};
use crate::memory::{Gpa, GuestMemory, PAGE, TABLES, TABLES_SIZE};
use crate::x86::modes::{self, Mode, VcpuIndex};
use crate::x86::registers::{Regs, Segment, Sregs};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A state of a vCPU with its memory.
struct Case {
    regs: Regs,
    sregs: Sregs,
    physical_bits: u32,
    entry: Option<Gpa>,
    memory: GuestMemory,
}

/// The start of the guest's code.
const START: Gpa = Gpa(0x1000);

impl Case {
    /// The state in which a guest of this mode starts, with a HLT at its entry point.
    fn new(mode: Mode) -> Self {
        let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
        memory.write(START, &[0xf4]).unwrap();
        let tables = Gpa(TABLES.0 + PAGE);
        memory.write(tables, &modes::bytes(&modes::identity_map(tables))).unwrap();
        Self {
            regs: modes::regs(mode, START, VcpuIndex::ALONE),
            sregs: modes::sregs(mode, reset(), TABLES, VcpuIndex::ALONE),
            physical_bits: 40,
            entry: Some(START),
            memory,
        }
    }

    /// Writes a 64-bit word of a page table.
    fn store(&self, gpa: u64, value: u64) {
        self.memory.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
    }

    /// 32-bit paging, with page tables of PAE paging if `extended` is set. The tables are at 0x2000.
    fn page(&mut self, extended: bool) {
        self.sregs.cr0 |= modes::CR0_PG;
        self.sregs.cr3 = 0x2000;
        if extended {
            self.sregs.cr4 = modes::CR4_PAE;
            self.store(0x2000, 0x3001);
            self.store(0x3000, 0x83);
        } else {
            self.sregs.cr4 = modes::CR4_PSE;
            self.store(0x2000, 0x83);
        }
    }

    fn check(&self) -> Vec<Finding> {
        check(&Snapshot {
            regs: &self.regs,
            sregs: &self.sregs,
            physical_bits: self.physical_bits,
            entry: self.entry,
            memory: &|gpa, bytes| self.memory.read(gpa, bytes),
        })
    }
}

/// The state after a reset, as KVM has it.
fn reset() -> Sregs {
    let segment = |type_, s| Segment { limit: 0xffff, type_, s, present: 1, ..Segment::default() };
    let (code, data) = (segment(0xb, 1), segment(3, 1));
    Sregs {
        cs: Segment { selector: 0xf000, base: 0xffff_0000, ..code },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(0xb, 0),
        ldt: segment(2, 0),
        cr0: 0x6000_0010,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    }
}

const MODES: [Mode; 4] = [Mode::Real, Mode::Protected, Mode::Long, Mode::User];

/// A right and a wrong state for a rule. Both change the state in which a guest of `mode` starts.
struct Example {
    rule: &'static str,
    mode: Mode,
    right: fn(&mut Case),
    wrong: fn(&mut Case),
    /// The expected sentence.
    sentence: &'static str,
}

fn unchanged(_: &mut Case) {}

fn examples() -> impl Iterator<Item = &'static Example> {
    [control::EXAMPLES, segments::EXAMPLES, system::EXAMPLES, hints::EXAMPLES, paging::EXAMPLES]
        .into_iter()
        .flatten()
}

#[track_caller]
fn assert_right(case: &Case, what: &str) {
    let broken: Vec<_> = case.check().iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{what}: {broken:?}");
}

#[test]
fn the_states_in_which_guests_start_break_no_rule() {
    for mode in MODES {
        assert_right(&Case::new(mode), &mode.to_string());
    }
    let mut linux = Case::new(Mode::Long);
    linux.sregs = modes::linux_sregs(reset(), Mode::Long, TABLES, Gpa(TABLES.0 + PAGE));
    assert_right(&linux, "Linux");
    for extended in [false, true] {
        let mut paged = Case::new(Mode::Protected);
        paged.page(extended);
        assert_right(&paged, "32-bit paging");
    }
}

#[test]
fn every_rule_finds_its_wrong_state_and_no_other() {
    for Example { rule, mode, right, wrong, sentence } in examples() {
        let mut case = Case::new(*mode);
        right(&mut case);
        assert_right(&case, rule);
        let mut case = Case::new(*mode);
        wrong(&mut case);
        let broken = case.check();
        let found = broken.iter().find(|finding| finding.rule.name == *rule);
        assert_eq!(found.map(|finding| finding.sentence.as_str()), Some(*sentence), "{rule}: {broken:?}");
    }
}

#[test]
fn every_rule_has_a_name_and_an_example() {
    let names: Vec<_> = rules().map(|rule| rule.name).collect();
    let unique: BTreeSet<_> = names.iter().copied().collect();
    assert_eq!(unique.len(), names.len());
    let shown: BTreeSet<_> = examples().map(|example| example.rule).collect();
    assert_eq!(shown, unique);
}

#[test]
fn refused_rules_come_first() {
    assert!(rules().is_sorted_by_key(|rule| rule.kind == Kind::Hint));
}

#[test]
fn a_finding_cites_its_section() {
    let mut case = Case::new(Mode::Long);
    case.sregs.cs.db = 1;
    let [finding] = case.check().try_into().unwrap();
    let text = "CS.L and CS.D are both 1: 64-bit code has CS.D 0 (Intel SDM vol. 3, 28.3.1.2)";
    assert_eq!(finding.to_string(), text);
}

/// A VMM in C that sets only the bits that it knows leaves the rest as after the reset.
#[test]
fn the_lists_of_registers_and_bits_are_complete() {
    let mut case = Case::new(Mode::Protected);
    let Sregs { cs, ds, es, fs, gs, ss, .. } = &mut case.sregs;
    [cs, ds, es, fs, gs, ss].into_iter().for_each(|segment| segment.g = 0);
    let [finding] = case.check().try_into().unwrap();
    assert_eq!(
        finding.sentence,
        "CS.limit is 0xffffffff but CS.G is 0, for which 0xfffff is the most; SS, DS, ES, FS and GS are wrong in the same way"
    );
    case.sregs.ss.g = 1;
    case.sregs.ds.g = 1;
    (case.sregs.es.g, case.sregs.fs.g) = (1, 1);
    assert!(case.check()[0].sentence.ends_with("; GS is wrong in the same way"));
    assert_eq!((bits(1 << 63), bits(5)), ("bit 63".into(), "bits 0, 2".into()));
}

proptest! {
    /// A check returns for any registers and any memory.
    #[test]
    fn random_states_never_panic(words in any::<[u64; 24]>(), segment in any::<[u8; 8]>(), bits in any::<u32>()) {
        let [type_, present, dpl, db, s, l, g, unusable] = segment;
        let mut case = Case::new(Mode::Long);
        for (place, word) in (0..0x4000).step_by(8).zip(words.iter().cycle()) {
            case.store(place, word & 0xfff0_0000_0000_3fff);
        }
        let [base, rip, rsp, rflags, cr0, cr3, cr4, efer, apic_base, entry, ..] = words;
        let wild = Segment {
            base, limit: rsp as u32, selector: cr3 as u16, type_, present, dpl, db, s, l, g, avl: 0, unusable,
        };
        (case.regs.rip, case.regs.rsp, case.regs.rflags) = (rip, rsp, rflags);
        let Sregs { cs, ds, ss, tr, ldt, .. } = &mut case.sregs;
        [cs, ds, ss, tr, ldt].into_iter().for_each(|segment| *segment = wild);
        (case.sregs.cr0, case.sregs.cr3, case.sregs.cr4) = (cr0, cr3 & 0x7fff, cr4);
        (case.sregs.efer, case.sregs.apic_base, case.sregs.gdt.base) = (efer, apic_base, base);
        (case.entry, case.physical_bits) = (Some(Gpa(entry)), bits);
        for finding in case.check() {
            prop_assert!(finding.to_string().len() < 600);
        }
        case.sregs.cr3 = cr3;
        case.check();
    }
}
