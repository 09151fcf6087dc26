//! A right and a wrong state for each rule about hints.

use super::*;

const PCE: u64 = 1 << 8;
const OSFXSR: u64 = 1 << 9;

pub(super) const EXAMPLES: &[Example] = &[
    Example {
        rule: "osfxsr",
        mode: Mode::Long,
        right: |case| case.sregs.cr4 |= OSFXSR | PCE,
        wrong: |case| case.sregs.cr4 |= PCE,
        sentence: "CR4.OSFXSR is bit 9, not 8: the value sets CR4.PCE",
    },
    Example {
        rule: "cs-reset",
        mode: Mode::Real,
        right: unchanged,
        wrong: |case| case.sregs.cs = reset().cs,
        sentence: "CS.base is 0xffff0000, as after reset: clear CS.base and CS.selector for a real-mode guest at 0x0",
    },
    Example {
        rule: "cs-reset",
        mode: Mode::Protected,
        right: unchanged,
        wrong: |case| case.sregs.cs = reset().cs,
        sentence: "CS.base is 0xffff0000, as after reset: set all segments for protected or long mode",
    },
    Example {
        rule: "real-cs-base",
        mode: Mode::Real,
        right: |case| (case.sregs.cs.base, case.sregs.cs.selector) = (0x1_0000, 0x1000),
        wrong: |case| case.sregs.cs.base = 0x1000,
        sentence: "CS.base is 0x1000 but CS.selector is 0x0, for which it is 0x0 in real mode",
    },
    Example {
        rule: "real-cs-d",
        mode: Mode::Real,
        right: |case| case.sregs.cr0 |= 2,
        wrong: |case| {
            case.sregs.cr0 |= 2;
            case.sregs.cs.db = 1;
        },
        sentence: "CS.D is 1 (32-bit code) but CR0.PE is 0 (real mode): CR0.PE is bit 0, not 1 (MP)",
    },
    Example {
        rule: "limit-in-pages",
        mode: Mode::Protected,
        right: |case| (case.sregs.ds.limit, case.sregs.ds.g) = (0xf_ffff, 0),
        wrong: |case| case.sregs.ds.limit = 0xf_ffff,
        sentence: "DS ends at 0xfffff: its limit is in bytes although DS.G is 1, and 4 GiB is 0xffffffff",
    },
    Example {
        rule: "cs-rpl",
        mode: Mode::User,
        right: unchanged,
        wrong: |case| case.sregs.cs.selector = 0x18,
        sentence: "CS.selector is 0x18, of ring 0, but SS.DPL is 3",
    },
    Example {
        rule: "entry-memory",
        mode: Mode::Real,
        right: |case| case.entry = None,
        wrong: |case| case.entry = Some(Gpa(0x10_0000)),
        sentence: "the entry point 0x100000 is outside of every memory slot",
    },
    Example {
        rule: "entry-zeros",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.store(START.0, 0),
        sentence: "the entry point 0x1000 holds only zeros: was the guest copied there?",
    },
    Example {
        rule: "entry-compatibility",
        mode: Mode::Long,
        // A guest in the middle of its switch to long mode.
        right: |case| (case.sregs.cs.l, case.regs.rip) = (0, 0x1002),
        wrong: |case| (case.sregs.cs.l, case.sregs.cs.db) = (0, 1),
        sentence: "EFER.LMA is 1 but CS.L is 0 at the entry point: the code runs as 32-bit code",
    },
];
