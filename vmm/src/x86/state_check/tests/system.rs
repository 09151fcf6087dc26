//! A right and a wrong state for each rule about TR, LDTR, the tables, RIP, RFLAGS and the APIC.

use super::*;

const VM: u64 = 1 << 17;

pub(super) const EXAMPLES: &[Example] = &[
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
        // After a reset, AMD processors have this type.
        right: |case| case.sregs.tr.type_ = 3,
        wrong: |case| (case.sregs.tr.type_, case.sregs.tr.limit) = (3, 0x2b),
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
];
