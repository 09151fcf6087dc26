//! A right and a wrong state for each rule about the segment registers.

use super::*;

const VM: u64 = 1 << 17;

/// Virtual-8086 mode, in which all segments begin at 0.
fn virtual_8086(case: &mut Case) {
    case.regs.rflags |= VM;
    let segment = Segment { limit: 0xffff, type_: 3, s: 1, dpl: 3, present: 1, ..Segment::default() };
    let Sregs { cs, ds, es, fs, gs, ss, .. } = &mut case.sregs;
    [cs, ds, es, fs, gs, ss].into_iter().for_each(|register| *register = segment);
}

pub(super) const EXAMPLES: &[Example] = &[
    Example {
        rule: "v86-segments",
        mode: Mode::Protected,
        right: virtual_8086,
        wrong: |case| {
            virtual_8086(case);
            case.sregs.cs.selector = 0x100;
        },
        sentence: "CS has base 0x0, selector 0x100, limit 0xffff, type 0x3 and DPL 3, which is no segment of virtual-8086 mode",
    },
    Example {
        rule: "cs-present",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.cs.present = 0,
        sentence: "CS is not present (its P is 0)",
    },
    Example {
        rule: "cs-present",
        mode: Mode::Real,
        right: unchanged,
        wrong: |case| case.sregs.cs.unusable = 1,
        sentence: "CS is unusable",
    },
    Example {
        rule: "cs-type",
        mode: Mode::Protected,
        // As before the first far jump of a switch to protected mode. KVM sets the accessed bit.
        right: |case| case.sregs.cs.type_ = 2,
        wrong: |case| case.sregs.cs.type_ = 7,
        sentence: "CS has type 0x7, which is not a code segment (0xb)",
    },
    Example {
        rule: "cs-type",
        mode: Mode::Long,
        right: |case| case.sregs.cs.type_ = 10,
        wrong: |case| case.sregs.cs.s = 0,
        sentence: "CS is a system segment (its S is 0, its type 0xb)",
    },
    Example {
        rule: "ss-type",
        mode: Mode::Protected,
        right: |case| case.sregs.ss.type_ = 7,
        wrong: |case| case.sregs.ss.type_ = 0xb,
        sentence: "SS has S 1 and type 0xb, which is not a writable data segment (1 and 0x3)",
    },
    Example {
        rule: "data-type",
        mode: Mode::Long,
        right: |case| {
            case.sregs.ds.type_ = 0xb;
            case.sregs.es = Segment { unusable: 1, ..Segment::default() };
        },
        wrong: |case| case.sregs.es.s = 0,
        sentence: "ES has S 0 and type 0x3, which cannot be read as data (1 and 0x3)",
    },
    Example {
        rule: "cs-dpl",
        mode: Mode::User,
        // Conforming code keeps the CPL.
        right: |case| (case.sregs.cs.type_, case.sregs.cs.dpl) = (0xf, 0),
        wrong: |case| case.sregs.cs.dpl = 0,
        sentence: "CS.DPL is 0 but SS.DPL is 3",
    },
    Example {
        rule: "ss-dpl",
        mode: Mode::Real,
        right: unchanged,
        wrong: |case| case.sregs.ss.dpl = 3,
        sentence: "SS.DPL is 3 but CR0.PE is 0 (real mode)",
    },
    Example {
        rule: "cs-l-and-d",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.cs.db = 1,
        sentence: "CS.L and CS.D are both 1: 64-bit code has CS.D 0",
    },
    Example {
        rule: "cs-l-without-lma",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.efer = 0,
        sentence: "CS.L is 1 (64-bit code) outside of long mode, which lacks EFER.LME, EFER.LMA",
    },
    Example {
        rule: "granularity",
        mode: Mode::Protected,
        right: |case| (case.sregs.cs.limit, case.sregs.cs.g) = (0xf_fffe, 0),
        wrong: |case| case.sregs.ds.limit = 0x10_0000,
        sentence: "DS.G is 1 but DS.limit is 0x100000, which does not end in 0xfff",
    },
    Example {
        rule: "granularity",
        mode: Mode::Long,
        right: |case| case.sregs.ldt = Segment { limit: 1 << 20, unusable: 1, ..Segment::default() },
        wrong: |case| case.sregs.tr.limit = 1 << 20,
        sentence: "TR.limit is 0x100000 but TR.G is 0, for which 0xfffff is the most",
    },
    Example {
        rule: "segment-base",
        mode: Mode::Long,
        right: |case| case.sregs.gs.base = u64::MAX << 47,
        wrong: |case| case.sregs.cs.base = 1 << 32,
        sentence: "CS.base is 0x100000000, which has more than 32 bits",
    },
    Example {
        rule: "segment-base",
        mode: Mode::Long,
        right: |case| case.sregs.fs.base = (1 << 47) - 1,
        wrong: |case| case.sregs.fs.base = 1 << 47,
        sentence: "FS.base is 0x800000000000, which is not canonical",
    },
];
