//! Hints: states that a processor takes, but that no VMM means to set up, and no guest gets into by itself.

use super::segments::real_base;
use super::{Kind, Rule, Snapshot, bit, first_of, is_usable, off_by_one, section};
use crate::x86::probe::walk;

/// CS after a reset.
const RESET_BASE: u64 = 0xffff_0000;
const RESET_SELECTOR: u16 = 0xf000;
/// The largest limit that a descriptor holds, which means 4 GiB there.
const LARGEST_FIELD: u32 = 0xf_ffff;
/// The number of bytes at the entry point that are compared with zero.
const ENTRY_BYTES: usize = 16;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "osfxsr",
        kind: Kind::Hint,
        section: section::CONTROL_REGISTERS,
        text: "CR4.PCE (bit 8) is not set in place of CR4.OSFXSR (bit 9)",
        check: osfxsr,
    },
    Rule {
        name: "cs-reset",
        kind: Kind::Hint,
        section: section::RESET,
        text: "CS does not have the base and the selector that it has after a reset",
        check: cs_reset,
    },
    Rule {
        name: "real-cs-base",
        kind: Kind::Hint,
        section: section::SEGMENT_REGISTERS,
        text: "in real mode the base of CS is 16 times its selector",
        check: real_cs_base,
    },
    Rule {
        name: "real-cs-d",
        kind: Kind::Hint,
        section: section::DESCRIPTORS,
        text: "in real mode CS.D is 0",
        check: real_cs_d,
    },
    Rule {
        name: "limit-in-pages",
        kind: Kind::Hint,
        section: section::DESCRIPTORS,
        text: "in 32-bit code, a flat segment has the limit 0xffffffff, not 0xfffff",
        check: limit_in_pages,
    },
    Rule {
        name: "cs-rpl",
        kind: Kind::Hint,
        section: section::SEGMENT_REGISTERS,
        text: "the RPL of CS is the DPL of SS, which is the CPL",
        check: cs_rpl,
    },
    Rule {
        name: "entry-memory",
        kind: Kind::Hint,
        section: section::SLOTS,
        text: "the entry point is in a memory slot",
        check: entry_memory,
    },
    Rule {
        name: "entry-zeros",
        kind: Kind::Hint,
        section: section::SLOTS,
        text: "the first 16 bytes at the entry point are not all zero",
        check: entry_zeros,
    },
    Rule {
        name: "entry-compatibility",
        kind: Kind::Hint,
        section: section::DESCRIPTORS,
        text: "in long mode, CS.L is 1 at the entry point",
        check: entry_compatibility,
    },
];

fn osfxsr(state: &Snapshot<'_>) -> Option<String> {
    (state.cr4(bit::CR4_PCE) && !state.cr4(bit::CR4_OSFXSR))
        .then(|| "CR4.OSFXSR is bit 9, not 8: the value sets CR4.PCE".into())
}

fn has_cs_of_reset(state: &Snapshot<'_>) -> bool {
    let cs = &state.sregs.cs;
    cs.base == RESET_BASE && cs.selector == RESET_SELECTOR
}

fn cs_reset(state: &Snapshot<'_>) -> Option<String> {
    let advice = match state.cr0(bit::CR0_PE) {
        false => "clear CS.base and CS.selector for a real-mode guest at 0x0",
        true => "set all segments for protected or long mode",
    };
    has_cs_of_reset(state).then(|| format!("CS.base is 0xffff0000, as after reset: {advice}"))
}

fn real_cs_base(state: &Snapshot<'_>) -> Option<String> {
    let cs = &state.sregs.cs;
    // Another rule tells about 32-bit code, which has a descriptor's base.
    let is_real = !state.cr0(bit::CR0_PE) && cs.db == 0 && !has_cs_of_reset(state);
    let is_wrong = is_real && cs.base != real_base(cs);
    is_wrong.then(|| {
        format!(
            "CS.base is {:#x} but CS.selector is {:#x}, for which it is {:#x} in real mode",
            cs.base,
            cs.selector,
            real_base(cs)
        )
    })
}

fn real_cs_d(state: &Snapshot<'_>) -> Option<String> {
    let advice = || off_by_one(state.sregs.cr0, "CR0.PE", 0, &[(1, "MP")]);
    (!state.cr0(bit::CR0_PE) && state.sregs.cs.db != 0)
        .then(|| format!("CS.D is 1 (32-bit code) but CR0.PE is 0 (real mode){}", advice()))
}

fn limit_in_pages(state: &Snapshot<'_>) -> Option<String> {
    if !state.cr0(bit::CR0_PE) || state.efer(bit::EFER_LMA) {
        return None;
    }
    first_of(state.segments(), |name, segment| {
        (is_usable(segment) && segment.limit == LARGEST_FIELD && segment.g != 0).then(|| {
            format!("{name} ends at 0xfffff: its limit is in bytes although {name}.G is 1, and 4 GiB is 0xffffffff")
        })
    })
}

fn cs_rpl(state: &Snapshot<'_>) -> Option<String> {
    let (cs, ss) = (&state.sregs.cs, &state.sregs.ss);
    // After CR0.PE is set, the selector is that of real mode until the first far jump, which has 16-bit code.
    let is_checked = state.cr0(bit::CR0_PE)
        && !state.is_virtual_8086()
        && is_usable(ss)
        && (cs.db != 0 || walk::is_64_bit(state.sregs));
    let rpl = cs.selector & 3;
    (is_checked && rpl != u16::from(ss.dpl))
        .then(|| format!("CS.selector is {:#x}, of ring {rpl}, but SS.DPL is {}", cs.selector, ss.dpl))
}

fn entry_memory(state: &Snapshot<'_>) -> Option<String> {
    let entry = state.entry?;
    (!(state.memory)(entry, &mut [0]))
        .then(|| format!("the entry point {:#x} is outside of every memory slot", entry.0))
}

fn entry_zeros(state: &Snapshot<'_>) -> Option<String> {
    let entry = state.entry?;
    let mut bytes = [0; ENTRY_BYTES];
    ((state.memory)(entry, &mut bytes) && bytes == [0; ENTRY_BYTES])
        .then(|| format!("the entry point {:#x} holds only zeros: was the guest copied there?", entry.0))
}

fn entry_compatibility(state: &Snapshot<'_>) -> Option<String> {
    let (sregs, entry) = (state.sregs, state.entry?);
    let is_compatible = state.efer(bit::EFER_LMA) && sregs.cs.l == 0;
    let linear = walk::linear(sregs, sregs.cs.base, state.regs.rip);
    let is_there =
        || walk::translate(sregs, linear, state.memory, |_| {}).is_ok_and(|place| place.gpa == entry);
    let width = if sregs.cs.db == 0 { 16 } else { 32 };
    (is_compatible && is_there())
        .then(|| format!("EFER.LMA is 1 but CS.L is 0 at the entry point: the code runs as {width}-bit code"))
}
