//! Rules for TR, LDTR, GDTR, IDTR, RIP, RFLAGS and the base of the local APIC.

use super::{Kind, Rule, Snapshot, bit, bits, first_of, is_usable, section};
use crate::x86::probe::walk::{is_64_bit, is_canonical, linear_bits};
use crate::x86::registers::Segment;

/// The types of a task state that a processor runs.
const BUSY_16: u8 = 3;
const BUSY: u8 = 11;
/// The type of an LDT.
const LDT: u8 = 2;
/// The bit of a selector that names the LDT.
const TABLE_INDICATOR: u16 = 4;
/// RFLAGS: bit 1 is one.
const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS: bits 3, 5, 15 and all above 21 are zero.
const RFLAGS_RESERVED: u64 = u64::MAX << 22 | 1 << 15 | 1 << 5 | 1 << 3;
/// IA32_APIC_BASE: bits 0 to 7 and 9.
const APIC_RESERVED: u64 = 0x2ff;
/// IA32_APIC_BASE: the x2APIC mode, and the APIC itself.
const APIC_X2: u64 = 1 << 10;
const APIC_ENABLED: u64 = 1 << 11;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "tr-present",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "TR is usable and present",
        check: tr_present,
    },
    Rule {
        name: "tr-type",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "TR is a busy TSS, in long mode a 64-bit one or that of the reset",
        check: tr_type,
    },
    Rule {
        name: "ldtr-type",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "LDTR is unusable or an LDT",
        check: ldtr_type,
    },
    Rule {
        name: "table-indicator",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "the selectors of TR and LDTR are in the GDT",
        check: table_indicator,
    },
    Rule {
        name: "system-base",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "the bases of TR and LDTR are canonical",
        check: system_base,
    },
    Rule {
        name: "table-base",
        kind: Kind::Refused,
        section: section::TABLES,
        text: "the bases of the GDT and the IDT are canonical",
        check: table_base,
    },
    Rule {
        name: "rip-width",
        kind: Kind::Refused,
        section: section::RIP,
        text: "RIP has 32 bits, except in 64-bit code",
        check: rip_width,
    },
    Rule {
        name: "rip-canonical",
        kind: Kind::Refused,
        section: section::RIP,
        text: "in 64-bit code RIP is canonical",
        check: rip_canonical,
    },
    Rule {
        name: "rflags-one",
        kind: Kind::Refused,
        section: section::RIP,
        text: "bit 1 of RFLAGS is 1 (KVM_SET_REGS sets it)",
        check: rflags_one,
    },
    Rule {
        name: "rflags-reserved",
        kind: Kind::Refused,
        section: section::RIP,
        text: "the other reserved bits of RFLAGS are 0",
        check: rflags_reserved,
    },
    Rule {
        name: "rflags-vm",
        kind: Kind::Refused,
        section: section::RIP,
        text: "RFLAGS.VM needs CR0.PE, and is 0 in long mode",
        check: rflags_vm,
    },
    Rule {
        name: "apic-base",
        kind: Kind::Refused,
        section: section::APIC,
        text: "the reserved bits of IA32_APIC_BASE are 0, and its x2APIC mode needs an APIC that is on",
        check: apic_base,
    },
];

fn tr_present(state: &Snapshot<'_>) -> Option<String> {
    match (state.sregs.tr.unusable, state.sregs.tr.present) {
        (0, 0) => Some("TR is not present (its P is 0): keep the TR of the reset".into()),
        (0, _) => None,
        _ => Some("TR is unusable: keep the TR of the reset".into()),
    }
}

/// True for the TR that AMD processors have after a reset. They run it in long mode, too.
fn is_of_reset(tr: &Segment) -> bool {
    (tr.selector, tr.base, tr.limit) == (0, 0, 0xffff)
}

fn tr_type(state: &Snapshot<'_>) -> Option<String> {
    let Segment { type_, s, .. } = state.sregs.tr;
    match (s, type_ & 0xf) {
        (0, BUSY) => None,
        (0, BUSY_16) if !state.efer(bit::EFER_LMA) || is_of_reset(&state.sregs.tr) => None,
        (0, BUSY_16) => {
            Some("TR has type 0x3, a 16-bit TSS, in long mode, whose busy TSS has type 0xb".into())
        }
        (0, kind) => Some(format!("TR has type {kind:#x}, which is not a busy TSS (0xb)")),
        (_, kind) => Some(format!("TR has S 1 and type {kind:#x}, which is not a busy TSS (0 and 0xb)")),
    }
}

fn ldtr_type(state: &Snapshot<'_>) -> Option<String> {
    let ldt = &state.sregs.ldt;
    let is_ldt = ldt.s == 0 && ldt.type_ & 0xf == LDT;
    (is_usable(ldt) && !is_ldt)
        .then(|| format!("LDTR has S {} and type {:#x}, which is not an LDT (0 and 0x2)", ldt.s, ldt.type_))
}

/// TR, and LDTR if it is usable.
fn system<'a>(state: &'a Snapshot<'_>) -> impl Iterator<Item = (&'static str, &'a Segment)> {
    let ldt = Some(("LDTR", &state.sregs.ldt)).filter(|(_, ldt)| is_usable(ldt));
    [("TR", &state.sregs.tr)].into_iter().chain(ldt)
}

fn table_indicator(state: &Snapshot<'_>) -> Option<String> {
    first_of(system(state), |name, segment| {
        let selector = segment.selector;
        (selector & TABLE_INDICATOR != 0)
            .then(|| format!("{name}.selector is {selector:#x}, which is in the LDT (bit 2 is set)"))
    })
}

fn system_base(state: &Snapshot<'_>) -> Option<String> {
    first_of(system(state), |name, segment| {
        let base = segment.base;
        (!is_canonical(state.sregs, base))
            .then(|| format!("{name}.base is {base:#x}, which is not canonical"))
    })
}

fn table_base(state: &Snapshot<'_>) -> Option<String> {
    let tables = [("GDT", state.sregs.gdt.base), ("IDT", state.sregs.idt.base)];
    let (name, base) = tables.into_iter().find(|(_, base)| !is_canonical(state.sregs, *base))?;
    Some(format!("the {name} is at {base:#x}, which is not canonical"))
}

fn rip_width(state: &Snapshot<'_>) -> Option<String> {
    let rip = state.regs.rip;
    (!is_64_bit(state.sregs) && rip >> 32 != 0)
        .then(|| format!("RIP is {rip:#x}, which has more than 32 bits, and the code is not 64-bit code"))
}

fn rip_canonical(state: &Snapshot<'_>) -> Option<String> {
    let rip = state.regs.rip;
    (is_64_bit(state.sregs) && !is_canonical(state.sregs, rip)).then(|| {
        format!("RIP is {rip:#x}, which is not canonical for {} address bits", linear_bits(state.sregs))
    })
}

fn rflags_one(state: &Snapshot<'_>) -> Option<String> {
    let rflags = state.regs.rflags;
    (rflags & RFLAGS_ONE == 0)
        .then(|| format!("RFLAGS is {rflags:#x}, but its bit 1 is always 1: start with 0x2"))
}

fn rflags_reserved(state: &Snapshot<'_>) -> Option<String> {
    let (rflags, reserved) = (state.regs.rflags, state.regs.rflags & RFLAGS_RESERVED);
    (reserved != 0).then(|| format!("RFLAGS is {rflags:#x}, which sets the reserved {}", bits(reserved)))
}

fn rflags_vm(state: &Snapshot<'_>) -> Option<String> {
    if state.regs.rflags & bit::RFLAGS_VM == 0 {
        return None;
    }
    match (state.efer(bit::EFER_LMA), state.cr0(bit::CR0_PE)) {
        (true, _) => Some("RFLAGS.VM is 1 in long mode, which has no virtual-8086 mode".into()),
        (false, false) => Some("RFLAGS.VM is 1 but CR0.PE is 0".into()),
        (false, true) => None,
    }
}

fn apic_base(state: &Snapshot<'_>) -> Option<String> {
    let base = state.sregs.apic_base;
    let reserved = base & (APIC_RESERVED | state.above_physical());
    if reserved != 0 {
        return Some(format!("IA32_APIC_BASE is {base:#x}, which sets the reserved {}", bits(reserved)));
    }
    (base & APIC_X2 != 0 && base & APIC_ENABLED == 0).then(|| {
        format!("IA32_APIC_BASE is {base:#x}: x2APIC mode (bit 10) while the APIC is off (bit 11 is 0)")
    })
}
