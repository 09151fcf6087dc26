//! A right and a wrong state for each rule about CR0, CR3, CR4 and EFER.

use super::*;

const OSFXSR: u64 = 1 << 9;
const PCIDE: u64 = 1 << 17;
const CET: u64 = 1 << 23;
const CD: u64 = 1 << 30;
const NW: u64 = 1 << 29;

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
];
