//! The mode that registers select, in words (Intel SDM volume 3, sections 2.2 and 4.1.1).

use super::modes::{CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, EFER_LME};
use super::registers::Sregs;

/// Describes the mode of a vCPU, such as `long mode, CPL 0, paging on, cr3 0x200000`.
pub fn summary(sregs: &Sregs) -> String {
    let is_paging = sregs.cr0 & CR0_PG != 0;
    let cr3 = sregs.cr3;
    if sregs.cr0 & CR0_PE == 0 {
        let (selector, base) = (sregs.cs.selector, sregs.cs.base);
        let mut text = match base == u64::from(selector) << 4 {
            true => format!("real mode, CS {selector:#x}"),
            false => format!("real mode, CS {selector:#x} with base {base:#x}"),
        };
        if base == 0xffff_0000 {
            text += ", as after reset";
        }
        return text + if is_paging { ", paging without protection, which is not allowed" } else { "" };
    }
    let cpl = sregs.ss.dpl & 3;
    let is_long = is_paging && sregs.efer & EFER_LMA != 0;
    let mode = match (is_long, sregs.cs.l, sregs.cs.db) {
        (true, 1.., _) => "long mode",
        (true, 0, _) => "long mode with 32-bit code (compatibility mode)",
        (false, _, 0) => "protected mode with 16-bit code",
        (false, ..) => "protected mode",
    };
    if !is_paging {
        let half = if sregs.efer & (EFER_LMA | EFER_LME) == 0 { "" } else { ", EFER.LME set" };
        return format!("{mode}, CPL {cpl}, paging off{half}");
    }
    let tables = match (is_long, sregs.cr4 & CR4_PAE != 0, sregs.cr4 & CR4_LA57 != 0) {
        (true, true, false) => "",
        (true, true, true) => " (5 levels)",
        (true, false, _) => " without CR4.PAE, which is not allowed",
        (false, true, _) => " (PAE)",
        (false, false, _) => " (32-bit tables)",
    };
    let half = if !is_long && sregs.efer & EFER_LME != 0 { ", EFER.LME set but not EFER.LMA" } else { "" };
    format!("{mode}, CPL {cpl}, paging on{tables}, cr3 {cr3:#x}{half}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Gpa;
    use crate::x86::modes::{self, Mode, VcpuIndex};

    fn of(mode: Mode) -> Sregs {
        modes::sregs(mode, Sregs::default(), Gpa(0x1000), VcpuIndex::ALONE)
    }

    #[test]
    fn the_modes_of_own_guests_are_recognised() {
        assert_eq!(summary(&of(Mode::Real)), "real mode, CS 0x0");
        assert_eq!(summary(&of(Mode::Protected)), "protected mode, CPL 0, paging off");
        for (mode, cpl) in [(Mode::Long, 0), (Mode::User, 3)] {
            let sregs = of(mode);
            let expected = format!("long mode, CPL {cpl}, paging on, cr3 {:#x}", sregs.cr3);
            assert_eq!(summary(&sregs), expected);
        }
    }

    #[test]
    fn states_between_two_modes_are_told() {
        let reset = Sregs {
            cs: crate::x86::Segment { base: 0xffff_0000, selector: 0xf000, ..Default::default() },
            ..of(Mode::Real)
        };
        assert_eq!(summary(&reset), "real mode, CS 0xf000 with base 0xffff0000, as after reset");
        let paging = Sregs { cr0: CR0_PG, ..of(Mode::Real) };
        assert_eq!(summary(&paging), "real mode, CS 0x0, paging without protection, which is not allowed");
        let mut long = of(Mode::Long);
        long.cr4 &= !CR4_PAE;
        assert!(summary(&long).contains("paging on without CR4.PAE, which is not allowed"));
        long.cr4 |= CR4_PAE | CR4_LA57;
        assert!(summary(&long).contains("paging on (5 levels)"));
        long.efer &= !EFER_LMA;
        assert!(summary(&long).ends_with("EFER.LME set but not EFER.LMA"), "{}", summary(&long));
        let mut compatibility = of(Mode::Long);
        compatibility.cs.l = 0;
        assert!(summary(&compatibility).starts_with("long mode with 32-bit code"));
        let mut narrow = of(Mode::Protected);
        narrow.cs.db = 0;
        assert_eq!(summary(&narrow), "protected mode with 16-bit code, CPL 0, paging off");
        narrow.cr0 |= CR0_PG;
        narrow.cr3 = 0x3000;
        assert_eq!(
            summary(&narrow),
            "protected mode with 16-bit code, CPL 0, paging on (32-bit tables), cr3 0x3000"
        );
    }
}
