//! Rules for CR0, CR3, CR4 and EFER.

use super::{Kind, Rule, Snapshot, bit, bits, off_by_one, section};

/// The bits of CR4 that no processor defines.
const CR4_RESERVED: u64 = !0x1_13ff_7fff;
/// The bits of EFER that no processor defines.
const EFER_RESERVED: u64 = !0x0036_fd01;
/// CR3: bits 61 and 62, which switch linear-address masking on.
const CR3_MASKING: u64 = 3 << 61;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "cr0-high",
        kind: Kind::Refused,
        section: section::AMD,
        text: "bits 63 to 32 of CR0 are 0",
        check: cr0_high,
    },
    Rule {
        name: "cr0-nw",
        kind: Kind::Refused,
        section: section::AMD,
        text: "CR0.NW needs CR0.CD",
        check: cr0_nw,
    },
    Rule {
        name: "pg-without-pe",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "CR0.PG needs CR0.PE",
        check: pg_without_pe,
    },
    Rule {
        name: "lma-without-pg",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "EFER.LMA needs CR0.PG",
        check: lma_without_pg,
    },
    Rule {
        name: "lma-without-lme",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "with CR0.PG, EFER.LMA needs EFER.LME",
        check: lma_without_lme,
    },
    Rule {
        name: "lme-without-lma",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "with CR0.PG, EFER.LME needs EFER.LMA",
        check: lme_without_lma,
    },
    Rule {
        name: "long-without-pae",
        kind: Kind::Refused,
        section: section::AMD,
        text: "EFER.LME with CR0.PG needs CR4.PAE",
        check: long_without_pae,
    },
    Rule {
        name: "pcide-without-lma",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "CR4.PCIDE needs EFER.LMA",
        check: pcide_without_lma,
    },
    Rule {
        name: "cet-without-wp",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "CR4.CET needs CR0.WP",
        check: cet_without_wp,
    },
    Rule {
        name: "cr4-reserved",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "the reserved bits of CR4 are 0",
        check: cr4_reserved,
    },
    Rule {
        name: "efer-reserved",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "the reserved bits of EFER are 0",
        check: efer_reserved,
    },
    Rule {
        name: "cr3-width",
        kind: Kind::Refused,
        section: section::CONTROL,
        text: "CR3 has no bits above the physical addresses of the processor",
        check: cr3_width,
    },
];

fn cr0_high(state: &Snapshot<'_>) -> Option<String> {
    let cr0 = state.sregs.cr0;
    let advice =
        if state.cr0(bit::CR0_PG) { String::new() } else { off_by_one(cr0, "CR0.PG", 31, &[(32, "")]) };
    (cr0 >> 32 != 0).then(|| format!("CR0 is {cr0:#x}, whose upper 32 bits are not 0{advice}"))
}

fn cr0_nw(state: &Snapshot<'_>) -> Option<String> {
    (state.cr0(bit::CR0_NW) && !state.cr0(bit::CR0_CD)).then(|| "CR0.NW is 1 but CR0.CD is 0".into())
}

fn pg_without_pe(state: &Snapshot<'_>) -> Option<String> {
    let advice = || off_by_one(state.sregs.cr0, "CR0.PE", 0, &[(1, "MP")]);
    (state.cr0(bit::CR0_PG) && !state.cr0(bit::CR0_PE))
        .then(|| format!("CR0.PG is 1 but CR0.PE is 0{}", advice()))
}

fn lma_without_pg(state: &Snapshot<'_>) -> Option<String> {
    // After a reset, both CD and NW are set.
    let cr0 = if state.cr0(bit::CR0_NW) { 0 } else { state.sregs.cr0 };
    (state.efer(bit::EFER_LMA) && !state.cr0(bit::CR0_PG)).then(|| {
        format!("EFER.LMA is 1 but CR0.PG is 0{}", off_by_one(cr0, "CR0.PG", 31, &[(30, "CD"), (32, "")]))
    })
}

fn lma_without_lme(state: &Snapshot<'_>) -> Option<String> {
    (state.cr0(bit::CR0_PG) && state.efer(bit::EFER_LMA) && !state.efer(bit::EFER_LME))
        .then(|| "EFER.LMA is 1 but EFER.LME is 0".into())
}

fn lme_without_lma(state: &Snapshot<'_>) -> Option<String> {
    let advice = || off_by_one(state.sregs.efer, "EFER.LMA", 10, &[(11, "NXE")]);
    (state.cr0(bit::CR0_PG) && state.efer(bit::EFER_LME) && !state.efer(bit::EFER_LMA))
        .then(|| format!("EFER.LME is 1 and CR0.PG is 1 but EFER.LMA is 0{}", advice()))
}

fn long_without_pae(state: &Snapshot<'_>) -> Option<String> {
    let advice = || off_by_one(state.sregs.cr4, "CR4.PAE", 5, &[(4, "PSE"), (6, "MCE")]);
    (state.efer(bit::EFER_LME) && state.cr0(bit::CR0_PG) && !state.cr4(bit::CR4_PAE))
        .then(|| format!("EFER.LME is 1 and CR0.PG is 1 but CR4.PAE is 0{}", advice()))
}

fn pcide_without_lma(state: &Snapshot<'_>) -> Option<String> {
    (state.cr4(bit::CR4_PCIDE) && !state.efer(bit::EFER_LMA))
        .then(|| "CR4.PCIDE is 1 but EFER.LMA is 0".into())
}

fn cet_without_wp(state: &Snapshot<'_>) -> Option<String> {
    (state.cr4(bit::CR4_CET) && !state.cr0(bit::CR0_WP)).then(|| "CR4.CET is 1 but CR0.WP is 0".into())
}

fn cr4_reserved(state: &Snapshot<'_>) -> Option<String> {
    let (cr4, reserved) = (state.sregs.cr4, state.sregs.cr4 & CR4_RESERVED);
    (reserved != 0).then(|| format!("CR4 is {cr4:#x}, which sets the reserved {}", bits(reserved)))
}

fn efer_reserved(state: &Snapshot<'_>) -> Option<String> {
    let (efer, reserved) = (state.sregs.efer, state.sregs.efer & EFER_RESERVED);
    let advice = match (state.efer(bit::EFER_LME), state.efer(bit::EFER_LMA)) {
        (false, _) => off_by_one(efer, "EFER.LME", 8, &[(7, ""), (9, "")]),
        (true, false) => off_by_one(efer, "EFER.LMA", 10, &[(9, "")]),
        (true, true) => String::new(),
    };
    (reserved != 0).then(|| format!("EFER is {efer:#x}, which sets the reserved {}{advice}", bits(reserved)))
}

fn cr3_width(state: &Snapshot<'_>) -> Option<String> {
    let (cr3, bits) = (state.sregs.cr3, state.physical_bits);
    (cr3 & state.above_physical() & !CR3_MASKING != 0)
        .then(|| format!("CR3 is {cr3:#x}, but a physical address has {bits} bits on this processor"))
}
