//! A right and a wrong state for each rule about page tables.

use super::*;

const PCIDE: u64 = 1 << 17;
const PML4: u64 = TABLES.0 + PAGE;
const PD: u64 = PML4 + 2 * PAGE;

pub(super) const EXAMPLES: &[Example] = &[
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
        wrong: |case| case.store(PML4, (PML4 + PAGE) | 0x83),
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
    Example {
        rule: "page-size",
        mode: Mode::Long,
        right: |case| case.store(PD + 8, 0x3003),
        wrong: |case| case.store(PD, 3),
        sentence: "PD[0] is 0x3, so it leads to a page table at 0x0: a 2 MiB page needs PS (bit 7)",
    },
];
