//! Rules for the segment registers CS, SS, DS, ES, FS and GS.
//!
//! KVM sets the accessed bit of a type itself, so the rules take types without it.

use super::{Kind, Rule, Snapshot, bit, first_of, is_usable, section};
use crate::x86::probe::walk::is_canonical;
use crate::x86::registers::Segment;

/// The bits of a type: accessed, writable (data) or readable (code), conforming (code), code.
const ACCESSED: u8 = 1;
const READABLE: u8 = 2;
const CONFORMING: u8 = 4;
const CODE: u8 = 8;
/// An expand-up data segment that can be written.
const DATA: u8 = 3;
/// The limits from which, and up to which, the granularity must and may be 4 KiB.
const MIB: u32 = 1 << 20;
const PAGE_OFFSET: u32 = 0xfff;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "v86-segments",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "in virtual-8086 mode each segment has a base of 16 times its selector, the limit 0xffff, type 3 and DPL 3",
        check: virtual_8086,
    },
    Rule {
        name: "cs-present",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "CS is present",
        check: cs_present,
    },
    Rule {
        name: "cs-type",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "CS is a code segment, or a writable data segment as in real mode",
        check: cs_type,
    },
    Rule {
        name: "ss-type",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "SS is a writable data segment",
        check: ss_type,
    },
    Rule {
        name: "data-type",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "DS, ES, FS and GS are segments that can be read",
        check: data_type,
    },
    Rule {
        name: "cs-dpl",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "the DPL of CS fits that of SS",
        check: cs_dpl,
    },
    Rule {
        name: "ss-dpl",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "in real mode the DPL of SS is 0",
        check: ss_dpl,
    },
    Rule {
        name: "cs-l-and-d",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "in long mode CS.L and CS.D are not both 1",
        check: cs_l_and_d,
    },
    Rule {
        name: "cs-l-without-lma",
        kind: Kind::Refused,
        section: section::DESCRIPTORS,
        text: "CS.L needs long mode (KVM_SET_SREGS refuses it)",
        check: cs_l_without_lma,
    },
    Rule {
        name: "granularity",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "G is 1 for limits of 1 MiB and more, and 0 for those that do not end in 0xfff",
        check: granularity,
    },
    Rule {
        name: "segment-base",
        kind: Kind::Refused,
        section: section::SEGMENTS,
        text: "the bases of CS, SS, DS and ES have 32 bits, those of FS and GS are canonical",
        check: base,
    },
];

/// The type, with the bit that KVM sets.
fn kind(segment: &Segment) -> u8 {
    segment.type_ & 0xf | ACCESSED
}

/// The bases in virtual-8086 mode and real mode.
pub(super) fn real_base(segment: &Segment) -> u64 {
    u64::from(segment.selector) << 4
}

fn virtual_8086(state: &Snapshot<'_>) -> Option<String> {
    let is_right = |segment: &Segment| {
        let Segment { base, limit, type_, s, dpl, present, db, l, g, .. } = *segment;
        base == real_base(segment)
            && limit == 0xffff
            && [type_, s, dpl, present, db, l, g] == [DATA, 1, 3, 1, 0, 0, 0]
    };
    let describe = |name: &str, segment: &Segment| {
        let Segment { base, selector, limit, type_, dpl, .. } = *segment;
        (!is_right(segment)).then(|| {
            format!(
                "{name} has base {base:#x}, selector {selector:#x}, limit {limit:#x}, type {type_:#x} and DPL {dpl}, which is \
                 no segment of virtual-8086 mode"
            )
        })
    };
    if state.is_virtual_8086() { first_of(state.segments(), describe) } else { None }
}

/// The state, unless it is in virtual-8086 mode, for which one rule describes all segments.
fn plain<'a, 'b>(state: &'a Snapshot<'b>) -> Option<&'a Snapshot<'b>> {
    (!state.is_virtual_8086()).then_some(state)
}

fn cs_present(state: &Snapshot<'_>) -> Option<String> {
    let cs = &plain(state)?.sregs.cs;
    match (cs.unusable, cs.present) {
        (0, 0) => Some("CS is not present (its P is 0)".into()),
        (0, _) => None,
        _ => Some("CS is unusable".into()),
    }
}

fn cs_type(state: &Snapshot<'_>) -> Option<String> {
    let cs = &plain(state)?.sregs.cs;
    let type_ = cs.type_;
    match (cs.s, kind(cs)) {
        (0, _) => Some(format!("CS is a system segment (its S is 0, its type {type_:#x})")),
        (_, kind) if kind & CODE != 0 || kind == DATA => None,
        _ => Some(format!("CS has type {type_:#x}, which is not a code segment (0xb)")),
    }
}

fn ss_type(state: &Snapshot<'_>) -> Option<String> {
    let ss = &plain(state)?.sregs.ss;
    let is_writable = ss.s != 0 && kind(ss) & (CODE | READABLE) == READABLE;
    (is_usable(ss) && !is_writable).then(|| {
        format!(
            "SS has S {} and type {:#x}, which is not a writable data segment (1 and 0x3)",
            ss.s, ss.type_
        )
    })
}

fn data_type(state: &Snapshot<'_>) -> Option<String> {
    let is_readable =
        |segment: &Segment| segment.s != 0 && (kind(segment) & CODE == 0 || kind(segment) & READABLE != 0);
    let data = plain(state)?.segments().into_iter().skip(2);
    first_of(data, |name, segment| {
        let Segment { s, type_, .. } = segment;
        (is_usable(segment) && !is_readable(segment)).then(|| {
            format!("{name} has S {s} and type {type_:#x}, which cannot be read as data (1 and 0x3)")
        })
    })
}

fn cs_dpl(state: &Snapshot<'_>) -> Option<String> {
    let (cs, ss) = (&plain(state)?.sregs.cs, &state.sregs.ss);
    let fits = match kind(cs) {
        DATA => cs.dpl == 0,
        kind if kind & CONFORMING != 0 => cs.dpl <= ss.dpl,
        _ => cs.dpl == ss.dpl,
    };
    // The DPL of an SS that is unusable is the CPL, which a caller may not know.
    (is_usable(ss) && !fits).then(|| format!("CS.DPL is {} but SS.DPL is {}", cs.dpl, ss.dpl))
}

fn ss_dpl(state: &Snapshot<'_>) -> Option<String> {
    let dpl = state.sregs.ss.dpl;
    (!state.cr0(bit::CR0_PE) && dpl != 0).then(|| format!("SS.DPL is {dpl} but CR0.PE is 0 (real mode)"))
}

fn cs_l_and_d(state: &Snapshot<'_>) -> Option<String> {
    let cs = &state.sregs.cs;
    (state.efer(bit::EFER_LMA) && cs.l != 0 && cs.db != 0)
        .then(|| "CS.L and CS.D are both 1: 64-bit code has CS.D 0".into())
}

fn cs_l_without_lma(state: &Snapshot<'_>) -> Option<String> {
    if state.sregs.cs.l == 0 || state.efer(bit::EFER_LMA) {
        return None;
    }
    let needed = [
        ("EFER.LME", state.efer(bit::EFER_LME)),
        ("EFER.LMA", false),
        ("CR4.PAE", state.cr4(bit::CR4_PAE)),
        ("CR0.PG", state.cr0(bit::CR0_PG)),
        ("CR0.PE", state.cr0(bit::CR0_PE)),
    ];
    let missing: Vec<_> = needed.iter().filter(|(_, is_set)| !is_set).map(|(name, _)| *name).collect();
    Some(format!("CS.L is 1 (64-bit code) outside of long mode, which lacks {}", missing.join(", ")))
}

fn granularity(state: &Snapshot<'_>) -> Option<String> {
    let is_checked = |name: &str, segment: &Segment| name == "CS" || name == "TR" || is_usable(segment);
    let system = [("TR", &state.sregs.tr), ("LDTR", &state.sregs.ldt)];
    let all = plain(state).map(Snapshot::segments).into_iter().flatten().chain(system);
    first_of(all.filter(|(name, segment)| is_checked(name, segment)), |name, segment| {
        let (limit, g) = (segment.limit, segment.g);
        match g {
            0 if limit >= MIB => {
                Some(format!("{name}.limit is {limit:#x} but {name}.G is 0, for which 0xfffff is the most"))
            }
            0 => None,
            _ if limit & PAGE_OFFSET == PAGE_OFFSET => None,
            _ => Some(format!("{name}.G is 1 but {name}.limit is {limit:#x}, which does not end in 0xfff")),
        }
    })
}

fn base(state: &Snapshot<'_>) -> Option<String> {
    first_of(plain(state)?.segments(), |name, segment| {
        let base = segment.base;
        match name {
            "FS" | "GS" => (!is_canonical(state.sregs, base))
                .then(|| format!("{name}.base is {base:#x}, which is not canonical")),
            _ => (base >> 32 != 0 && (name == "CS" || is_usable(segment)))
                .then(|| format!("{name}.base is {base:#x}, which has more than 32 bits")),
        }
    })
}
