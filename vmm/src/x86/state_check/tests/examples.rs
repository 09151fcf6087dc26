//! A right and a wrong state for each rule, and the wrong states of students.

use super::Example;
use super::*;

/// CR4: PCE, OSFXSR, PCIDE and CET.
const PCE: u64 = 1 << 8;
const OSFXSR: u64 = 1 << 9;
const PCIDE: u64 = 1 << 17;
const CET: u64 = 1 << 23;
/// CR0: CD and NW.
const CD: u64 = 1 << 30;
const NW: u64 = 1 << 29;
/// RFLAGS: virtual-8086 mode.
const VM: u64 = 1 << 17;
/// The page tables of the state in which a guest starts in long mode.
const PML4: u64 = TABLES.0 + PAGE;
const PD: u64 = PML4 + 2 * PAGE;

/// Virtual-8086 mode, in which all segments begin at 0.
fn virtual_8086(case: &mut Case) {
    case.regs.rflags |= VM;
    let segment = Segment { limit: 0xffff, type_: 3, s: 1, dpl: 3, present: 1, ..Segment::default() };
    let Sregs { cs, ds, es, fs, gs, ss, .. } = &mut case.sregs;
    [cs, ds, es, fs, gs, ss].into_iter().for_each(|register| *register = segment);
}

fn unchanged(_: &mut Case) {}

pub(super) const EXAMPLES: &[Example] = &[
    Example {
        rule: "cr0-high",
        mode: Mode::Protected,
        right: unchanged,
        wrong: |case| case.sregs.cr0 |= 1 << 32,
        sentence: "CR0 is 0x100000033, whose upper 32 bits are not 0: CR0.PG is bit 31, not 32",
    },
    Example {
        rule: "cr0-nw",
        mode: Mode::Real,
        right: |case| case.sregs.cr0 |= CD | NW,
        wrong: |case| case.sregs.cr0 &= !CD,
        sentence: "CR0.NW is 1 but CR0.CD is 0",
    },
    Example {
        rule: "pg-without-pe",
        mode: Mode::Protected,
        right: |case| case.page(false),
        wrong: |case| {
            case.page(false);
            case.sregs.cr0 &= !1;
        },
        sentence: "CR0.PG is 1 but CR0.PE is 0: CR0.PE is bit 0, not 1 (MP)",
    },
    Example {
        rule: "lma-without-pg",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.cr0 ^= modes::CR0_PG,
        sentence: "EFER.LMA is 1 but CR0.PG is 0",
    },
    Example {
        rule: "lma-without-pg",
        mode: Mode::Long,
        right: |case| case.sregs.cr0 |= CD,
        wrong: |case| case.sregs.cr0 ^= modes::CR0_PG | CD,
        sentence: "EFER.LMA is 1 but CR0.PG is 0: CR0.PG is bit 31, not 30 (CD)",
    },
    Example {
        rule: "lma-without-lme",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.efer &= !modes::EFER_LME,
        sentence: "EFER.LMA is 1 but EFER.LME is 0",
    },
    Example {
        rule: "lme-without-lma",
        mode: Mode::Long,
        right: |case| case.sregs.efer |= 1 << 11,
        wrong: |case| case.sregs.efer = modes::EFER_LME | 1 << 11,
        sentence: "EFER.LME is 1 and CR0.PG is 1 but EFER.LMA is 0: EFER.LMA is bit 10, not 11 (NXE)",
    },
    Example {
        rule: "long-without-pae",
        mode: Mode::Long,
        right: |case| case.sregs.cr4 |= modes::CR4_PSE,
        wrong: |case| case.sregs.cr4 = modes::CR4_PSE,
        sentence: "EFER.LME is 1 and CR0.PG is 1 but CR4.PAE is 0: CR4.PAE is bit 5, not 4 (PSE)",
    },
    Example {
        rule: "pcide-without-lma",
        mode: Mode::Protected,
        right: unchanged,
        wrong: |case| case.sregs.cr4 |= PCIDE,
        sentence: "CR4.PCIDE is 1 but EFER.LMA is 0",
    },
    Example {
        rule: "cet-without-wp",
        mode: Mode::Long,
        right: |case| case.sregs.cr4 |= CET,
        wrong: |case| {
            case.sregs.cr4 |= CET;
            case.sregs.cr0 &= !modes::CR0_WP;
        },
        sentence: "CR4.CET is 1 but CR0.WP is 0",
    },
    Example {
        rule: "cr4-reserved",
        mode: Mode::Long,
        right: |case| case.sregs.cr4 |= OSFXSR,
        wrong: |case| case.sregs.cr4 |= 1 << 15 | 1 << 40,
        sentence: "CR4 is 0x10000008020, which sets the reserved bits 15, 40",
    },
    Example {
        rule: "efer-reserved",
        mode: Mode::Protected,
        right: |case| case.sregs.efer = 1,
        wrong: |case| case.sregs.efer = 1 << 9,
        sentence: "EFER is 0x200, which sets the reserved bit 9: EFER.LME is bit 8, not 9",
    },
    Example {
        rule: "efer-reserved",
        mode: Mode::Long,
        right: |case| case.sregs.efer |= 1 << 11,
        wrong: |case| case.sregs.efer |= 1 << 63,
        sentence: "EFER is 0x8000000000000500, which sets the reserved bit 63",
    },
    Example {
        rule: "cr3-width",
        mode: Mode::Long,
        // Linear-address masking.
        right: |case| case.sregs.cr3 |= 1 << 61,
        wrong: |case| case.sregs.cr3 = 1 << 40,
        sentence: "CR3 is 0x10000000000, but a physical address has 40 bits on this processor",
    },
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
    Example {
        rule: "tr-present",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.tr.present = 0,
        sentence: "TR is not present (its P is 0): keep the TR of the reset",
    },
    Example {
        rule: "tr-present",
        mode: Mode::Protected,
        right: unchanged,
        wrong: |case| case.sregs.tr.unusable = 1,
        sentence: "TR is unusable: keep the TR of the reset",
    },
    Example {
        rule: "tr-type",
        mode: Mode::Protected,
        right: |case| case.sregs.tr.type_ = 3,
        wrong: |case| case.sregs.tr.type_ = 9,
        sentence: "TR has type 0x9, which is not a busy TSS (0xb)",
    },
    Example {
        rule: "tr-type",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.tr.type_ = 3,
        sentence: "TR has type 0x3, a 16-bit TSS, in long mode, whose busy TSS has type 0xb",
    },
    Example {
        rule: "tr-type",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.sregs.tr.s = 1,
        sentence: "TR has S 1 and type 0xb, which is not a busy TSS (0 and 0xb)",
    },
    Example {
        rule: "ldtr-type",
        mode: Mode::Long,
        right: |case| (case.sregs.ldt.type_, case.sregs.ldt.present) = (3, 0),
        wrong: |case| case.sregs.ldt.type_ = 3,
        sentence: "LDTR has S 0 and type 0x3, which is not an LDT (0 and 0x2)",
    },
    Example {
        rule: "table-indicator",
        mode: Mode::Long,
        right: |case| case.sregs.tr.selector = 0x28,
        wrong: |case| case.sregs.tr.selector = 0x2c,
        sentence: "TR.selector is 0x2c, which is in the LDT (bit 2 is set)",
    },
    Example {
        rule: "system-base",
        mode: Mode::Long,
        right: |case| case.sregs.tr.base = u64::MAX << 47,
        wrong: |case| case.sregs.ldt.base = 1 << 63,
        sentence: "LDTR.base is 0x8000000000000000, which is not canonical",
    },
    Example {
        rule: "table-base",
        mode: Mode::Long,
        right: |case| case.sregs.idt.base = u64::MAX << 47,
        wrong: |case| case.sregs.idt.base = 1 << 47,
        sentence: "the IDT is at 0x800000000000, which is not canonical",
    },
    Example {
        rule: "rip-width",
        mode: Mode::Protected,
        right: |case| case.regs.rip = 0xffff_ffff,
        wrong: |case| case.regs.rip = 1 << 32,
        sentence: "RIP is 0x100000000, which has more than 32 bits, and the code is not 64-bit code",
    },
    Example {
        rule: "rip-canonical",
        mode: Mode::Long,
        right: |case| case.regs.rip = u64::MAX << 47,
        wrong: |case| case.regs.rip = 1 << 47,
        sentence: "RIP is 0x800000000000, which is not canonical for 48 address bits",
    },
    Example {
        rule: "rflags-one",
        mode: Mode::Real,
        right: unchanged,
        wrong: |case| case.regs.rflags = 0,
        sentence: "RFLAGS is 0x0, but its bit 1 is always 1: start with 0x2",
    },
    Example {
        rule: "rflags-reserved",
        mode: Mode::Real,
        right: |case| case.regs.rflags = 0x24_7fd7,
        wrong: |case| case.regs.rflags = 0x2a,
        sentence: "RFLAGS is 0x2a, which sets the reserved bits 3, 5",
    },
    Example {
        rule: "rflags-vm",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.regs.rflags |= VM,
        sentence: "RFLAGS.VM is 1 in long mode, which has no virtual-8086 mode",
    },
    Example {
        rule: "rflags-vm",
        mode: Mode::Real,
        right: unchanged,
        wrong: |case| case.regs.rflags |= VM,
        sentence: "RFLAGS.VM is 1 but CR0.PE is 0",
    },
    Example {
        rule: "apic-base",
        mode: Mode::Long,
        right: |case| case.sregs.apic_base |= 1 << 10,
        wrong: |case| case.sregs.apic_base = 0xfee0_0400,
        sentence: "IA32_APIC_BASE is 0xfee00400: x2APIC mode (bit 10) while the APIC is off (bit 11 is 0)",
    },
    Example {
        rule: "apic-base",
        mode: Mode::Long,
        right: |case| case.sregs.apic_base = 0,
        wrong: |case| case.sregs.apic_base = 1 << 40 | 1,
        sentence: "IA32_APIC_BASE is 0x10000000001, which sets the reserved bits 0, 40",
    },
    Example {
        rule: "pdpte",
        mode: Mode::Protected,
        right: |case| {
            case.page(true);
            // An entry that is not present may hold anything.
            case.store(0x2008, 0x1e6);
        },
        wrong: |case| {
            case.page(true);
            case.store(0x2018, 0x3003);
        },
        sentence: "PDPT[3] is 0x3003, which sets the reserved bit 1",
    },
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
    Example {
        rule: "cr3-memory",
        mode: Mode::Long,
        right: |case| case.sregs.cr3 |= 0x18,
        wrong: |case| case.sregs.cr3 = 0x20_0000,
        sentence: "CR3 is 0x200000, which is outside of every memory slot",
    },
    Example {
        rule: "cr3-alignment",
        mode: Mode::Long,
        right: |case| {
            case.sregs.cr4 |= PCIDE;
            case.sregs.cr3 |= 1;
        },
        wrong: |case| case.sregs.cr3 |= 0x800,
        sentence: "CR3 is 0xfffc1800, but the first table begins at 0xfffc1000: it is a page",
    },
    Example {
        rule: "table-memory",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.store(PML4, 0x20_0003),
        sentence: "PML4[0] is 0x200003, which points outside of every memory slot",
    },
    Example {
        rule: "entry-reserved",
        mode: Mode::Long,
        right: |case| {
            case.sregs.efer |= 1 << 11;
            case.store(PD + 8, 1 << 63 | 0x20_1083);
            case.regs.rsp = 0x20_1000;
        },
        wrong: |case| {
            case.store(PD + 8, 0x21_0083);
            case.regs.rsp = 0x20_1000;
        },
        sentence: "PD[1] is 0x210083, which sets the reserved bit 16",
    },
    Example {
        rule: "entry-reserved",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.store(PD, 1 << 63 | 0x83),
        sentence: "PD[0] is 0x8000000000000083, which sets NX (bit 63), but EFER.NXE is 0",
    },
    Example {
        rule: "entry-reserved",
        mode: Mode::Long,
        right: unchanged,
        wrong: |case| case.store(PML4, PML4 + PAGE | 0x83),
        sentence: "PML4[0] is 0xfffc2083, which sets the reserved bit 7",
    },
    Example {
        rule: "entry-reserved",
        mode: Mode::Protected,
        right: |case| {
            case.page(false);
            case.store(0x2000, 0x1083);
        },
        wrong: |case| {
            case.page(false);
            case.store(0x2000, 0x20_0083);
        },
        sentence: "PD[0] is 0x200083, which sets the reserved bit 21",
    },
    Example {
        rule: "entry-reserved",
        mode: Mode::Protected,
        right: |case| case.page(true),
        wrong: |case| {
            case.page(true);
            case.store(0x3000, 1 << 40 | 0x83);
        },
        sentence: "PD[0] is 0x10000000083, which sets the reserved bit 40",
    },
];
